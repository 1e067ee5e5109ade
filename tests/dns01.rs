//! DNS-01 against Pebble and a real BIND: wildcards, aliases, refused changes, interrupted runs.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::support::bind::{Bind, KEY, SECRET};
use crate::support::embedded::EmbeddedCa;
use crate::support::{Pebble, Running, certs, make_script, program, run, text, until};

const NAMES: [&str; 2] = ["example.com", "*.example.com"];
const CHALLENGE: &str = "_acme-challenge.example.com";

/// A CA and a name server.
struct Lab {
    bind: Bind,
    pebble: Pebble,
}

impl Lab {
    fn start() -> Option<Self> {
        Self::with(Bind::start()?)
    }

    fn with(bind: Bind) -> Option<Self> {
        let pebble = Pebble::start_asking(0, Some(bind.server()))?;
        Some(Self { bind, pebble })
    }

    /// `certs issue` by DNS-01.
    fn issue(&self, arguments: &[&str]) -> Command {
        let mut command = certs(&self.pebble.path(""));
        command.args([
            "issue",
            "--agree-tos",
            "--ca",
            &self.pebble.directory_url(),
            "--ca-root",
        ]);
        command.arg(self.pebble.path("root.pem")).args(arguments);
        self.bind.configure(&mut command);
        command
    }

    /// The lines of a program for the provider `exec`.
    fn changes(&self, nsupdate: &Path) -> String {
        let (server, nsupdate) = (self.bind.address, nsupdate.display());
        format!(
            "case $1 in present) verb=add ttl=1 ;; cleanup) verb=delete ttl= ;; esac\n\
             printf 'server {server}\\nupdate %s %s %s TXT %s\\nsend\\n' \"$verb\" \"$2\" \"$ttl\" \"$3\" |\n\
             {nsupdate} -y hmac-sha256:{KEY}:{SECRET} || exit 1\n"
        )
    }

    /// Fails the names and returns what is printed; nothing may stay in the zone.
    fn refused(&self, command: &mut Command) -> String {
        let printed = run(command, 5);
        assert!(printed.contains("hint: "), "{printed}");
        assert!(!printed.contains(SECRET), "{printed}");
        printed
    }
}

/// Whether the zone's log has an added value and as many removed ones.
fn values_came_and_went(bind: &Bind, name: &str, number: usize) {
    let log = bind.log().replace('\'', "");
    let count = |what: &str| {
        let words = format!("{what} an RR at {name} TXT");
        let lines = log.lines();
        lines.filter(|line| line.contains(&words)).count()
    };
    assert_eq!(
        (count("adding"), count("deleting")),
        (number, number),
        "{log}"
    );
    assert_eq!(bind.values(name), "");
}

#[test]
fn wildcard_and_base_name_are_issued_and_renewed_by_rfc2136() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let printed = run(lab.issue(&NAMES).args(["--dns", "rfc2136"]), 0);
    assert!(printed.contains("issued; generation 0001"), "{printed}");
    values_came_and_went(&lab.bind, CHALLENGE, 2);
    // A renewal needs neither the variables nor the options of the first command.
    let data = lab.pebble.path("");
    let printed = run(certs(&data).args(["renew", "--force"]), 0);
    assert!(printed.contains("issued; generation 0002"), "{printed}");
    values_came_and_went(&lab.bind, CHALLENGE, 4);
    // What is stored is readable for its owner alone, and shown nowhere.
    let stored = data.join("data/records/example.com/options.json");
    assert_eq!(std::fs::metadata(&stored).unwrap().mode() & 0o7777, 0o600);
    assert!(std::fs::read_to_string(&stored).unwrap().contains(SECRET));
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["config", "check"],
        &["renew", "-v"],
    ] {
        let output = certs(&data).args(arguments).output().unwrap();
        assert!(!text(&output).contains(SECRET), "{}", text(&output));
    }
}

