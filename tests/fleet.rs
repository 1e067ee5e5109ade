//! Machines that share a store: each has its own data directory and its own port, as hosts of their own would.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::embedded::EmbeddedCa;
use crate::support::{Running, by_depth, certs, free_port, run, text, until, until_within};

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";
const OTHER_KEY: &str = "YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODk=\n";

struct Fleet {
    ca: EmbeddedCa,
}

impl Fleet {
    fn new() -> Self {
        let fleet = Self {
            ca: EmbeddedCa::start(),
        };
        fleet.write_key("seal.key", KEY);
        std::fs::create_dir(fleet.ca.path("shared")).unwrap();
        fleet
    }

    fn write_key(&self, name: &str, key: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.ca.path(name);
        std::fs::write(&path, key).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn home(&self, machine: &str) -> PathBuf {
        let home = self.ca.path(machine);
        std::fs::create_dir_all(&home).unwrap();
        home
    }

    fn join(&self, command: &mut Command, machine: &str) {
        command
            .env("CERTS_STORE", self.ca.path("shared"))
            .env("CERTS_SEAL_KEY_FILE", self.ca.path("seal.key"))
            // A machine reads no file that only another one names.
            .env("CERTS_CA_ROOT", self.ca.path("root.pem"))
            .env("CERTS_NODE", machine);
    }

    /// `certs VERB` on that machine.
    fn on(&self, machine: &str, arguments: &[&str]) -> Command {
        let mut command = certs(&self.home(machine));
        command.args(arguments);
        self.join(&mut command, machine);
        command
    }

    /// `certs run` on a machine that only serves.
    fn serve(&self, machine: &str, port: u16) -> Running {
        let key = self.write_serve_key();
        let more = [
            ("CERTS_ROLE", "serve"),
            ("CERTS_SEAL_KEY_FILE", key.as_str()),
        ];
        self.run(machine, port, &more)
    }

    /// As `certs config serve-key` prints it on a machine of role full.
    fn write_serve_key(&self) -> String {
        let printed = self.on("full", &["config", "serve-key"]).output().unwrap();
        let key = String::from_utf8(printed.stdout).unwrap();
        assert!(key.starts_with("serve:") && !key.contains(KEY.trim()));
        self.write_key("serve.key", &key);
        self.ca.path("serve.key").display().to_string()
    }

    fn issue(&self, machine: &str, arguments: &[&str]) -> Command {
        let mut command = self.ca.issue_below(&self.home(machine), arguments);
        self.join(&mut command, machine);
        command
    }

    /// `certs run` on that machine, with challenges at `port`.
    fn run(&self, machine: &str, port: u16, more: &[(&str, &str)]) -> Running {
        let mut command = self.on(machine, &["run", "--agree-tos"]);
        command
            .env("CERTS_CA", self.ca.server.directory_url())
            .env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{port}"))
            .env("CERTS_ADMIN_LISTEN", "off")
            .envs(more.iter().copied());
        let log = std::fs::File::create(self.ca.path(&format!("{machine}.log"))).unwrap();
        Running::start_logging(&mut command, log.into())
    }

    fn log(&self, machine: &str) -> String {
        std::fs::read_to_string(self.ca.path(&format!("{machine}.log"))).unwrap()
    }

    /// The chain that is live on that machine, unless it is a placeholder.
    fn live(&self, machine: &str, name: &str) -> Option<String> {
        let live = self.home(machine).join("out/live").join(name);
        let chain = std::fs::read_to_string(live.join("fullchain.pem")).ok()?;
        (chain.matches("BEGIN").count() > 1).then_some(chain)
    }

    fn orders(&self) -> u32 {
        self.ca
            .script
            .count(crate::support::faults::Endpoint::NewOrder)
    }
}

/// The data directory of a machine with that home.
fn data_of(home: &Path) -> PathBuf {
    home.join("data")
}

#[test]
fn machine_that_does_not_order_gives_the_answer_and_serves_the_certificate() {
    let fleet = Fleet::new();
    // The CA asks the machine that never orders.
    let mut serving = fleet.serve("serving", fleet.ca.http_port);
    until("the first machine", || {
        fleet.log("serving").contains("ready")
    });
    let names = [("CERTS_DOMAINS", "example.com www.example.com")];
    let mut ordering = fleet.run("ordering", free_port(), &names);
    until("the certificate", || {
        fleet.live("ordering", "example.com").is_some()
    });
    assert_eq!(fleet.orders(), 1, "{}", fleet.log("ordering"));
    let chain = fleet.live("ordering", "example.com");
    until_within("the copy", std::time::Duration::from_secs(40), || {
        fleet.live("serving", "example.com") == chain
    });
    // A new machine serves at its start what the store holds.
    let mut fresh = fleet.run("fresh", free_port(), &names);
    until("the new machine", || {
        fleet.live("fresh", "example.com") == chain
    });
    assert_eq!(fleet.orders(), 1);
    for machine in ["serving: serve", "ordering: full", "fresh: full"] {
        until("the machines", || {
            let status = text(&fleet.on("ordering", &["status"]).output().unwrap());
            status.contains(&format!("machine {machine}"))
        });
    }
    let refused = run(&mut fleet.issue("serving", &["other.example.com"]), 2);
    assert!(refused.contains("only serves"), "{refused}");
    // As the hint says, and the sidecar there does it.
    run(&mut fleet.issue("ordering", &["other.example.com"]), 0);
    for machine in [&mut serving, &mut ordering, &mut fresh] {
        machine.signal(Signal::TERM);
        assert_eq!(machine.exit_code(), Some(0));
    }
    // No key and no name is in the store in the clear.
    for file in files_below(&fleet.ca.path("shared")) {
        let content = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
        for word in ["PRIVATE", "example", "BEGIN"] {
            assert!(!content.contains(word), "{}: {word}", file.display());
        }
    }
    let accounts = data_of(&fleet.home("serving")).join("accounts");
    assert_eq!(std::fs::read_dir(accounts).unwrap().count(), 0);
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

#[test]
fn machines_that_issue_at_once_order_one_certificate() {
    let fleet = Fleet::new();
    let _answering = fleet.serve("answering", fleet.ca.http_port);
    until("the answers", || fleet.log("answering").contains("ready"));
    for round in 0..by_depth(2, 20, 200) {
        let name = format!("n{round}.example.com");
        let issuing: Vec<_> = ["one", "two", "three", "four"]
            .iter()
            .map(|machine| {
                let mut command = certs(&fleet.home(machine));
                command
                    .args(["issue", &name, "--agree-tos", "--ca"])
                    .arg(fleet.ca.server.directory_url())
                    .arg("--ca-root")
                    .arg(fleet.ca.path("root.pem"))
                    .args(["--http-listen", &format!("127.0.0.1:{}", free_port())])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                fleet.join(&mut command, machine);
                command.spawn().unwrap()
            })
            .collect();
        let ended = issuing
            .into_iter()
            .map(|child| child.wait_with_output().unwrap());
        let (passed, others): (Vec<_>, Vec<_>) = ended.partition(|output| output.status.success());
        assert!(
            !passed.is_empty(),
            "{}",
            others.iter().map(text).collect::<String>()
        );
        for output in others {
            // Another machine works on it.
            assert_eq!(output.status.code(), Some(8), "{}", text(&output));
        }
        assert_eq!(fleet.orders(), round + 1);
    }
}

#[test]
fn deletion_and_wiped_store_are_distinguished() {
    let fleet = Fleet::new();
    run(&mut fleet.issue("one", &["kept.example.com"]), 0);
    run(&mut fleet.issue("one", &["gone.example.com"]), 0);
    run(&mut fleet.on("two", &["renew"]), 0);
    assert!(fleet.live("two", "kept.example.com").is_some() && fleet.orders() == 2);
    run(
        &mut fleet.on("one", &["delete", "gone.example.com", "--yes"]),
        0,
    );
    run(&mut fleet.on("two", &["renew"]), 0);
    let listed = run(&mut fleet.on("two", &["status"]), 0);
    assert!(!listed.contains("gone.example.com"), "{listed}");
    std::fs::remove_dir_all(fleet.ca.path("shared")).unwrap();
    std::fs::create_dir(fleet.ca.path("shared")).unwrap();
    run(&mut fleet.on("two", &["renew"]), 0);
    let back = run(&mut fleet.on("three", &["renew"]), 0);
    assert!(fleet.live("three", "kept.example.com").is_some(), "{back}");
    assert_eq!(fleet.orders(), 2, "nothing is ordered twice");
}

#[test]
fn store_of_another_fleet_is_refused_and_stays() {
    let fleet = Fleet::new();
    run(&mut fleet.issue("one", &["example.com"]), 0);
    let stored = files_below(&fleet.ca.path("shared"));
    let content: Vec<Vec<u8>> = stored
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect();
    fleet.write_key("other.key", OTHER_KEY);
    let other = fleet.ca.path("other.key");
    let said = run(
        fleet
            .issue("foreign", &["other.example.com"])
            .env("CERTS_SEAL_KEY_FILE", &other),
        8,
    );
    assert!(
        said.contains("another key") && said.contains("hint: seal_key_file"),
        "{said}"
    );
    let said = run(
        fleet
            .on("foreign", &["run"])
            .env("CERTS_SEAL_KEY_FILE", &other),
        8,
    );
    assert!(said.contains("another key"), "{said}");
    assert_eq!(files_below(&fleet.ca.path("shared")), stored);
    let now: Vec<Vec<u8>> = stored
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect();
    assert!(now == content, "the store stays");
    assert_eq!(fleet.orders(), 1);
    // Nothing was sent to the store or to the CA.
    let said = run(
        fleet
            .issue("foreign", &["other.example.com"])
            .env_remove("CERTS_SEAL_KEY_FILE"),
        2,
    );
    assert!(said.contains("seal_key_file"), "{said}");
    fleet.write_key("open.key", KEY);
    use std::os::unix::fs::PermissionsExt;
    let open = fleet.ca.path("open.key");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = run(
        fleet
            .issue("foreign", &["other.example.com"])
            .env("CERTS_SEAL_KEY_FILE", &open),
        2,
    );
    assert!(said.contains("every user can read it"), "{said}");
    // As the hints say.
    run(&mut fleet.issue("guest", &["other.example.com"]), 0);
    assert_eq!(fleet.orders(), 2);
    // The same key from a program, and not from both.
    let key = fleet.ca.path("seal.key").display().to_string();
    let mut renew = fleet.on("guest", &["renew"]);
    renew.env("CERTS_SEAL_KEY_EXEC", format!("/bin/cat {key}"));
    let said = run(&mut renew, 2);
    assert!(said.contains("both set"), "{said}");
    run(renew.env_remove("CERTS_SEAL_KEY_FILE"), 0);
}

#[test]
fn machine_that_only_serves_has_a_key_that_opens_no_account() {
    let fleet = Fleet::new();
    run(&mut fleet.issue("one", &["example.com"]), 0);
    let key = fleet.write_serve_key();
    let mut renew = fleet.on("two", &["renew"]);
    renew.env("CERTS_SEAL_KEY_FILE", &key);
    let said = run(&mut renew, 2);
    assert!(said.contains("opens no accounts"), "{said}");
    // As the hint says.
    assert!(said.contains("hint: set role = \"serve\""), "{said}");
    run(renew.env("CERTS_ROLE", "serve"), 0);
    let live = fleet.live("one", "example.com");
    assert!(live.is_some() && fleet.live("two", "example.com") == live);
    // The whole key would let it order; nothing is read with it.
    for verb in [&["run"][..], &["renew"], &["config", "check"]] {
        let mut three = fleet.on("three", verb);
        let said = run(three.env("CERTS_ROLE", "serve"), 2);
        assert!(said.contains("opens the accounts of the fleet"), "{said}");
        assert!(
            said.contains("hint: certs config serve-key on a machine"),
            "{said}"
        );
    }
    assert!(fleet.live("three", "example.com").is_none());
    let mut three = fleet.on("three", &["renew"]);
    three
        .env("CERTS_ROLE", "serve")
        .env("CERTS_SEAL_KEY_FILE", &key);
    run(&mut three, 0);
    assert!(fleet.live("three", "example.com") == live);
}

#[test]
fn status_shows_an_outage_until_any_machine_has_seen_its_end() {
    use crate::support::faults::{Endpoint, Fault, Which};
    let fleet = Fleet::new();
    run(&mut fleet.issue("one", &["example.com"]), 0);
    let renew = |machine: &str, code| {
        let mut command = fleet.on(machine, &["renew", "example.com", "--force"]);
        let port = fleet.ca.http_port;
        run(
            command.env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{port}")),
            code,
        )
    };
    let status = |store: &Path| {
        let mut status = fleet.on("one", &["status"]);
        run(status.env("CERTS_STORE", store), 0)
    };
    let outage = "its CA has been unreachable since ";
    let shared = fleet.ca.path("shared");
    fleet
        .ca
        .script
        .add(Endpoint::Directory, Which::Every, Fault::html(503));
    renew("one", 3);
    assert!(status(&shared).contains(outage), "{}", status(&shared));
    fleet.ca.script.clear();
    renew("two", 0);
    let said = status(&shared);
    assert!(!said.contains("its CA"), "{said}");
    // Without the store it shows what it knew.
    let said = status(&fleet.ca.path("absent"));
    assert!(
        said.contains(outage) && said.contains("is missing"),
        "{said}"
    );
}

#[test]
fn damaged_document_is_refused_by_commands_and_put_back_by_the_sidecar() {
    let fleet = Fleet::new();
    run(&mut fleet.issue("one", &["example.com"]), 0);
    run(&mut fleet.on("two", &["renew"]), 0);
    let live = fleet.live("two", "example.com");
    let document = fleet.ca.path("shared/certificates/example.com");
    let newest = files_below(&document).into_iter().max().unwrap();
    let mut damaged = std::fs::read(&newest).unwrap();
    damaged[40] ^= 1;
    std::fs::write(&newest, &damaged).unwrap();
    std::fs::remove_file(fleet.home("two").join("data/copies.json")).unwrap();
    let said = run(&mut fleet.on("two", &["renew"]), 8);
    assert!(said.contains("certificates/example.com"), "{said}");
    assert!(
        said.contains("it was changed, or belongs to another name"),
        "{said}"
    );
    assert!(said.contains("hint: remove this document"), "{said}");
    assert_eq!(std::fs::read(&newest).unwrap(), damaged);
    assert_eq!(fleet.live("two", "example.com"), live);
    // As the hint says.
    std::fs::remove_file(fleet.home("one").join("data/copies.json")).unwrap();
    let _running = fleet.run("one", free_port(), &[]);
    until("the document", || {
        std::fs::read(files_below(&document).into_iter().max().unwrap()).unwrap() != damaged
    });
    run(&mut fleet.on("two", &["renew"]), 0);
    assert_eq!(
        (fleet.live("two", "example.com"), fleet.orders()),
        (live, 1)
    );
}

#[test]
fn machines_without_a_sidecar_renew_and_keep_the_account_of_the_fleet() {
    let fleet = Fleet::new();
    let with_address = ["example.com", "--email", "old@example.com"];
    run(&mut fleet.issue("one", &with_address), 0);
    let rolled = run(
        &mut fleet.on(
            "two",
            &[
                "account",
                "rollover",
                "--ca",
                &fleet.ca.server.directory_url(),
            ],
        ),
        0,
    );
    assert!(rolled.contains("key"), "{rolled}");
    let before = fleet.live("one", "example.com");
    // A cron job on the other machine, with the new key of the account.
    let renewed = run(
        fleet.on("two", &["renew", "example.com", "--force"]).env(
            "CERTS_HTTP_LISTEN",
            format!("127.0.0.1:{}", fleet.ca.http_port),
        ),
        0,
    );
    assert!(renewed.contains("issued"), "{renewed}");
    run(&mut fleet.on("one", &["renew"]), 0);
    let now = fleet.live("one", "example.com");
    assert!(now != before && now == fleet.live("two", "example.com"));
    assert_eq!(fleet.orders(), 2);
    // Nor does another machine send the old address again.
    let ca = fleet.ca.server.directory_url();
    let account = |machine: &str, rest: &[&str]| {
        let mut command = fleet.on(machine, &["account"]);
        run(command.args(rest).args(["--ca", &ca]), 0)
    };
    account("two", &["update", "--email", "new@example.com"]);
    let mut renew = fleet.on("one", &["renew", "--force"]);
    let port = fleet.ca.http_port;
    run(
        renew.env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{port}")),
        0,
    );
    for machine in ["one", "two"] {
        let shown = account(machine, &["show"]);
        assert!(shown.contains("new@") && !shown.contains("old@"), "{shown}");
    }
}
