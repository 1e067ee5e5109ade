//! BIND on a loopback address of its own, since name servers are asked at port 53 alone: a primary
//! server with zones that take updates signed by TSIG, and a secondary one that lags.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use tempfile::TempDir;

use super::{Running, program, text, until};

pub(crate) const KEY: &str = "certs-key";
pub(crate) const SECRET: &str = "dGhpcy1pcy1hLXNlY3JldC1vZi10aGUtdGVzdHMtMDE=";

pub(crate) struct Bind {
    directory: TempDir,
    /// The primary server.
    pub(crate) address: Ipv4Addr,
    /// For a name server of the test.
    pub(crate) own: Ipv4Addr,
    dig: PathBuf,
    // Before the addresses: fields end in this order.
    _servers: Vec<Running>,
    _addresses: Vec<Address>,
}

/// An address of this machine, which BIND does not use without: it ends with its test.
struct Address(Ipv4Addr);

impl Address {
    /// `None` without the right to add one.
    fn add(address: Ipv4Addr) -> Option<Self> {
        Self::change("add", address).then_some(Self(address))
    }

    fn change(verb: &str, address: Ipv4Addr) -> bool {
        let mut ip = Command::new("ip");
        ip.args(["address", verb, &format!("{address}/32"), "dev", "lo"]);
        ip.output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        Self::change("delete", self.0);
    }
}

impl Bind {
    /// `None`, with a `SKIPPED` line, without BIND or the right to port 53.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(false)
    }

    /// With a secondary server that gets its zone up to a second later.
    pub(crate) fn start_lagging() -> Option<Self> {
        Self::start_with(true)
    }

    fn start_with(lagging: bool) -> Option<Self> {
        let named = program("CERTS_LAB_NAMED", "/usr/sbin/named")?;
        let dig = program("CERTS_LAB_DIG", "/usr/bin/dig")?;
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: BIND: port 53 needs root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let [address, second, own] = [(); 3].map(|()| loopback());
        let added: Option<Vec<_>> = [address, second].map(Address::add).into_iter().collect();
        let Some(added) = added else {
            eprintln!("SKIPPED: BIND: `ip address add` is not permitted here");
            return None;
        };
        let addresses = [address, second, own];
        let zones = zones(addresses, lagging);
        let mut servers = Vec::new();
        for (role, at) in [("primary", address), ("secondary", second)] {
            if role == "secondary" && !lagging {
                continue;
            }
            let home = directory.path().join(role);
            std::fs::create_dir(&home).unwrap();
            let mut config = format!(
                "options {{ directory \"{home}\"; listen-on port 53 {{ {at}; }}; listen-on-v6 {{ none; }}; pid-file none;\n\
                 session-keyfile \"{home}/session.key\"; recursion yes; allow-query {{ any; }}; allow-recursion {{ any; }};\n\
                 allow-transfer {{ any; }}; notify no; dnssec-validation no; empty-zones-enable no; query-source {at};\n\
                 min-refresh-time 1; }};\ncontrols {{ }};\n\
                 key \"{KEY}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n",
                home = home.display()
            );
            for (zone, grant, content) in &zones {
                let file = home.join(format!("{zone}.zone"));
                config += &match role {
                    "primary" => {
                        std::fs::write(&file, content).unwrap();
                        format!(
                            "zone \"{zone}\" {{ type primary; file \"{}\"; update-policy {{ {grant} }}; }};\n",
                            file.display()
                        )
                    }
                    _ => format!(
                        "zone \"{zone}\" {{ type secondary; primaries {{ {address}; }}; file \"{}\"; }};\n",
                        file.display()
                    ),
                };
            }
            let file = home.join("named.conf");
            std::fs::write(&file, config).unwrap();
            let log = std::fs::File::create(home.join("log")).unwrap();
            let mut command = Command::new(&named);
            command.args(["-g", "-n", "1", "-c"]).arg(&file);
            servers.push(Running::start_logging(&mut command, Stdio::from(log)));
        }
        let bind = Self {
            directory,
            address,
            own,
            dig,
            _servers: servers,
            _addresses: added,
        };
        until("BIND", || {
            !bind.ask(address, "SOA", "example.com").is_empty()
        });
        if lagging {
            until("the secondary BIND", || {
                !bind.ask(second, "SOA", "example.com").is_empty()
            });
        }
        Some(bind)
    }

    pub(crate) fn server(&self) -> SocketAddr {
        (self.address, 53).into()
    }

    fn ask(&self, server: Ipv4Addr, kind: &str, name: &str) -> String {
        let mut dig = Command::new(&self.dig);
        dig.args(["+short", "+norecurse", "+time=1", "+tries=1", kind, name]);
        let output = dig.arg(format!("@{server}")).output().unwrap();
        match output.status.success() {
            true => String::from_utf8(output.stdout).unwrap(),
            false => String::new(),
        }
    }

    /// The TXT values of a name at the primary server, in lines.
    pub(crate) fn values(&self, name: &str) -> String {
        self.ask(self.address, "TXT", name)
    }

    /// The log of the primary server.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("primary/log")).unwrap()
    }

    /// Changes a record, in the words of nsupdate.
    pub(crate) fn change(&self, change: &str) {
        let nsupdate = program("CERTS_LAB_NSUPDATE", "/usr/bin/nsupdate").unwrap();
        let script = self.directory.path().join("change");
        let lines = format!("server {}\nupdate {change}\nsend\n", self.address);
        std::fs::write(&script, lines).unwrap();
        let key = format!("hmac-sha256:{KEY}:{SECRET}");
        let output = Command::new(nsupdate)
            .args(["-y", &key])
            .arg(&script)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Names the resolver and the credentials of rfc2136.
    pub(crate) fn configure<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("CERTS_RESOLVER", self.server().to_string())
            .env("CERTS_DNS_RFC2136_SERVER", self.server().to_string())
            .env("CERTS_DNS_RFC2136_TSIG_NAME", KEY)
            .env("CERTS_DNS_RFC2136_TSIG_SECRET", SECRET)
    }
}

