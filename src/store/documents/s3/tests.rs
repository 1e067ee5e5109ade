//! S3 by moto, a server of its language, and servers that are at fault.

use std::io::{self, BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::fake::{Reply, Server, program, serve};
use super::super::tests::check;
use super::*;
use crate::net::proxy::Proxies;

const STORED_X: &str = "certs/1 stored 00000000000000000000000000000000\nx";
const SECRET: &str = "hidden-secret";

fn documents(address: &str, prefix: &str) -> S3Documents {
    let endpoint = format!("http://{address}");
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", "hidden-token"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings = ServerSettings {
        url: format!("s3://bucket/{prefix}"),
        environment: variables.into(),
        proxies: Proxies::default(),
        resolver: Default::default(),
    };
    let mut documents = S3Documents::new(settings).unwrap();
    documents.pause = Duration::from_millis(1);
    documents
}

/// A real server with a bucket, and its address.
async fn moto() -> Option<(Server, String)> {
    let mut command = program("CERTS_LAB_MOTO", "python3");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/s3.py");
    command.arg(script).stdin(Stdio::piped());
    let mut server = Server::start(command.stdout(Stdio::piped()).stderr(Stdio::null()))?;
    let mut line = String::new();
    let output = server.child().stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    if line.is_empty() {
        println!("SKIPPED: moto is not installed");
        return None;
    }
    let address = line.trim().to_owned();
    let whole = documents(&address, "");
    let made = whole.call(Method::PUT, "", None, Vec::new()).await;
    assert_eq!(made.unwrap().status(), StatusCode::OK);
    Some((server, address))
}

#[tokio::test]
async fn s3_documents_keep_contract() {
    let Some((_server, address)) = moto().await else {
        return;
    };
    let mut marked = documents(&address, "certs/marked");
    marked.deletes = OnceCell::new_with(Some(false));
    check(Arc::new(marked)).await;
    let mut deleted = documents(&address, "certs/deleted");
    deleted.page = 7;
    deleted.probe().await.unwrap();
    check(Arc::new(deleted)).await;
    let all = documents(&address, "");
    for (removed, is_there) in [("certs/marked/a/one", true), ("certs/deleted/a/one", false)] {
        let object = all.object(removed).await.unwrap();
        assert_eq!(
            matches!(object, Some((Object::Gone, _))),
            is_there,
            "{removed}"
        );
    }
    let probes = all.list("certs/deleted/probe/").await.unwrap();
    assert!(probes.is_empty(), "{probes:?}");
}

#[tokio::test]
async fn objects_of_other_programs_stay() {
    let Some((_server, address)) = moto().await else {
        return;
    };
    let documents = documents(&address, "shared");
    let foreign = b"a text that another program has stored, long enough for a document".to_vec();
    for path in [
        "/shared/cats/readme",
        "/shared/cats/with%20space",
        "/shared/cats/folder%2F",
    ] {
        let put = documents
            .call(Method::PUT, path, None, foreign.clone())
            .await
            .unwrap();
        assert_eq!(put.status(), StatusCode::OK);
    }
    let newer = documents.call(
        Method::PUT,
        "/shared/cats/newer",
        None,
        b"certs/2 x".to_vec(),
    );
    newer.await.unwrap();
    let listed = documents.list("cats/").await.unwrap();
    assert_eq!(listed.keys().collect::<Vec<_>>(), ["cats/readme"]);
    for (key, words) in [
        ("cats/readme", "another program"),
        ("cats/newer", "newer version"),
    ] {
        let read = documents.read(key).await.unwrap_err().to_string();
        let written = documents
            .write(key, b"x", None)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            read.contains(words) && written.contains(words),
            "{read} {written}"
        );
    }
    let stays = documents
        .call(Method::GET, "/shared/cats/readme", None, Vec::new())
        .await;
    assert_eq!(stays.unwrap().body()[..], foreign);
}

