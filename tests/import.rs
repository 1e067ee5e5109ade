//! `certs import` of state that the real clients have written, against Pebble. certbot, lego and Caddy issue;
//! their state is imported and renewed with their account. acme.sh and Traefik come from no package registry,
//! so the test writes their formats, with a real account and certificate of Pebble.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use certs::certificate::Secret;
use certs::time::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::support::{
    Pebble, Running, certs, free_port, listens, make_script, program, run, text, until,
    until_within,
};

/// Everything below a directory: mode, times and content of each entry.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut seen, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = open.pop() {
        let found = std::fs::symlink_metadata(&path).unwrap();
        let content = if found.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            open.extend(entries.map(|entry| entry.unwrap().path()));
            String::new()
        } else if found.is_symlink() {
            std::fs::read_link(&path).unwrap().display().to_string()
        } else {
            String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
        };
        let (mode, changed) = (
            found.mode(),
            (found.mtime(), found.mtime_nsec(), found.ctime()),
        );
        seen.insert(path, format!("{mode:o} {changed:?} {content}"));
    }
    seen
}

/// The files that a repeated import must not change. Leases are left out, since they count their holders.
fn unchanged_by_repetition(pebble: &Pebble) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    for part in ["data/records", "data/accounts", "out"] {
        all.append(&mut snapshot(&pebble.path(part)));
    }
    all.retain(|path, _| path.file_name().is_some_and(|name| name != "lock"));
    all
}

fn certs_here(pebble: &Pebble, arguments: &[&str]) -> Command {
    let mut command = certs(&pebble.path(""));
    command.current_dir(pebble.path("")).args(arguments);
    command.env("CERTS_CA_ROOT", pebble.path("root.pem")).env(
        "CERTS_HTTP_LISTEN",
        format!("127.0.0.1:{}", pebble.http_port),
    );
    command
}

fn record(pebble: &Pebble, name: &str) -> Value {
    let path = pebble.path(&format!("data/records/{name}/record.json"));
    let stored: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    stored["record"].clone()
}