#[test]
fn alias_is_followed_to_the_zone_that_takes_updates() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let names = [
        "alias.example.com",
        "*.alias.example.com",
        "--dns",
        "rfc2136",
    ];
    run(&mut lab.issue(&names), 0);
    values_came_and_went(&lab.bind, "alias-of-com.example.test", 2);
}

#[test]
fn private_zone_is_found_at_the_server_that_takes_its_updates() {
    let Some(lab) = Lab::start() else {
        return;
    };
    // No resolver of this machine knows it.
    let mut command = lab.issue(&["*.example.test", "--dns", "rfc2136"]);
    run(command.env_remove("CERTS_RESOLVER"), 0);
    values_came_and_went(&lab.bind, "_acme-challenge.example.test", 1);
}

#[test]
fn refused_change_names_the_cause_and_exits_5() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let other = "b3RoZXItc2VjcmV0LW9mLXRoZS10ZXN0cw==";
    for (variable, value, words) in [
        (
            "CERTS_DNS_RFC2136_TSIG_SECRET",
            other,
            ["BADSIG", "correct CERTS_DNS_RFC2136_TSIG_SECRET"],
        ),
        (
            "CERTS_DNS_RFC2136_TSIG_NAME",
            "unknown",
            ["BADKEY", "does not know the key unknown"],
        ),
        (
            "CERTS_DNS_RFC2136_SERVER",
            "127.0.0.1:1",
            ["took no update", "CERTS_DNS_RFC2136_SERVER"],
        ),
    ] {
        let printed = lab.refused(
            lab.issue(&NAMES)
                .args(["--dns", "rfc2136"])
                .env(variable, value),
        );
        assert!(words.iter().all(|word| printed.contains(word)), "{printed}");
        assert!(!printed.contains(other), "{printed}");
    }
    let printed = lab.refused(lab.issue(&["*.example.org"]).args(["--dns", "rfc2136"]));
    assert!(
        printed.contains("REFUSED") && printed.contains("update-policy"),
        "{printed}"
    );
    let printed = lab.refused(
        lab.issue(&["*.loop.example.com"])
            .args(["--dns", "rfc2136"]),
    );
    assert!(printed.contains("lead back to it"), "{printed}");
    assert_eq!(lab.bind.values(CHALLENGE), "");
}

#[test]
fn program_adds_and_removes_the_record() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let Some(nsupdate) = program("CERTS_LAB_NSUPDATE", "/usr/bin/nsupdate") else {
        return;
    };
    let (script, called) = (lab.pebble.path("change-dns"), lab.pebble.path("called"));
    let called_by = format!("echo \"$# $*\" >>{0}; env >>{0}\n", called.display());
    let lines = called_by + &lab.changes(&nsupdate);
    make_script(&script, &lines);
    let mut command = lab.issue(&NAMES);
    command
        .args(["--dns", "exec"])
        .env("CERTS_DNS_EXEC_PROGRAM", &script);
    run(&mut command, 0);
    values_came_and_went(&lab.bind, CHALLENGE, 2);
    let called = std::fs::read_to_string(called).unwrap();
    for verb in ["present", "cleanup"] {
        let call = format!("3 {verb} {CHALLENGE}. ");
        assert_eq!(called.matches(&call).count(), 2, "{called}");
    }
    assert!(!called.contains("CERTS_"), "{called}");
    // A program that fails is named with its last words.
    make_script(&script, "echo no such zone >&2; exit 3");
    let printed = lab.refused(command.arg("--force"));
    assert!(
        printed.contains("no such zone") && printed.contains("change-dns present"),
        "{printed}"
    );
}

