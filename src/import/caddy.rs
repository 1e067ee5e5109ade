//! Caddy's storage: `certificates/CA/NAME/NAME.{crt,key,json}` and
//! `acme/CA/users/EMAIL/`, where CA is its directory's URL with hyphens. Caddy's own
//! configuration is not read.

use std::collections::BTreeMap;

use super::tree::StateTree;
use super::{
    Found, ImportedAccount, ImportedCertificate, ImportedKey, IssuingCa, LIVE, Remark,
    RenewalSettings, lineage_of,
};

pub(super) fn read(tree: &StateTree) -> Result<Found, &'static str> {
    if !tree.has_directory("certificates") {
        return Err("certificates/");
    }
    let (mut found, mut cas) = (Found::default(), BTreeMap::new());
    for ca in tree.names("certificates") {
        if ca == "local" {
            let text =
                "from Caddy's own CA: issue such certificates with certs issue --ca embedded";
            let remark = Remark::unsupported("certificates/local", text);
            found.remarks.push(remark);
            continue;
        }
        for name in tree.names(format!("certificates/{ca}")) {
            let read = certificate(tree, &ca, &name);
            cas.extend(read.iter().map(|one| (ca.clone(), one.ca.clone())));
            found.certificate(&format!("{name} ({ca})"), read);
        }
    }
    for ca in tree.names("acme") {
        for user in tree.names(format!("acme/{ca}/users")) {
            let subject = format!("{user} ({ca})");
            if let Some(url) = cas.get(&ca) {
                let place = format!("acme/{ca}/users/{user}");
                found.account(&subject, account(tree, &place, url));
            } else {
                let text = "the URL of its CA is unknown: no certificate of that CA found";
                let remark = Remark::unsupported(format!("account {subject}"), text);
                found.remarks.push(remark);
            }
        }
    }
    if !found.certificates.is_empty() {
        let text = format!(
            "Caddy uses port 80: stop it, or let it serve a directory there and import again with \
                    --webroot DIR; in its Caddyfile `tls {LIVE}/NAME/fullchain.pem {LIVE}/NAME/privkey.pem` uses \
                    these files, and --deploy caddy reloads it"
        );
        found.remarks.push(Remark::manual("Caddy", text));
    }
    Ok(found)
}

fn certificate(tree: &StateTree, ca: &str, name: &str) -> Result<ImportedCertificate, String> {
    let file = |kind: &str| format!("certificates/{ca}/{name}/{name}.{kind}");
    let about = tree.json(&file("json"))?;
    let data = &about["issuer_data"];
    let url = data["ca"].as_str();
    let url = url.ok_or("its .json does not name the CA")?;
    let first = about["sans"][0].as_str().ok_or("its .json has no names")?;
    Ok(ImportedCertificate {
        lineage: lineage_of(first)?,
        key_pem: tree.required(file("key"))?,
        chain_pem: tree.required(file("crt"))?.expose().to_owned(),
        ca: IssuingCa::Directory(url.to_owned()),
        account: data["account"].as_str().map(str::to_owned),
        renewal: RenewalSettings::default(),
        remarks: Vec::new(),
    })
}

/// The account's files have the local part of the address as their name, or `default`.
fn account(tree: &StateTree, place: &str, ca: &IssuingCa) -> Result<ImportedAccount, String> {
    let names = tree.names(place);
    let with = |kind: &str| {
        let name = names.iter().find(|name| name.ends_with(kind));
        name.map(|name| format!("{place}/{name}"))
            .ok_or_else(|| format!("no {kind} file found"))
    };
    let about = tree.json(&with(".json")?)?;
    let key = tree.required(with(".key")?)?;
    let url = about["location"].as_str().map(str::to_owned);
    Ok(ImportedAccount {
        // Certificates refer to their account by its URL.
        name: url.clone().unwrap_or_else(|| place.to_owned()),
        ca: ca.clone(),
        key: ImportedKey::Pem(key),
        url,
        email: super::email(&about["contact"]),
    })
}

#[cfg(test)]
mod tests;
