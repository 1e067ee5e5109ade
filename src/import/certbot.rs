//! certbot's `/etc/letsencrypt`: `renewal/NAME.conf` has the settings, `live/NAME/`
//! links to the newest pair below `archive/`, and `accounts/HOST/PATH/ID/` has each
//! account. Its `cli.ini` and the state of its plugins are not read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::lines::{Ini, list};
use super::tree::StateTree;
use super::{
    Found, Http01, ImportedAccount, ImportedCertificate, ImportedKey, IssuingCa, LIVE, Remark,
    RenewalSettings, hook, part,
};
use crate::identifier::Identifier;
use crate::lineage::Lineage;

const SETTINGS: &str = "renewalparams";
const HOOKS: &str = "renewal-hooks";
const ACCOUNT_KEY: &str = "private_key.json";
/// `HOST/PATH/ID`, and a CA's path has a few parts.
const DEEPEST_ACCOUNT: usize = 8;

pub(super) fn read(tree: &StateTree) -> Result<Found, &'static str> {
    if !tree.has_directory("renewal") {
        return Err("renewal/");
    }
    let mut found = Found::default();
    let programs = global_hooks(tree, &mut found.remarks);
    for file in tree.names("renewal") {
        if let Some(name) = file.strip_suffix(".conf") {
            found.certificate(name, certificate(tree, name, &programs));
        }
    }
    for place in tree.directories_with("accounts", ACCOUNT_KEY, DEEPEST_ACCOUNT) {
        if let (Some(name), Some(server)) = (place.file_name(), place.parent()) {
            let name = name.to_string_lossy();
            found.account(&name, account(tree, &place, &name, server));
        }
    }
    Ok(found)
}

fn certificate(
    tree: &StateTree,
    name: &str,
    programs: &[PathBuf],
) -> Result<ImportedCertificate, String> {
    let lineage = Lineage::parse(&name.to_ascii_lowercase()).map_err(|error| error.to_string())?;
    let path = format!("renewal/{name}.conf");
    let text = tree.required(&path)?;
    let ini = Ini::parse(text.expose()).map_err(|why| format!("{path}: {why}"))?;
    let setting = |name: &str| ini.value(SETTINGS, name);
    let server = setting("server").ok_or_else(|| format!("{path}: no server found"))?;
    let live = PathBuf::from("live").join(name);
    let key_pem = tree.required(live.join("privkey.pem"))?;
    let chain_pem = tree.required(live.join("fullchain.pem"))?;
    let mut remarks = Vec::new();
    let mut renewal = renewal(&ini, &mut remarks);
    renewal.programs.extend_from_slice(programs);
    renewal.programs.sort();
    renewal.programs.dedup();
    let place = tree.root.join(&live);
    let text = format!(
        "replace {}/ by {LIVE}/ in their configuration",
        part(&place.to_string_lossy())
    );
    remarks.push(Remark::manual("your servers", text));
    Ok(ImportedCertificate {
        lineage,
        key_pem,
        chain_pem: chain_pem.expose().to_owned(),
        ca: IssuingCa::Directory(server.to_owned()),
        account: setting("account").map(str::to_owned),
        renewal,
        remarks,
    })
}

pub(super) fn renewal(ini: &Ini, remarks: &mut Vec<Remark>) -> RenewalSettings {
    let setting = |name: &str| ini.value(SETTINGS, name);
    let is_on = |name: &str| setting(name) == Some("True");
    let profile = setting("required_profile").or_else(|| setting("preferred_profile"));
    let mut renewal = RenewalSettings {
        http01: http01(ini, remarks),
        reuse_key: is_on("reuse_key"),
        partial: is_on("allow_subset_of_names"),
        preferred_chain: setting("preferred_chain").map(str::to_owned),
        profile: profile.map(str::to_owned),
        nginx: setting("installer") == Some("nginx"),
        programs: Vec::new(),
    };
    for name in ["renew_hook", "deploy_hook"] {
        if let Some(command) = setting(name) {
            hook::add(name, command, &mut renewal, remarks);
        }
    }
    for name in ["pre_hook", "post_hook"] {
        remarks.extend(setting(name).map(|_| hook::around(name)));
    }
    if let Some(other) = setting("installer").filter(|name| *name != "nginx") {
        let text = "certs reloads it through systemd: import again with --deploy systemd:UNIT";
        remarks.push(Remark::unsupported(
            "installer",
            format!("{}: {text}", part(other)),
        ));
    }
    let mut report = |name: &str, is_set: bool, text: &str| {
        remarks.extend(is_set.then(|| Remark::unsupported(name, text)));
    };
    let has_days = ini.value("", "renew_before_expiry").is_some();
    let text = "the CA's renewal window (ARI) or two thirds of the lifetime decide when to renew";
    report("renew_before_expiry", has_days, text);
    let text = "CAs no longer issue certificates with it";
    report("must_staple", is_on("must_staple"), text);
    let is_off = setting("autorenew") == Some("False");
    report(
        "autorenew",
        is_off,
        "certbot did not renew it, but certs will",
    );
    renewal
}

