//! Each source of a role, against servers of these tests.

use std::collections::HashMap;
use std::sync::Mutex as StdMutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::time::VirtualClock;

const START: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// A server that replies by the first line of a request, and keeps all requests.
struct Metadata {
    address: String,
    requests: Arc<StdMutex<Vec<String>>>,
}

impl Metadata {
    async fn start(replies: &'static [(&'static str, &'static str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::<StdMutex<Vec<String>>>::default();
        let seen = requests.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (mut buffer, mut text) = ([0; 4096], String::new());
                // A form ends with its token.
                while !text.contains("\r\n\r\n")
                    || text.starts_with("POST") && !text.ends_with("the%2Dtoken")
                {
                    let read = stream.read(&mut buffer).await.unwrap();
                    text += &String::from_utf8_lossy(&buffer[..read]);
                }
                let line = text.lines().next().unwrap().to_owned();
                let found = replies
                    .iter()
                    .find(|(start, _)| line == format!("{start} HTTP/1.1"));
                let (status, body) = match found {
                    Some((_, body)) => ("200 OK", *body),
                    None => ("404 Not Found", ""),
                };
                seen.lock().unwrap().push(text);
                let length = body.len();
                let reply = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn role(variables: &[(&str, &str)], clock: &Arc<VirtualClock>) -> Role {
    let pairs = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let variables: HashMap<String, String> = pairs.collect();
    Role::with(
        move |name| variables.get(name).cloned(),
        clock.clone(),
        Resolver::default(),
    )
}

fn clock() -> Arc<VirtualClock> {
    Arc::new(VirtualClock::new(START))
}

const OF_ROLE: &str = r#"{"Code": "Success", "AccessKeyId": "ASIA1", "SecretAccessKey": "hidden", "Token": "session", "Expiration": "2027-01-15T09:00:00Z"}"#;

#[tokio::test]
async fn role_of_instance_is_read_by_a_token_and_renewed_before_it_expires() {
    let metadata = Metadata::start(&[
        ("PUT /latest/api/token", "the-token"),
        (
            "GET /latest/meta-data/iam/security-credentials/",
            "a-role\n",
        ),
        (
            "GET /latest/meta-data/iam/security-credentials/a-role",
            OF_ROLE,
        ),
    ])
    .await;
    let (clock, url) = (clock(), format!("http://{}/", metadata.address));
    let role = role(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)], &clock);
    let keys = role.keys().await.unwrap();
    assert_eq!(
        (keys.id.as_str(), keys.secret.expose()),
        ("ASIA1", "hidden")
    );
    assert_eq!(keys.token.unwrap().expose(), "session");
    let requests = metadata.requests();
    assert!(requests[0].contains("x-aws-ec2-metadata-token-ttl-seconds: 300\r\n"));
    assert!(requests[2].contains("x-aws-ec2-metadata-token: the-token\r\n"));
    role.keys().await.unwrap();
    assert_eq!(metadata.requests().len(), 3, "they are kept");
    // 2027-01-15T08:00:00Z is the start; they expire an hour later.
    clock.set(START + Duration::from_secs(3600) - SPARE);
    role.keys().await.unwrap();
    assert_eq!(metadata.requests().len(), 6, "they are renewed");
}

#[tokio::test]
async fn role_of_container_is_read_with_the_token_of_today() {
    let metadata = Metadata::start(&[("GET /v1/credentials?a=b", OF_ROLE)]).await;
    let directory = tempfile::tempdir().unwrap();
    let (file, clock) = (directory.path().join("token"), clock());
    std::fs::write(&file, "the-token\n").unwrap();
    let url = format!("http://{}/v1/credentials?a=b", metadata.address);
    let file = file.to_str().unwrap();
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file),
    ];
    assert_eq!(role(&variables, &clock).keys().await.unwrap().id, "ASIA1");
    assert!(metadata.requests()[0].contains("authorization: the-token\r\n"));
    let other = [(variables[0].0, "http://192.0.2.1/credentials")];
    let error = role(&other, &clock).keys().await.err().unwrap();
    assert!(
        error.to_string().contains("192.0.2.1 is not trusted"),
        "{error}"
    );
    let relative = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x");
    let url = role(&[relative], &clock).container();
    assert_eq!(url.as_deref(), Some("http://169.254.170.2/v2/x"));
}

