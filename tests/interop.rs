//! Other ACME clients against the embedded CA: certbot, lego, acme.sh and Caddy obtain, renew and revoke
//! certificates. Linters of certificates find nothing in what it signs.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use certs::ca::{Settings, Validation};
use certs::certificate::SecretBytes;

use crate::support::bind::{Bind, KEY, SECRET};
use crate::support::embedded::EmbeddedCa;
use crate::support::{Pebble, Running, by_depth, certs, make_script, program, run, text, until};

const NAME: &str = "example.com";
/// An external account and its HMAC key, as clients take it.
const KID: &str = "customer-1";
const HMAC: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";

/// A CA whose certificates name its revocation lists.
fn ca(change: impl FnOnce(&mut Settings)) -> EmbeddedCa {
    EmbeddedCa::with(|settings| {
        settings.lists_url = Some(settings.base_url.replace("https:", "http:"));
        change(settings);
    })
}

/// One that accepts the external account alone.
fn with_external_account(change: impl FnOnce(&mut Settings)) -> EmbeddedCa {
    ca(|settings| {
        let key = SecretBytes::new(b"0123456789abcdef0123456789abcdef".to_vec());
        settings.external_accounts.insert(KID.into(), key);
        change(settings);
    })
}

/// A client with an environment of its own.
fn client(program: &Path, ca: &EmbeddedCa, variables: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", ca.path("home"));
    for variable in variables {
        command.env(variable, ca.path("root.pem"));
    }
    command
}

fn certificates(pem: &str) -> impl Iterator<Item = &str> {
    const END: &str = "-----END CERTIFICATE-----\n";
    pem.split_inclusive(END)
        .map(str::trim_start)
        .filter(|one| !one.is_empty())
}

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    text(&output)
}

/// Whether `openssl` with the lists that a chain names accepts its leaf, which it must do without them.
fn is_revoked(ca: &EmbeddedCa, chain: &Path) -> bool {
    let (root, chain) = (ca.path("root.pem"), chain.to_str().unwrap());
    let root = root.to_str().unwrap();
    let usual = ["verify", "-CAfile", root, "-untrusted", chain];
    let accepted = openssl(&[&usual[..], &[chain]].concat());
    assert!(accepted.contains(": OK"), "{accepted}");
    let lists = ca.path("lists.pem");
    let mut all = String::new();
    let pem = std::fs::read_to_string(chain).unwrap();
    for (place, certificate) in certificates(&pem).enumerate() {
        let file = ca.path("certificate.pem");
        std::fs::write(&file, certificate).unwrap();
        let shown = openssl(&["x509", "-noout", "-text", "-in", file.to_str().unwrap()]);
        let url = shown
            .lines()
            .find_map(|line| line.trim().strip_prefix("URI:"));
        let url = url.unwrap_or_else(|| panic!("no list in {shown}"));
        assert!(url.starts_with("http://"), "{url}");
        let der = ca.path(&format!("list-{place}.der"));
        let fetched = Command::new("curl")
            .args(["-sSf", url, "-o"])
            .arg(&der)
            .output();
        let fetched = fetched.unwrap();
        assert!(fetched.status.success(), "{}", text(&fetched));
        let der = ["crl", "-inform", "DER", "-in", der.to_str().unwrap()];
        all += &openssl(&der);
    }
    std::fs::write(&lists, all).unwrap();
    let checked = ["-crl_check_all", "-CRLfile", lists.to_str().unwrap(), chain];
    let checked = openssl(&[&usual[..], &checked].concat());
    let is_revoked = checked.contains("certificate revoked");
    assert_eq!(!is_revoked, checked.contains(": OK"), "{checked}");
    is_revoked
}

fn lego_program() -> Option<PathBuf> {
    program("CERTS_LAB_LEGO", "/usr/bin/lego")
}

