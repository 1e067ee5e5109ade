//! The CA and the account to use there. The names of public CAs are here and nowhere
//! else; no other module knows a URL of theirs.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::certificate::Secret;

/// The public CAs: name, directory URL, and the name of their staging directory.
const PUBLIC: [(&str, &str, Option<&str>); 8] = [
    (
        "letsencrypt",
        "https://acme-v02.api.letsencrypt.org/directory",
        Some("letsencrypt-staging"),
    ),
    (
        "letsencrypt-staging",
        "https://acme-staging-v02.api.letsencrypt.org/directory",
        Some("letsencrypt-staging"),
    ),
    ("zerossl", "https://acme.zerossl.com/v2/DV90", None),
    (
        "google",
        "https://dv.acme-v02.api.pki.goog/directory",
        Some("google-staging"),
    ),
    (
        "google-staging",
        "https://dv.acme-v02.test-api.pki.goog/directory",
        Some("google-staging"),
    ),
    (
        "actalis",
        "https://acme-api.actalis.com/acme/directory",
        None,
    ),
    ("sslcom-rsa", "https://acme.ssl.com/sslcom-dv-rsa", None),
    ("sslcom-ecc", "https://acme.ssl.com/sslcom-dv-ecc", None),
];

const EMBEDDED: &str = "embedded";

/// A CA's directory: one of the known names, `embedded`, or an https URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Directory(String);

impl Directory {
    /// The key of records and accounts: the URL, or `embedded`.
    #[must_use]
    pub fn identity(&self) -> &str {
        self.known().map_or(&self.0, |(_, url, _)| url)
    }

    /// The public CA whose directory is at `host`; `None` if none or several are there.
    #[must_use]
    pub fn at_host(host: &str) -> Option<Self> {
        let is_there = |url: &str| {
            let url = url.parse::<http::Uri>().ok();
            url.is_some_and(|url| url.host() == Some(host))
        };
        let mut there = PUBLIC.into_iter().filter(|(_, url, _)| is_there(url));
        let (name, ..) = there.next()?;
        there.next().is_none().then(|| Self(name.to_owned()))
    }

    /// Whether it is the embedded CA of this process.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.0 == EMBEDDED
    }

    /// Whether it signs public names only, under terms of service. The URL of a public CA
    /// counts like its name.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.known().is_some()
    }

    /// Whether it is Let's Encrypt's.
    #[must_use]
    pub fn is_letsencrypt(&self) -> bool {
        self.known()
            .is_some_and(|(name, ..)| name.starts_with("letsencrypt"))
    }

    /// The directory for a rehearsal; a private CA is its own. `None` if the CA has no
    /// staging directory.
    #[must_use]
    pub fn staging(&self) -> Option<Self> {
        match self.known() {
            Some((_, _, staging)) => staging.map(|name| Self(name.to_owned())),
            None => Some(self.clone()),
        }
    }

    /// Whether its certificates are untrusted, for rehearsals.
    #[must_use]
    pub fn is_staging(&self) -> bool {
        self.known()
            .is_some_and(|(name, _, staging)| staging == Some(name))
    }

    fn known(&self) -> Option<(&'static str, &'static str, Option<&'static str>)> {
        PUBLIC
            .into_iter()
            .find(|(name, url, _)| *name == self.0 || *url == self.0)
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self("letsencrypt".to_owned())
    }
}

impl FromStr for Directory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = text == EMBEDDED || PUBLIC.iter().any(|(name, ..)| *name == text);
        let url = text.starts_with("https://")
            && text
                .parse::<http::Uri>()
                .is_ok_and(|url| url.host().is_some_and(|host| !host.is_empty()));
        if named || url {
            return Ok(Self(text.to_owned()));
        }
        Err(if text.starts_with("http://") {
            format!(
                "unknown CA `{}`: a directory is read over https only",
                text.escape_debug()
            )
        } else {
            format!("unknown CA `{}`", text.escape_debug())
        })
    }
}

