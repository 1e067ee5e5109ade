//! A web server that gets a request about each new pair, never its key: a POST of JSON,
//! signed with a shared secret (HMAC-SHA256 over the body), retried when it fails.

use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use serde_json::json;

use crate::certificate::Secret;
use crate::deploy::target_settings::prelude::*;
use crate::deploy::{copy, off_thread};
use crate::net::http::{Longest, Origin};
use crate::net::url::{self, SecretUrl};

/// The header with `sha256=` and the code in hexadecimal digits.
const SIGNATURE: &str = "x-certs-signature";
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
const WITHIN: Duration = Duration::from_secs(15);
const LARGEST_REPLY: Longest = Longest::Whole(1 << 20);

settings! {
    /// `certs` sends a POST of JSON about each new pair, never its key: `name`, `names`, `generation`,
    /// `fingerprint_sha256`, `not_after` and `directory`. It tries three times. With `secret_file` the request is signed:
    /// `X-Certs-Signature` is `sha256=` and the HMAC-SHA256 of the body in hexadecimal digits.
    struct Settings {
        /// An http:// or https:// URL
        url: SecretUrl,
        /// A file with the secret that signs the requests
        secret_file: Option<PathKey>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "webhook";
    const SHORT: ShortForm = ShortForm::Url;
    const EXAMPLE: &'static str = r#"url = "https://hooks.example.com/certs"
secret_file = "/etc/certs/webhook-secret""#;
    const STAGE: DeployStage = DeployStage::EachCertificate;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        let url = self.url.expose();
        let is_url = url.starts_with("https://") || url.starts_with("http://");
        (!is_url).then(|| InvalidTarget::key("url", "a webhook is an http:// or https:// URL"))
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: None,
            reads: self.secret_file.as_deref().cloned(),
            writes: Writes::Nothing,
        }
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }

    fn shown(&self) -> String {
        self.url.to_string()
    }
}

impl Settings {
    async fn secret(&self) -> Result<Option<Secret>, DeployCause> {
        let Some(file) = self.secret_file.clone() else {
            return Ok(None);
        };
        let secret = off_thread(move || copy::read_secret(&file)).await?;
        Ok(Some(Secret::new(secret.expose().trim().to_owned())))
    }

    async fn request(
        &self,
        uri: &Uri,
        delivery: &Delivery,
    ) -> Result<Request<Full<Bytes>>, DeployCause> {
        let body = body(delivery);
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let (host, user) = url::authority(uri);
        let mut request = Request::post(target)
            .header("host", host)
            .header("content-type", "application/json")
            .header("user-agent", concat!("certs/", env!("CARGO_PKG_VERSION")));
        if let Some(user) = user {
            request = request.header("authorization", user);
        }
        if let Some(secret) = self.secret().await? {
            request = request.header(SIGNATURE, signature(&secret, body.as_bytes()));
        }
        let request = request.body(Full::from(body));
        request.map_err(|error| DeployCause::unreachable(&error.to_string()))
    }

    async fn send(&self, delivery: &Delivery) -> Result<(), (bool, DeployCause)> {
        let fails = |error: DeployCause| (false, error);
        let uri = self.url.uri();
        let uri = uri.map_err(|_| fails(DeployCause::unreachable("invalid URL")))?;
        let origin = Origin::of(&uri, &delivery.resolver);
        let origin = origin.map_err(|detail| fails(DeployCause::unreachable(&detail)))?;
        let request = self.request(&uri, delivery).await.map_err(fails)?;
        match origin.send(request, WITHIN, LARGEST_REPLY).await {
            Ok((status, _)) if status.is_success() => Ok(()),
            Ok((status, _)) => {
                let may_retry = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                Err((
                    may_retry,
                    DeployCause::unreachable(&format!("it replied {status}")),
                ))
            }
            Err(error) => Err((true, DeployCause::unreachable(&error.to_string()))),
        }
    }
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        self.url.origin()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        self.secret().await.map(drop)
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let mut tries = 1;
        loop {
            match self.send(delivery).await {
                Ok(()) => return Ok(()),
                Err((true, _)) if tries < TRIES => tries += 1,
                Err((_, error)) => return Err(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn body(delivery: &Delivery) -> String {
    let names: Vec<String> = delivery.names.iter().map(ToString::to_string).collect();
    json!({
        "name": delivery.lineage.as_str(),
        "names": names,
        "generation": delivery.generation.0,
        "fingerprint_sha256": delivery.fingerprint.to_string(),
        "not_after": delivery.not_after.to_string(),
        "directory": delivery.live,
    })
    .to_string()
}

fn signature(secret: &Secret, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    let code = hmac::sign(&key, body);
    let digits = code.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("sha256={}", digits.collect::<String>())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::deploy::sample;
    use crate::deploy::target::{DeployTarget, TargetKeys};

    /// A server with these replies, one for each request; returns the requests.
    async fn server(
        answers: &'static [&'static str],
    ) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "http://user:pw@{}/hook?token=x",
            listener.local_addr().unwrap()
        );
        let served = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut text = String::new();
                while !text.ends_with('}') {
                    let mut buffer = [0; 4096];
                    let read = stream.read(&mut buffer).await.unwrap();
                    text += std::str::from_utf8(&buffer[..read]).unwrap();
                }
                asked.push(text);
                let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (url, served)
    }

    #[tokio::test]
    async fn request_is_signed_and_retried() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, "key\n").unwrap();
        let (url, served) = server(&["503 x", "200 x"]).await;
        let key = |key: &str, value: String| (key.to_owned(), vec![value]);
        let file = file.display().to_string();
        let keys = TargetKeys::from([key("url", url), key("secret_file", file)]);
        let webhook = DeployTarget::long("webhook", keys).unwrap().target();
        webhook.check(&sample()).await.unwrap();
        webhook.apply(&sample()).await.unwrap();
        let asked = served.await.unwrap();
        assert_eq!(asked.len(), 2);
        let (head, body) = asked[1].split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /hook?token=x HTTP/1.1"), "{head}");
        let code = signature(&Secret::new("key".into()), body.as_bytes());
        assert!(head.contains(&format!("{SIGNATURE}: {code}")), "{head}");
        assert!(head.contains("\r\nhost: 127.0.0.1:"), "{head}");
        assert!(
            head.contains("\r\nauthorization: Basic dXNlcjpwdw==\r\n"),
            "{head}"
        );
        assert!(body.contains("\"generation\":7"), "{body}");
    }

    #[tokio::test]
    async fn error_hides_the_secrets_of_the_url() {
        let (url, served) = server(&["403 x"]).await;
        let webhook = url.parse::<DeployTarget>().unwrap().target();
        let cause = webhook.apply(&sample()).await.unwrap_err();
        served.await.unwrap();
        let message = cause.of(webhook.name()).to_string();
        assert!(
            message.contains("403") && message.contains("http://127.0.0.1:"),
            "{message}"
        );
        assert!(
            !message.contains("pw") && !message.contains("hook") && !message.contains("token"),
            "{message}"
        );
    }

    #[test]
    fn signature_is_that_of_rfc_4231() {
        // The second test case of RFC 4231.
        let code = signature(&Secret::new("Jefe".into()), b"what do ya want for nothing?");
        let wanted = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(code, format!("sha256={wanted}"));
    }
}
