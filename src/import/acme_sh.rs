//! acme.sh's `~/.acme.sh`: `NAME/NAME.conf` (`NAME_ecc/` for an ECDSA key) with the
//! pair beside it, and `ca/HOST/PATH/` with each account. Its files are shell code,
//! but they are read as text: nothing in them is run or expanded.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::lines::Assignments;
use super::tree::StateTree;
use super::{
    Found, Http01, ImportedAccount, ImportedCertificate, ImportedKey, IssuingCa, LIVE, Remark,
    RenewalSettings, hook, lineage_of, part,
};
use crate::lineage::Lineage;

const CURVE: &str = "_ecc";
const DEEPEST_ACCOUNT: usize = 6;

pub(super) fn read(tree: &StateTree) -> Result<Found, &'static str> {
    let names = tree.names("");
    let has_settings = |name: &&String| {
        let settings = format!("{}.conf", base_of(name));
        tree.names(name).contains(&settings)
    };
    let certificates: Vec<&String> = names.iter().filter(has_settings).collect();
    if certificates.is_empty() && !tree.has_directory("ca") {
        return Err("ca/ or NAME/NAME.conf");
    }
    let mut found = Found::default();
    let mut servers = BTreeSet::new();
    for name in certificates {
        // RSA and ECDSA of one name are two certificates.
        let base = base_of(name);
        let is_second = base != name && names.iter().any(|one| one == base);
        let one = certificate(tree, name, is_second);
        if let Ok(ImportedCertificate {
            ca: IssuingCa::Directory(url),
            ..
        }) = &one
        {
            servers.insert(url.clone());
        }
        found.certificate(name, one);
    }
    for place in tree.directories_with("ca", "account.key", DEEPEST_ACCOUNT) {
        let name = place.display().to_string();
        found.account(&name, account(tree, &place, &servers));
    }
    Ok(found)
}

fn base_of(directory: &str) -> &str {
    directory.strip_suffix(CURVE).unwrap_or(directory)
}

fn certificate(
    tree: &StateTree,
    directory: &str,
    is_second: bool,
) -> Result<ImportedCertificate, String> {
    let base = base_of(directory);
    let file = |name: &str| Path::new(directory).join(name);
    let conf = tree.required(file(&format!("{base}.conf")))?;
    let conf = Assignments::parse(conf.expose())?;
    let mut lineage = lineage_of(conf.value("Le_Domain").unwrap_or(base))?;
    if is_second {
        let name = format!("{lineage}-ecc");
        lineage = Lineage::parse(&name).map_err(|error| error.to_string())?;
    }
    let server = conf.value("Le_API");
    let server = server.ok_or("its .conf has no Le_API, the URL of the CA")?;
    let mut remarks = Vec::new();
    let renewal = renewal(&conf, &mut remarks);
    Ok(ImportedCertificate {
        lineage,
        key_pem: tree.required(file(&format!("{base}.key")))?,
        chain_pem: tree.required(file("fullchain.cer"))?.expose().to_owned(),
        ca: IssuingCa::Directory(server.to_owned()),
        account: None,
        renewal,
        remarks,
    })
}

pub(super) fn renewal(conf: &Assignments, remarks: &mut Vec<Remark>) -> RenewalSettings {
    let mut renewal = RenewalSettings {
        http01: http01(conf, remarks),
        preferred_chain: conf.value("Le_Preferred_Chain").and_then(decoded),
        profile: conf.value("Le_Certificate_Profile").and_then(decoded),
        // acme.sh reuses the key unless this setting asks for new ones.
        reuse_key: conf
            .value("Le_ForceNewDomainKey")
            .is_none_or(|value| value == "0"),
        ..RenewalSettings::default()
    };
    for name in ["Le_ReloadCmd", "Le_RenewHook"] {
        match conf.value(name).map(decoded) {
            None => {}
            Some(Some(command)) => hook::add(name, &command, &mut renewal, remarks),
            Some(None) => remarks.push(Remark::unsupported(name, "invalid base64")),
        }
    }
    for name in ["Le_PreHook", "Le_PostHook"] {
        remarks.extend(conf.value(name).map(|_| hook::around(name)));
    }
    for name in [
        "Le_RealKeyPath",
        "Le_RealFullChainPath",
        "Le_RealCertPath",
        "Le_RealCACertPath",
    ] {
        if let Some(path) = conf.value(name).and_then(decoded) {
            let path = part(&path);
            let text = format!(
                "{path} is no longer written: use {LIVE}/ in your server's configuration, or write a copy there \
                 with a [deploy.NAME] table of kind = \"file\""
            );
            remarks.push(Remark::manual(name, text));
        }
    }
    renewal
}

