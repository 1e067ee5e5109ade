//! From issuance to a served certificate, against Pebble and a real nginx.

use std::path::Path;
use std::process::Command;

use crate::support::{
    Nginx, Pebble, Running, certs, free_port, listens, loads, program, run, until,
};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn issued_renewed_and_served(rejected: u8) {
    let Some(pebble) = Pebble::start(rejected) else {
        return;
    };
    let names = ["example.com", "www.example.com"];
    assert!(run(&mut pebble.issue(&names), 0).contains("issued; generation 0001"));
    let live = pebble.path("out/live/example.com");
    let first = read(&live.join("fullchain.pem"));
    assert!(first.matches("BEGIN CERTIFICATE").count() >= 2);
    assert!(
        run(&mut pebble.issue(&names), 0).contains("not due"),
        "a second issue ordered again"
    );
    assert_eq!(read(&live.join("fullchain.pem")), first);

    let Some(nginx) = Nginx::start(&live) else {
        return;
    };
    let (deploy, verify) = (
        format!("nginx:{}", nginx.pid_file.display()),
        format!("127.0.0.1:{}", nginx.port),
    );
    let served = ["--deploy", &deploy, "--verify", &verify];
    let printed = run(pebble.issue(&names).arg("--force").args(served), 0);
    assert!(printed.contains("issued; generation 0002"), "{printed}");
    assert_ne!(read(&live.join("fullchain.pem")), first);
    let status = run(
        certs(pebble.path("").as_path()).args(["status", "--json"]),
        0,
    );
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (
            &status[0]["generation_issued"],
            &status[0]["generation_served"]
        ),
        (&2.into(), &2.into())
    );
}

#[test]
fn certificate_is_issued_renewed_and_served_by_nginx() {
    issued_renewed_and_served(5);
}

#[test]
fn certificate_is_issued_renewed_and_served_when_half_the_nonces_are_rejected() {
    issued_renewed_and_served(50);
}

#[test]
fn hundred_orders_succeed_when_half_the_nonces_are_rejected() {
    let Some(pebble) = Pebble::start(50) else {
        return;
    };
    for order in 1..=100 {
        let printed = run(&mut pebble.issue(&["example.com", "--force"]), 0);
        assert!(
            printed.contains(&format!("generation {order:04}")),
            "{printed}"
        );
    }
}

#[test]
fn certificate_not_served_is_reported_and_not_ordered_twice() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    run(&mut pebble.issue(&["example.com"]), 0);
    let live = pebble.path("out/live/example.com");
    // A copy, so that a reload finds the old pair.
    let copy = pebble.path("copy");
    std::fs::create_dir(&copy).unwrap();
    for name in ["fullchain.pem", "privkey.pem"] {
        std::fs::copy(live.join(name), copy.join(name)).unwrap();
    }
    let Some(nginx) = Nginx::start(&copy) else {
        return;
    };
    let (deploy, verify) = (
        format!("nginx:{}", nginx.pid_file.display()),
        format!("127.0.0.1:{}", nginx.port),
    );
    let served = ["--deploy", &deploy, "--verify", &verify];
    let printed = run(pebble.issue(&["example.com", "--force"]).args(served), 7);
    assert!(
        printed.contains("serves another certificate") && printed.contains("hint:"),
        "{printed}"
    );
    // The previous pair is live again, and stays until the server is repaired.
    std::fs::remove_dir_all(&copy).unwrap();
    std::os::unix::fs::symlink(&live, &copy).unwrap();
    let printed = run(pebble.issue(&["example.com"]).args(served), 0);
    assert!(printed.contains("not due; generation 0002"), "{printed}");
}

