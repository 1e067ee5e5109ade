//! acme-dns: a small name server with an interface over HTTP, to which an alias (CNAME) at
//! `_acme-challenge.NAME` leads. It keeps the last two values of each account, so that
//! nothing is removed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Uri};
use serde_json::json;

use super::super::Failed;
use super::{Credentials, Field, Kind, Provider, Txt};
use crate::net::http::{HttpError, Longest, Origin};
use crate::text::printable;

const SERVER: &str = "server";
const USERNAME: &str = "username";
const PASSWORD: &str = "password";
const SUBDOMAIN: &str = "subdomain";
const PUBLIC: &str = "https://auth.acme-dns.io";
const WITHIN: Duration = Duration::from_secs(30);
/// Far above an honest reply, and what a message shows of one.
const LONGEST: Longest = Longest::Cut(500);

pub(super) const KIND: Kind = Kind {
    name: "acmedns",
    fields: &[
        Field::required(USERNAME),
        Field::required(PASSWORD),
        Field::required(SUBDOMAIN),
        Field::optional(SERVER),
    ],
    build: |credentials, resolver, _| {
        let server = credentials.get(SERVER).unwrap_or(PUBLIC);
        let server = server.trim().trim_end_matches('/').to_owned();
        let is_near = ["http://127.0.0.1", "http://localhost"].iter().any(|near| {
            server
                .strip_prefix(near)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        });
        let url: Uri = { format!("{server}/update").parse() }
            .map_err(|error| format!("invalid `server`: {error}"))?;
        if url.scheme_str() != Some("https") && !is_near {
            return Err("`server` is an https:// URL, or http:// of this machine".to_owned());
        }
        let header = |field: &str| {
            let value = HeaderValue::from_str(credentials.text(field)?.trim());
            value.map_err(|_| format!("`{field}` has a character that no header may have"))
        };
        Ok(Arc::new(AcmeDns {
            origin: Origin::of(&url, resolver)?,
            headers: [
                ("x-api-user", header(USERNAME)?),
                ("x-api-key", header(PASSWORD)?),
            ],
            url,
            server,
            subdomain: credentials.text(SUBDOMAIN)?.trim().to_owned(),
            credentials: credentials.clone(),
        }))
    },
};

struct AcmeDns {
    origin: Origin,
    url: Uri,
    headers: [(&'static str, HeaderValue); 2],
    server: String,
    subdomain: String,
    /// To keep them out of messages.
    credentials: Credentials,
}

impl AcmeDns {
    /// Sends the value; the error is for a message.
    async fn update(&self, value: &str) -> Result<(), String> {
        let body = json!({"subdomain": self.subdomain, "txt": value}).to_string();
        let host = self.url.authority().map_or("", |host| host.as_str());
        let mut request = Request::post(self.url.path())
            .header("host", host)
            .header(CONTENT_TYPE, "application/json");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let sent = async {
            self.origin
                .send(request.body(body.into())?, WITHIN, LONGEST)
                .await
        };
        let (status, reply) = sent.await.map_err(|error: HttpError| error.to_string())?;
        match status.is_success() {
            true => Ok(()),
            false => Err(format!("{status}: {}", String::from_utf8_lossy(&reply))),
        }
    }
}

#[async_trait]
impl Provider for AcmeDns {
    fn name(&self) -> &str {
        KIND.name
    }

    async fn add(&self, txt: &Txt) -> Result<(), Failed> {
        self.update(&txt.value).await.map_err(|error| {
            let error = printable(&self.credentials.redacted(error));
            Failed::new(
                format!(
                    "acme-dns at {} did not take the value for {}: {error}",
                    printable(&self.server),
                    txt.asked
                ),
                format!(
                    "compare the credentials with those of its registration, and lead {} there by a CNAME",
                    txt.asked
                ),
            )
        })
    }

    async fn remove(&self, _txt: &Txt) -> Result<(), Failed> {
        Ok(())
    }

    fn leaves_traces(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::super::super::responses::Responses;
    use super::*;
    use crate::certificate::Secret;
    use crate::net::dns::lookup::{Place, Resolver};

    fn provider(server: &str) -> Result<Arc<dyn Provider>, String> {
        let pairs = [
            (SERVER, server),
            (USERNAME, "user"),
            (PASSWORD, "the-password"),
            (SUBDOMAIN, "sub"),
        ];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned())));
        (KIND.build)(
            &Credentials(pairs.into()),
            &Resolver::default(),
            &Responses::default(),
        )
    }

    #[tokio::test]
    async fn value_is_sent_with_the_account_and_an_error_shows_no_password() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = provider(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let name = hickory_proto::rr::Name::from_ascii("sub.example.net.").unwrap();
        let place = Place::unknown(name);
        let txt = Txt::new("_acme-challenge.example.com".into(), &place, "value".into());
        for (reply, words) in [
            (
                "200 OK\r\ncontent-length: 15\r\n\r\n{\"txt\":\"value\"}",
                None,
            ),
            (
                "400 Bad\r\ncontent-length: 16\r\n\r\nno: the-password",
                Some("no: (…)"),
            ),
        ] {
            let answer = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let mut read = 0;
                while !String::from_utf8_lossy(&request[..read]).contains('}') {
                    read += stream.read(&mut request[read..]).await.unwrap();
                }
                let reply = format!("HTTP/1.1 {reply}");
                stream.write_all(reply.as_bytes()).await.unwrap();
                String::from_utf8_lossy(&request[..read]).into_owned()
            };
            let (added, request) = tokio::join!(provider.add(&txt), answer);
            assert!(
                request.starts_with("POST /update HTTP/1.1\r\n"),
                "{request}"
            );
            assert!(request.contains("x-api-user: user\r\n"), "{request}");
            assert!(
                request.ends_with("{\"subdomain\":\"sub\",\"txt\":\"value\"}"),
                "{request}"
            );
            match words {
                None => added.unwrap(),
                Some(words) => {
                    let message = added.unwrap_err().message;
                    assert!(message.contains(words), "{message}");
                }
            }
        }
    }

    #[test]
    fn server_is_https_unless_it_is_this_machine() {
        for (server, is_taken) in [
            ("https://auth.example.net/", true),
            ("http://localhost:8080", true),
            ("http://auth.example.net", false),
            ("http://127.0.0.1.example.net", false),
        ] {
            assert_eq!(provider(server).is_ok(), is_taken, "{server}");
        }
    }
}