fn lego(program: &Path, ca: &EmbeddedCa, options: &[&str], verb: &[&str]) -> Command {
    let mut command = client(program, ca, &["LEGO_CA_CERTIFICATES"]);
    command.args(["--server", &ca.server.directory_url(), "--accept-tos"]);
    command
        .args(["--email", "owner@example.com", "--path"])
        .arg(ca.path("lego"));
    command.args(options).args(verb);
    command
}

fn lego_chain(ca: &EmbeddedCa, name: &str) -> PathBuf {
    ca.path("lego/certificates").join(format!("{name}.crt"))
}

#[test]
fn lego_obtains_renews_by_ari_and_revokes() {
    let Some(lego_program) = lego_program() else {
        return;
    };
    let ca = with_external_account(|_| ());
    let port = format!("127.0.0.1:{}", ca.http_port);
    let usual = ["--http", "--http.port", &port, "-d", NAME];
    let refused = run(&mut lego(&lego_program, &ca, &usual, &["run"]), 1);
    assert!(refused.contains("External Account Binding"), "{refused}");
    // Where the CA requires them, lego takes these options for each verb.
    let bound = ["--eab", "--kid", KID, "--hmac", HMAC];
    let bound = [&usual[..], &bound].concat();
    let lego = |verb: &[&str]| run(&mut lego(&lego_program, &ca, &bound, verb), 0);
    lego(&["run"]);
    let chain = lego_chain(&ca, NAME);
    let first = std::fs::read(&chain).unwrap();
    assert!(!is_revoked(&ca, &chain));
    // ARI decides: the window is far away, until the certificate is revoked.
    let renew = ["renew", "--no-random-sleep"];
    lego(&renew);
    assert!(std::fs::read(&chain).unwrap() == first, "renewed too early");
    lego(&["revoke", "--keep", "--reason", "4"]);
    assert!(is_revoked(&ca, &chain));
    lego(&renew);
    assert!(std::fs::read(&chain).unwrap() != first, "not renewed");
    assert!(!is_revoked(&ca, &chain));
}

#[test]
fn lego_proves_by_tls_alpn_01_and_dns_01() {
    let Some(program) = lego_program() else {
        return;
    };
    let tls = ca(|_| ());
    let port = format!("127.0.0.1:{}", tls.tls_port);
    let options = [
        "--tls",
        "--tls.port",
        &port,
        "-d",
        NAME,
        "-d",
        "www.example.com",
    ];
    run(&mut lego(&program, &tls, &options, &["run"]), 0);
    assert!(!is_revoked(&tls, &lego_chain(&tls, NAME)));
    let Some(bind) = Bind::start() else {
        return;
    };
    let dns = ca(|settings| settings.resolver = Some(bind.server()));
    let (server, names) = (
        bind.server().to_string(),
        ["-d", "*.example.com", "-d", NAME],
    );
    // lego would ask the system's resolver for the address of the zone's server.
    let usual = [
        "--dns",
        "rfc2136",
        "--dns.propagation-wait",
        "1ms",
        "--dns.resolvers",
        &server,
    ];
    let options = [&usual[..], &names].concat();
    let mut command = lego(&program, &dns, &options, &["run"]);
    command
        .env("RFC2136_NAMESERVER", &server)
        .env("RFC2136_TSIG_KEY", KEY);
    command
        .env("RFC2136_TSIG_ALGORITHM", "hmac-sha256.")
        .env("RFC2136_TSIG_SECRET", SECRET)
        .env("RFC2136_SEQUENCE_INTERVAL", "1");
    run(&mut command, 0);
    assert!(!is_revoked(&dns, &lego_chain(&dns, "_.example.com")));
}

