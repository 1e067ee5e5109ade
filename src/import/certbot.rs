//! certbot's `/etc/letsencrypt`: `renewal/NAME.conf` has the settings, `live/NAME/`
//! links to the newest pair below `archive/`, and `accounts/HOST/PATH/ID/` has each
//! account. Its `cli.ini` and the state of its plugins are not read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::lines::{Ini, list};
use super::tree::Tree;
use super::{
    Account, AccountKey, Ca, Certificate, Found, LIVE, Proof, Remark, Renewal, Tool, hook,
    not_a_directory_of,
};
use crate::lineage::Lineage;
use crate::text::printable;

const SETTINGS: &str = "renewalparams";
const HOOKS: &str = "renewal-hooks";
/// `HOST/PATH/ID`, and a CA's path has a few parts.
const DEEPEST_ACCOUNT: usize = 8;

pub(super) fn read(tree: &Tree) -> Result<Found, String> {
    if !tree.has_directory("renewal") {
        return Err(not_a_directory_of(Tool::Certbot, tree.root(), "renewal/"));
    }
    let mut found = Found::default();
    let programs = global_hooks(tree, &mut found.remarks);
    for file in tree.names("renewal") {
        let Some(name) = file.strip_suffix(".conf") else {
            continue;
        };
        match certificate(tree, name) {
            Ok(mut certificate) => {
                let own = &mut certificate.renewal.programs;
                own.extend(programs.iter().cloned());
                own.sort();
                own.dedup();
                found.certificates.push(certificate);
            }
            Err(why) => found.remarks.push(Remark::broken(printable(name), why)),
        }
    }
    accounts(tree, &mut found);
    Ok(found)
}

fn certificate(tree: &Tree, name: &str) -> Result<Certificate, String> {
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
    let renewal = renewal(&ini, &mut remarks);
    let place = tree.root().join(&live);
    remarks.push(Remark::by_hand(
        "your servers",
        format!(
            "replace {}/ by {LIVE}/ in their configuration",
            place.display()
        ),
    ));
    Ok(Certificate {
        lineage,
        key_pem,
        chain_pem: chain_pem.expose().to_owned(),
        ca: Ca::Directory(server.to_owned()),
        account: setting("account").map(str::to_owned),
        renewal,
        remarks,
    })
}

pub(super) fn renewal(ini: &Ini, remarks: &mut Vec<Remark>) -> Renewal {
    let setting = |name: &str| ini.value(SETTINGS, name);
    let is_on = |name: &str| setting(name) == Some("True");
    let profile = setting("required_profile").or_else(|| setting("preferred_profile"));
    let mut renewal = Renewal {
        proof: proof(ini, remarks),
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
        if setting(name).is_some() {
            hook::report(name, remarks);
        }
    }
    if let Some(other) = setting("installer").filter(|name| *name != "nginx") {
        let text = format!(
            "{}: certs reloads it through systemd: import again with --deploy systemd:UNIT",
            printable(other)
        );
        remarks.push(Remark::not_taken("installer", text));
    }
    if ini.value("", "renew_before_expiry").is_some() {
        let text =
            "the CA's renewal window (ARI) or two thirds of the lifetime decide when to renew";
        remarks.push(Remark::not_taken("renew_before_expiry", text));
    }
    if is_on("must_staple") {
        let text = "CAs no longer issue certificates with it";
        remarks.push(Remark::not_taken("must_staple", text));
    }
    if setting("autorenew") == Some("False") {
        let text = "certbot did not renew it, but certs will";
        remarks.push(Remark::not_taken("autorenew", text));
    }
    renewal
}

