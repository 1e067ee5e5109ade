//! The CA and the account to use there; [`super::presets`] has the public ones.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::presets::{External, PUBLIC, Preset};
use crate::certificate::SecretBytes;
use crate::files::named::{self, Unread};
use crate::net::url::normalized;
use crate::text::{printable, stored_as_text};

const STAGING: &str = "-staging";
const EMBEDDED: &str = "embedded";

/// A CA's directory: one of the known names, `embedded`, or an https URL in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DirectoryUrl(String);

impl DirectoryUrl {
    /// The key of records and accounts: the URL, or `embedded`.
    pub(crate) fn identity(&self) -> &str {
        self.known().map_or(&self.0, |preset| preset.url)
    }

    /// Its name, or its URL if it has none.
    pub(crate) fn short_name(&self) -> &str {
        self.known().map_or(&self.0, |preset| preset.name)
    }

    /// The public CA whose directory is at `host`; `None` if none or several are there.
    pub(crate) fn at_host(host: &str) -> Option<Self> {
        let is_there = |preset: &&Preset| {
            let url = preset.url.parse::<http::Uri>();
            url.is_ok_and(|url| url.host() == Some(host))
        };
        let mut there = PUBLIC.iter().filter(is_there);
        match (there.next(), there.next()) {
            (Some(preset), None) => Some(Self(preset.name.to_owned())),
            _ => None,
        }
    }

    /// Whether it is the embedded CA of this process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.0 == EMBEDDED
    }

    /// Whether it signs public names only, under terms of service. The URL of a public CA
    /// counts like its name.
    pub(crate) fn is_public(&self) -> bool {
        self.known().is_some()
    }

    /// The only profile in which it signs addresses.
    pub(crate) fn address_profile(&self) -> Option<&'static str> {
        self.known()?.address_profile
    }

    /// A notice that a user must read before an order, such as its price.
    pub(crate) fn notice(&self) -> Option<&'static str> {
        self.known()?.notice
    }

    /// The URL at which the CA gives an external account for an e-mail address.
    pub(crate) fn credentials_by_email(&self) -> Option<&'static str> {
        match self.known()?.external {
            External::ByEmail(url, _) => Some(url),
            _ => None,
        }
    }

    /// The directory for a rehearsal; a private CA is its own. `None` if the CA has no
    /// staging directory.
    pub(crate) fn staging(&self) -> Option<Self> {
        let Some(Preset { name, .. }) = self.known() else {
            return Some(self.clone());
        };
        let name = name.strip_suffix(STAGING).unwrap_or(name);
        let staging = format!("{name}{STAGING}");
        names().contains(&&*staging).then_some(Self(staging))
    }

    /// Whether its certificates are untrusted, for rehearsals.
    pub(crate) fn is_staging(&self) -> bool {
        self.known()
            .is_some_and(|preset| preset.name.ends_with(STAGING))
    }

    /// The built-in preset, if this is a public CA.
    pub(super) fn known(&self) -> Option<&'static Preset> {
        let mut all = PUBLIC.iter();
        all.find(|preset| preset.name == self.0 || preset.url == self.0)
    }
}

impl Default for DirectoryUrl {
    fn default() -> Self {
        Self("letsencrypt".to_owned())
    }
}

impl FromStr for DirectoryUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let has_host = |url: http::Uri| url.host().is_some_and(|host| !host.is_empty());
        // An account and an order belong to the CA, not to a spelling of its URL.
        let url = normalized(text);
        let is_url = url.starts_with("https://") && url.parse().is_ok_and(has_host);
        if is_url || names().contains(&text) {
            return Ok(Self(url));
        }
        let why = match url.starts_with("http://") {
            true => ": a directory is read over https only",
            false => "",
        };
        Err(format!("unknown CA `{}`{why}", printable(text)))
    }
}

impl fmt::Display for DirectoryUrl {
    /// The name, or the URL in its one spelling.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

stored_as_text!(DirectoryUrl);

/// The names of all known CAs.
pub(super) fn names() -> Vec<&'static str> {
    let public = PUBLIC.iter().map(|preset| preset.name);
    public.chain([EMBEDDED]).collect()
}

/// The key identifier of an external account, and its HMAC key.
type Binding = (String, Result<SecretBytes, Unusable>);

/// A CA and the account to use there; the keys of [`super::keys`] document its fields. It
/// names files with secrets and never holds one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CaSettings {
    pub directory: DirectoryUrl,
    pub root: Option<PathBuf>,
    pub email: Option<String>,
    pub agree_tos: bool,
    pub eab_kid: Option<String>,
    pub eab_hmac_file: Option<PathBuf>,
    pub preferred_chain: Option<String>,
}

impl CaSettings {
    /// The extra root.
    ///
    /// # Errors
    /// The problem of its file.
    pub(crate) fn read_root(&self) -> Result<Option<Vec<u8>>, Unusable> {
        let Some(path) = &self.root else {
            return Ok(None);
        };
        let pem = named::read_data(path).map_err(Unusable::from);
        let pem = pem.map_err(|error| error.in_file("the root", path))?;
        match pem.expose().contains("-----BEGIN CERTIFICATE-----") {
            true => Ok(Some(pem.expose().as_bytes().to_vec())),
            false => {
                let error = Unusable::from("no PEM certificate found in it");
                Err(error.in_file("the root", path))
            }
        }
    }

    /// The external account binding: its key identifier, and its HMAC key or the problem of
    /// the key's file. The file may be gone once the account is registered.
    ///
    /// # Errors
    /// One of both is missing.
    pub(crate) fn read_binding(&self) -> Result<Option<Binding>, Unusable> {
        match (&self.eab_kid, &self.eab_hmac_file) {
            (None, None) => Ok(None),
            (Some(kid), Some(path)) => {
                let key = hmac_key(path).map_err(|error| error.in_file("the HMAC key", path));
                Ok(Some((kid.clone(), key)))
            }
            (Some(_), None) => Err("eab_kid without eab_hmac_file".into()),
            (None, Some(_)) => Err("eab_hmac_file without eab_kid".into()),
        }
    }
}

