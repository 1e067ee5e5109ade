//! Caddy's storage: `certificates/CA/NAME/NAME.{crt,key,json}` and
//! `acme/CA/users/EMAIL/`, where CA is its directory's URL with hyphens. Caddy's own
//! configuration is not read.

use std::collections::BTreeMap;

use serde_json::Value;

use super::tree::Tree;
use super::{
    Account, AccountKey, Ca, Certificate, Found, LIVE, Remark, Renewal, Tool, not_a_directory_of,
};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::text::printable;

pub(super) fn read(tree: &Tree) -> Result<Found, String> {
    if !tree.has_directory("certificates") {
        return Err(not_a_directory_of(
            Tool::Caddy,
            tree.root(),
            "certificates/",
        ));
    }
    let (mut found, mut cas) = (Found::default(), BTreeMap::new());
    for ca in tree.names("certificates") {
        if ca == "local" {
            let text =
                "from Caddy's own CA: issue such certificates with certs issue --ca embedded";
            found
                .remarks
                .push(Remark::not_taken("certificates/local", text));
            continue;
        }
        for name in tree.names(format!("certificates/{ca}")) {
            match certificate(tree, &ca, &name) {
                Ok(certificate) => {
                    cas.insert(ca.clone(), certificate.ca.clone());
                    found.certificates.push(certificate);
                }
                Err(why) => {
                    let subject = format!("{} ({})", printable(&name), printable(&ca));
                    found.remarks.push(Remark::broken(subject, why));
                }
            }
        }
    }
    for ca in tree.names("acme") {
        accounts(tree, &ca, cas.get(&ca), &mut found);
    }
    if !found.certificates.is_empty() {
        let text = format!(
            "Caddy uses port 80: stop it, or let it serve a directory there and import again with \
                    --webroot DIR; in its Caddyfile `tls {LIVE}/NAME/fullchain.pem {LIVE}/NAME/privkey.pem` uses \
                    these files, and --deploy caddy reloads it"
        );
        found.remarks.push(Remark::by_hand("Caddy", text));
    }
    Ok(found)
}

fn certificate(tree: &Tree, ca: &str, name: &str) -> Result<Certificate, String> {
    let file = |kind: &str| format!("certificates/{ca}/{name}/{name}.{kind}");
    let about = json(tree, &file("json"))?;
    let data = &about["issuer_data"];
    let url = data["ca"]
        .as_str()
        .ok_or("its .json does not name the CA")?;
    let first = about["sans"][0].as_str().ok_or("its .json has no names")?;
    let first = Identifier::parse(first).map_err(|error| error.to_string())?;
    Ok(Certificate {
        lineage: Lineage::of(&first),
        key_pem: tree.required(file("key"))?,
        chain_pem: tree.required(file("crt"))?.expose().to_owned(),
        ca: Ca::Directory(url.to_owned()),
        account: data["account"].as_str().map(str::to_owned),
        renewal: Renewal::default(),
        remarks: Vec::new(),
    })
}

fn accounts(tree: &Tree, ca: &str, url: Option<&Ca>, found: &mut Found) {
    for user in tree.names(format!("acme/{ca}/users")) {
        let subject = format!("account {} ({})", printable(&user), printable(ca));
        let Some(url) = url else {
            let text = "the URL of its CA is unknown: no certificate of that CA found";
            found.remarks.push(Remark::not_taken(subject, text));
            continue;
        };
        match account(tree, &format!("acme/{ca}/users/{user}"), url) {
            Ok(account) => found.accounts.push(account),
            Err(why) => found.remarks.push(Remark::broken(subject, why)),
        }
    }
}

/// The account's files have the local part of the address as their name, or `default`.
fn account(tree: &Tree, place: &str, ca: &Ca) -> Result<Account, String> {
    let names = tree.names(place);
    let with = |kind: &str| {
        let name = names.iter().find(|name| name.ends_with(kind));
        name.map(|name| format!("{place}/{name}"))
            .ok_or_else(|| format!("no {kind} file found"))
    };
    let about = json(tree, &with(".json")?)?;
    let key = tree.required(with(".key")?)?;
    let url = about["location"].as_str().map(str::to_owned);
    Ok(Account {
        // Certificates refer to their account by its URL.
        name: url.clone().unwrap_or_else(|| place.to_owned()),
        ca: ca.clone(),
        key: AccountKey::Pem(key),
        url,
        email: super::email(&about["contact"]),
    })
}

fn json(tree: &Tree, path: &str) -> Result<Value, String> {
    let text = tree.required(path)?;
    serde_json::from_str(text.expose()).map_err(|_| format!("invalid JSON in {}", printable(path)))
}

#[cfg(test)]
mod tests;