#[test]
fn faulty_program_is_named_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("change-dns");
    let issue = |word: &str| {
        let mut command = certs(directory.path());
        command
            .args(["issue", "*.example.com", "--dns", "exec", "--agree-tos"])
            .args(["--ca", "https://127.0.0.1:1/directory"])
            .env("CERTS_DNS_EXEC_PROGRAM", &program);
        let printed = run(&mut command, 2);
        assert!(
            printed.contains(word) && printed.contains("change-dns") && printed.contains("hint: "),
            "{printed}"
        );
        let printed = run(command.arg("--dry-run"), 2);
        assert!(printed.contains(word), "{printed}");
    };
    issue("cannot be started");
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o644)).unwrap();
    issue("may not be executed (mode 0644)");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o777)).unwrap();
    issue("can be changed by its group or by all users");
    // Now the CA is asked.
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = certs(directory.path());
    command
        .args(["issue", "*.example.com", "--dns", "exec", "--agree-tos"])
        .args(["--ca", "https://127.0.0.1:1/directory"])
        .env("CERTS_DNS_EXEC_PROGRAM", &program);
    run(&mut command, 3);
}

#[test]
fn contradiction_stops_only_its_own_certificate() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let config = lab.pebble.path("certs.toml");
    let text = format!(
        "agree_tos = true\nca = '{}'\nca_root = 'root.pem'\nresolver = '{server}'\ndeploy = []\n\
         [dns.lab]\nprovider = 'rfc2136'\nserver = '{server}'\n\
         tsig_name = '{KEY}'\ntsig_secret = '{SECRET}'\n[[certificate]]\nnames = ['c.example.com']\ndns = 'lab'\n\
         challenge = 'http-01'\n[[certificate]]\nnames = ['d.example.com']\ndns = 'lab'\n",
        lab.pebble.directory_url(),
        server = lab.bind.server(),
    );
    std::fs::write(&config, text).unwrap();
    let call = |words: &[&str]| {
        let mut command = certs(&lab.pebble.path(""));
        let printed = run(command.env("CERTS_CONFIG", &config).args(words), 2);
        assert!(
            printed.contains("dns is for dns-01, and the challenge beside it is http-01"),
            "{printed}"
        );
        printed
    };
    call(&["config", "check"]);
    let printed = call(&["renew"]);
    assert!(printed.contains("d.example.com"), "{printed}");
    let live = |name: &str| lab.pebble.path("out/live").join(name).exists();
    assert!(live("d.example.com") && !live("c.example.com"), "{printed}");
}

#[test]
fn next_run_removes_what_a_killed_one_left() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let Some(nsupdate) = program("CERTS_LAB_NSUPDATE", "/usr/bin/nsupdate") else {
        return;
    };
    // The program does not return once it has added the record.
    let (script, go) = (lab.pebble.path("change-dns"), lab.pebble.path("go"));
    let lines =
        lab.changes(&nsupdate) + &format!("while [ ! -e {} ]; do sleep 0.1; done", go.display());
    make_script(&script, &lines);
    let mut command = lab.issue(&NAMES);
    command
        .args(["--dns", "exec"])
        .env("CERTS_DNS_EXEC_PROGRAM", &script);
    let mut issuing = Running::start(&mut command);
    until("the record", || {
        assert!(!issuing.has_ended(), "it ended before it was killed");
        !lab.bind.values(CHALLENGE).is_empty()
    });
    issuing.kill();
    std::fs::write(go, "").unwrap();
    // A deletion would forget it.
    let mut delete = certs(&lab.pebble.path(""));
    let printed = run(delete.args(["delete", "example.com"]), 2);
    assert!(
        printed.contains(&format!("left the record {CHALLENGE}. TXT \"")),
        "{printed}"
    );
    // Another order, with other values, by another provider.
    let names = [
        "example.com",
        "*.example.com",
        "www.example.com",
        "--dns",
        "rfc2136",
    ];
    run(&mut lab.issue(&names), 0);
    assert_eq!(lab.bind.values(CHALLENGE), "");
}

#[test]
fn order_waits_for_a_secondary_server_that_lags() {
    let Some(lab) = Bind::start_lagging().and_then(Lab::with) else {
        return;
    };
    let printed = run(
        lab.issue(&["*.example.com", "-v"])
            .args(["--dns", "rfc2136"]),
        0,
    );
    assert!(
        printed.contains("waiting for the name server ns2.example.com"),
        "{printed}"
    );
}

