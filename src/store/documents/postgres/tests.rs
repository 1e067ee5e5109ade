//! A PostgreSQL of this machine, and servers that are at fault.

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::fake::{Pairs, Server, program};
use super::super::named::StoreKind;
use super::super::tests::{check, check_watch};
use super::*;
use crate::net::proxy::Proxies;

/// PostgreSQL refuses to run as root.
const UNPRIVILEGED: u32 = 65534;

fn documents(url: &str) -> PostgresDocuments {
    PostgresDocuments::new(&settings(url)).unwrap()
}

fn settings(url: &str) -> ServerSettings {
    ServerSettings {
        url: url.to_owned(),
        environment: BTreeMap::new(),
        proxies: Proxies::default(),
        resolver: Default::default(),
    }
}

/// A real server: `certs` is its superuser, by a Unix socket without a password, by TCP with
/// TLS and the password `hidden`.
struct Postgres {
    _server: Server,
    directory: TempDir,
    pairs: Pairs,
    port: u16,
}

fn command(name: &str) -> Command {
    let mut command = match program("CERTS_LAB_POSTGRES", "").get_program() {
        path if path.is_empty() => Command::new(name),
        path => Command::new(Path::new(path).join(name)),
    };
    if rustix::process::geteuid().is_root() {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Postgres {
    async fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(at("password"), "hidden\n").unwrap();
        std::fs::write(at("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(at("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(at("key.pem"), PermissionsExt::from_mode(0o600)).unwrap();
        if rustix::process::geteuid().is_root() {
            for owned in ["", "password", "key.pem"] {
                chown(at(owned), Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
            }
        }
        let mut initdb = command("initdb");
        initdb
            .current_dir(directory.path())
            .arg("-D")
            .arg(at("data"))
            .arg("--pwfile")
            .arg(at("password"));
        initdb.args([
            "-U",
            "certs",
            "-N",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
        ]);
        match initdb.status() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                println!("SKIPPED: PostgreSQL is not installed");
                return None;
            }
            status => assert!(status.unwrap().success(), "{initdb:?}"),
        }
        let pairs = Pairs::new();
        std::fs::copy(pairs.at("ca.pem"), at("ca.pem")).unwrap();
        let rules = at("data/pg_hba.conf");
        let others = std::fs::read_to_string(&rules).unwrap();
        let rule = "hostssl all client 127.0.0.1/32 cert";
        std::fs::write(&rules, format!("{rule}\n{others}")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut server = command("postgres");
        server
            .current_dir(directory.path())
            .arg("-D")
            .arg(at("data"))
            .arg("-k")
            .arg(directory.path());
        server.arg("-p").arg(port.to_string());
        for setting in [
            "listen_addresses=127.0.0.1".to_owned(),
            "fsync=off".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", at("cert.pem").display()),
            format!("ssl_key_file={}", at("key.pem").display()),
            format!("ssl_ca_file={}", at("ca.pem").display()),
        ] {
            server.arg("-c").arg(setting);
        }
        let server = Server::start(&mut server)?;
        let mut started = Self {
            _server: server,
            directory,
            pairs,
            port,
        };
        let documents = started.of("certs", "ready");
        while documents.read("any").await.is_err() {
            started._server.check_running();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(started)
    }

    /// The documents by the socket.
    fn of(&self, user: &str, prefix: &str) -> PostgresDocuments {
        let (directory, port) = (self.directory.path().display(), self.port);
        documents(&format!(
            "postgres:///postgres?host={directory}&port={port}&user={user}&prefix={prefix}"
        ))
    }

    fn by_tcp(&self, password: &str, query: &str) -> PostgresDocuments {
        let port = self.port;
        documents(&format!(
            "postgres://certs:{password}@127.0.0.1:{port}/postgres?{query}"
        ))
    }
}

async fn run(documents: &PostgresDocuments, sql: &str) {
    let session = documents.session().await.unwrap();
    session.client.batch_execute(sql).await.unwrap();
}

#[tokio::test]
async fn postgres_documents_keep_contract() {
    let Some(postgres) = Postgres::start().await else {
        return;
    };
    check(Arc::new(postgres.of("certs", "one"))).await;
    check(Arc::new(postgres.of("certs", "two/deep"))).await;
    let one = postgres.of("certs", "changes");
    check_watch(&one, &postgres.of("certs", "changes")).await;
    password_and_certificate_are_checked(&postgres).await;
    client_certificate_takes_the_place_of_a_password(&postgres).await;
    rights_and_read_only_servers_are_named(&postgres).await;
    ended_connection_leaves_a_write_unanswered(&postgres).await;
}

async fn password_and_certificate_are_checked(postgres: &Postgres) {
    let wrong = postgres.by_tcp("hidden-too", "");
    let error = wrong.write("key", b"x", None).await.unwrap_err();
    assert!(matches!(error, DocumentsError::Failed(_)), "{error:?}");
    let shown = format!("{error:?} {wrong:?}");
    assert!(shown.contains("password authentication failed"), "{shown}");
    let hint = StoreKind::Postgres.hint(&error.into());
    assert!(hint.contains("PGPASSWORD"), "{shown}: {hint}");
    assert!(!shown.contains("hidden"), "{shown}");
    // Root reads no file in the directory of the server's user.
    let ours = tempfile::tempdir().unwrap();
    let root = ours.path().join("root.pem");
    std::fs::copy(postgres.directory.path().join("cert.pem"), &root).unwrap();
    let verified = format!("sslmode=verify-full&sslrootcert={}", root.display());
    for query in [
        "sslmode=disable",
        "sslmode=prefer",
        "sslmode=require",
        &verified,
    ] {
        let documents = postgres.by_tcp("hidden", query);
        assert_eq!(documents.read("absent").await.unwrap(), None, "{query}");
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let is_tls: bool = documents.value(sql).await.unwrap();
        assert_eq!(is_tls, query != "sslmode=disable", "{query}");
    }
    let unknown = postgres.by_tcp("hidden", "sslmode=verify-full");
    let error = io::Error::from(unknown.read("key").await.unwrap_err());
    let hint = StoreKind::Postgres.hint(&error);
    assert!(hint.contains("sslrootcert"), "{error}: {hint}");
}

async fn client_certificate_takes_the_place_of_a_password(postgres: &Postgres) {
    let owner = postgres.of("certs", "tls");
    run(
        &owner,
        "CREATE ROLE client LOGIN; GRANT SELECT ON certs_documents TO client",
    )
    .await;
    let (pairs, port) = (&postgres.pairs, postgres.port);
    let with = |name: &str| {
        let (cert, key) = (
            pairs.at(&format!("{name}.pem")),
            pairs.at(&format!("{name}.key")),
        );
        format!("sslcert={cert}&sslkey={key}")
    };
    let of = |query: &str| {
        documents(&format!(
            "postgres://client@127.0.0.1:{port}/postgres?prefix=tls&{query}"
        ))
    };
    assert_eq!(of(&with("client")).read("key").await.unwrap(), None);
    for refused in [of(&with("other")), of("sslmode=require")] {
        let error = io::Error::from(refused.read("key").await.unwrap_err());
        let hint = StoreKind::Postgres.hint(&error);
        assert!(hint.contains("in sslcert"), "{error}: {hint}");
    }
    let mixed = format!(
        "sslcert={}&sslkey={}",
        pairs.at("client.pem"),
        pairs.at("other.key")
    );
    for (query, words, advice) in [
        (
            "sslkey=x".to_owned(),
            "sslkey without sslcert",
            "in sslcert",
        ),
        (with("absent"), "No such file", "in sslcert"),
        (mixed, "not the key of", "print the same"),
    ] {
        let settings = settings(&format!("postgres://me:hidden@db/c?{query}"));
        let said = PostgresDocuments::new(&settings).unwrap_err();
        let hint = super::super::settings_hint(&settings.url, &said);
        assert!(
            said.contains(words) && hint.contains(advice),
            "{said}: {hint}"
        );
    }
}

async fn rights_and_read_only_servers_are_named(postgres: &Postgres) {
    let owner = postgres.of("certs", "shared");
    let version = owner.write("key", b"x", None).await.unwrap();
    run(
        &owner,
        "CREATE ROLE limited LOGIN; CREATE ROLE reader LOGIN",
    )
    .await;
    let limited = postgres.of("limited", "shared");
    let error = io::Error::from(limited.read("key").await.unwrap_err());
    let (shown, hint) = (error.to_string(), StoreKind::Postgres.hint(&error));
    assert!(
        shown.contains("permission denied") && hint.contains("grant the user"),
        "{shown}: {hint}"
    );
    run(
        &owner,
        "GRANT SELECT, INSERT, UPDATE, DELETE ON certs_documents TO limited, reader",
    )
    .await;
    let version = limited.write("key", b"y", Some(&version)).await.unwrap();
    limited.probe().await.unwrap();
    run(
        &owner,
        "ALTER ROLE reader SET default_transaction_read_only = on",
    )
    .await;
    let reader = postgres.of("reader", "shared");
    assert_eq!(reader.read("key").await.unwrap().unwrap().version, version);
    let error = reader.write("key", b"z", Some(&version)).await.unwrap_err();
    assert!(matches!(error, DocumentsError::Failed(_)), "{error:?}");
    for error in [error, reader.probe().await.unwrap_err()] {
        assert!(
            error.to_string().contains("name the primary server"),
            "{error}"
        );
        let hint = StoreKind::Postgres.hint(&error.into());
        assert_eq!(hint, "name the primary server in store");
    }
}

async fn ended_connection_leaves_a_write_unanswered(postgres: &Postgres) {
    let (documents, other) = (postgres.of("certs", "cut"), postgres.of("certs", "cut"));
    let version = documents.write("key", b"x", None).await.unwrap();
    let pid: i32 = documents.value("SELECT pg_backend_pid()").await.unwrap();
    run(
        &other,
        "BEGIN; LOCK TABLE certs_documents IN EXCLUSIVE MODE",
    )
    .await;
    let end = async {
        // The write waits for the lock by then.
        let waits = format!("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = {pid}");
        while other.value::<i64>(&waits).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        run(
            &other,
            &format!("SELECT pg_terminate_backend({pid}); ROLLBACK"),
        )
        .await;
    };
    let (written, ()) = tokio::join!(documents.write("key", b"y", Some(&version)), end);
    assert!(
        matches!(written, Err(DocumentsError::Unanswered(_))),
        "{written:?}"
    );
    let read = documents.read("key").await.unwrap().unwrap();
    assert_eq!(
        (&read.content[..], &read.version),
        (&b"x"[..], &version),
        "it connects again"
    );
}

#[tokio::test]
async fn server_that_is_no_postgres_is_named() {
    for (reply, words) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "does not speak PostgreSQL's protocol",
        ),
        (b"", "unexpected end of file"),
        (b"N", "closed"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 8]).await.unwrap();
            stream.write_all(reply).await.unwrap();
        });
        let documents = documents(&format!("postgres://me:hidden@127.0.0.1:{port}/c"));
        let error = documents.write("key", b"x", None).await.unwrap_err();
        assert!(matches!(error, DocumentsError::Failed(_)), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let offers = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = offers.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = offers.accept().await.unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        stream.write_all(b"N").await.unwrap();
    });
    let documents = documents(&format!(
        "postgres://me:hidden@127.0.0.1:{port}/c?sslmode=require"
    ));
    let error = documents.read("key").await.unwrap_err().to_string();
    assert!(error.contains("offers no TLS"), "{error}");
}
