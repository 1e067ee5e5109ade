//! A URL whose user, password, path and query may be secrets, as those of a webhook are.

use std::cmp::Ordering;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Uri;
use http::uri::{InvalidUri, PathAndQuery};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::certificate::Secret;
use crate::fingerprint::Fingerprint;
use crate::text::origins;

/// Such a URL. Its text is stored and sent to its server; everything else shows its origin.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub(crate) struct SecretUrl(#[schemars(with = "String")] Secret);

impl SecretUrl {
    /// Takes the text of a URL, which may be invalid.
    pub(crate) fn new(text: String) -> Self {
        Self(Secret::new(text))
    }

    /// The text itself, to store it.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose()
    }

    /// Its parts, to send a request.
    pub(crate) fn uri(&self) -> Result<Uri, InvalidUri> {
        self.expose().parse()
    }

    /// Scheme, host and port.
    pub(crate) fn origin(&self) -> String {
        let shown = origins(self.expose());
        let origin = shown.trim_end_matches(['/', '…']);
        match origin.ends_with(':') {
            true => "a URL".to_owned(),
            false => origin.to_owned(),
        }
    }
}

/// The host and port of `uri`, and the value of the header that authorizes its user.
pub(crate) fn authority(uri: &Uri) -> (&str, Option<String>) {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let Some((user, host)) = authority.rsplit_once('@') else {
        return (authority, None);
    };
    let mut user = decoded(user.as_bytes());
    if !user.contains(&b':') {
        // No password is an empty one (RFC 7617 section 2).
        user.push(b':');
    }
    let code = BASE64_STANDARD.encode(user);
    (host, Some(format!("Basic {code}")))
}

/// `reference`, which may be relative to the URL `base`, as a whole URL (RFC 3986 section
/// 5.2). An empty one stays empty: it names nothing.
pub(crate) fn resolved(base: &str, reference: &str) -> String {
    let first = reference.split(['/', '?', '#']).next();
    let is_whole = first.is_none_or(|first| first.contains(':'));
    let Some((scheme, rest)) = base.split_once("://").filter(|_| !is_whole) else {
        return reference.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let path = path.split(['?', '#']).next().unwrap_or_default();
    match reference.as_bytes() {
        [] => String::new(),
        [b'/', b'/', ..] => format!("{scheme}:{reference}"),
        [b'/', ..] => format!("{scheme}://{authority}{reference}"),
        [b'?' | b'#', ..] => format!("{scheme}://{authority}{path}{reference}"),
        _ => {
            let (mut directory, mut below) =
                (path.rsplit_once('/').map_or("", |(d, _)| d), reference);
            loop {
                if let Some(rest) = below.strip_prefix("./") {
                    below = rest;
                } else if let Some(rest) = below.strip_prefix("../") {
                    below = rest;
                    directory = directory.rsplit_once('/').map_or("", |(above, _)| above);
                } else {
                    return format!("{scheme}://{authority}{directory}/{below}");
                }
            }
        }
    }
}

/// The URL in its one spelling: scheme and host in lower case, without the default port, user,
/// password and fragment (RFC 3986 section 6.2). A text that is not a URL stays as it is.
pub(crate) fn normalized(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let scheme = scheme.to_ascii_lowercase();
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let host = host.to_ascii_lowercase();
    let default = match scheme.as_str() {
        "https" => ":443",
        _ => ":80",
    };
    // `https://host:` has the default port, too.
    let host = host.strip_suffix(default).unwrap_or(&host);
    let host = host.strip_suffix(':').unwrap_or(host);
    let path = if path == "/" { "" } else { path };
    format!("{scheme}://{host}{path}")
}

/// Replaces each `%` with two hexadecimal digits by its byte.
fn decoded(mut text: &[u8]) -> Vec<u8> {
    let mut made = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        let digits = rest.get(..2).filter(|_| *first == b'%');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        made.push(byte.unwrap_or(*first));
        text = byte.map_or(rest, |_| &rest[2..]);
    }
    made
}