#[test]
fn own_name_server_answers_for_a_delegated_name() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let listen = format!("{}:53", lab.bind.own);
    let own = ["--dns", "self", "--dns-listen", &listen];
    run(
        lab.issue(&["own.example.com", "*.own.example.com"])
            .args(own),
        0,
    );
    // Without a delegation, the records to create are printed.
    let printed = lab.refused(lab.issue(&["*.example.com"]).args(own));
    let record = "_acme-challenge.example.com.  3600  IN  NS  acme-dns.example.com.";
    assert!(
        printed.contains(record) && printed.contains("IN  A  "),
        "{printed}"
    );
    // A port that is taken is found before anything is sent.
    let taken = format!("{}:53", lab.bind.address);
    let mut command = lab.issue(&["*.new.example.com", "--dns", "self", "--dns-listen", &taken]);
    let printed = run(&mut command, 2);
    assert!(
        printed.contains(&taken) && printed.contains("--dns-listen ADDRESS:53"),
        "{printed}"
    );
}

#[test]
fn sidecar_in_its_sandbox_proves_wildcards_by_each_provider() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let Some(nsupdate) = program("CERTS_LAB_NSUPDATE", "/usr/bin/nsupdate") else {
        return;
    };
    // Its helper process starts the program.
    let script = lab.pebble.path("change-dns");
    make_script(&script, &lab.changes(&nsupdate));
    let (config, log) = (lab.pebble.path("certs.toml"), lab.pebble.path("log"));
    let secret = lab.pebble.path("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let text = format!(
        "agree_tos = true\nca = '{}'\nca_root = 'root.pem'\nresolver = '{server}'\ndns_listen = '{own}:53'\n\
         deploy = []\n[admin]\nlisten = 'off'\n[dns.lab]\nprovider = 'rfc2136'\nserver = '{server}'\n\
         tsig_name = '{KEY}'\ntsig_secret_file = 'secret'\n[[certificate]]\nnames = ['*.example.com']\ndns = 'lab'\n\
         [[certificate]]\nnames = ['*.own.example.com']\ndns = 'self'\n\
         [[certificate]]\nnames = ['*.alias.example.com']\ndns = 'exec'\n[dns.exec]\nprogram = '{script}'\n",
        lab.pebble.directory_url(),
        server = lab.bind.server(),
        own = lab.bind.own,
        script = script.display(),
    );
    std::fs::write(&config, text).unwrap();
    run(
        certs(&lab.pebble.path(""))
            .env("CERTS_CONFIG", &config)
            .args(["config", "check"]),
        0,
    );
    let file = std::fs::File::create(&log).unwrap();
    let mut command = certs(&lab.pebble.path(""));
    command.env("CERTS_CONFIG", &config).args(["run", "-v"]);
    let sidecar = Running::start_logging(&mut command, file.into());
    let live = |name: &str| lab.pebble.path("out/live").join(name).join("cert.pem");
    until("the certificates", || {
        // A placeholder comes first.
        let issued = |name: &str| {
            std::fs::read_to_string(live(name).with_file_name("fullchain.pem"))
                .is_ok_and(|chain| chain.matches("BEGIN CERTIFICATE").count() > 1)
        };
        let names = ["example.com", "own.example.com", "alias.example.com"];
        names
            .iter()
            .all(|name| issued(&format!("_wildcard_.{name}")))
    });
    drop(sidecar);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.contains(SECRET), "{log}");
    values_came_and_went(&lab.bind, CHALLENGE, 1);
}

