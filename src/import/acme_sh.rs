//! acme.sh's `~/.acme.sh`: `NAME/NAME.conf` (`NAME_ecc/` for an ECDSA key) with the
//! pair beside it, and `ca/HOST/PATH/` with each account. Its files are shell code,
//! but they are read as text: nothing in them is run or expanded.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::lines::Assignments;
use super::tree::Tree;
use super::{
    Account, AccountKey, Ca, Certificate, Found, LIVE, Proof, Remark, Renewal, Tool, hook,
    not_a_directory_of,
};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::text::printable;

const CURVE: &str = "_ecc";
const DEEPEST_ACCOUNT: usize = 6;

pub(super) fn read(tree: &Tree) -> Result<Found, String> {
    let names = tree.names("");
    let is_one = |name: &&String| {
        let base = name.strip_suffix(CURVE).unwrap_or(name);
        tree.names(name)
            .iter()
            .any(|file| file.strip_suffix(".conf") == Some(base))
    };
    let certificates: Vec<&String> = names.iter().filter(is_one).collect();
    if certificates.is_empty() && !tree.has_directory("ca") {
        let missing = "ca/ or NAME/NAME.conf";
        return Err(not_a_directory_of(Tool::AcmeSh, tree.root(), missing));
    }
    let mut found = Found::default();
    for name in certificates {
        // RSA and ECDSA of one name are two certificates.
        let is_second = name
            .strip_suffix(CURVE)
            .is_some_and(|base| names.iter().any(|one| one == base));
        match certificate(tree, name, is_second) {
            Ok(certificate) => found.certificates.push(certificate),
            Err(why) => found.remarks.push(Remark::broken(printable(name), why)),
        }
    }
    accounts(tree, &mut found);
    Ok(found)
}

fn certificate(tree: &Tree, directory: &str, is_second: bool) -> Result<Certificate, String> {
    let base = directory.strip_suffix(CURVE).unwrap_or(directory);
    let file = |name: &str| Path::new(directory).join(name);
    let conf = tree.required(file(&format!("{base}.conf")))?;
    let conf = Assignments::parse(conf.expose())?;
    let domain = conf.value("Le_Domain").unwrap_or(base);
    let first = Identifier::parse(domain).map_err(|error| error.to_string())?;
    let mut lineage = Lineage::of(&first);
    if is_second {
        let name = format!("{lineage}-ecc");
        lineage = Lineage::parse(&name).map_err(|error| error.to_string())?;
    }
    let server = conf
        .value("Le_API")
        .ok_or("its .conf has no Le_API, the URL of the CA")?;
    let mut remarks = Vec::new();
    let renewal = renewal(&conf, &mut remarks);
    Ok(Certificate {
        lineage,
        key_pem: tree.required(file(&format!("{base}.key")))?,
        chain_pem: tree.required(file("fullchain.cer"))?.expose().to_owned(),
        ca: Ca::Directory(server.to_owned()),
        account: None,
        renewal,
        remarks,
    })
}

pub(super) fn renewal(conf: &Assignments, remarks: &mut Vec<Remark>) -> Renewal {
    let mut renewal = Renewal {
        proof: proof(conf, remarks),
        preferred_chain: conf.value("Le_Preferred_Chain").and_then(decoded),
        profile: conf.value("Le_Certificate_Profile").and_then(decoded),
        // acme.sh reuses the key unless this setting asks for new ones.
        reuse_key: conf
            .value("Le_ForceNewDomainKey")
            .is_none_or(|value| value == "0"),
        ..Renewal::default()
    };
    for name in ["Le_ReloadCmd", "Le_RenewHook"] {
        match conf.value(name).map(decoded) {
            None => {}
            Some(Some(command)) => hook::add(name, &command, &mut renewal, remarks),
            Some(None) => remarks.push(Remark::not_taken(name, "invalid base64")),
        }
    }
    for name in ["Le_PreHook", "Le_PostHook"] {
        if conf.value(name).is_some() {
            hook::report(name, remarks);
        }
    }
    for name in [
        "Le_RealKeyPath",
        "Le_RealFullChainPath",
        "Le_RealCertPath",
        "Le_RealCACertPath",
    ] {
        if let Some(path) = conf.value(name).and_then(decoded) {
            let text = format!(
                "{} is no longer written: use {LIVE}/ in your server's configuration, or write a copy there \
                 with a [deploy.NAME] table of kind = \"file\"",
                printable(&path)
            );
            remarks.push(Remark::by_hand(name, text));
        }
    }
    renewal
}

fn proof(conf: &Assignments, remarks: &mut Vec<Remark>) -> Option<Proof> {
    let value = conf.value("Le_Webroot")?;
    let methods = value.split(',').filter(|method| !method.is_empty());
    let methods: BTreeSet<&str> = methods.collect();
    match Vec::from_iter(methods).as_slice() {
        ["no"] => {
            let port = conf.value("Le_HTTPPort").and_then(|port| port.parse().ok());
            let port = port.filter(|port: &u16| *port != 80);
            Some(Proof::Listen(
                port.map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
            ))
        }
        [path] if Path::new(path).is_absolute() => Some(Proof::Webroot(PathBuf::from(path))),
        _ => {
            let method = printable(value);
            let text = if value.contains("dns") {
                format!(
                    "{method}: this version does not answer DNS-01: the renewal will use HTTP-01 on port 80, \
                     which cannot validate a wildcard"
                )
            } else {
                format!(
                    "{method} has no counterpart: the renewal will use HTTP-01 on port 80; import again with \
                     --webroot DIR if another server uses that port"
                )
            };
            remarks.push(Remark::not_taken("Le_Webroot", text));
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

fn accounts(tree: &Tree, found: &mut Found) {
    for place in tree.directories_with("ca", "account.key", DEEPEST_ACCOUNT) {
        match account(tree, &place) {
            Ok(account) => found.accounts.push(account),
            Err(why) => {
                let subject = format!("account {}", printable(&place.display().to_string()));
                found.remarks.push(Remark::broken(subject, why));
            }
        }
    }
}

fn account(tree: &Tree, place: &Path) -> Result<Account, String> {
    let inside = Path::new("ca").join(place);
    let key = tree.required(inside.join("account.key"))?;
    let conf = tree.text(inside.join("ca.conf"))?;
    let conf = Assignments::parse(conf.as_ref().map_or("", |conf| conf.expose()))?;
    let name = place.display().to_string();
    // Older versions stored the host alone.
    let ca = match place.components().count() {
        1 => Ca::Host(name.clone()),
        _ => Ca::Directory(format!("https://{name}")),
    };
    Ok(Account {
        name,
        ca,
        key: AccountKey::Pem(key),
        url: conf.value("ACCOUNT_URL").map(str::to_owned),
        email: conf.value("CA_EMAIL").and_then(super::address),
    })
}

#[cfg(test)]
mod tests;