#[test]
fn certbot_obtains_renews_by_ari_and_revokes() {
    // Python starts slowly.
    if by_depth(true, false, false) {
        return;
    }
    let Some(program) = program("CERTS_LAB_CERTBOT", "/usr/bin/certbot") else {
        return;
    };
    let ca = with_external_account(|_| ());
    let certbot = |arguments: &[&str]| {
        let mut command = client(&program, &ca, &["REQUESTS_CA_BUNDLE"]);
        command
            .args(arguments)
            .args(["--non-interactive", "--server"]);
        command.arg(ca.server.directory_url());
        for (option, directory) in [
            ("--config-dir", "config"),
            ("--work-dir", "work"),
            ("--logs-dir", "logs"),
        ] {
            command.arg(option).arg(ca.path("certbot").join(directory));
        }
        run(&mut command, 0)
    };
    let port = ca.http_port.to_string();
    certbot(&[
        "certonly",
        "--standalone",
        "--http-01-address",
        "127.0.0.1",
        "--http-01-port",
        &port,
        "--agree-tos",
        "--register-unsafely-without-email",
        "--eab-kid",
        KID,
        "--eab-hmac-key",
        HMAC,
        "-d",
        NAME,
        "-d",
        "www.example.com",
    ]);
    let chain = ca.path("certbot/config/live/example.com/fullchain.pem");
    let first = std::fs::read(&chain).unwrap();
    assert!(!is_revoked(&ca, &chain));
    certbot(&[
        "revoke",
        "--cert-name",
        NAME,
        "--reason",
        "keycompromise",
        "--no-delete-after-revoke",
    ]);
    assert!(is_revoked(&ca, &chain));
    let renew = ["renew", "--no-random-sleep-on-renew"];
    certbot(&renew);
    assert!(std::fs::read(&chain).unwrap() != first, "not renewed");
    assert!(!is_revoked(&ca, &chain));
    assert!(certbot(&renew).contains("not yet due"));
    let shown = certbot(&["show_account"]);
    assert!(shown.contains("Account URL"), "{shown}");
    certbot(&["unregister"]);
}

#[test]
fn acme_sh_obtains_and_revokes() {
    if by_depth(true, false, false) {
        return;
    }
    let Some(program) = program("CERTS_LAB_ACME_SH", "/usr/bin/acme.sh") else {
        return;
    };
    let ca = with_external_account(|_| ());
    let home = ca.path("acme.sh");
    std::fs::create_dir(&home).unwrap();
    let acme_sh = |arguments: &[&str]| {
        let mut command = client(&program, &ca, &[]);
        command.args([
            "--home",
            home.to_str().unwrap(),
            "--no-color",
            "--server",
            &ca.server.directory_url(),
        ]);
        command
            .arg("--ca-bundle")
            .arg(ca.path("root.pem"))
            .args(arguments);
        run(&mut command, 0)
    };
    acme_sh(&[
        "--register-account",
        "--eab-kid",
        KID,
        "--eab-hmac-key",
        HMAC,
    ]);
    let webroot = ca.path("webroot");
    std::fs::create_dir(&webroot).unwrap();
    let mut server = Command::new("python3");
    server.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
    let server = Running::start(server.arg(&webroot).arg(ca.http_port.to_string()));
    until("the webroot's server", || {
        crate::support::listens(ca.http_port)
    });
    let webroot = webroot.to_str().unwrap();
    acme_sh(&[
        "--issue",
        "-d",
        NAME,
        "--webroot",
        webroot,
        "--keylength",
        "ec-256",
    ]);
    drop(server);
    let port = ca.tls_port.to_string();
    let alpn = [
        "--issue",
        "-d",
        "www.example.com",
        "--alpn",
        "--tlsport",
        &port,
        "--keylength",
        "ec-256",
    ];
    acme_sh(&alpn);
    let chain = home.join("www.example.com_ecc/fullchain.cer");
    assert!(!is_revoked(&ca, &chain));
    acme_sh(&[
        "--revoke",
        "-d",
        "www.example.com",
        "--ecc",
        "--revoke-reason",
        "1",
    ]);
    assert!(is_revoked(&ca, &chain));
    acme_sh(&["--update-account", "--accountemail", "new@example.com"]);
    acme_sh(&["--deactivate-account"]);
}