#[test]
fn embedded_ca_validates_wildcards_by_dns_01() {
    let Some(bind) = Bind::start() else {
        return;
    };
    let ca = EmbeddedCa::with(|settings| settings.resolver = Some(bind.server()));
    let mut command = certs(&ca.path("client"));
    command.args([
        "issue",
        "--agree-tos",
        "--ca",
        &ca.server.directory_url(),
        "--ca-root",
    ]);
    command
        .arg(ca.path("root.pem"))
        .args(NAMES)
        .args(["--dns", "rfc2136"]);
    let printed = run(bind.configure(&mut command), 0);
    assert!(printed.contains("issued; generation 0001"), "{printed}");
    assert_eq!(bind.values(CHALLENGE), "");
}

#[test]
fn configuration_names_what_a_provider_lacks() {
    let directory = tempfile::tempdir().unwrap();
    let check = |config: &str, variables: &[(&str, &str)]| {
        let file = directory.path().join("certs.toml");
        let head = "agree_tos = true\n";
        let tail = "\n[[certificate]]\nnames = ['*.example.com']\n";
        std::fs::write(&file, format!("{head}{config}{tail}")).unwrap();
        let mut command = certs(directory.path());
        command
            .current_dir(directory.path())
            .args(["config", "check"]);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        (output.status.code(), text(&output))
    };
    for (config, words) in [
        (
            "challenge = 'dns-01'",
            ["needs a DNS provider", "--dns self"],
        ),
        (
            "dns = 'cloudfare'",
            [
                "unknown DNS provider `cloudfare`",
                "did you mean cloudflare?",
            ],
        ),
        (
            "dns = 'porkbun'",
            [
                "api_key, secret_api_key missing",
                "set CERTS_DNS_PORKBUN_API_KEY",
            ],
        ),
        (
            "challenge = 'dns-01'\n[dns.porkbun]\napi_key = 'k'",
            [
                "secret_api_key missing",
                "secret_api_key_file in [dns.porkbun]",
            ],
        ),
        (
            "challenge = 'dns-01'\n[dns.a]\nprovider = 'hetzer'",
            [
                "certs.toml:4: unknown DNS provider",
                "did you mean hetzner?",
            ],
        ),
        (
            "challenge = 'dns-01'\n[dns.hetzner]\napi_tokn = 'k'",
            ["unknown key `api_tokn`", "did you mean `api_token`?"],
        ),
        (
            "challenge = 'dns-01'\n[dns.hetzner]\napi_token_file = 'absent'",
            ["certs.toml:4:", "absent: "],
        ),
        (
            "dns = 'exec'\n",
            ["program missing", "CERTS_DNS_EXEC_PROGRAM"],
        ),
        (
            "resolver = 'ns1'\ndns = 'self'",
            ["invalid address of a DNS server `ns1`", "192.0.2.1:53"],
        ),
    ] {
        let (code, printed) = check(config, &[]);
        assert_eq!(code, Some(2), "{config}: {printed}");
        assert!(
            words.iter().all(|word| printed.contains(word)),
            "{config}: {printed}"
        );
    }
    let secret = "c2VjcmV0LXRoYXQtaXMtbm90LXNob3du";
    let rfc2136 = [
        ("CERTS_DNS_RFC2136_SERVER", "ns1.example.com"),
        ("CERTS_DNS_RFC2136_TSIG_SECRET", secret),
    ];
    let (code, printed) = check("dns = 'rfc2136'", &rfc2136);
    assert!(
        code == Some(2) && printed.contains("without `tsig_name`"),
        "{printed}"
    );
    assert!(!printed.contains(secret), "{printed}");
    assert_eq!(check("dns = 'rfc2136'", &rfc2136[..1]).0, Some(0));
    let (code, printed) = check("dns = 'hetzner'", &[("CERTS_DNS_HETZNER_API_TOKN", "k")]);
    assert!(
        code == Some(2) && printed.contains("did you mean CERTS_DNS_HETZNER_API_TOKEN?"),
        "{printed}"
    );
    assert_eq!(
        check("dns = 'hetzner'", &[("CERTS_DNS_HETZNER_API_TOKEN", "k")]).0,
        Some(0)
    );
}