#[test]
fn unanswered_challenge_exits_5_and_loses_nothing() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    run(&mut pebble.issue(&["example.com"]), 0);
    let live = pebble.path("out/live/example.com/fullchain.pem");
    let before = read(&live);
    let webroot = pebble.path("webroot");
    std::fs::create_dir(&webroot).unwrap();
    let mut command = certs(pebble.path("").as_path());
    let issue = pebble.issue(&[]);
    let directory: Vec<_> = issue.get_args().skip(2).take(4).collect();
    // No server answers for this webroot.
    let printed = run(
        command
            // A new name: Pebble may reuse the authorization of the old one.
            .args(["issue", "example.com", "www.example.com", "--webroot"])
            .arg(&webroot)
            .args(directory),
        5,
    );
    assert!(
        printed.contains("www.example.com: urn:ietf:params:acme:error:")
            && printed.contains("hint:"),
        "{printed}"
    );
    assert_eq!(read(&live), before);
    assert!(
        !webroot
            .join(".well-known/acme-challenge")
            .read_dir()
            .unwrap()
            .any(|_| true),
        "an answer was left behind"
    );
    run(&mut pebble.issue(&["example.com", "www.example.com"]), 0);
}

#[test]
fn issue_leaves_loadable_pair_and_resumes_after_kill_at_any_moment() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    run(&mut pebble.issue(&["example.com"]), 0);
    let live = pebble.path("out/live/example.com");
    for round in 0..12 {
        let record = || {
            std::fs::read_to_string(pebble.path("data/records/example.com/record.json"))
                .unwrap_or_default()
        };
        let before = record();
        let mut running = Running::start(&mut pebble.issue(&["example.com", "--force"]));
        // The kill moves through the run with the states of the record.
        let mut changes = (before, 0);
        while changes.1 <= round % 3 && !running.has_ended() {
            let now = record();
            if now != changes.0 {
                changes = (now, changes.1 + 1);
            }
        }
        running.kill();
        loads(&live);
        run(&mut pebble.issue(&["example.com"]), 0);
        loads(&live);
    }
}

#[test]
fn unreachable_or_untrusted_ca_exits_3() {
    let directory = tempfile::tempdir().unwrap();
    let port = crate::support::free_port();
    let ca = format!("https://127.0.0.1:{port}/dir");
    let listen = ["--http-listen", "127.0.0.1:0"];
    let printed = run(
        certs(directory.path())
            .args(["issue", "example.com", "--ca", &ca])
            .args(listen),
        3,
    );
    assert!(
        printed.contains("reading the directory") && printed.contains("hint:"),
        "{printed}"
    );
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let mut untrusted = pebble.issue(&[]);
    let arguments: Vec<_> = untrusted
        .get_args()
        .map(std::ffi::OsStr::to_owned)
        .take(4)
        .collect();
    untrusted = certs(directory.path());
    let printed = run(untrusted.args(arguments).arg("example.com").args(listen), 3);
    assert!(printed.contains("certificate"), "{printed}");
}