fn options(pebble: &Pebble, name: &str) -> Value {
    let path = pebble.path(&format!("data/records/{name}/options.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The only account of the store.
fn account(pebble: &Pebble) -> String {
    let files = std::fs::read_dir(pebble.path("data/accounts")).unwrap();
    let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    let [file] = files.as_slice() else {
        panic!("{files:?}");
    };
    std::fs::read_to_string(file).unwrap()
}

/// Imports the state at `source` and checks all that an import promises. `account_url` is the client's
/// account.
async fn imports(
    pebble: &Pebble,
    arguments: &[&str],
    source: &Path,
    name: &str,
    account_url: &str,
) {
    let before = snapshot(source);
    let import = |more: &[&str], code| {
        let all = [&["import"], arguments, more].concat();
        run(&mut certs_here(pebble, &all), code)
    };
    let printed = import(&["--dry-run"], 0);
    assert!(
        printed.contains(&format!("would take  certificate {name}: ")),
        "{printed}"
    );
    assert!(!pebble.path("data").exists() && !pebble.path("out").exists());

    let printed = import(&[], 0);
    assert!(
        printed.contains(&format!("taken       certificate {name}: generation 0001")),
        "{printed}"
    );
    assert!(printed.contains(account_url), "{printed}");
    let (imported, known) = (unchanged_by_repetition(pebble), account(pebble));
    let printed = import(&[], 0);
    assert!(
        printed.contains(&format!("here        certificate {name}: generation 0001")),
        "{printed}"
    );
    assert!(!printed.contains("\ntaken"), "{printed}");
    assert_eq!(
        unchanged_by_repetition(pebble),
        imported,
        "a second import has changed something"
    );
    let id = |account: &str| serde_json::from_str::<Value>(account).unwrap()["id"].clone();
    assert_eq!(id(&known), account_url);

    let status = run(
        certs_here(pebble, &["status", "--json"]).stderr(Stdio::null()),
        0,
    );
    let status: Value = serde_json::from_str(&status).unwrap();
    let facts = record(pebble, name)["issued"]["facts"].clone();
    assert_eq!(status[0]["not_after"], facts["not_after"]);
    assert_eq!(status[0]["generation_issued"], 1);
    // No handshake has verified it yet.
    assert_eq!(
        (&status[0]["proven"], &status[0]["next_action"]),
        (&json!(false), &json!("deploy"))
    );

    let printed = run(&mut certs_here(pebble, &["renew"]), 0);
    assert!(
        printed.contains(&format!("{name}: not due; generation 0001")),
        "{printed}"
    );
    let drawn = record(pebble, name)["issued"]["renewal"].clone();
    assert!(
        drawn["window"].is_object(),
        "the CA was not asked for its window: {drawn}"
    );

    let printed = run(&mut certs_here(pebble, &["renew", "--force"]), 0);
    assert!(
        printed.contains(&format!("{name}: issued; generation 0002")),
        "{printed}"
    );
    assert_eq!(
        account(pebble),
        known,
        "it was not renewed with the account that was taken over"
    );
    let replaced = facts["renewal_id"].as_str().unwrap();
    // Pebble does not find a serial number whose DER begins with a sign byte: one of 256.
    assert!(
        has_sign_byte(replaced) || is_replaced(pebble, &known, replaced, &facts).await,
        "the order named no predecessor: {printed}"
    );
    assert_eq!(snapshot(source), before, "the source was touched");
}

/// Whether the serial number in this identifier of RFC 9773 begins with the zero that DER puts before a high bit.
fn has_sign_byte(renewal_id: &str) -> bool {
    let serial = renewal_id.split('.').next_back().unwrap();
    BASE64_URL_SAFE_NO_PAD.decode(serial).unwrap()[0] == 0
}

/// A journal with one account.
struct OneAccountJournal(Secret);

#[async_trait::async_trait]
impl certs::acme::Journal for OneAccountJournal {
    async fn order(
        &mut self,
        _: &certs::record::PendingOrder,
    ) -> Result<(), certs::acme::JournalError> {
        Ok(())
    }

    async fn account(&mut self) -> Result<Option<Secret>, certs::acme::JournalError> {
        Ok(Some(self.0.clone()))
    }

    async fn create_account(&mut self, _: &Secret) -> Result<Secret, certs::acme::JournalError> {
        panic!("there is an account");
    }

    async fn save_account(
        &mut self,
        _: &Secret,
        _: &Secret,
    ) -> Result<(), certs::acme::JournalError> {
        panic!("the account is known");
    }
}

/// Each requested endpoint with the status of its reply.
#[derive(Default)]
struct SeenReplies(Mutex<Vec<(&'static str, u16)>>);

impl certs::acme::Observer for SeenReplies {
    fn request(&self, endpoint: &'static str, status: u16) {
        self.0.lock().unwrap().push((endpoint, status));
    }
    fn date(&self, _: certs::time::Timestamp) {}
}

/// Whether the CA knows an order that names that certificate as its predecessor: it refuses a second one (RFC
/// 9773 section 5).
async fn is_replaced(pebble: &Pebble, account: &str, replaced: &str, facts: &Value) -> bool {
    use certs::acme::{AccountSettings, Client, ClientSettings, Https, Issuer};
    let root = std::fs::read(pebble.path("root.pem")).unwrap();
    let seen = Arc::new(SeenReplies::default());
    let client = Client::new(ClientSettings {
        directory: pebble.directory_url(),
        account: AccountSettings::default(),
        exchange: Arc::new(Https::new(Some(&root)).unwrap()),
        solvers: Vec::new(),
        limiters: Arc::default(),
        clock: Arc::new(SystemClock),
        observer: seen.clone(),
        preferred_chain: None,
        notice: None,
    });
    let order = certs::record::PendingOrder {
        ca: pebble.directory_url(),
        identifiers: serde_json::from_value(facts["identifiers"].clone()).unwrap(),
        profile: None,
        not_after: None,
        terms: None,
        key_pem: certs::certificate::KeyType::EcdsaP256.generate().unwrap(),
        url: None,
        replaces: Some(replaced.to_owned()),
        begun: SystemClock.now(),
        counted: certs::ca_state::Counted::default(),
    };
    let mut journal = OneAccountJournal(Secret::new(account.to_owned()));
    // After the refusal the client orders again without a predecessor, and Pebble may reuse the authorization.
    let _ = client.unwrap().issue(order, &mut journal).await;
    seen.0.lock().unwrap().contains(&("new-order", 409))
}

// These clients run against a Pebble without rejected nonces, since some give up at the second rejection.
struct Certbot<'a> {
    pebble: &'a Pebble,
    program: PathBuf,
}

impl<'a> Certbot<'a> {
    fn new(pebble: &'a Pebble) -> Option<Self> {
        let program = program("CERTS_LAB_CERTBOT", "/usr/bin/certbot")?;
        Some(Self { pebble, program })
    }

    fn directory(&self) -> PathBuf {
        self.pebble.path("letsencrypt")
    }

    fn issue(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.program);
        command
            .args(["certonly", "--non-interactive", "--agree-tos"])
            .args([
                "--email",
                "owner@example.com",
                "--server",
                &self.pebble.directory_url(),
            ])
            .args(["--http-01-address", "127.0.0.1"])
            .args(["--http-01-port", &self.pebble.http_port.to_string()])
            .arg("--config-dir")
            .arg(self.directory())
            .arg("--work-dir")
            .arg(self.pebble.path("work"))
            .arg("--logs-dir")
            .arg(self.pebble.path("logs"))
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("REQUESTS_CA_BUNDLE", self.pebble.path("root.pem"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }

    /// The URL of its only account.
    fn account(&self) -> String {
        let accounts = snapshot(&self.directory().join("accounts"));
        let files = accounts.keys().filter(|path| path.ends_with("regr.json"));
        let files: Vec<_> = files.collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let json: Value = serde_json::from_slice(&std::fs::read(files[0]).unwrap()).unwrap();
        json["uri"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn certbot_import_renews_with_its_rsa_account() {
    let Some(pebble) = Pebble::start(0) else {
        return;
    };
    let Some(certbot) = Certbot::new(&pebble) else {
        return;
    };
    let hook = pebble.path("hook");
    let printed = format!("echo $RENEWED_DOMAINS >>{}.log", hook.display());
    make_script(&hook, &printed);
    let hook = hook.display().to_string();
    certbot.issue(&[
        "--standalone",
        "-d",
        "example.com,www.example.com",
        "--deploy-hook",
        &hook,
    ]);
    let directory = certbot.directory();
    let path = directory.display().to_string();
    imports(
        &pebble,
        &["certbot", &path],
        &directory,
        "example.com",
        &certbot.account(),
    )
    .await;
    let settings = options(&pebble, "example.com");
    assert_eq!(settings["deploy"], json!([format!("exec:{hook}")]));
    assert_eq!(settings["key"], "ecdsa-p256");
    assert_eq!(
        settings["challenge"]["listen"],
        json!([format!("127.0.0.1:{}", pebble.http_port)])
    );
    // The hook ran for certbot, for the pass that deployed the import, and for the renewal.
    let printed = std::fs::read_to_string(format!("{hook}.log")).unwrap();
    assert_eq!(printed, "example.com www.example.com\n".repeat(3));
    // A command about it does not take it from `certs run`.
    assert_eq!(settings["imported"], "certbot");
    let ca = pebble.directory_url();
    let arguments = ["issue", "example.com", "www.example.com", "--ca", &ca];
    let printed = run(&mut certs_here(&pebble, &arguments), 0);
    assert!(printed.contains("not due"), "{printed}");
    // It keeps what the command does not set.
    let deploy = &options(&pebble, "example.com")["deploy"];
    assert_eq!(*deploy, json!([format!("exec:{hook}")]));
    assert_eq!(options(&pebble, "example.com")["imported"], "certbot");
}

/// Makes the CA ask for an early renewal of a certificate.
async fn request_early_renewal(pebble: &Pebble, certificate: &Path) {
    use certs::acme::{Exchange, Https};
    let root = std::fs::read(pebble.path("root.pem")).unwrap();
    let pem = std::fs::read_to_string(certificate).unwrap();
    let at = |seconds| (SystemClock.now() + Duration::from_secs(seconds)).to_string();
    let window = json!({"suggestedWindow": {"start": at(8), "end": at(20)}});
    let body = json!({"Certificate": pem, "ARIResponse": window.to_string()});
    let url = format!("https://localhost:{}/set-renewal-info/", pebble.management);
    let request = http::Request::post(url)
        .body(body.to_string().into())
        .unwrap();
    let reply = Https::new(Some(&root)).unwrap().exchange(request).await;
    assert!(reply.unwrap().status().is_success());
}

#[tokio::test]
async fn sidecar_keeps_imported_certificate_and_renews_it_when_ca_asks() {
    let Some(pebble) = Pebble::start(0) else {
        return;
    };
    let Some(certbot) = Certbot::new(&pebble) else {
        return;
    };
    certbot.issue(&["--standalone", "-d", "example.com"]);
    certbot.issue(&["--standalone", "-d", "b.example.com"]);
    let path = certbot.directory().display().to_string();
    run(&mut certs_here(&pebble, &["import", "certbot", &path]), 0);
    certbot.issue(&["--standalone", "-d", "c.example.com"]);
    let known = account(&pebble);
    request_early_renewal(&pebble, &pebble.path("out/live/example.com/cert.pem")).await;
    let admin = free_port();
    let mut command = certs_here(&pebble, &["run"]);
    command.env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
    let log = std::fs::File::create(pebble.path("run.log")).unwrap();
    let sidecar = Running::start_logging(&mut command, log.into());
    let about = || record(&pebble, "example.com")["issued"].clone();
    let drawn = || about()["renewal"]["window"].is_object();
    until("the renewal window", drawn);
    let other = || record(&pebble, "b.example.com")["deployed"]["files"] == 1;
    until("the deployment of the other certificate", other);
    // If the suggested instant has passed already, the renewal follows at random within five minutes.
    let within = Duration::from_secs(330);
    until_within("the renewal", within, || about()["generation"] == 2);
    assert_eq!(record(&pebble, "b.example.com")["issued"]["generation"], 1);
    assert_eq!(account(&pebble), known);
    let mut health = certs_here(&pebble, &["status", "--health=ready"]);
    health.env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
    until("readiness", || health.output().unwrap().status.success());
    // The output names the process that manages them.
    let printed = run(&mut certs_here(&pebble, &["import", "certbot", &path]), 0);
    assert!(
        printed.contains("by hand     certs run: restart"),
        "{printed}"
    );
    assert!(
        printed.contains("here        certificate example.com: a newer one"),
        "{printed}"
    );
    sidecar.signal(rustix::process::Signal::TERM);
}

#[tokio::test]
async fn lego_import_succeeds_once_its_ca_is_named() {
    let Some(pebble) = Pebble::start(0) else {
        return;
    };
    let Some(lego) = program("CERTS_LAB_LEGO", "/usr/bin/lego") else {
        return;
    };
    let directory = pebble.path("lego");
    let output = Command::new(lego)
        .args([
            "--server",
            &pebble.directory_url(),
            "--accept-tos",
            "--email",
            "owner@example.com",
        ])
        .arg("--path")
        .arg(&directory)
        .args([
            "--http",
            "--http.port",
            &format!("127.0.0.1:{}", pebble.http_port),
        ])
        .args(["--domains", "lego.example.com", "run"])
        .env_clear()
        .env("LEGO_CA_CERTIFICATES", pebble.path("root.pem"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let (path, url) = (directory.display().to_string(), pebble.directory_url());
    let printed = run(
        &mut certs_here(&pebble, &["import", "lego", &path, "--dry-run"]),
        8,
    );
    assert!(
        printed.contains("name its directory with --ca https://localhost:"),
        "{printed}"
    );
    let accounts = snapshot(&directory.join("accounts"));
    let file = accounts
        .keys()
        .find(|path| path.ends_with("account.json"))
        .unwrap();
    let json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let account = json["registration"]["uri"].as_str().unwrap();
    let arguments = ["lego", &path, "--ca", &url];
    imports(&pebble, &arguments, &directory, "lego.example.com", account).await;
    assert_eq!(
        options(&pebble, "lego.example.com")["ca"]["email"],
        "owner@example.com"
    );
}

#[tokio::test]
async fn caddy_import_succeeds() {
    let Some(pebble) = Pebble::start(0) else {
        return;
    };
    let Some(caddy) = program("CERTS_LAB_CADDY", "/usr/bin/caddy") else {
        return;
    };
    let storage = pebble.path("caddy");
    let https = free_port();
    let listen = format!("127.0.0.1:{https}");
    let name = "caddy.example.com";
    let config = json!({
        "admin": {"disabled": true}, "storage": {"module": "file_system", "root": storage},
        "apps": {
            "http": {"http_port": pebble.http_port, "https_port": https, "servers": {"it": {
                "listen": [listen], "routes": [{"match": [{"host": [name]}]}],
            }}},
            "tls": {"automation": {"policies": [{"subjects": [name], "issuers": [{
                "module": "acme", "ca": pebble.directory_url(), "email": "owner@example.com",
                "trusted_roots_pem_files": [pebble.path("root.pem")],
                "challenges": {"tls-alpn": {"disabled": true}},
            }]}]}},
        },
    });
    std::fs::write(pebble.path("caddy.json"), config.to_string()).unwrap();
    let mut command = Command::new(caddy);
    command
        .args(["run", "--config"])
        .arg(pebble.path("caddy.json"))
        .env_clear()
        .env("HOME", pebble.path(""));
    let mut running = Running::start(&mut command);
    // Caddy writes the pair before the file about it.
    let directory = pebble.directory_url().replace("https://", "");
    let directory = directory.replace([':', '/'], "-");
    let about = storage.join(format!("certificates/{directory}/{name}/{name}.json"));
    let issued = || about.exists();
    until_within("Caddy's certificate", Duration::from_secs(60), issued);
    running.signal(rustix::process::Signal::TERM);
    until("Caddy's end", || running.has_ended());
    assert!(!listens(https));
    let files = snapshot(&storage);
    let file = files
        .keys()
        .find(|path| path.ends_with("owner.json"))
        .unwrap();
    let json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let account = json["location"].as_str().unwrap();
    let path = storage.display().to_string();
    imports(&pebble, &["caddy", &path], &storage, name, account).await;
}

/// A certificate and an account of Pebble for hand-made state: the account's key in DER, its URL, and the
/// directory of the pair.
fn issued(pebble: &Pebble, name: &str) -> (Vec<u8>, String, PathBuf) {
    let client = pebble.path("client");
    let mut command = certs(&client);
    command
        .env("CERTS_CA_ROOT", pebble.path("root.pem"))
        .env(
            "CERTS_HTTP_LISTEN",
            format!("127.0.0.1:{}", pebble.http_port),
        )
        .args(["issue", name, "--ca", &pebble.directory_url()])
        .arg("--agree-tos");
    run(&mut command, 0);
    let accounts = std::fs::read_dir(client.join("data/accounts")).unwrap();
    let file = accounts.map(|file| file.unwrap().path()).next().unwrap();
    let account: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let key = account["key_pkcs8"].as_str().unwrap();
    let key = BASE64_URL_SAFE_NO_PAD.decode(key).unwrap();
    let url = account["id"].as_str().unwrap().to_owned();
    (key, url, client.join("out/live").join(name))
}

fn pem(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

#[tokio::test]
async fn acme_sh_import_succeeds() {
    let Some(pebble) = Pebble::start(0) else {
        return;
    };
    let name = "sh.example.com";
    let (key, url, live) = issued(&pebble, name);
    let home = pebble.path(".acme.sh");
    let ca = pebble.directory_url().replace("https://", "");
    let (own, account) = (home.join(format!("{name}_ecc")), home.join("ca").join(&ca));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::create_dir_all(&account).unwrap();
    std::fs::write(account.join("account.key"), pem(&key)).unwrap();
    let conf = format!("CA_EMAIL='owner@example.com'\nACCOUNT_URL='{url}'\n");
    std::fs::write(account.join("ca.conf"), conf).unwrap();
    let conf = format!(
        "Le_Domain='{name}'\nLe_Alt='no'\nLe_Webroot='no'\nLe_HTTPPort='{}'\nLe_API='{}'\n\
         Le_Keylength='ec-256'\nLe_ReloadCmd='__ACME_BASE64__START_{}__ACME_BASE64__END_'\n",
        pebble.http_port,
        pebble.directory_url(),
        BASE64_STANDARD.encode("systemctl reload nginx"),
    );
    std::fs::write(own.join(format!("{name}.conf")), conf).unwrap();
    std::fs::copy(live.join("privkey.pem"), own.join(format!("{name}.key"))).unwrap();
    std::fs::copy(live.join("fullchain.pem"), own.join("fullchain.cer")).unwrap();
    // The state is found at its default path.
    let mut command = certs_here(&pebble, &["import", "acme.sh", "--dry-run"]);
    let printed = run(command.env("HOME", pebble.path("")), 0);
    assert!(
        printed.contains("import again with --deploy nginx"),
        "{printed}"
    );
    let path = home.display().to_string();
    imports(&pebble, &["acme.sh", &path], &home, name, &url).await;
    assert_eq!(options(&pebble, name)["reuse_key"], true);
}

#[tokio::test]
async fn traefik_import_succeeds_once_its_ca_is_named() {
    let Some(pebble) = Pebble::start(0) else {
        return;
    };
    let name = "traefik.example.com";
    let (key, url, live) = issued(&pebble, name);
    let encoded = |file: &str| BASE64_STANDARD.encode(std::fs::read(live.join(file)).unwrap());
    let state = json!({"le": {
        "Account": {
            "Email": "owner@example.com", "KeyType": "EC256", "PrivateKey": BASE64_STANDARD.encode(&key),
            "Registration": {"body": {"status": "valid"}, "uri": url},
        },
        "Certificates": [{
            "domain": {"main": name}, "Store": "default",
            "certificate": encoded("fullchain.pem"), "key": encoded("privkey.pem"),
        }],
    }});
    let directory = pebble.path("traefik");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("acme.json"), state.to_string()).unwrap();
    let path = directory.join("acme.json").display().to_string();
    let ca = pebble.directory_url();
    let arguments = ["traefik", &path, "--ca", &ca];
    imports(&pebble, &arguments, &directory, name, &url).await;
}