/// The HMAC key of an external account in base64url, from its file.
///
/// # Errors
/// The problem of the file; never the key itself.
pub(crate) fn hmac_key(path: &Path) -> Result<SecretBytes, Unusable> {
    decode_hmac_key(named::read_data(path)?.expose())
}

/// The HMAC key of an external account in base64url.
fn decode_hmac_key(text: &str) -> Result<SecretBytes, Unusable> {
    let text = without_mark(text).trim().trim_end_matches('=');
    let key = URL_SAFE_NO_PAD.decode(text);
    let key = key.or_else(|_| STANDARD_NO_PAD.decode(text)).ok();
    key.filter(|key| !key.is_empty())
        .map(SecretBytes::new)
        .ok_or_else(|| "invalid base64url".into())
}

/// `text` without the mark (BOM) that some editors put first.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// External accounts: in each line of the file an identifier and its HMAC key in base64url.
///
/// # Errors
/// The problem of the file, with its line; never a key itself.
pub(crate) fn external_accounts(path: &Path) -> Result<BTreeMap<String, SecretBytes>, Unusable> {
    let text = named::read_data(path)?;
    let mut accounts = BTreeMap::new();
    for (number, line) in (1..).zip(without_mark(text.expose()).lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let pair = line.split_once(char::is_whitespace);
        let key = pair.and_then(|(kid, key)| Some((kid.to_owned(), decode_hmac_key(key).ok()?)));
        let (kid, key) = key.ok_or_else(|| Unusable {
            message: format!("line {number} is not an identifier and a key in base64url"),
            hint: None,
        })?;
        if accounts.insert(kid, key).is_some() {
            // Which of the two keys is the right one cannot be known.
            return Err(Unusable {
                message: format!("line {number} has the identifier of an earlier line"),
                hint: Some("leave one line for each identifier".to_owned()),
            });
        }
    }
    Ok(accounts)
}

/// Why a file of these settings cannot be used, and the command that helps, if one is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unusable {
    pub message: String,
    pub hint: Option<String>,
}

impl Unusable {
    fn in_file(mut self, what: &str, path: &Path) -> Self {
        self.message = format!("{what} {}: {}", path.display(), self.message);
        self
    }
}

impl From<&str> for Unusable {
    fn from(message: &str) -> Self {
        let (message, hint) = (message.to_owned(), None);
        Self { message, hint }
    }
}

impl From<Unread> for Unusable {
    fn from(error: Unread) -> Self {
        let (message, hint) = (error.to_string(), error.hint());
        Self { message, hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_takes_names_and_https_urls_only() {
        for text in names() {
            assert!(text.parse::<DirectoryUrl>().is_ok(), "{text}");
        }
        let private: DirectoryUrl = "https://ca.internal/dir".parse().unwrap();
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
            assert!(text.parse::<DirectoryUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn directory_url_of_public_ca_is_public_and_has_staging() {
        let named: DirectoryUrl = "letsencrypt".parse().unwrap();
        let url: DirectoryUrl = named.identity().parse().unwrap();
        assert!(url.is_public());
        assert_eq!(url.staging().unwrap().to_string(), "letsencrypt-staging");
        assert_eq!("zerossl".parse::<DirectoryUrl>().unwrap().staging(), None);
    }

    #[test]
    fn spellings_of_a_url_are_one_ca() {
        let parse = |text: &str| text.parse::<DirectoryUrl>().unwrap();
        let ca = parse("https://ca.internal/dir");
        for spelling in [
            "https://CA.Internal/dir",
            "HTTPS://ca.internal:443/dir",
            "https://ca.internal/dir#top",
            "https://user:pw@ca.internal/dir",
        ] {
            assert_eq!(parse(spelling), ca, "{spelling}");
        }
        assert_ne!(parse("https://ca.internal/Dir"), ca);
        assert_ne!(parse("https://ca.internal:8443/dir"), ca);
        let staging = parse("https://ACME-staging-v02.api.letsencrypt.org/directory#x");
        assert!(staging.is_staging());
        let refused = "http://user:pw@ca/dir".parse::<DirectoryUrl>().unwrap_err();
        assert!(!refused.contains("pw"), "{refused}");
    }

    #[test]
    fn directory_at_host_needs_exactly_one() {
        let at = |host: &str| DirectoryUrl::at_host(host).map(|ca| ca.to_string());
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
        let (_, key) = settings.read_binding().unwrap().unwrap();
        assert!(key.unwrap_err().message.contains("invalid base64url"));
        for mark in ["", "\u{feff}"] {
            std::fs::write(&file, format!("{mark}AQID_w==\n")).unwrap();
            let read = settings.read_binding().unwrap();
            assert_eq!(
                read,
                Some(("kid".into(), Ok(SecretBytes::new(vec![1, 2, 3, 0xff]))))
            );
        }
    }

    #[test]
    fn external_accounts_have_one_line_for_each_identifier() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("accounts");
        std::fs::write(&file, "\u{feff}# of the lab\none AQID_w\n\ntwo AQID_w\r\n").unwrap();
        let read = external_accounts(&file).unwrap();
        assert_eq!(read.keys().collect::<Vec<_>>(), ["one", "two"]);
        std::fs::write(&file, "\u{feff}one AQID_w\ntwo AQID_w\none BQID_w\n").unwrap();
        let refused = external_accounts(&file).unwrap_err();
        assert!(refused.message.contains("line 3"), "{}", refused.message);
    }
}