fn http01(conf: &Assignments, remarks: &mut Vec<Remark>) -> Option<Http01> {
    let value = conf.value("Le_Webroot")?;
    let methods = value.split(',').filter(|method| !method.is_empty());
    let methods: BTreeSet<&str> = methods.collect();
    match Vec::from_iter(methods).as_slice() {
        ["no"] => {
            let port = conf.value("Le_HTTPPort").and_then(|port| port.parse().ok());
            let port = port.filter(|port: &u16| *port != 80);
            Some(Http01::Listen(
                port.map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
            ))
        }
        [path] if Path::new(path).is_absolute() => Some(Http01::Webroot(PathBuf::from(path))),
        _ => {
            let is_dns = value.contains("dns");
            remarks.push(Remark::no_solver("Le_Webroot", value, is_dns));
            None
        }
    }
}

/// The decoded value: acme.sh writes commands and paths in base64 between two marks.
fn decoded(value: &str) -> Option<String> {
    const BEGIN: &str = "__ACME_BASE64__START_";
    const END: &str = "__ACME_BASE64__END_";
    let Some(inner) = value.strip_prefix(BEGIN) else {
        return Some(value.to_owned());
    };
    let bytes = BASE64_STANDARD.decode(inner.strip_suffix(END)?).ok()?;
    String::from_utf8(bytes).ok()
}

/// The directory in `ca/` of the account at this URL, as acme.sh names it: without the port.
fn place_of(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    let path = url.path().trim_matches('/');
    Some(
        format!("{}/{path}", url.host()?)
            .trim_end_matches('/')
            .to_owned(),
    )
}

/// The CA of the account in `place`: the URL that certificates have for it; else the host of
/// the account's own URL, which has the port.
fn ca_of(place: &str, url: Option<&str>, servers: &BTreeSet<String>) -> IssuingCa {
    let authority = |url: &str| super::host_of(url);
    let own = url.and_then(authority);
    let is_here = |server: &&String| place_of(server).as_deref() == Some(place);
    let here: Vec<&String> = servers.iter().filter(is_here).collect();
    let same_port = |server: &&&String| authority(server) == own;
    if let Some(server) = here.iter().find(same_port).or(here.first()) {
        return IssuingCa::Directory((*server).clone());
    }
    // Older versions stored the host alone.
    let Some((host, path)) = place.split_once('/') else {
        return IssuingCa::Host(place.to_owned());
    };
    let is_of_host = |own: &String| own.rsplit_once(':').is_some_and(|(name, _)| name == host);
    let host = own.filter(is_of_host).unwrap_or_else(|| host.to_owned());
    IssuingCa::Directory(format!("https://{host}/{path}"))
}

fn account(
    tree: &StateTree,
    place: &Path,
    servers: &BTreeSet<String>,
) -> Result<ImportedAccount, String> {
    let inside = Path::new("ca").join(place);
    let key = tree.required(inside.join("account.key"))?;
    let conf = tree.text(inside.join("ca.conf"))?;
    let conf = Assignments::parse(conf.as_ref().map_or("", |conf| conf.expose()))?;
    let (name, url) = (place.display().to_string(), conf.value("ACCOUNT_URL"));
    Ok(ImportedAccount {
        ca: ca_of(&name, url, servers),
        name,
        key: ImportedKey::Pem(key),
        url: url.map(str::to_owned),
        email: conf.value("CA_EMAIL").and_then(super::address),
    })
}

#[cfg(test)]
mod tests;