impl fmt::Display for SecretUrl {
    /// The origin and, if there is more, a mark that tells it from others of that origin. The
    /// mark leaves out the password, and is too short to test guesses of a token with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin())?;
        let uri = self.uri().ok();
        let rest = uri.as_ref().and_then(Uri::path_and_query);
        match rest
            .map(PathAndQuery::as_str)
            .filter(|rest| *rest != "/" && !rest.contains('@'))
        {
            None => Ok(()),
            Some(rest) => {
                let mark = Fingerprint::of(rest.as_bytes()).to_string();
                write!(f, " ({mark:.4})")
            }
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialOrd for SecretUrl {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SecretUrl {
    fn cmp(&self, other: &Self) -> Ordering {
        self.expose().cmp(other.expose())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_shows_its_origin_and_a_mark_only() {
        for (text, origin, has_mark) in [
            ("https://hooks.example", "https://hooks.example", false),
            ("https://hooks.example/", "https://hooks.example", false),
            (
                "https://u:pw@h.example:8443",
                "https://h.example:8443",
                false,
            ),
            ("http://u:pw@[::1]:80/TOKEN?TOKEN", "http://[::1]:80", true),
            ("https://h.example?TOKEN", "https://h.example", true),
            ("https://u:p/w@h.example/TOKEN", "a URL", false),
        ] {
            let url = SecretUrl::new(text.to_owned());
            let (shown, hidden) = (url.to_string(), format!("{url:?}"));
            assert_eq!((url.origin().as_str(), &shown), (origin, &hidden));
            assert_eq!(shown.ends_with(')'), has_mark, "{shown}");
            assert!(!shown.contains("TOKEN") && !shown.contains("pw"), "{shown}");
        }
        let [one, other] = ["https://h/a", "https://h/b"].map(|url| SecretUrl::new(url.into()));
        assert_ne!(one.to_string(), other.to_string());
    }

    #[test]
    fn reference_is_resolved_against_its_base() {
        let base = "https://ca.test/acme/new-order?x=/y";
        for (reference, whole) in [
            ("https://other.test/1", "https://other.test/1"),
            ("//other.test/1", "https://other.test/1"),
            ("/order/1", "https://ca.test/order/1"),
            ("order/1?a=b:c", "https://ca.test/acme/order/1?a=b:c"),
            ("./order/1", "https://ca.test/acme/order/1"),
            ("../../order/1", "https://ca.test/order/1"),
            ("?id=1", "https://ca.test/acme/new-order?id=1"),
            ("file:///etc/passwd", "file:///etc/passwd"),
            ("http://ca.test/1", "http://ca.test/1"),
            ("", ""),
        ] {
            assert_eq!(resolved(base, reference), whole);
        }
        assert_eq!(resolved("https://ca.test", "dir"), "https://ca.test/dir");
    }

    #[test]
    fn spellings_of_one_url_are_normalized_to_one() {
        for spelling in [
            "https://ca.test/Dir?X",
            "HTTPS://CA.Test/Dir?X",
            "https://ca.test:443/Dir?X",
            "https://ca.test:/Dir?X",
            "https://user:pw@ca.test/Dir?X",
            "https://ca.test/Dir?X#fragment",
        ] {
            assert_eq!(normalized(spelling), "https://ca.test/Dir?X", "{spelling}");
        }
        assert_eq!(
            normalized("https://[2001:DB8::1]:443"),
            "https://[2001:db8::1]"
        );
        assert_eq!(
            normalized("https://ca.test:8443/dir"),
            "https://ca.test:8443/dir"
        );
        for other in [
            "https://ca.test/dir",
            "https://ca.test/Dir?x",
            "https://ca.test/Dir",
        ] {
            assert_ne!(normalized(other), "https://ca.test/Dir?X");
        }
        assert_eq!(
            normalized("https://ca.test/"),
            normalized("https://ca.test")
        );
        assert_eq!(normalized("embedded"), "embedded");
    }

    #[test]
    fn user_goes_to_its_header() {
        let uri = Uri::from_static("https://us%40er:p%zz@h.example:1/x");
        let (host, header) = authority(&uri);
        assert_eq!(host, "h.example:1");
        let wanted = BASE64_STANDARD.encode("us@er:p%zz");
        assert_eq!(header, Some(format!("Basic {wanted}")));
        let wanted = BASE64_STANDARD.encode("user:");
        let alone = Uri::from_static("https://user@h.example");
        assert_eq!(authority(&alone).1, Some(format!("Basic {wanted}")));
        let plain = Uri::from_static("https://h.example/@x");
        assert_eq!(authority(&plain), ("h.example", None));
    }
}