#[test]
fn caddy_obtains_by_each_challenge() {
    if by_depth(true, false, false) {
        return;
    }
    let Some(program) = program("CERTS_LAB_CADDY", "/usr/bin/caddy") else {
        return;
    };
    for other in ["disable_http_challenge", "disable_tlsalpn_challenge"] {
        let ca = with_external_account(|_| ());
        let file = ca.path("Caddyfile");
        let (directory, root) = (ca.server.directory_url(), ca.path("root.pem"));
        let (storage, http, https) = (ca.path("caddy"), ca.http_port, ca.tls_port);
        let text = format!(
            "{{\n admin off\n storage file_system {}\n http_port {http}\n https_port {https}\n default_bind 127.0.0.1\n}}\n\
             {NAME} {{\n respond ok\n tls {{\n issuer acme {{\n dir {directory}\n trusted_roots {}\n eab {KID} {HMAC}\n\
             {other}\n}}\n}}\n}}\n",
            storage.display(),
            root.display(),
        );
        std::fs::write(&file, text).unwrap();
        let mut command = client(&program, &ca, &[]);
        command
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(&file);
        let log = std::fs::File::create(ca.path("log")).unwrap();
        let _caddy = Running::start_logging(&mut command, log.into());
        let stored = || {
            let mut found = Command::new("find");
            let found = found
                .arg(&storage)
                .args(["-name", "example.com.crt"])
                .output()
                .unwrap();
            PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())
        };
        until(other, || stored().is_file());
        assert!(!is_revoked(&ca, &stored()));
        let leaf = ca.leaf_at(https, NAME);
        assert!(!leaf.to_string().is_empty());
    }
}

#[test]
fn strict_pebble_with_bad_nonces_gives_certificates_by_each_challenge() {
    let Some(pebble) = Pebble::start(15) else {
        return;
    };
    run(&mut pebble.issue(&[NAME, "www.example.com"]), 0);
    let listen = format!("--tls-listen=127.0.0.1:{}", pebble.tls_port);
    let names = ["tls.example.com", "127.0.0.1"];
    run(
        &mut pebble.issue(&[&names[..], &["--challenge", "tls-alpn-01", &listen]].concat()),
        0,
    );
    let Some(bind) = Bind::start() else {
        return;
    };
    let Some(pebble) = Pebble::start_asking(15, Some(bind.server())) else {
        return;
    };
    let mut command = certs(&pebble.path(""));
    command.args([
        "issue",
        NAME,
        "*.example.com",
        "--dns",
        "rfc2136",
        "--agree-tos",
    ]);
    command
        .args(["--ca", &pebble.directory_url(), "--ca-root"])
        .arg(pebble.path("root.pem"));
    run(bind.configure(&mut command), 0);
}

/// What a linter of pkilint finds: where, and what, a line each. It exits with their number.
fn findings(pkilint: &Path, linter: &str, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new(pkilint.with_file_name(linter));
    let output = command.arg("lint").args(arguments).output().unwrap();
    let printed = text(&output);
    let (mut place, mut found) = ("", Vec::new());
    for line in printed.lines().filter(|line| !line.trim().is_empty()) {
        match line.strip_prefix("    ") {
            Some(finding) => found.push(format!("{place}: {finding}")),
            None => place = line,
        }
    }
    assert_eq!(
        output.status.code(),
        i32::try_from(found.len()).ok(),
        "{printed}"
    );
    // A name constraint may be a single label, and a server's name a wildcard.
    let is_wrong = |one: &String| {
        !one.contains("invalid_domain_name_syntax")
            || !one.contains("permittedSubtrees") && !one.contains("\"*.")
    };
    found.retain(is_wrong);
    found
}

