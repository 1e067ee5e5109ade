//! Credentials of AWS for the role of this instance, task or pod: those of the environment,
//! of a web identity (EKS), of a shared credentials file, of the container (ECS, EKS Pod
//! Identity), or of EC2's instance metadata (version 2 alone). They are temporary, kept in memory until shortly before they
//! expire, never stored and never shown. The sources that need the network are addresses of
//! the environment, or fixed ones of AWS: nothing that a CA or a user of a service says leads
//! there. Each reply is bounded and has a deadline.

mod profile;
pub(crate) mod signature;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use thiserror::Error;
use tokio::sync::Mutex;

use super::dns::lookup::Resolver;
use super::http::{Longest, Origin};
use crate::certificate::Secret;
use crate::files::named;
use crate::text::printable;
use crate::time::{Clock, SystemClock, Timestamp};

/// The variables that name files with credentials, which are replaced at any time.
pub(crate) const FILES: [&str; 3] = [WEB_IDENTITY_FILE, CONTAINER_TOKEN_FILE, SHARED_FILE];
/// Below a user's home directory, where no variable names another file.
pub(crate) const SHARED_IN_HOME: &str = ".aws/credentials";
const WEB_IDENTITY_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const CONTAINER_TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

const SHARED_FILE: &str = "AWS_SHARED_CREDENTIALS_FILE";
const PROFILE: &str = "AWS_PROFILE";

const WITHIN: Duration = Duration::from_secs(5);
/// Far above an honest reply.
const LARGEST: usize = 64 * 1024;
/// Credentials are renewed so long before they expire: longer than a change of DNS takes.
const SPARE: Duration = Duration::from_secs(300);
const INSTANCE: &str = "http://169.254.169.254";
const TASK: &str = "http://169.254.170.2";
/// Where a container's credentials may come from without TLS.
const PLAIN_HOSTS: [&str; 6] = [
    "169.254.170.2",
    "169.254.170.23",
    "[fd00:ec2::23]",
    "127.0.0.1",
    "[::1]",
    "localhost",
];
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// The keys of a role. They have no `Debug`.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) id: String,
    pub(crate) secret: Secret,
    /// Of temporary keys.
    pub(crate) token: Option<Secret>,
    expires: Option<Timestamp>,
}

impl Keys {
    /// In place of keys that are fetched later.
    pub(crate) fn placeholder() -> Self {
        Self {
            id: "role".to_owned(),
            secret: Secret::new("role".to_owned()),
            token: None,
            expires: None,
        }
    }
}

/// Why no keys were had, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub(crate) struct RoleError {
    message: String,
    pub(crate) hint: &'static str,
}

impl RoleError {
    fn new(source: &str, why: impl ToString) -> Self {
        let why = printable(&why.to_string());
        Self {
            message: format!("no credentials of AWS from {source}: {why}"),
            hint: "give this instance, task or pod a role that may do this, or configure an access key",
        }
    }
}

/// The value of a variable of the environment.
type Variables = dyn Fn(&str) -> Option<String> + Send + Sync;

/// The role of this instance, task or pod.
pub(crate) struct Role {
    variables: Box<Variables>,
    clock: Arc<dyn Clock>,
    resolver: Resolver,
    kept: Mutex<Option<Keys>>,
}

impl Role {
    /// The role that the environment of this process, or else EC2, gives it; `resolver` looks up
    /// the hosts of both.
    #[allow(clippy::disallowed_methods)] // AWS has named these variables: no settings of ours
    pub(crate) fn of_this_process(resolver: Resolver) -> Self {
        let variables = |name: &str| std::env::var(name).ok();
        Self::with(variables, Arc::new(SystemClock), resolver)
    }

    pub(crate) fn with(
        variables: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
        clock: Arc<dyn Clock>,
        resolver: Resolver,
    ) -> Self {
        Self {
            variables: Box::new(variables),
            clock,
            resolver,
            kept: Mutex::default(),
        }
    }