impl TryFrom<String> for Directory {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Directory> for String {
    fn from(directory: Directory) -> Self {
        directory.0
    }
}

impl fmt::Display for Directory {
    /// The name or URL that the user gave.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The names of all known CAs.
pub(super) fn names() -> Vec<&'static str> {
    PUBLIC
        .iter()
        .map(|(name, ..)| *name)
        .chain([EMBEDDED])
        .collect()
}

/// A CA and the account to use there. It names files with secrets and never holds one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CaSettings {
    /// Its directory.
    pub directory: Directory,
    /// A root (PEM) to trust for the directory beside the public ones.
    pub root: Option<PathBuf>,
    /// The e-mail address that the CA may write to.
    pub email: Option<String>,
    /// Whether its terms of service are agreed to.
    pub agree_tos: bool,
    /// The key identifier of an external account binding.
    pub eab_kid: Option<String>,
    /// The file with its HMAC key in base64url.
    pub eab_hmac_file: Option<PathBuf>,
    /// The chain to take, by the common name of an issuer in it.
    pub preferred_chain: Option<String>,
}

impl CaSettings {
    /// The extra root.
    ///
    /// # Errors
    /// The problem of its file.
    pub(crate) fn read_root(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(path) = &self.root else {
            return Ok(None);
        };
        let failed = |what: &str| format!("the root {}: {what}", path.display());
        let pem = std::fs::read(path).map_err(|error| failed(&error.to_string()))?;
        let marked = String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----");
        if marked {
            Ok(Some(pem))
        } else {
            Err(failed("no PEM certificate found in it"))
        }
    }

    /// The external account binding: its key identifier and its HMAC key.
    ///
    /// # Errors
    /// The missing key, or the problem of the key's file; never the HMAC key itself.
    pub(crate) fn read_binding(&self) -> Result<Option<(String, Vec<u8>)>, String> {
        match (&self.eab_kid, &self.eab_hmac_file) {
            (None, None) => Ok(None),
            (Some(kid), Some(path)) => {
                let failed = |what: &str| format!("the HMAC key {}: {what}", path.display());
                let text = std::fs::read_to_string(path)
                    .map(Secret::new)
                    .map_err(|error| failed(&error.to_string()))?;
                let text = text.expose().trim().trim_end_matches('=');
                let key = URL_SAFE_NO_PAD
                    .decode(text)
                    .or_else(|_| STANDARD_NO_PAD.decode(text))
                    .ok()
                    .filter(|key| !key.is_empty())
                    .ok_or_else(|| failed("invalid base64url"))?;
                Ok(Some((kid.clone(), key)))
            }
            (Some(_), None) => Err("eab_kid without eab_hmac_file".to_owned()),
            (None, Some(_)) => Err("eab_hmac_file without eab_kid".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_takes_names_and_https_urls_only() {
        for text in names() {
            assert!(text.parse::<Directory>().is_ok(), "{text}");
        }
        let private: Directory = "https://ca.internal/dir".parse().unwrap();
        assert!(!private.is_public());
        assert_eq!(private.identity(), "https://ca.internal/dir");
        assert_eq!(private.staging(), Some(private.clone()));
        for text in [
            "",
            "http://ca.internal/dir",
            "https://",
            "letsencript",
            "ftp://x",
        ] {
            assert!(text.parse::<Directory>().is_err(), "{text}");
        }
    }

    #[test]
    fn directory_url_of_public_ca_is_public_and_has_staging() {
        let named: Directory = "letsencrypt".parse().unwrap();
        let url: Directory = named.identity().parse().unwrap();
        assert!(url.is_public());
        assert_eq!(url.staging().unwrap().to_string(), "letsencrypt-staging");
        assert_eq!("zerossl".parse::<Directory>().unwrap().staging(), None);
    }

    #[test]
    fn directory_at_host_needs_exactly_one() {
        let at = |host: &str| Directory::at_host(host).map(|ca| ca.to_string());
        assert_eq!(at("acme.zerossl.com").as_deref(), Some("zerossl"));
        assert_eq!(at("acme.ssl.com"), None, "two CAs are there");
        assert_eq!(at("ca.internal"), None);
    }

    #[test]
    fn binding_refuses_half_and_invalid_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hmac");
        let mut settings = CaSettings {
            eab_kid: Some("kid".into()),
            ..CaSettings::default()
        };
        assert!(settings.read_binding().is_err());
        settings.eab_hmac_file = Some(file.clone());
        std::fs::write(&file, "!!").unwrap();
        assert!(settings.read_binding().is_err());
        std::fs::write(&file, "AQID_w==\n").unwrap();
        let read = settings.read_binding().unwrap();
        assert_eq!(read, Some(("kid".into(), vec![1, 2, 3, 0xff])));
    }
}
