//! The proxy through which servers are reached: chosen as curl does, by the environment or
//! the configuration, and asked for a tunnel (CONNECT, RFC 9110 section 9.3.6). Its
//! credentials are sent to it and shown nowhere.

mod excluded;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST, PROXY_AUTHORIZATION, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::excluded::excludes;
use super::Stream;
use super::dns::lookup::Resolver;
use super::http::{LARGEST_HEAD, Origin};
use super::url::{self, SecretUrl};
use crate::text::printable;

/// For a tunnel, connecting to the proxy included.
const DEADLINE: Duration = Duration::from_secs(15);
/// Of a proxy without a port, as for curl.
const PORT: u16 = 1080;
/// The forms of a proxy, for hints.
pub(crate) const FORMS: &str =
    "http://HOST:PORT, with USER:PASSWORD@ before HOST where the proxy wants them";

/// An HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proxy {
    /// With a port, and with the credentials.
    url: SecretUrl,
    /// The key or the variable that names it.
    source: String,
}

impl Proxy {
    /// Parses a URL, or `HOST:PORT`; `source` is the key or the variable that names it.
    ///
    /// # Errors
    /// Why it is not usable, without its credentials.
    pub(crate) fn parse(text: &str, source: &str) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let scheme = scheme.to_ascii_lowercase();
        if scheme.starts_with("socks") {
            return Err(format!("{} proxies are not supported", printable(&scheme)));
        }
        // A further part may belong to a password that is not escaped.
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let host = authority.rsplit('@').next().unwrap_or_default();
        let is_whole = !authority.contains(['/', '?', '#']) && !host.starts_with(':');
        let uri: Option<Uri> = format!("{scheme}://{authority}").parse().ok();
        let (true, true, Some(uri)) = (
            ["http", "https"].contains(&&*scheme),
            is_whole && !host.is_empty(),
            uri,
        ) else {
            return Err("it is not the URL of a proxy".to_owned());
        };
        let has_port = host.rfind(':') > host.rfind(']');
        let port = match (uri.port_u16(), &*scheme) {
            (Some(_), _) => String::new(),
            (None, _) if has_port => return Err("its port is not a number".to_owned()),
            (None, "https") => ":443".to_owned(),
            (None, _) => format!(":{PORT}"),
        };
        Ok(Self {
            url: SecretUrl::new(format!("{scheme}://{authority}{port}")),
            source: source.to_owned(),
        })
    }

    /// Opens a tunnel to `port` of `host`, a name or an address.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn tunnel(
        &self,
        host: &str,
        port: u16,
        resolver: &Resolver,
    ) -> Result<Box<dyn Stream>, ProxyError> {
        let to = format!("{host}:{port}");
        let opened = tokio::time::timeout(DEADLINE, self.open(&to, resolver)).await;
        let opened = opened.unwrap_or(Err(ProxyCause::TimedOut));
        opened.map_err(|cause| ProxyError {
            proxy: self.to_string(),
            to: printable(&to),
            cause,
        })
    }

    async fn open(&self, to: &str, resolver: &Resolver) -> Result<Box<dyn Stream>, ProxyCause> {
        let unusable = |error: String| ProxyCause::Connect(printable(&error));
        let uri = self.url.uri();
        let uri = uri.map_err(|_| unusable("invalid URL".to_owned()))?;
        let (_, user) = url::authority(&uri);
        let has_user = user.is_some();
        let origin = Origin::of(&uri, resolver).map_err(unusable)?;
        let stream = origin.connect().await;
        let stream = stream.map_err(|error| unusable(error.to_string()))?;
        let mut request = Request::connect(to)
            .header(HOST, to)
            .header(USER_AGENT, concat!("certs/", env!("CARGO_PKG_VERSION")));
        if let Some(user) = user {
            request = request.header(PROXY_AUTHORIZATION, user);
        }
        let request = request.body(Empty::<bytes::Bytes>::new());
        let request = request.map_err(|error| unusable(error.to_string()))?;
        let mut client = Builder::new();
        let client = client.max_buf_size(LARGEST_HEAD);
        let handshake = client.handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await?;
        let mut connection = std::pin::pin!(connection.with_upgrades());
        let asked = async {
            let reply = sender.send_request(request).await?;
            let kind = reply.headers().get(CONTENT_TYPE);
            let is_page = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
            match reply.status() {
                status if status.is_success() && !is_page => Ok(hyper::upgrade::on(reply).await?),
                status if status.is_success() => Err(ProxyCause::WebPage),
                StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                    Err(ProxyCause::Credentials { given: has_user })
                }
                status => Err(ProxyCause::Refused(status)),
            }
        };
        let mut asked = std::pin::pin!(asked);
        let upgraded = tokio::select! {
            biased;
            upgraded = &mut asked => upgraded,
            // It ends once the tunnel has its connection, or with the error of the request.
            _ = &mut connection => asked.await,
        };
        Ok(Box::new(TokioIo::new(upgraded?)))
    }
}