/// An address of this process and this moment: 127.16.0.0 to 127.255.255.254.
fn loopback() -> Ipv4Addr {
    static LAST: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(
        127,
        16 + high % 224,
        low,
        LAST.fetch_add(1, Ordering::Relaxed),
    )
}

/// The zones: name, update policy, content.
fn zones(
    [first, second, own]: [Ipv4Addr; 3],
    lagging: bool,
) -> Vec<(&'static str, String, String)> {
    let head = |zone: &str| {
        let two = match lagging {
            true => format!("@ NS ns2.{zone}.\nns2 A {second}\n"),
            false => String::new(),
        };
        format!(
            "$TTL 1\n@ SOA ns1.{zone}. admin.{zone}. 1 1 1 3600 1\n@ NS ns1.{zone}.\nns1 A {first}\n{two}@ A 127.0.0.1\n"
        )
    };
    let allowed = format!("grant {KEY} zonesub TXT;");
    let com = "_acme-challenge.alias CNAME alias-of-com.example.test.\n\
               _acme-challenge.loop CNAME _acme-challenge.loop2\n_acme-challenge.loop2 CNAME _acme-challenge.loop\n";
    let delegated = format!("_acme-challenge.own NS acme-dns.own\nacme-dns.own A {own}\n");
    vec![
        (
            "example.com",
            allowed.clone(),
            head("example.com") + com + &delegated,
        ),
        ("example.test", allowed, head("example.test")),
        // Our key may not change it.
        (
            "example.org",
            "grant other-key zonesub TXT;".to_owned(),
            head("example.org"),
        ),
    ]
}

#[test]
fn bind_takes_signed_updates_alone() {
    let Some(bind) = Bind::start() else {
        return;
    };
    let Some(nsupdate) = program("CERTS_LAB_NSUPDATE", "/usr/bin/nsupdate") else {
        return;
    };
    let update = |key: Option<String>| {
        let script = bind.directory.path().join("update");
        let server = bind.address;
        let lines = format!(
            "server {server}\nzone example.com.\nupdate add probe.example.com. 1 TXT yes\nsend\n"
        );
        std::fs::write(&script, lines).unwrap();
        let mut command = Command::new(&nsupdate);
        command.args(key.iter().flat_map(|key| ["-y", key]));
        command.arg(&script).output().unwrap()
    };
    assert!(!update(None).status.success());
    let signed = update(Some(format!("hmac-sha256:{KEY}:{SECRET}")));
    assert!(signed.status.success(), "{}", text(&signed));
    assert_eq!(bind.values("probe.example.com"), "\"yes\"\n");
}
