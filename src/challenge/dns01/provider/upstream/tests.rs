//! The crate's providers whose servers can be named, against servers of these tests. Those
//! with fixed addresses are tested from outside, through a proxy.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::net::dns::lookup::Place;
use crate::time::{Timestamp, VirtualClock};

/// Answers each request with what `reply` makes of it, and keeps the requests.
async fn server(reply: fn(&str) -> Option<&'static str>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::<Mutex<Vec<String>>>::default();
    let seen = requests.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut buffer, mut text) = ([0; 4096], String::new());
            let is_whole = |text: &str| match text.split_once("\r\n\r\n") {
                Some((_, body)) => !text.starts_with("POST") || body.ends_with('>'),
                None => false,
            };
            while !is_whole(&text) {
                let read = stream.read(&mut buffer).await.unwrap();
                text += &String::from_utf8_lossy(&buffer[..read]);
            }
            let body = reply(text.lines().next().unwrap());
            seen.lock().unwrap().push(text);
            let Some(body) = body else {
                // It never answers.
                std::future::pending::<()>().await;
                return;
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + body).as_bytes()).await.unwrap();
        }
    });
    (url, requests)
}

fn credentials(pairs: &[(&str, &str)]) -> Credentials {
    let secret = |text: &str| Secret::new(text.to_owned());
    let pairs = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), secret(value)));
    Credentials(pairs.collect())
}

fn txt() -> Txt {
    let name = hickory_proto::rr::Name::from_ascii("_acme-challenge.example.com.").unwrap();
    Txt::new(
        "_acme-challenge.example.com".into(),
        &Place::unknown(name),
        "value".into(),
    )
}

#[tokio::test]
async fn route53_is_signed_with_the_keys_of_the_role() {
    let (url, requests) = server(|line| {
        let path = line.split(' ').nth(1).unwrap_or_default();
        Some(match path.trim_end_matches('/') {
            "/latest/api/token" => "the-token",
            "/latest/meta-data/iam/security-credentials" => "a-role",
            "/latest/meta-data/iam/security-credentials/a-role" => {
                r#"{"AccessKeyId": "ASIAROLE", "SecretAccessKey": "hidden-key", "Token": "session-of-role", "Expiration": "2027-01-15T09:00:00Z"}"#
            }
            path if path.contains("/rrset?") => {
                "<ListResourceRecordSetsResponse><ResourceRecordSets></ResourceRecordSets><IsTruncated>false</IsTruncated><MaxItems>1</MaxItems></ListResourceRecordSetsResponse>"
            }
            _ => "<ChangeResourceRecordSetsResponse/>",
        })
    })
    .await;
    let given = credentials(&[("hosted_zone_id", "Z1"), ("endpoint", &url)]);
    assert_eq!(check("route53", &given), Ok(()), "no key is missing");
    let clock = VirtualClock::new(Timestamp::from_seconds(1_800_000_000));
    let endpoint = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
    let role = Role::with(
        move |name| (name == endpoint).then(|| url.clone()),
        Arc::new(clock),
        Resolver::default(),
    );
    let provider = Api {
        found: find("route53").unwrap(),
        login: Login::Role(role),
        credentials: given,
        scope: Scope::default(),
    };
    provider.add(&txt()).await.unwrap();
    let change = requests.lock().unwrap().pop().unwrap();
    assert!(
        change.starts_with("POST /2013-04-01/hostedzone/Z1/rrset"),
        "{change}"
    );
    assert!(change.contains("Credential=ASIAROLE/"), "{change}");
    assert!(
        change.contains("x-amz-security-token: session-of-role"),
        "{change}"
    );
    assert!(change.contains("<Value>\"value\"</Value>"), "{change}");
    assert!(!change.contains("hidden-key"), "{change}");
}

#[test]
fn half_an_access_key_is_named_as_incomplete() {
    let half = credentials(&[("access_key_id", "AKIA")]);
    let why = check("route53", &half).unwrap_err();
    assert!(why.contains("`secret_access_key` is missing"), "{why}");
    // Only a provider that takes a session token takes a role.
    for (provider, is_required) in [("route53", false), ("lightsail", false), ("alidns", true)] {
        let fields = fields(provider).unwrap();
        let key = fields
            .iter()
            .find(|field| field.name.starts_with("access_key"))
            .unwrap();
        assert_eq!(key.is_required, is_required, "{provider}");
    }
}

#[tokio::test(start_paused = true)]
async fn server_that_never_answers_ends_with_the_time_limit() {
    let (url, _) = server(|_| None).await;
    let given = credentials(&[("api_key", "hidden-key"), ("endpoint", &url)]);
    let provider = build("pdns", &given, &Resolver::default()).unwrap();
    let began = tokio::time::Instant::now();
    let failed = provider.add(&txt()).await.unwrap_err();
    assert!(failed.message.contains("pdns did not add"), "{failed:?}");
    assert!(!failed.message.contains("hidden-key"), "{failed:?}");
    assert!(began.elapsed() <= 2 * TIMEOUT, "{:?}", began.elapsed());
}

#[test]
fn pairs_in_one_value_are_read_and_each_is_secret() {
    let tokens = "a.example:first-token, b.example:second-token";
    let given = credentials(&[("credentials", tokens)]);
    assert_eq!(check("hurricane", &given), Ok(()));
    let read = Given(&given).map("credentials").unwrap();
    assert_eq!(read["b.example"], "second-token");
    let shown = given.redacted("password=second-token of first-token".into());
    assert!(!shown.contains("-token"), "{shown}");
    for wrong in ["a.example", "a.example:", ":token"] {
        let why = check("hurricane", &credentials(&[("credentials", wrong)])).unwrap_err();
        assert!(why.contains("is not HOST:TOKEN"), "{why}");
    }
    for auth in ["a-key", "user:pass:word"] {
        assert_eq!(
            check("joker", &credentials(&[("auth", auth)])),
            Ok(()),
            "{auth}"
        );
    }
}