impl fmt::Display for Proxy {
    /// Without the credentials, and with what names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.url.origin(), self.source)
    }
}

/// Which servers are reached through a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proxies {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proxy: Option<Proxy>,
    /// `NO_PROXY`: the servers that are reached directly.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    excluded: String,
    /// Why the proxy of the environment cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unusable: Option<String>,
}

impl Proxies {
    /// Those of the environment, with curl's rules: the first variable that is set counts, in
    /// small letters before capitals, and an empty one means none. `HTTP_PROXY` is for http
    /// only, which no CA speaks.
    pub(crate) fn of(environment: &BTreeMap<String, String>) -> Self {
        let first = |names: &[&'static str]| {
            let mut found = names.iter();
            found.find_map(|name| Some((*name, environment.get(*name)?.trim())))
        };
        let named = first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]);
        let proxy = named.filter(|(_, text)| !text.is_empty());
        let proxy = proxy
            .map(|(name, text)| Proxy::parse(text, name).map_err(|why| format!("{name}: {why}")));
        let excluded = first(&["no_proxy", "NO_PROXY"]).map(|(_, list)| list.to_owned());
        let (proxy, unusable) = match proxy.transpose() {
            Ok(proxy) => (proxy, None),
            Err(why) => (None, Some(why)),
        };
        Self {
            proxy,
            excluded: excluded.unwrap_or_default(),
            unusable,
        }
    }

    /// The same with this proxy, or with none.
    #[must_use]
    pub(crate) fn with(self, proxy: Option<Proxy>) -> Self {
        Self {
            proxy,
            unusable: None,
            ..self
        }
    }

    /// The proxy to `host`, a name or an address; `None` if it is reached directly.
    ///
    /// # Errors
    /// When the environment names a proxy that cannot be used.
    pub(crate) fn to(&self, host: &str) -> Result<Option<&Proxy>, &str> {
        match &self.unusable {
            _ if excludes(&self.excluded, host) => Ok(None),
            Some(why) => Err(why),
            None => Ok(self.proxy.as_ref()),
        }
    }
}

/// How servers are reached, which a process may change while it runs.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    proxies: RwLock<Arc<Proxies>>,
    /// Looks up the hosts of servers and proxies.
    pub(crate) resolver: Resolver,
}

impl Ways {
    pub(crate) fn new(proxies: Proxies, resolver: Resolver) -> Self {
        Self {
            proxies: RwLock::new(Arc::new(proxies)),
            resolver,
        }
    }

    /// The proxies of now.
    pub(crate) fn proxies(&self) -> Arc<Proxies> {
        let proxies = self.proxies.read();
        proxies.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses `proxies` from the next request on. Returns those of before.
    pub(crate) fn change(&self, proxies: Arc<Proxies>) -> Arc<Proxies> {
        let mut all = self.proxies.write().unwrap_or_else(PoisonError::into_inner);
        match **all == *proxies {
            true => proxies,
            false => std::mem::replace(&mut all, proxies),
        }
    }
}

/// Why a proxy opened no tunnel.
#[derive(Debug, Error)]
#[error("{}", self.shown())]
pub(crate) struct ProxyError {
    proxy: String,
    /// Host and port of the server.
    to: String,
    cause: ProxyCause,
}

#[derive(Debug)]
enum ProxyCause {
    Connect(String),
    TimedOut,
    Credentials { given: bool },
    Refused(StatusCode),
    WebPage,
    Broken(String),
}

impl From<hyper::Error> for ProxyCause {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(printable(&error.to_string()))
    }
}

impl ProxyError {
    fn shown(&self) -> String {
        let (proxy, to) = (&self.proxy, &self.to);
        match &self.cause {
            ProxyCause::Connect(error) => format!("cannot connect to the proxy {proxy}: {error}"),
            ProxyCause::TimedOut => format!(
                "the proxy {proxy} opened no tunnel to {to} within {} s",
                DEADLINE.as_secs()
            ),
            ProxyCause::Credentials { given: true } => {
                format!("the proxy {proxy} does not accept the credentials of its URL (HTTP 407)")
            }
            ProxyCause::Credentials { given: false } => {
                format!("the proxy {proxy} wants credentials (HTTP 407)")
            }
            ProxyCause::Refused(status) => {
                format!("the proxy {proxy} refused a tunnel to {to}: HTTP {status}")
            }
            ProxyCause::WebPage => {
                format!("the proxy {proxy} answered with a web page instead of a tunnel to {to}")
            }
            ProxyCause::Broken(error) => {
                format!("the proxy {proxy} opened no tunnel to {to}: {error}")
            }
        }
    }

