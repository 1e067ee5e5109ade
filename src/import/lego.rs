//! lego's directory: `certificates/NAME.{crt,key,json}` and
//! `accounts/HOST/EMAIL/`. lego stores the host of the CA but not its directory URL, and
//! neither the challenge nor the hooks: those are options of the command in the
//! operator's timer.

use serde_json::Value;

use super::tree::Tree;
use super::{
    Account, AccountKey, Ca, Certificate, Found, Remark, Renewal, Tool, not_a_directory_of,
};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::text::printable;

pub(super) fn read(tree: &Tree) -> Result<Found, String> {
    if !tree.has_directory("certificates") {
        return Err(not_a_directory_of(Tool::Lego, tree.root(), "certificates/"));
    }
    let mut found = Found::default();
    for file in tree.names("certificates") {
        let Some(name) = file.strip_suffix(".json") else {
            continue;
        };
        match certificate(tree, name) {
            Ok(certificate) => found.certificates.push(certificate),
            Err(why) => found.remarks.push(Remark::broken(printable(name), why)),
        }
    }
    for host in tree.names("accounts") {
        for email in tree.names(format!("accounts/{host}")) {
            match account(tree, &host, &email) {
                Ok(account) => found.accounts.push(account),
                Err(why) => {
                    let subject = format!("account {} at {}", printable(&email), printable(&host));
                    found.remarks.push(Remark::broken(subject, why));
                }
            }
        }
    }
    if !found.certificates.is_empty() {
        let text = "lego stores neither the challenge nor the hooks: they are options of the command in your \
                    timer. Without --webroot, port 80 is used; instead of --run-hook or --renew-hook use --deploy";
        found.remarks.push(Remark::by_hand("options of lego", text));
    }
    Ok(found)
}

fn certificate(tree: &Tree, name: &str) -> Result<Certificate, String> {
    let file = |kind: &str| format!("certificates/{name}.{kind}");
    let about = json(tree, &file("json"))?;
    let domain = about["domain"].as_str().ok_or("its .json has no domain")?;
    let first = Identifier::parse(domain).map_err(|error| error.to_string())?;
    let url = about["certUrl"]
        .as_str()
        .or_else(|| about["certStableUrl"].as_str());
    let host = url
        .and_then(super::host_of)
        .ok_or("its .json does not name the CA")?;
    let key_pem = tree.required(file("key"))?;
    let mut chain_pem = tree.required(file("crt"))?.expose().to_owned();
    // With --no-bundle the issuers are in their own file.
    if chain_pem.matches("-----BEGIN CERTIFICATE").count() == 1
        && let Some(issuers) = tree.text(file("issuer.crt"))?
    {
        chain_pem = format!("{}\n{}", chain_pem.trim_end(), issuers.expose());
    }
    Ok(Certificate {
        lineage: Lineage::of(&first),
        key_pem,
        chain_pem,
        ca: Ca::Host(host),
        account: None,
        renewal: Renewal::default(),
        remarks: Vec::new(),
    })
}

fn account(tree: &Tree, host: &str, email: &str) -> Result<Account, String> {
    let place = format!("accounts/{host}/{email}");
    let about = json(tree, &format!("{place}/account.json"))?;
    let key = tree.required(format!("{place}/keys/{email}.key"))?;
    let url = about["registration"]["uri"].as_str();
    // The directory's name is the host with `_` for `:`.
    let ca = url
        .and_then(super::host_of)
        .unwrap_or_else(|| host.replace('_', ":"));
    Ok(Account {
        name: email.to_owned(),
        ca: Ca::Host(ca),
        key: AccountKey::Pem(key),
        url: url.map(str::to_owned),
        email: about["email"].as_str().and_then(super::address),
    })
}

fn json(tree: &Tree, path: &str) -> Result<Value, String> {
    let text = tree.required(path)?;
    serde_json::from_str(text.expose()).map_err(|_| format!("invalid JSON in {}", printable(path)))
}

#[cfg(test)]
mod tests;