fn proof(ini: &Ini, remarks: &mut Vec<Remark>) -> Option<Proof> {
    let setting = |name: &str| ini.value(SETTINGS, name);
    match setting("authenticator")? {
        "standalone" => {
            let port = setting("http01_port").and_then(|port| port.parse::<u16>().ok());
            let address = setting("http01_address").and_then(|address| address.parse().ok());
            let address = match (address, port) {
                (None, None | Some(80)) => None,
                (address, port) => Some(SocketAddr::new(
                    address.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()),
                    port.unwrap_or(80),
                )),
            };
            Some(Proof::Listen(address))
        }
        "webroot" => webroot(ini, remarks),
        "nginx" => {
            let text = "nginx uses port 80: `certs install nginx --domain NAME` lets it answer from a webroot; \
                        then import again with --webroot DIR";
            remarks.push(Remark::by_hand("authenticator", text));
            None
        }
        other => {
            let other = printable(other);
            let text = match other.strip_prefix("dns-") {
                Some(_) => format!(
                    "{other}: this version does not answer DNS-01: the renewal will use HTTP-01 on port 80, \
                     which cannot validate a wildcard"
                ),
                None => format!(
                    "{other} has no counterpart: the renewal will use HTTP-01 on port 80; import again with \
                     --webroot DIR if another server uses that port"
                ),
            };
            remarks.push(Remark::not_taken("authenticator", text));
            None
        }
    }
}

fn webroot(ini: &Ini, remarks: &mut Vec<Remark>) -> Option<Proof> {
    let mapped = ini.section("webroot_map").map(|(_, path)| path);
    let mut paths: Vec<&str> = mapped.collect();
    paths.extend(
        ini.value(SETTINGS, "webroot_path")
            .map(list)
            .unwrap_or_default(),
    );
    paths.sort_unstable();
    paths.dedup();
    match paths.as_slice() {
        [only] if Path::new(only).is_absolute() => Some(Proof::Webroot(only.into())),
        several => {
            let text = format!(
                "{} directories, but certs uses one absolute path for all names: the renewal will use port 80; \
                 import again with --webroot DIR",
                several.len()
            );
            remarks.push(Remark::not_taken("webroot", text));
            None
        }
    }
}

/// The programs that certbot runs after every renewal.
fn global_hooks(tree: &Tree, remarks: &mut Vec<Remark>) -> Vec<PathBuf> {
    for around in ["pre", "post"] {
        let directory = format!("{HOOKS}/{around}");
        if !tree.names(&directory).is_empty() {
            hook::report(&directory, remarks);
        }
    }
    let directory = format!("{HOOKS}/deploy");
    let names = tree.names(&directory).into_iter();
    // certbot ignores the backup files of editors, too.
    let names = names.filter(|name| !name.ends_with('~'));
    names
        .map(|name| tree.root().join(&directory).join(name))
        .collect()
}

fn accounts(tree: &Tree, found: &mut Found) {
    const KEY: &str = "private_key.json";
    for place in tree.directories_with("accounts", KEY, DEEPEST_ACCOUNT) {
        let (Some(name), Some(server)) = (place.file_name(), place.parent()) else {
            continue;
        };
        let name = name.to_string_lossy().into_owned();
        match account(tree, &place, name.clone(), server) {
            Ok(account) => found.accounts.push(account),
            Err(why) => {
                let subject = format!("account {}", printable(&name));
                found.remarks.push(Remark::broken(subject, why));
            }
        }
    }
}

fn account(tree: &Tree, place: &Path, name: String, server: &Path) -> Result<Account, String> {
    let place = Path::new("accounts").join(place);
    let key = tree.required(place.join("private_key.json"))?;
    let registered = tree.text(place.join("regr.json"))?;
    let registered: Value = match &registered {
        Some(text) => {
            serde_json::from_str(text.expose()).map_err(|_| "invalid JSON in regr.json")?
        }
        None => Value::Null,
    };
    Ok(Account {
        name,
        ca: Ca::Directory(format!("https://{}", server.display())),
        key: AccountKey::Jwk(key),
        url: registered["uri"].as_str().map(str::to_owned),
        email: super::email(&registered["body"]["contact"]),
    })
}

#[cfg(test)]
mod tests;
