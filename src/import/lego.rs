//! lego's directory: `certificates/NAME.{crt,key,json}` and
//! `accounts/HOST/EMAIL/`. lego stores the host of the CA but not its directory URL, and
//! neither the challenge nor the hooks: those are options of the command in the
//! operator's timer.

use super::tree::StateTree;
use super::{
    Found, ImportedAccount, ImportedCertificate, ImportedKey, IssuingCa, Remark, RenewalSettings,
    lineage_of,
};

pub(super) fn read(tree: &StateTree) -> Result<Found, &'static str> {
    if !tree.has_directory("certificates") {
        return Err("certificates/");
    }
    let mut found = Found::default();
    for file in tree.names("certificates") {
        if let Some(name) = file.strip_suffix(".json") {
            found.certificate(name, certificate(tree, name));
        }
    }
    for host in tree.names("accounts") {
        for email in tree.names(format!("accounts/{host}")) {
            let subject = format!("{email} at {host}");
            found.account(&subject, account(tree, &host, &email));
        }
    }
    if !found.certificates.is_empty() {
        let text = "lego stores neither the challenge nor the hooks: they are options of the command in your \
                    timer. Without --webroot, port 80 is used; instead of --run-hook or --renew-hook use --deploy";
        found.remarks.push(Remark::manual("options of lego", text));
    }
    Ok(found)
}

fn certificate(tree: &StateTree, name: &str) -> Result<ImportedCertificate, String> {
    let file = |kind: &str| format!("certificates/{name}.{kind}");
    let about = tree.json(&file("json"))?;
    let domain = about["domain"].as_str().ok_or("its .json has no domain")?;
    let lineage = lineage_of(domain)?;
    let mut urls = ["certUrl", "certStableUrl"].iter();
    let url = urls.find_map(|member| about[member].as_str());
    let host = url.and_then(super::host_of);
    let host = host.ok_or("its .json does not name the CA")?;
    let key_pem = tree.required(file("key"))?;
    let mut chain_pem = tree.required(file("crt"))?.expose().to_owned();
    // With --no-bundle the issuers are in their own file.
    if chain_pem.matches("-----BEGIN CERTIFICATE").count() == 1
        && let Some(issuers) = tree.text(file("issuer.crt"))?
    {
        chain_pem = format!("{}\n{}", chain_pem.trim_end(), issuers.expose());
    }
    Ok(ImportedCertificate {
        lineage,
        key_pem,
        chain_pem,
        ca: IssuingCa::Host(host),
        account: None,
        renewal: RenewalSettings::default(),
        remarks: Vec::new(),
    })
}

fn account(tree: &StateTree, host: &str, email: &str) -> Result<ImportedAccount, String> {
    let place = format!("accounts/{host}/{email}");
    let about = tree.json(&format!("{place}/account.json"))?;
    let key = tree.required(format!("{place}/keys/{email}.key"))?;
    let url = about["registration"]["uri"].as_str();
    // The directory's name is the host with `_` for `:`.
    let ca = url
        .and_then(super::host_of)
        .unwrap_or_else(|| host.replace('_', ":"));
    Ok(ImportedAccount {
        name: email.to_owned(),
        ca: IssuingCa::Host(ca),
        key: ImportedKey::Pem(key),
        url: url.map(str::to_owned),
        email: about["email"].as_str().and_then(super::address),
    })
}

#[cfg(test)]
mod tests;