/// What the rules of public CAs want and a private one cannot or need not have.
const PUBLIC_ONLY: [&str; 5] = [
    "cabf.internal_domain_name",
    "cabf.internal_ip_address",
    "subject_key_identifier_extension_present",
    "authority_info_access_extension_absent",
    "certificate_policies_extension_absent",
];

#[test]
fn pkilint_finds_nothing_in_what_the_ca_signs() {
    if by_depth(true, false, false) {
        return;
    }
    let linter = "CERTS_LAB_PKILINT";
    let Some(pkilint) = program(linter, "/usr/bin/lint_pkix_cert") else {
        return;
    };
    let Some(lego_program) = lego_program() else {
        return;
    };
    let ca = ca(|settings| {
        settings.validation = Validation::AlwaysValid;
        settings.permitted = ["example.com", "localhost", "127.0.0.0/8", "::1/128"]
            .map(|one| one.parse().unwrap())
            .into();
    });
    let nothing = ca.path("nothing");
    make_script(&nothing, "exit 0");
    let port = format!("127.0.0.1:{}", ca.http_port);
    let http = ["--http", "--http.port", &port];
    let dns = [
        "--dns",
        "exec",
        "--dns.propagation-wait",
        "1ms",
        "--dns.resolvers",
        "127.0.0.1:9",
    ];
    for (options, names) in [
        (&http[..], &["-d", NAME, "-d", "www.example.com"][..]),
        (&http[..], &["-d", &Ipv4Addr::LOCALHOST.to_string()]),
        (&dns[..], &["-d", "*.example.com"]),
        (
            &http[..],
            &["--key-type", "rsa2048", "-d", "rsa.example.com"],
        ),
    ] {
        let mut command = lego(&lego_program, &ca, &[options, names].concat(), &["run"]);
        run(command.env("EXEC_PATH", &nothing), 0);
    }
    run(
        &mut lego(
            &lego_program,
            &ca,
            &["-d", NAME],
            &["revoke", "--keep", "--reason", "1"],
        ),
        0,
    );
    assert!(is_revoked(&ca, &lego_chain(&ca, NAME)));
    let threshold = ["-s", "NOTICE"];
    let lint = |linter: &str, options: &[&str], files: &[&Path]| {
        let files = files.iter().map(|file| file.to_str().unwrap());
        let files: Vec<_> = files.collect();
        findings(&pkilint, linter, &[&threshold, options, &files].concat())
    };
    let root = ca.path("root.pem");
    let mut found = lint("lint_pkix_cert", &[], &[&root]);
    let [leaf, intermediate] = ["leaf.pem", "intermediate.pem"].map(|file| ca.path(file));
    let chain = "lint_pkix_signer_signee_cert_chain";
    for name in [NAME, "127.0.0.1", "_.example.com", "rsa.example.com"] {
        let pem = std::fs::read_to_string(lego_chain(&ca, name)).unwrap();
        for (file, one) in [&leaf, &intermediate].into_iter().zip(certificates(&pem)) {
            std::fs::write(file, one).unwrap();
        }
        found.extend(lint("lint_pkix_cert", &[], &[&leaf]));
        found.extend(lint(chain, &[], &[&intermediate, &leaf]));
        let public = ["-t", "DV-FINAL-CERTIFICATE"];
        let mut public = lint("lint_cabf_serverauth_cert", &public, &[&leaf]);
        public.retain(|one| !PUBLIC_ONLY.iter().any(|code| one.contains(code)));
        found.extend(public);
    }
    found.extend(lint("lint_pkix_cert", &[], &[&intermediate]));
    found.extend(lint(chain, &[], &[&root, &intermediate]));
    // The intermediate's list, and the root's.
    for (place, kind) in ["CRL", "ARL"].iter().enumerate() {
        let list = ca.path(&format!("list-{place}.der"));
        for profile in ["PKIX", "BR"] {
            found.extend(lint("lint_crl", &["-t", kind, "-p", profile], &[&list]));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}