#[tokio::test]
async fn web_identity_is_exchanged_for_keys() {
    const XML: &str = "<R><Credentials><AccessKeyId>ASIA2</AccessKeyId><SecretAccessKey>hidden</SecretAccessKey>\
         <SessionToken>session</SessionToken><Expiration>2027-01-15T09:00:00Z</Expiration></Credentials></R>";
    let sts = Metadata::start(&[("POST /", XML)]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "the-token").unwrap();
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/a"),
        ("AWS_ENDPOINT_URL_STS", &format!("http://{}", sts.address)),
    ];
    let keys = role(&variables, &clock()).keys().await.unwrap();
    assert_eq!(
        (keys.id.as_str(), keys.expires),
        ("ASIA2", Some(START + Duration::from_secs(3600)))
    );
    let request = &sts.requests()[0];
    assert!(
        request.contains("RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fa&"),
        "{request}"
    );
}

#[tokio::test]
async fn missing_role_and_invalid_replies_are_named_without_a_key() {
    let metadata = Metadata::start(&[
        ("PUT /latest/api/token", "the-token"),
        (
            "GET /latest/meta-data/iam/security-credentials/",
            "../../user-data",
        ),
        (
            "GET /damaged",
            r#"{"AccessKeyId": "ASIA1", "SecretAccessKey": "hidden", "Token": 7}"#,
        ),
    ])
    .await;
    let at = |path: &str| format!("http://{}{path}", metadata.address);
    let instance = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
    let container = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    for (variables, words) in [
        (vec![(instance, at(""))], "the instance has no role"),
        (vec![(instance, at("/absent"))], "no role is attached"),
        (
            vec![(container, at("/damaged"))],
            "the reply has no credentials",
        ),
        (
            vec![("AWS_EC2_METADATA_DISABLED", "true".to_owned())],
            "AWS_EC2_METADATA_DISABLED",
        ),
    ] {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let error = role(&variables, &clock()).keys().await.err().unwrap();
        let shown = format!("{error:?}");
        assert!(
            shown.contains(words) && !shown.contains("hidden"),
            "{shown}"
        );
        assert!(error.hint.contains("role"));
    }
    let own = [
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
    ];
    assert_eq!(role(&own, &clock()).keys().await.unwrap().id, "AKIA");
}

#[tokio::test]
async fn profile_of_the_shared_file_comes_before_the_instance() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().to_str().unwrap();
    let file = directory.path().join(".aws/credentials");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    let keys = "aws_access_key_id=AKIA1\naws_secret_access_key=hidden\n";
    std::fs::write(&file, format!("[default]\n{keys}")).unwrap();
    let of = async |variables: &[(&str, &str)]| role(variables, &clock()).keys().await;
    assert_eq!(of(&[("HOME", home)]).await.unwrap().id, "AKIA1");
    let other = [("HOME", home), ("AWS_PROFILE", "other")];
    let error = of(&other).await.err().unwrap().to_string();
    assert!(
        error.contains("no access key in a section [other]"),
        "{error}"
    );
    assert!(!error.contains("hidden"), "{error}");
    let absent = format!("{home}/absent");
    let disabled = ("AWS_EC2_METADATA_DISABLED", "true");
    let variables = [("AWS_SHARED_CREDENTIALS_FILE", absent.as_str()), disabled];
    let error = of(&variables).await.err().unwrap().to_string();
    assert!(error.contains("absent"), "{error}");
    let error = of(&[("HOME", &absent), disabled]).await.err().unwrap();
    assert!(
        error.to_string().contains("AWS_EC2_METADATA_DISABLED"),
        "{error}"
    );
}

#[tokio::test]
async fn keys_of_a_file_stay_when_it_cannot_be_read_any_more() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(SHARED_IN_HOME);
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    let write = |id: &str| {
        let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = x\n");
        std::fs::write(&file, text).unwrap();
    };
    write("AKIA1");
    let path = home.path().display().to_string();
    let variables = move |name: &str| match name {
        "HOME" => Some(path.clone()),
        "AWS_EC2_METADATA_DISABLED" => Some("true".to_owned()),
        _ => None,
    };
    let role = Role::with(variables, Arc::new(SystemClock), Resolver::default());
    assert_eq!(role.keys().await.unwrap().id, "AKIA1");
    write("AKIA2");
    assert_eq!(role.keys().await.unwrap().id, "AKIA2");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(role.keys().await.unwrap().id, "AKIA2");
}
