//! Where etcd is: `etcd://USER:PASSWORD@HOST:PORT,HOST:PORT/PREFIX`, and `etcds://…` for TLS.

use http::Uri;
use http::uri::Authority;
use percent_encoding::percent_decode_str;

use super::super::settings::{ServerSettings, invalid_prefix, is_prefix, is_private};
use crate::certificate::Secret;

const PORT: u16 = 2379;

/// The members of a cluster, and the place of the documents.
#[derive(Debug)]
pub(super) struct Place {
    /// The URL of each member, without a path.
    pub(super) members: Vec<String>,
    /// With a slash at its end.
    pub(super) prefix: String,
    pub(super) user: Option<(String, Secret)>,
}

impl Place {
    /// # Errors
    /// What is invalid, without the password.
    pub(super) fn of(settings: &ServerSettings) -> Result<Self, String> {
        let (scheme, rest) = settings.url.split_once("://").unwrap_or_default();
        let scheme = if scheme == "etcd" { "http" } else { "https" };
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let (members, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        if !is_prefix(prefix) {
            return Err(invalid_prefix(prefix));
        }
        let members = members.split(',').map(|member| url_of(scheme, member));
        let user = user.map(|user| credentials(user, settings));
        Ok(Self {
            members: members.collect::<Result<_, _>>()?,
            prefix: format!("{prefix}/"),
            user: user.transpose()?,
        })
    }
}

fn url_of(scheme: &str, member: &str) -> Result<String, String> {
    // What is wrong with it may be a password.
    let invalid = "invalid HOST:PORT";
    let authority: Authority = member.parse().map_err(|_| invalid)?;
    if authority.host().is_empty() {
        return Err(invalid.to_owned());
    }
    if scheme == "http" && !is_private(authority.host()) {
        let host = authority.host();
        return Err(format!(
            "{host} is not in a private network; use etcds://, which is TLS"
        ));
    }
    let port = match member.strip_prefix(authority.host()) {
        Some("") => PORT,
        Some(port) => {
            let port = port.trim_start_matches(':').parse();
            port.map_err(|_| format!("invalid port of {}", authority.host()))?
        }
        None => return Err(invalid.to_owned()),
    };
    let url = format!("{scheme}://{}:{port}", authority.host());
    url.parse::<Uri>().map_err(|_| invalid)?;
    Ok(url)
}

/// The user and the password, which may be etcdctl's variable instead.
fn credentials(user: &str, settings: &ServerSettings) -> Result<(String, Secret), String> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, Some(decoded(password))),
        None => (user, None),
    };
    let password = password.or_else(|| settings.variable("ETCDCTL_PASSWORD").map(str::to_owned));
    let missing = "it names a user and no password: write USER:PASSWORD@, or set ETCDCTL_PASSWORD";
    Ok((decoded(user), Secret::new(password.ok_or(missing)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::proxy::Proxies;

    fn place(url: &str, variables: &[(&str, &str)]) -> Result<Place, String> {
        let pairs = variables.iter();
        Place::of(&ServerSettings {
            url: url.to_owned(),
            environment: pairs
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            proxies: Proxies::default(),
            resolver: Default::default(),
        })
    }

    #[test]
    fn url_names_members_prefix_and_user() {
        let found = place("etcd://10.0.0.1:2379,10.0.0.2,[fd00::1]:7/a/b/", &[]).unwrap();
        let members = [
            "http://10.0.0.1:2379",
            "http://10.0.0.2:2379",
            "http://[fd00::1]:7",
        ];
        assert_eq!(found.members, members);
        assert_eq!(found.prefix, "a/b/");
        assert!(found.user.is_none());
        let found = place("etcds://us%40er:p%3a%2Fw@etcd.example.com/p", &[]).unwrap();
        assert_eq!(found.members, ["https://etcd.example.com:2379"]);
        assert!(!format!("{found:?}").contains("p:/w"), "{found:?}");
        let (user, password) = found.user.unwrap();
        assert_eq!((user.as_str(), password.expose()), ("us@er", "p:/w"));
        let variables = [("ETCDCTL_PASSWORD", "other")];
        let found = place("etcd://root@etcd", &variables).unwrap();
        assert_eq!(found.user.unwrap().1.expose(), "other");
    }

    #[test]
    fn invalid_urls_are_refused_without_the_password() {
        for (url, words) in [
            ("etcd://", "invalid HOST:PORT"),
            ("etcd:///p", "invalid HOST:PORT"),
            ("etcd://a:b:c/p", "invalid HOST:PORT"),
            ("etcd://a,/p", "invalid HOST:PORT"),
            ("etcd://a/p//q", "invalid prefix `p//q`"),
            ("etcd://a:x/p", "invalid port of a"),
            ("etcd://a:99999/p", "invalid port of a"),
        ] {
            assert_eq!(place(url, &[]).unwrap_err(), words, "{url}");
        }
        let why = place("etcd://u:hidden@etcd.example.com/p", &[]).unwrap_err();
        assert!(
            why.contains("use etcds://") && !why.contains("hidden"),
            "{why}"
        );
        assert!(
            place("etcd://user@etcd/p", &[])
                .unwrap_err()
                .contains("ETCDCTL_PASSWORD")
        );
    }
}