/// A server that keeps the conditions except those that `ignores` names.
async fn forgetful(ignores: &'static str) -> S3Documents {
    let tag = Arc::new(AtomicUsize::new(0));
    let address = serve(move |request| {
        let method = request.split(' ').next().unwrap();
        let now = tag.load(Ordering::SeqCst);
        let has = |header: &str| request.contains(&format!("\r\n{header}: ")) && ignores != header;
        let wanted = format!("if-match: \"{now}\"");
        let is_lost =
            now > 0 && (has("if-none-match") || has("if-match") && !request.contains(&wanted));
        if is_lost {
            return Reply::With(
                "412 Precondition Failed",
                "<Error><Code>PreconditionFailed</Code></Error>".into(),
            );
        }
        match method {
            "PUT" => {
                const TAGS: [&str; 5] = ["", "\"1\"", "\"2\"", "\"3\"", "\"4\""];
                let new = tag.fetch_add(1, Ordering::SeqCst) + 1;
                let head = format!("200 OK\r\netag: {}", TAGS[new]);
                Reply::With(head.leak(), String::new())
            }
            "GET" => {
                let head = format!("200 OK\r\netag: \"{now}\"");
                let object = String::from_utf8(object_of(Some(b"probe"))).unwrap();
                Reply::With(head.leak(), object)
            }
            _ => Reply::With("204 No Content", String::new()),
        }
    });
    documents(&address.await, "p")
}

#[tokio::test]
async fn server_that_ignores_a_condition_is_refused() {
    for (ignores, header) in [("if-none-match", "If-None-Match"), ("if-match", "If-Match")] {
        let error = forgetful(ignores).await.probe().await.unwrap_err();
        let is_refused = matches!(&error, DocumentsError::Failed(error) if error.kind() == io::ErrorKind::Unsupported);
        assert!(is_refused, "{error:?}");
        let error = error.to_string();
        let words = format!("ignores {header}: two machines could both order a certificate");
        assert!(error.contains(&words), "{error}");
    }
    let kept = forgetful("").await;
    kept.probe().await.unwrap();
    assert!(forgetful("").await.keeps_deletes().await);
    assert!(!forgetful("if-match").await.keeps_deletes().await);
    let page = serve(|_| Reply::With("200 OK\r\netag: \"1\"", "<html>".into())).await;
    let error = documents(&page, "p").probe().await.unwrap_err().to_string();
    assert!(error.contains("ignores If-None-Match"), "{error}");
}

/// The kind of an error, and its text.
fn kind(error: &DocumentsError) -> (&'static str, String) {
    let kind = match error {
        DocumentsError::Conflict => "conflict",
        DocumentsError::Unanswered(_) => "unanswered",
        DocumentsError::Failed(_) => "failed",
    };
    (kind, error.to_string())
}

fn said(code: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>It says &quot;no&quot;.</Message></Error>"
    )
}