fn http01(ini: &Ini, remarks: &mut Vec<Remark>) -> Option<Http01> {
    let setting = |name: &str| ini.value(SETTINGS, name);
    match setting("authenticator")? {
        "standalone" => {
            let port = setting("http01_port").and_then(|port| port.parse::<u16>().ok());
            let address = setting("http01_address").and_then(|address| address.parse().ok());
            let address = match (address, port) {
                (None, None | Some(80)) => None,
                (address, port) => Some(SocketAddr::new(
                    address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                    port.unwrap_or(80),
                )),
            };
            Some(Http01::Listen(address))
        }
        "webroot" => webroot(ini, remarks),
        "nginx" => {
            let text = "nginx uses port 80: `certs install nginx --domain NAME` lets it answer from a webroot; \
                        then import again with --webroot DIR";
            remarks.push(Remark::manual("authenticator", text).of_challenge());
            None
        }
        other => {
            let is_dns = other.starts_with("dns-");
            remarks.push(Remark::no_solver("authenticator", other, is_dns));
            None
        }
    }
}

fn webroot(ini: &Ini, remarks: &mut Vec<Remark>) -> Option<Http01> {
    let listed = ini.value(SETTINGS, "webroot_path").map(list);
    let mapped = || ini.section("webroot_map");
    let paths = mapped().map(|(_, path)| path);
    let paths: BTreeSet<&str> = paths.chain(listed.unwrap_or_default()).collect();
    let are_absolute = paths.iter().all(|path| Path::new(path).is_absolute());
    let each = mapped().map(|(name, path)| Some((Identifier::parse(name).ok()?, path.into())));
    let each: Option<BTreeMap<Identifier, PathBuf>> = each.collect();
    match Vec::from_iter(paths).as_slice() {
        [only] if are_absolute => Some(Http01::Webroot(only.into())),
        [_, _, ..] if are_absolute && each.as_ref().is_some_and(|each| !each.is_empty()) => {
            each.map(Http01::Webroots)
        }
        several => {
            let text = format!(
                "{} directories, and no absolute one for each name: the renewal will use port 80; import again \
                 with --webroot DIR",
                several.len()
            );
            remarks.push(Remark::unsupported("webroot", text).of_challenge());
            None
        }
    }
}

/// The programs that certbot runs after every renewal.
fn global_hooks(tree: &StateTree, remarks: &mut Vec<Remark>) -> Vec<PathBuf> {
    for around in ["pre", "post"] {
        let directory = format!("{HOOKS}/{around}");
        let is_used = !tree.names(&directory).is_empty();
        remarks.extend(is_used.then(|| hook::around(&directory)));
    }
    let directory = format!("{HOOKS}/deploy");
    let names = tree.names(&directory).into_iter();
    // certbot ignores the backup files of editors, too.
    let names = names.filter(|name| !name.ends_with('~'));
    names
        .map(|name| tree.root.join(&directory).join(name))
        .collect()
}

fn account(
    tree: &StateTree,
    place: &Path,
    name: &str,
    server: &Path,
) -> Result<ImportedAccount, String> {
    let place = Path::new("accounts").join(place);
    let key = tree.required(place.join(ACCOUNT_KEY))?;
    let registered = tree.text(place.join("regr.json"))?;
    let registered: Value = match &registered {
        Some(text) => {
            serde_json::from_str(text.expose()).map_err(|_| "invalid JSON in regr.json")?
        }
        None => Value::Null,
    };
    Ok(ImportedAccount {
        name: name.to_owned(),
        ca: IssuingCa::Directory(format!("https://{}", server.display())),
        key: ImportedKey::Jwk(key),
        url: registered["uri"].as_str().map(str::to_owned),
        email: super::email(&registered["body"]["contact"]),
    })
}

#[cfg(test)]
mod tests;
