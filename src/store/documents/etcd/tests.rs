//! An etcd of this machine, and servers that are at fault.

use std::io;
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;

use tempfile::TempDir;

use super::super::fake::{Pairs, Reply, Server, program, serve};
use super::super::named::StoreKind;
use super::super::tests::{check, check_watch};
use super::*;
use crate::net::proxy::Proxies;

fn documents(url: &str, variables: &[(&str, &str)]) -> EtcdDocuments {
    EtcdDocuments::new(&settings(url, variables)).unwrap()
}

fn settings(url: &str, variables: &[(&str, &str)]) -> ServerSettings {
    let pairs = variables.iter();
    ServerSettings {
        url: url.to_owned(),
        environment: pairs
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
        proxies: Proxies::default(),
        resolver: Default::default(),
    }
}

fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A real server with these options, its address, and its data.
fn start(scheme: &str, options: &[&str]) -> Option<(Server, String, TempDir)> {
    let data = tempfile::tempdir().unwrap();
    let (client, peer) = (free(), free());
    let (client_url, peer_url) = (format!("{scheme}://{client}"), format!("http://{peer}"));
    let mut command = program("CERTS_LAB_ETCD", "etcd");
    command.arg("--data-dir").arg(data.path()).args(options);
    for (option, url) in [
        ("--listen-client-urls", &client_url),
        ("--advertise-client-urls", &client_url),
        ("--listen-peer-urls", &peer_url),
        ("--initial-advertise-peer-urls", &peer_url),
    ] {
        command.arg(option).arg(url);
    }
    command.arg(format!("--initial-cluster=default={peer_url}"));
    let server = Server::start(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
    Some((server, client, data))
}

async fn ready(server: &mut Server, documents: &EtcdDocuments) {
    while documents.read("any").await.is_err() {
        server.check_running();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn etcd_documents_keep_contract() {
    let Some((mut server, address, _data)) = start("http", &[]) else {
        return;
    };
    // The first member is down.
    let members = format!("etcd://{},{address}/certs", free());
    let whole = documents(&format!("{members}/whole"), &[]);
    ready(&mut server, &whole).await;
    check(Arc::new(whole)).await;
    let mut paged = documents(&format!("{members}/paged"), &[]);
    paged.page = 7;
    check(Arc::new(paged)).await;
}

#[tokio::test]
async fn watch_tells_of_changes() {
    let Some((mut server, address, _data)) = start("http", &[]) else {
        return;
    };
    let documents = documents(&format!("etcd://{address}/certs"), &[]);
    ready(&mut server, &documents).await;
    check_watch(&documents, &documents).await;
}

#[tokio::test]
async fn user_is_authenticated_by_tls_and_again_when_the_token_ends() {
    let keys = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| keys.path().join(name));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let [cert, key] = [cert, key].map(|file| file.to_str().unwrap().to_owned());
    let options = ["--cert-file", cert.as_str(), "--key-file", key.as_str()];
    let Some((mut server, address, _data)) = start("https", &options) else {
        return;
    };
    let roots = [("SSL_CERT_FILE", cert.as_str())];
    let anonymous = documents(&format!("etcds://{address}/certs"), &roots);
    ready(&mut server, &anonymous).await;
    let untrusted = documents(&format!("etcds://{address}/certs"), &[]);
    let error = io::Error::from(untrusted.read("key").await.unwrap_err());
    let hint = StoreKind::Etcd.hint(&error);
    assert!(hint.contains("SSL_CERT_FILE"), "{error}: {hint}");
    let (_, port) = address.rsplit_once(':').unwrap();
    let other_name = documents(&format!("etcds://localhost:{port}/certs"), &roots);
    let error = io::Error::from(other_name.read("key").await.unwrap_err());
    let hint = StoreKind::Etcd.hint(&error);
    assert!(hint.contains("as its certificate does"), "{error}: {hint}");
    for (path, body) in [
        (
            "/v3/auth/user/add",
            json!({ "name": "root", "password": "hidden" }),
        ),
        ("/v3/auth/role/add", json!({ "name": "root" })),
        (
            "/v3/auth/user/grant",
            json!({ "user": "root", "role": "root" }),
        ),
        ("/v3/auth/enable", json!({})),
    ] {
        let _: Value = anonymous.call(path, &body, Effect::Writes).await.unwrap();
    }
    let error = anonymous.read("key").await.unwrap_err().to_string();
    assert!(error.contains("write USER:PASSWORD@"), "{error}");
    let wrong = documents(&format!("etcds://root:hidden-too@{address}/certs"), &roots);
    let error = wrong.write("key", b"x", None).await.unwrap_err();
    assert!(matches!(error, DocumentsError::Failed(_)), "{error:?}");
    let shown = format!("{error:?} {wrong:?}");
    let hint = StoreKind::Etcd.hint(&error.into());
    assert!(hint.contains("ETCDCTL_PASSWORD"), "{shown}: {hint}");
    assert!(
        shown.contains("authentication failed") && !shown.contains("hidden"),
        "{shown}"
    );
    let root = documents(&format!("etcds://root:hidden@{address}/certs"), &roots);
    *root.token.lock().await = Some(Secret::new("ended.1".to_owned()));
    let version = root.write("key", b"x", None).await.unwrap();
    root.remove("key", &version).await.unwrap();
    root.time().await.unwrap();
    assert!(!format!("{root:?}").contains("hidden"));
}

#[tokio::test]
async fn client_certificate_is_presented_to_a_server_that_demands_one() {
    let pairs = Pairs::new();
    let files = ["ca.pem", "server.pem", "server.key"].map(|file| pairs.at(file));
    let options = [
        "--client-cert-auth",
        "--trusted-ca-file",
        &files[0],
        "--cert-file",
        &files[1],
        "--key-file",
        &files[2],
    ];
    let Some((mut server, address, _data)) = start("https", &options) else {
        return;
    };
    let url = format!("etcds://{address}/certs");
    let of = |pair: &[(&str, &str)]| {
        let files = pair.iter().map(|(name, file)| (*name, pairs.at(file)));
        let files: Vec<_> = files.collect();
        let files: Vec<_> = files
            .iter()
            .map(|(name, file)| (*name, file.as_str()))
            .collect();
        EtcdDocuments::new(&settings(&url, &files))
    };
    let root = ("ETCDCTL_CACERT", "ca.pem");
    let with = |name: &str| {
        let (cert, key) = (format!("{name}.pem"), format!("{name}.key"));
        of(&[root, ("ETCDCTL_CERT", &cert), ("ETCDCTL_KEY", &key)])
    };
    let documents = with("client").unwrap();
    ready(&mut server, &documents).await;
    let version = documents.write("key", b"x", None).await.unwrap();
    documents.remove("key", &version).await.unwrap();
    for refused in [with("other"), of(&[root])] {
        let error = io::Error::from(refused.unwrap().read("key").await.unwrap_err());
        let hint = StoreKind::Etcd.hint(&error);
        assert!(hint.contains("ETCDCTL_CERT"), "{error}: {hint}");
    }
    let (cert, key) = ("ETCDCTL_CERT", "ETCDCTL_KEY");
    for (invalid, words, advice) in [
        (
            of(&[(cert, "client.pem")]),
            "ETCDCTL_CERT without ETCDCTL_KEY",
            "in ETCDCTL_CERT",
        ),
        (
            of(&[(key, "client.key")]),
            "ETCDCTL_KEY without ETCDCTL_CERT",
            "in ETCDCTL_CERT",
        ),
        (
            of(&[(cert, "absent"), (key, "client.key")]),
            "No such file",
            "in ETCDCTL_CERT",
        ),
        (
            of(&[(cert, "client.key"), (key, "client.key")]),
            "no certificate",
            "in ETCDCTL_CERT",
        ),
        (
            of(&[(cert, "client.pem"), (key, "ca.pem")]),
            "no private key",
            "in ETCDCTL_CERT",
        ),
        (
            of(&[(cert, "client.pem"), (key, "other.key")]),
            "not the key of",
            "print the same",
        ),
        (
            of(&[("ETCDCTL_CACERT", "client.key")]),
            "no certificate",
            "with the root",
        ),
    ] {
        let said = invalid.unwrap_err();
        let hint = super::super::settings_hint(&url, &said);
        assert!(
            said.contains(words) && hint.contains(advice),
            "{said}: {hint}"
        );
    }
}

#[tokio::test]
async fn replies_say_whether_something_was_written() {
    let said = |code: &str| {
        format!("{{\"error\":\"{code}\",\"message\":\"etcdserver: {code}\",\"code\":1}}")
    };
    for (head, body, is_lost) in [
        ("400 Bad Request", said("request is too large"), false),
        ("403 Forbidden", said("permission denied"), false),
        ("503 Service Unavailable", said("no leader"), true),
        ("504 Gateway Timeout", said("request timed out"), true),
        ("502 Bad Gateway", "<html>nginx</html>".into(), true),
        ("200 OK", "<html>nginx</html>".into(), true),
        ("200 OK", "{}".into(), true),
    ] {
        let reply = body.clone();
        let address = serve(move |_| Reply::With(head, reply.clone())).await;
        let documents = documents(&format!("etcd://{address},{address}/p"), &[]);
        let error = documents.write("k", b"x", None).await.unwrap_err();
        assert_eq!(
            matches!(error, DocumentsError::Unanswered(_)),
            is_lost,
            "{head}: {error:?}"
        );
        let read = documents.read("k").await.unwrap_err();
        assert!(
            matches!(read, DocumentsError::Failed(_)),
            "{head}: {read:?}"
        );
        if body.contains("etcdserver") {
            assert!(error.to_string().contains("etcdserver: "), "{error}");
        }
    }
    for (reply, words) in [
        (None, "closed"),
        (Some(100 << 20), "more than 16777216 bytes"),
    ] {
        let address = serve(move |_| reply.map_or(Reply::Cut, Reply::Long)).await;
        let documents = documents(&format!("etcd://{address}/p"), &[]);
        let error = documents.write("k", b"x", None).await.unwrap_err();
        assert!(matches!(error, DocumentsError::Unanswered(_)), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn silent_member_is_left_for_the_next_one() {
    let silent = serve(|_| Reply::Silence).await;
    let range = "{\"header\":{\"revision\":\"1\"}}";
    let other = serve(move |_| Reply::With("200 OK", range.into())).await;
    let mut documents = documents(&format!("etcd://{silent},{other}/p"), &[]);
    documents.within = Duration::from_secs(1);
    assert_eq!(documents.read("k").await.unwrap(), None);
}

#[tokio::test]
async fn listing_is_repeated_when_its_revision_is_compacted() {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let address = serve(move |request| {
        let page = |more: bool, key: &str| {
            let key = STANDARD.encode(key);
            let kv = json!({ "key": key, "mod_revision": "5" });
            let body = json!({ "header": { "revision": "9" }, "kvs": [kv], "more": more });
            Reply::With("200 OK", body.to_string())
        };
        match seen.fetch_add(1, Ordering::SeqCst) {
            0 => page(true, "p/old"),
            1 => {
                assert!(request.contains("\"revision\":9"), "{request}");
                let body =
                    json!({ "message": "etcdserver: mvcc: required revision has been compacted" });
                Reply::With("400 Bad Request", body.to_string())
            }
            2 => page(true, "p/a"),
            _ => page(false, "p/b"),
        }
    });
    let documents = documents(&format!("etcd://{}/p", address.await), &[]);
    let listed = documents.list("").await.unwrap();
    assert_eq!(listed.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(calls.load(Ordering::SeqCst), 4);
}