#[tokio::test]
async fn refusals_say_whether_something_was_written() {
    for (head, body, written, read) in [
        (
            "412 Precondition Failed",
            said("PreconditionFailed"),
            "conflict",
            "conflict",
        ),
        (
            "409 Conflict",
            said("ConditionalRequestConflict"),
            "conflict",
            "conflict",
        ),
        (
            "409 Conflict",
            said("InvalidBucketState"),
            "failed",
            "failed",
        ),
        ("404 Not Found", said("NoSuchKey"), "conflict", "none"),
        ("404 Not Found", said("NoSuchBucket"), "failed", "failed"),
        (
            "404 Not Found",
            "<html>nginx</html>".into(),
            "failed",
            "failed",
        ),
        (
            "403 Forbidden",
            said("SignatureDoesNotMatch"),
            "failed",
            "failed",
        ),
        (
            "403 Forbidden",
            said("RequestTimeTooSkewed"),
            "failed",
            "failed",
        ),
        (
            "301 Moved\r\nx-amz-bucket-region: eu-north-1",
            said("PermanentRedirect"),
            "failed",
            "failed",
        ),
        (
            "500 Internal Server Error",
            said("InternalError"),
            "unanswered",
            "failed",
        ),
        (
            "502 Bad Gateway",
            "<html>nginx</html>".into(),
            "unanswered",
            "failed",
        ),
        ("503 Slow Down", said("SlowDown"), "failed", "failed"),
        (
            "501 Not Implemented",
            said("NotImplemented"),
            "failed",
            "failed",
        ),
        ("200 OK", String::new(), "unanswered", "failed"),
    ] {
        let reply = body.clone();
        let address = serve(move |_| Reply::With(head, reply.clone())).await;
        let documents = documents(&address, "p");
        let version = Version("1".to_owned());
        let error = documents
            .write("k", b"x", Some(&version))
            .await
            .unwrap_err();
        assert_eq!(kind(&error).0, written, "{head}: {error}");
        if written == "failed" && body.starts_with("<?xml") {
            let code = reply::error(body.as_bytes()).0;
            assert!(
                error
                    .to_string()
                    .contains(&format!("{code}: It says \"no\".")),
                "{error}"
            );
        }
        if head.starts_with("301") {
            assert!(
                error.to_string().contains("eu-north-1: set AWS_REGION"),
                "{error}"
            );
        }
        if body.contains("Skewed") {
            let words = "the server's clock says 2027-01-15T08:00:00Z";
            assert!(error.to_string().contains(words), "{error}");
        }
        let found = match documents.read("k").await {
            Ok(None) => "none",
            Ok(Some(_)) => "some",
            Err(error) => kind(&error).0,
        };
        assert_eq!(found, read, "{head} {body}");
        assert!(documents.list("").await.is_err(), "{head} {body}");
        let shown = format!("{error:?} {documents:?}");
        assert!(
            !shown.contains("hidden") && !shown.contains("AKIA"),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn only_calls_that_did_nothing_are_repeated() {
    for (code, writes) in [("SlowDown", 3), ("InternalError", 1)] {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = calls.clone();
        let address = serve(move |_| {
            let head = match seen.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => "503 Busy",
                _ => "200 OK\r\netag: \"1\"",
            };
            Reply::With(
                head,
                if head.starts_with('5') {
                    said(code)
                } else {
                    STORED_X.into()
                },
            )
        });
        let documents = documents(&address.await, "p");
        let read = documents.read("k").await.unwrap().unwrap();
        assert_eq!(read.content, b"x");
        assert_eq!(calls.swap(0, Ordering::SeqCst), 3);
        let written = documents.write("k", b"x", None).await;
        assert_eq!(written.is_ok(), writes == 3, "{written:?}");
        assert_eq!(calls.load(Ordering::SeqCst), writes);
    }
}

#[tokio::test]
async fn lost_and_long_replies_are_bounded() {
    let cut = documents(&serve(|_| Reply::Cut).await, "p");
    let error = cut.write("k", b"x", None).await.unwrap_err();
    assert_eq!(kind(&error).0, "unanswered", "{error}");
    assert_eq!(kind(&cut.read("k").await.unwrap_err()).0, "failed");
    let long = documents(&serve(|_| Reply::Long(100 << 20)).await, "p");
    let (kind_of, shown) = kind(&long.read("k").await.unwrap_err());
    assert_eq!(kind_of, "failed");
    assert!(shown.contains("more than 16777216 bytes"), "{shown}");
    let closed = documents("127.0.0.1:1", "p");
    assert_eq!(
        kind(&closed.write("k", b"x", None).await.unwrap_err()).0,
        "failed"
    );
}

#[tokio::test(start_paused = true)]
async fn silent_server_is_given_up() {
    let silent = documents(&serve(|_| Reply::Silence).await, "p");
    let (kind, shown) = kind(&silent.write("k", b"x", None).await.unwrap_err());
    assert_eq!(
        (kind, shown.as_str()),
        ("unanswered", "no answer within 10 s")
    );
}

#[tokio::test]
async fn listing_without_an_end_is_given_up() {
    let page = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
    let documents = documents(
        &serve(move |_| Reply::With("200 OK", page.into())).await,
        "p",
    );
    let error = documents.list("a/").await.unwrap_err().to_string();
    assert!(error.contains("where the next page begins"), "{error}");
}

#[tokio::test]
async fn request_is_signed_and_names_its_condition() {
    let address =
        serve(|request| Reply::With("500 Internal Server Error", request.to_owned())).await;
    let documents = documents(&address, "p");
    let path = documents.path_of("certificates/_wildcard_.a*");
    assert_eq!(path, "/p/certificates/_wildcard_.a%2A");
    let sent = documents.call(Method::PUT, &path, Some(Only::If("tag")), b"x".to_vec());
    let sent = sent.await.unwrap();
    let sent = String::from_utf8_lossy(sent.body());
    for part in [
        "PUT /bucket/p/certificates/_wildcard_.a%2A HTTP/1.1\r\n",
        "\r\nif-match: \"tag\"\r\n",
        "\r\nx-amz-security-token: hidden-token\r\n",
        "/us-east-1/s3/aws4_request, SignedHeaders=host;if-match;x-amz-content-sha256;x-amz-date;x-amz-security-token, ",
    ] {
        assert!(sent.contains(part), "{part}: {sent}");
    }
    assert!(!sent.contains(SECRET), "{sent}");
}