/// Counts requests by their endpoint.
#[derive(Default)]
struct SeenRequests(std::sync::Mutex<Vec<&'static str>>);

impl certs::acme::Observer for SeenRequests {
    fn request(&self, endpoint: &'static str, _status: u16) {
        self.0.lock().unwrap().push(endpoint);
    }
}

/// A journal that stores nothing: one order needs no more.
struct EmptyJournal;

#[async_trait::async_trait]
impl certs::acme::Journal for EmptyJournal {
    async fn order(
        &mut self,
        _: &certs::record::PendingOrder,
    ) -> Result<(), certs::acme::JournalError> {
        Ok(())
    }

    async fn account(
        &mut self,
    ) -> Result<Option<certs::certificate::Secret>, certs::acme::JournalError> {
        Ok(None)
    }

    async fn create_account(
        &mut self,
        credentials: &certs::certificate::Secret,
    ) -> Result<certs::certificate::Secret, certs::acme::JournalError> {
        Ok(credentials.clone())
    }

    async fn save_account(
        &mut self,
        _: &certs::certificate::Secret,
        _: &certs::certificate::Secret,
    ) -> Result<(), certs::acme::JournalError> {
        Ok(())
    }
}

#[tokio::test]
async fn issue_takes_seven_requests_per_name_after_first_contact() {
    use certs::acme::{AccountSettings, Client, ClientSettings, Https, Issuer};
    use certs::challenge::{
        ChallengeKind,
        listen::Listener,
        protocol::{Listen, Protocol},
        responses::Responses,
    };
    use certs::time::{Clock, SystemClock};
    use std::sync::Arc;
    let Some(pebble) = Pebble::start(0) else {
        return;
    };
    let responses = Responses::default();
    let address = (std::net::Ipv4Addr::LOCALHOST, pebble.http_port).into();
    let listener = Listener::bind(
        &Listen {
            protocol: Protocol::Http,
            address,
        },
        &responses,
    )
    .unwrap();
    let (requests, mut journal) = (Arc::new(SeenRequests::default()), EmptyJournal);
    let root = std::fs::read(pebble.path("root.pem")).unwrap();
    let client = Client::new(ClientSettings {
        directory: pebble.directory_url(),
        account: AccountSettings {
            terms_agreed: true,
            ..AccountSettings::default()
        },
        exchange: Arc::new(Https::new(Some(&root)).unwrap()),
        solvers: vec![responses.solver(ChallengeKind::Http01)],
        limiters: Arc::default(),
        clock: Arc::new(SystemClock),
        observer: requests.clone(),
        preferred_chain: None,
        notice: None,
    })
    .unwrap();
    let order = certs::record::PendingOrder {
        ca: pebble.directory_url(),
        identifiers: [certs::identifier::Identifier::parse("example.com").unwrap()].into(),
        profile: None,
        not_after: None,
        terms: None,
        key_pem: certs::certificate::KeyType::EcdsaP256.generate().unwrap(),
        url: None,
        replaces: None,
        begun: SystemClock.now(),
        counted: certs::ca_state::Counted::default(),
    };
    tokio::select! {
        issued = client.issue(order, &mut journal) => drop(issued.unwrap()),
        () = listener.serve() => panic!("the listener has stopped"),
    }
    let expected = [
        "directory",
        "new-nonce",
        "new-account",
        "new-order",
        "authorization",
        "challenge",
        "order",
        "finalize",
        "order",
        "certificate",
    ];
    let mut seen = requests.0.lock().unwrap().clone();
    // A machine under load may have to poll the order a second time.
    seen.dedup();
    assert_eq!(seen, expected);
}

#[test]
fn challenge_is_answered_behind_a_redirect_to_https() {
    let Some(pebble) = Pebble::start(0) else {
        return;
    };
    let Some(nginx) = program("CERTS_LAB_NGINX", "/usr/sbin/nginx") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let (root, ours) = (directory.path().display().to_string(), free_port());
    let (http, tls) = (pebble.http_port, pebble.tls_port);
    let made = rcgen::generate_simple_self_signed(["other.example".to_owned()]).unwrap();
    std::fs::write(format!("{root}/cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(format!("{root}/key.pem"), made.signing_key.serialize_pem()).unwrap();
    let config = format!(
        "daemon off; pid {root}/pid; error_log {root}/error.log; worker_processes 1; events {{}}\n\
         http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n\
         uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
         server {{ listen 127.0.0.1:{http}; location / {{ return 301 https://$host:{tls}$request_uri; }} }}\n\
         server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate {root}/cert.pem; ssl_certificate_key {root}/key.pem;\n\
         location / {{ proxy_pass http://127.0.0.1:{ours}; proxy_set_header Host $host; }} }} }}\n"
    );
    std::fs::write(format!("{root}/nginx.conf"), config).unwrap();
    let mut command = Command::new(nginx);
    let _nginx = Running::start(command.arg("-c").arg(format!("{root}/nginx.conf")));
    until("nginx", || listens(http) && listens(tls));
    let mut issue = certs(&pebble.path(""));
    issue.args([
        "issue",
        "example.com",
        "--agree-tos",
        "--ca",
        &pebble.directory_url(),
    ]);
    issue.arg("--ca-root").arg(pebble.path("root.pem"));
    run(issue.arg(format!("--http-listen=127.0.0.1:{ours}")), 0);
}
