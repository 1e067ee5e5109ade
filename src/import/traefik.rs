//! Traefik's `acme.json`: an account and certificates for each resolver. It has the
//! account's URL but not the CA's directory URL, and the challenge is in Traefik's own
//! configuration, which is not read.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::tree::text_of;
use super::{
    Found, ImportedAccount, ImportedCertificate, ImportedKey, IssuingCa, Remark, RenewalSettings,
    lineage_of,
};
use crate::certificate::Secret;

/// One file has all certificates.
const LARGEST: u64 = 32 << 20;

pub(super) fn read(path: &Path) -> Result<Found, String> {
    let inside = path.join("acme.json");
    let path = if path.is_dir() { &inside } else { path };
    let real =
        std::fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let text = text_of(&real, LARGEST)?;
    let invalid = || format!("{} is not a valid acme.json of Traefik", path.display());
    parse(text.expose()).ok_or_else(invalid)
}

/// The state in the file; `None` if the format is different.
pub(super) fn parse(text: &str) -> Option<Found> {
    let resolvers: Value = serde_json::from_str(text).ok()?;
    let mut found = Found::default();
    for (name, resolver) in resolvers.as_object()? {
        let account = &resolver["Account"];
        if account.is_null() && resolver["Certificates"].is_null() {
            let text = "it has no account and no certificate";
            found.remarks.push(Remark::unsupported(name, text));
            continue;
        }
        let url = account["Registration"]["uri"].as_str();
        let Some(host) = url.and_then(super::host_of) else {
            let text = "its account does not name the CA";
            found.remarks.push(Remark::invalid(name, text));
            continue;
        };
        let ca = IssuingCa::Host(host);
        if let Some(key) = account["PrivateKey"].as_str() {
            found.accounts.push(ImportedAccount {
                name: name.clone(),
                ca: ca.clone(),
                key: ImportedKey::Base64(Secret::new(key.to_owned())),
                url: url.map(str::to_owned),
                email: account["Email"].as_str().and_then(super::address),
            });
        }
        for one in resolver["Certificates"].as_array().into_iter().flatten() {
            let main = one["domain"]["main"].as_str().unwrap_or("a certificate");
            found.certificate(main, certificate(one, name, &ca));
        }
    }
    if !found.certificates.is_empty() {
        let text = "remove certResolver from its routers and let it read the files of certs: --deploy traefik:FILE \
                    writes one for its file provider. While Traefik uses port 80, route \
                    /.well-known/acme-challenge/ from it to certs with --http-listen";
        found.remarks.push(Remark::manual("Traefik", text));
    }
    Some(found)
}

fn certificate(one: &Value, resolver: &str, ca: &IssuingCa) -> Result<ImportedCertificate, String> {
    let main = one["domain"]["main"].as_str();
    let lineage = lineage_of(main.ok_or("it has no main domain")?)?;
    let pem = |member: &str| {
        let text = one[member].as_str();
        let text = text.ok_or_else(|| format!("it has no {member}"))?;
        let bytes = BASE64_STANDARD.decode(text.trim()).ok();
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| format!("its {member} is not valid PEM in base64"))?;
        Ok::<_, String>(Secret::new(text))
    };
    Ok(ImportedCertificate {
        lineage,
        key_pem: pem("key")?,
        chain_pem: pem("certificate")?.expose().to_owned(),
        ca: ca.clone(),
        account: Some(resolver.to_owned()),
        renewal: RenewalSettings::default(),
        remarks: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