    /// The next thing to do.
    pub(crate) fn hint(&self) -> String {
        let host = self.to.rsplit_once(':').map_or("", |(host, _)| host);
        match &self.cause {
            ProxyCause::Connect(_) | ProxyCause::TimedOut => format!(
                "check the address of the proxy, and that it runs; NO_PROXY={host} connects without it"
            ),
            ProxyCause::Credentials { given: false } => format!(
                "put the credentials into its URL, {FORMS}; CERTS_PROXY_FILE=FILE reads it from a file"
            ),
            ProxyCause::Credentials { given: true } => {
                "correct the user and the password in the URL of the proxy; write characters such as @ and / as %40 and %2F".to_owned()
            }
            ProxyCause::Refused(status) if status.is_server_error() => format!(
                "check from the proxy's machine, and in its log, why it cannot reach {}: its DNS, its firewall, its load; NO_PROXY={host} connects without it",
                self.to
            ),
            ProxyCause::Refused(_) => format!(
                "have the proxy allow CONNECT to {}; NO_PROXY={host} connects without it",
                self.to
            ),
            ProxyCause::WebPage | ProxyCause::Broken(_) => format!(
                "check the URL of the proxy: an HTTP proxy that allows CONNECT must be there; NO_PROXY={host} connects without it"
            ),
        }
    }

    /// Whether a retry within the run may succeed. A timeout took the whole [`DEADLINE`] and is
    /// likely to do so again: it ends this run, as that of a CA does.
    pub(crate) fn is_temporary(&self) -> bool {
        match &self.cause {
            ProxyCause::Connect(_) | ProxyCause::Broken(_) => true,
            ProxyCause::Refused(status) => status.is_server_error(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn proxy_has_a_scheme_a_host_and_a_port() {
        for (text, shown) in [
            ("http://u:pw@proxy.test:3128/", "http://proxy.test:3128 (x)"),
            ("proxy.test:3128", "http://proxy.test:3128 (x)"),
            ("u:pw@proxy.test", "http://proxy.test:1080 (x)"),
            ("HTTPS://proxy.test", "https://proxy.test:443 (x)"),
            (" http://[2001:db8::1]:80 ", "http://[2001:db8::1]:80 (x)"),
        ] {
            let proxy = Proxy::parse(text, "x").unwrap();
            assert_eq!(proxy.to_string(), shown);
            assert!(!format!("{proxy:?}").contains("pw"), "{proxy:?}");
        }
        for text in [
            "",
            "http://",
            "http://u:p#w@h",
            "ftp://h",
            "socks4://h",
            "://h",
        ] {
            let why = Proxy::parse(text, "x").unwrap_err();
            assert_eq!(why.contains("not supported"), text.starts_with("socks"));
        }
    }

    #[test]
    fn hint_differs_for_a_proxy_that_refuses_and_one_that_cannot_reach_the_server() {
        let hint = |status| {
            let error = ProxyError {
                proxy: "http://proxy.test:3128 (x)".to_owned(),
                to: "ca.test:443".to_owned(),
                cause: ProxyCause::Refused(StatusCode::from_u16(status).unwrap()),
            };
            (error.hint(), error.is_temporary())
        };
        for (status, words, is_temporary) in [
            (403, "have the proxy allow CONNECT to ca.test:443", false),
            (405, "have the proxy allow CONNECT to ca.test:443", false),
            (502, "why it cannot reach ca.test:443", true),
            (503, "why it cannot reach ca.test:443", true),
            (504, "why it cannot reach ca.test:443", true),
        ] {
            let (hint, temporary) = hint(status);
            assert!(hint.contains(words), "{status}: {hint}");
            assert_eq!(temporary, is_temporary, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_proxy_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let proxy = Proxy::parse(&address, "--proxy").unwrap();
        let error = proxy
            .tunnel("ca.test", 443, &Resolver::default())
            .await
            .err()
            .unwrap();
        let wanted = format!(
            "the proxy http://{address} (--proxy) opened no tunnel to ca.test:443 within 15 s"
        );
        assert_eq!(error.to_string(), wanted);
        assert!(error.hint().contains("NO_PROXY=ca.test"));
        assert!(!error.is_temporary());
    }
}