    /// Keys that are valid for some minutes at least.
    ///
    /// # Errors
    /// When the environment names no source that gives some, and this is not an instance of EC2
    /// with a role.
    pub(crate) async fn keys(&self) -> Result<Keys, RoleError> {
        let mut kept = self.kept.lock().await;
        let (now, spare) = (self.clock.now(), SPARE);
        let is_valid = |keys: &&Keys| keys.expires.is_some_and(|end| end > now + spare);
        if let Some(keys) = kept.as_ref().filter(is_valid) {
            return Ok(keys.clone());
        }
        let keys = match (self.fetch().await, kept.as_ref()) {
            // Those of a file that this process may not read any more do not end.
            (Err(_), Some(known)) if known.expires.is_none() => known.clone(),
            (fetched, _) => fetched?,
        };
        *kept = Some(keys.clone());
        Ok(keys)
    }

    /// A variable that is not empty.
    fn variable(&self, name: &str) -> Option<String> {
        let value = (self.variables)(name)?.trim().to_owned();
        Some(value).filter(|value| !value.is_empty())
    }

    async fn fetch(&self) -> Result<Keys, RoleError> {
        if let Some(keys) = self.of_environment() {
            return Ok(keys);
        }
        if let (Some(file), Some(role)) = (
            self.variable(WEB_IDENTITY_FILE),
            self.variable("AWS_ROLE_ARN"),
        ) {
            let keys = self.of_web_identity(&file, &role).await;
            return keys.map_err(|why| RoleError::new("the web identity of this pod", why));
        }
        if let Some(keys) = self.of_profile()? {
            return Ok(keys);
        }
        if let Some(url) = self.container() {
            let keys = self.of_container(&url).await;
            return keys.map_err(|why| RoleError::new("the role of this container", why));
        }
        let endpoint = self.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let endpoint = endpoint.unwrap_or_else(|| INSTANCE.to_owned());
        let source = format!("EC2's instance metadata at {endpoint}");
        let disabled = self.variable("AWS_EC2_METADATA_DISABLED");
        if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            let why = "AWS_EC2_METADATA_DISABLED is set";
            return Err(RoleError::new(&source, why));
        }
        let keys = self.of_instance(&endpoint).await;
        keys.map_err(|why| RoleError::new(&source, why))
    }

    fn of_environment(&self) -> Option<Keys> {
        Some(Keys {
            id: self.variable("AWS_ACCESS_KEY_ID")?,
            secret: Secret::new(self.variable("AWS_SECRET_ACCESS_KEY")?),
            token: self.variable("AWS_SESSION_TOKEN").map(Secret::new),
            expires: None,
        })
    }

    /// The URL of a container's credentials.
    fn container(&self) -> Option<String> {
        let relative = self.variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        relative
            .map(|path| format!("{TASK}{path}"))
            .or_else(|| self.variable("AWS_CONTAINER_CREDENTIALS_FULL_URI"))
    }

    async fn of_container(&self, url: &str) -> Result<Keys, String> {
        let uri = parsed(url)?;
        let is_plain = uri.scheme_str() == Some("http");
        let host = uri.host().unwrap_or_default();
        if is_plain && !PLAIN_HOSTS.contains(&host) {
            return Err(format!("{host} is not trusted without https"));
        }
        let token = match self.variable(CONTAINER_TOKEN_FILE) {
            Some(file) => Some(token_of(&file)?),
            None => { self.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN") }.map(Secret::new),
        };
        let token = token.as_ref().map(|token| ("authorization", token));
        let reply = self.request(Method::GET, &uri, token, Bytes::new()).await?;
        keys_of(&reply)
    }

    /// Exchanges the pod's token for keys (`AssumeRoleWithWebIdentity`).
    async fn of_web_identity(&self, file: &str, role: &str) -> Result<Keys, String> {
        let token = token_of(file)?;
        let region =
            { self.variable("AWS_REGION") }.or_else(|| self.variable("AWS_DEFAULT_REGION"));
        let own =
            { self.variable("AWS_ENDPOINT_URL_STS") }.or_else(|| self.variable("AWS_ENDPOINT_URL"));
        let endpoint = own.unwrap_or_else(|| match region {
            Some(region) if region.starts_with("cn-") => {
                format!("https://sts.{region}.amazonaws.com.cn")
            }
            Some(region) => format!("https://sts.{region}.amazonaws.com"),
            None => "https://sts.amazonaws.com".to_owned(),
        });
        let session = self.variable("AWS_ROLE_SESSION_NAME");
        let session = session.unwrap_or_else(|| "certs".to_owned());
        let fields = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", &session),
            ("WebIdentityToken", token.expose()),
        ];
        let fields = fields.map(|(name, value)| {
            format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
        });
        let uri = parsed(&format!("{}/", endpoint.trim_end_matches('/')))?;
        let fields = fields.join("&").into();
        let reply = self.request(Method::POST, &uri, None, fields).await?;
        let text = String::from_utf8_lossy(&reply);
        let part = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            Some(rest.split_once('<')?.0.trim().to_owned())
        };
        let expires = part("Expiration").and_then(|end| timestamp(&end));
        let keys = || {
            Some(Keys {
                id: part("AccessKeyId")?,
                secret: Secret::new(part("SecretAccessKey")?),
                token: Some(Secret::new(part("SessionToken")?)),
                expires,
            })
        };
        keys().ok_or_else(|| "the reply of STS has no credentials".to_owned())
    }

    /// The role of an instance of EC2. The token of version 2 keeps a proxy or a server that
    /// fetches URLs for others from reading them.
    async fn of_instance(&self, endpoint: &str) -> Result<Keys, String> {
        let endpoint = endpoint.trim_end_matches('/');
        let ttl = Secret::new("300".to_owned());
        let ttl = Some(("x-aws-ec2-metadata-token-ttl-seconds", &ttl));
        let uri = parsed(&format!("{endpoint}/latest/api/token"))?;
        let token = self.request(Method::PUT, &uri, ttl, Bytes::new()).await?;
        let token = Secret::new(String::from_utf8_lossy(&token).into_owned());
        let get = async |path: &str| {
            let uri = parsed(&format!("{endpoint}{ROLES}{path}"))?;
            let token = Some(("x-aws-ec2-metadata-token", &token));
            self.request(Method::GET, &uri, token, Bytes::new()).await
        };
        let roles = get("").await?;
        let roles = String::from_utf8_lossy(&roles);
        let role = roles.lines().next().unwrap_or_default().trim();
        // The characters of a role's name.
        let is_name = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
        match !role.is_empty() && role.chars().all(is_name) {
            true => keys_of(&get(role).await?),
            false => Err("the instance has no role".to_owned()),
        }
    }

    /// The body of a reply that says success.
    async fn request(
        &self,
        method: Method,
        url: &Uri,
        header: Option<(&'static str, &Secret)>,
        body: Bytes,
    ) -> Result<Bytes, String> {
        let host = url.authority().map_or("", |host| host.as_str());
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host);
        if !body.is_empty() {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        if let Some((name, value)) = header {
            let mut value = HeaderValue::from_str(value.expose())
                .map_err(|_| format!("the value of {name} is not one of a header"))?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let origin = Origin::of(url, &self.resolver)?;
        let sent = origin.send(request, WITHIN, Longest::Whole(LARGEST)).await;
        let (status, reply) = sent.map_err(|error| error.to_string())?;
        match status {
            status if status.is_success() => Ok(reply),
            StatusCode::NOT_FOUND => Err("no role is attached (HTTP 404)".to_owned()),
            status => Err(format!("HTTP {status}")),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reply {
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    expiration: Option<Timestamp>,
}

fn keys_of(reply: &[u8]) -> Result<Keys, String> {
    // The error of a parser may quote a key.
    let reply: Reply = serde_json::from_slice(reply)
        .map_err(|_| "the reply has no credentials: does the role still exist?")?;
    Ok(Keys {
        id: reply.access_key_id,
        secret: Secret::new(reply.secret_access_key),
        token: reply.token.map(Secret::new),
        expires: reply.expiration,
    })
}

fn timestamp(text: &str) -> Option<Timestamp> {
    serde_json::from_value(serde_json::Value::from(text)).ok()
}

fn token_of(file: &str) -> Result<Secret, String> {
    let read = named::read_data(file.as_ref());
    let read = read.map_err(|error| format!("{file}: {error}"))?;
    Ok(Secret::new(read.expose().trim().to_owned()))
}

fn parsed(url: &str) -> Result<Uri, String> {
    url.parse().map_err(|_| format!("invalid URL {url}"))
}
