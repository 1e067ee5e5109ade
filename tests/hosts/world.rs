//! Machines as hosts of their own, each with its address, nginx and sidecar; a CA, and a balancer that leads the
//! CA's validations to the machines in turn.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use super::network::{HUB, Network, ip, listens, logging, open, request};
use super::now;
use super::store::{Kind, STORE};
use crate::support::{Running, program, text, until, until_within};

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";

/// One machine: its network, its proxy, its sidecar.
pub(super) struct Machine {
    pub(super) name: String,
    address: IpAddr,
    home: PathBuf,
    network: Network,
    _nginx: Option<Running>,
    pub(super) sidecar: Option<Running>,
    settings: Vec<(&'static str, String)>,
}

impl Machine {
    /// `certs` with these arguments on this machine.
    pub(super) fn certs(&self, arguments: &[&str]) -> Command {
        let binary = program("CERTS_LAB_CERTS", env!("CARGO_BIN_EXE_certs")).unwrap();
        let mut command = self.network.command(binary);
        command.args(arguments).stdin(Stdio::null());
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts `certs run`, whose log goes on.
    pub(super) fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.join("log"));
        let mut command = self.certs(&["run"]);
        self.sidecar = Some(Running::start_logging(&mut command, log.unwrap().into()));
    }

    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        self.sidecar.as_ref().unwrap().signal(signal);
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap()
    }

    pub(super) fn live(&self, certificate: &str) -> PathBuf {
        self.home.join("out/live").join(certificate)
    }

    /// The generation that is live in its files; 0 before the first.
    pub(super) fn generation(&self, certificate: &str) -> u64 {
        let live = std::fs::read_link(self.live(certificate)).unwrap_or_default();
        let number = live
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        number.unwrap_or_default()
    }

    /// When that became so.
    fn published(&self, certificate: &str) -> Duration {
        let link = std::fs::symlink_metadata(self.live(certificate)).unwrap();
        let seconds = Duration::from_secs(u64::try_from(link.ctime()).unwrap());
        seconds + Duration::from_nanos(u64::try_from(link.ctime_nsec()).unwrap())
    }

    /// The generation of each certificate that its own handshakes have proven, as its API shows it.
    pub(super) fn proven(&self) -> Option<Vec<(String, u64)>> {
        let reply = request(
            &format!("{}:9180", self.address),
            "GET /api/v1/certificates",
        )?;
        let shown: Vec<Value> = serde_json::from_str(reply.split_once("\r\n\r\n")?.1).ok()?;
        let proven = shown.iter().filter(|one| one["proof"] == "proven");
        let each = proven.map(|one| {
            Some((
                one["name"].as_str()?.to_owned(),
                one["generation_served"].as_u64()?,
            ))
        });
        each.collect()
    }

    pub(super) fn has_proven(&self, certificate: &str, generation: u64) -> bool {
        let proven = self.proven().unwrap_or_default();
        proven
            .iter()
            .any(|(name, served)| name == certificate && *served >= generation)
    }

    /// The leaf that its nginx shows to a client on another machine.
    pub(super) fn leaf(&self, host: &str) -> String {
        let openssl = program("CERTS_LAB_OPENSSL", "/usr/bin/openssl").unwrap();
        let mut client = Command::new(openssl);
        client.args([
            "s_client",
            "-connect",
            &format!("{}:443", self.address),
            "-servername",
            host,
        ]);
        let shown = text(&client.stdin(Stdio::null()).output().unwrap());
        let leaf = shown
            .split_once("-----BEGIN")
            .and_then(|(_, rest)| rest.split_once("-----END"));
        leaf.unwrap_or_else(|| panic!("{}: {shown}", self.name))
            .0
            .to_owned()
    }

    /// The leaf in its files.
    pub(super) fn stored_leaf(&self, certificate: &str) -> String {
        let chain = std::fs::read_to_string(self.live(certificate).join("fullchain.pem")).unwrap();
        let leaf = chain
            .split_once("-----BEGIN")
            .and_then(|(_, rest)| rest.split_once("-----END"));
        leaf.unwrap().0.to_owned()
    }
}

/// All of it.
pub(super) struct World {
    pub(super) kind: Kind,
    pub(super) machines: Vec<Machine>,
    /// The certificates of the configuration.
    pub(super) together: usize,
    pub(super) balancer: Running,
    pebble: Running,
    _dns: Running,
    _store: Running,
    _store_network: Network,
    directory: TempDir,
}

impl World {
    /// `count` machines that keep `together` configured certificates, of which each has proven the first
    /// generation.
    pub(super) fn start(kind: Kind, count: usize, together: usize) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path());
        for arguments in [
            "link set lo up",
            "link add hub type bridge",
            "link set hub up",
        ] {
            ip(arguments);
        }
        ip(&format!("address add {HUB}/24 dev hub"));
        let network = Network::join("store", STORE.parse().unwrap());
        let store = kind.start(&network, directory.path())?;
        let addresses: Vec<_> = (0..count)
            .map(|number| format!("10.77.0.{}", 11 + number))
            .collect();
        let (dns, pebble) = start_ca(directory.path())?;
        let balancer = start_balancer(directory.path(), &addresses)?;
        write_key(&directory.path().join("seal.key"));
        let mut world = Self {
            kind,
            machines: Vec::new(),
            together,
            balancer,
            pebble,
            _dns: dns,
            _store: store,
            _store_network: network,
            directory,
        };
        for address in addresses {
            world.add_machine(address.parse().unwrap());
        }
        world.configure(0);
        // Nothing is issued before the proxies run, which need the placeholders.
        world.pebble.signal(rustix::process::Signal::STOP);
        for machine in &mut world.machines {
            machine.start();
        }
        for number in 0..count {
            world.start_nginx(number)?;
        }
        world.pebble.signal(rustix::process::Signal::CONT);
        Some(world)
    }

    fn add_machine(&mut self, address: IpAddr) {
        let name = format!("m{}", self.machines.len() + 1);
        let home = self.directory.path().join(&name);
        std::fs::create_dir(&home).unwrap();
        let own = |name: &str| home.join(name).display().to_string();
        let shared = |name: &str| self.directory.path().join(name).display().to_string();
        let mut settings = self.kind.settings(self.directory.path());
        settings.extend([
            ("CERTS_CONFIG", own("certs.toml")),
            ("CERTS_DATA_DIR", own("data")),
            ("CERTS_OUTPUT_DIR", own("out")),
            ("CERTS_SEAL_KEY_FILE", shared("seal.key")),
            ("CERTS_NODE", name.clone()),
            ("CERTS_AGREE_TOS", "true".to_owned()),
            ("CERTS_CA", format!("https://{HUB}:14000/dir")),
            ("CERTS_CA_ROOT", shared("root.pem")),
            ("CERTS_RESOLVER", format!("{HUB}:53")),
            ("CERTS_HTTP_LISTEN", format!("{address}:80")),
            ("CERTS_ADMIN_LISTEN", format!("{address}:9180")),
            ("CERTS_DEPLOY", format!("nginx:{}", own("nginx.pid"))),
            ("CERTS_VERIFY", format!("{address}:443")),
        ]);
        self.machines.push(Machine {
            network: Network::join(&name, address),
            name,
            address,
            home,
            _nginx: None,
            sidecar: None,
            settings,
        });
    }

    /// Starts a machine that has nothing yet. The times from its start: until the first pair is in
    /// its files, until all are, and until its nginx, which begins then, serves the last.
    pub(super) fn newcomer(&mut self) -> Option<[Duration; 3]> {
        let number = self.machines.len();
        self.add_machine(format!("10.77.0.{}", 11 + number).parse().unwrap());
        self.configure(0);
        let names: Vec<String> = (0..self.together).map(|one| format!("c{one}")).collect();
        let began = now();
        self.machines[number].start();
        let mut times = [None, None];
        let machine = &self.machines[number];
        until_within("the pairs", Duration::from_secs(60), || {
            let here = names.iter().filter(|name| machine.generation(name) == 1);
            let here = here.count();
            for (time, wanted) in times.iter_mut().zip([1, names.len()]) {
                if here >= wanted {
                    time.get_or_insert_with(|| began.elapsed());
                }
            }
            here == names.len()
        });
        self.start_nginx(number)?;
        let last = names.last().unwrap();
        let served = self.machines[number].leaf(&format!("{last}.example.com"));
        let took = began.elapsed();
        assert_eq!(served, self.machines[0].stored_leaf(last));
        let [first, all] = times.map(Option::unwrap);
        Some([first, all, took])
    }

    /// Gives all machines the configuration of a round: another name in each certificate makes it due.
    pub(super) fn configure(&self, round: u64) {
        let mut config = String::new();
        for number in 0..self.together {
            let host = format!("c{number}.example.com");
            writeln!(
                config,
                "[[certificate]]\nname = 'c{number}'\nnames = ['{host}', 'r{round}.{host}']"
            )
            .unwrap();
        }
        for machine in &self.machines {
            std::fs::write(machine.home.join("certs.toml"), &config).unwrap();
        }
    }

    /// The same while they run: all read it at once.
    pub(super) fn reconfigure(&self, round: u64) {
        self.configure(round);
        for machine in &self.machines {
            machine.signal(rustix::process::Signal::HUP);
        }
    }

    /// A proxy for the configured certificates, and for one that `certs issue` makes later.
    fn start_nginx(&mut self, number: usize) -> Option<()> {
        let machine = &self.machines[number];
        let (root, address) = (machine.home.display(), machine.address);
        let mut sites = String::new();
        let mut add = |name: &str, late: &str| {
            let live = machine.live(name);
            let live = live.display();
            writeln!(
                sites,
                "server {{ listen {address}:443 ssl; server_name {name}.example.com *.{name}.example.com;\n\
                 ssl_certificate {live}{late}/fullchain.pem; ssl_certificate_key {live}{late}/privkey.pem;\n\
                 location / {{ return 200 ok; }} }}"
            )
            .unwrap();
        };
        for number in 0..self.together {
            let name = format!("c{number}");
            until_within("the placeholders", Duration::from_secs(60), || {
                machine.live(&name).join("privkey.pem").exists()
            });
            add(&name, "");
        }
        // A path with a variable is opened by each handshake.
        add("app", "$late");
        let config = format!(
            "user root; daemon off; pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; events {{}}\n\
             http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n\
             uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; map $host $late {{ default ''; }}\n{sites} }}\n"
        );
        std::fs::write(machine.home.join("nginx.conf"), config).unwrap();
        let mut command = machine
            .network
            .command(program("CERTS_LAB_NGINX", "/usr/sbin/nginx")?);
        let running = Running::start(command.arg("-c").arg(machine.home.join("nginx.conf")));
        until("nginx", || listens(&format!("{address}:443")));
        self.machines[number]._nginx = Some(running);
        Some(())
    }

    /// What Pebble has said.
    pub(super) fn pebble_log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("pebble.log")).unwrap()
    }

    pub(super) fn orders(&self) -> usize {
        self.pebble_log().matches(" orders in the db").count()
    }

    pub(super) fn certificates(&self) -> usize {
        self.pebble_log()
            .matches("Issued certificate serial")
            .count()
    }

    /// The machines that have answered the CA's requests, in turn.
    pub(super) fn answers(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.path().join("balancer.log")).unwrap();
        let fields = log.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let answers = fields.filter(|fields| {
            matches!(fields[..], [_, "200", path] if path.starts_with("/.well-known/acme-challenge/"))
        });
        answers.map(|fields| fields[0].to_owned()).collect()
    }

    /// Takes the store and this machine from each other: what one sends the other is lost.
    pub(super) fn partition(&self, number: usize, is_cut: bool) {
        let isolated = if is_cut { "on" } else { "off" };
        for port in ["store", &self.machines[number].name] {
            ip(&format!(
                "link set {port} type bridge_slave isolated {isolated}"
            ));
        }
    }

    /// The time from the first publication of `generation` on any machine.
    #[allow(clippy::disallowed_methods)] // the kernel's own time of the link
    pub(super) fn since_published(&self, certificate: &str, generation: u64) -> Duration {
        let has = |machine: &&Machine| machine.generation(certificate) == generation;
        let all = self.machines.iter().filter(has);
        let first = all
            .map(|machine| machine.published(certificate))
            .min()
            .unwrap();
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        now.saturating_sub(first)
    }
}

fn write_key(path: &Path) {
    std::fs::write(path, KEY).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// A DNS server that leads every name to the balancer, and Pebble.
fn start_ca(directory: &Path) -> Option<(Running, Running)> {
    let dns = program("CERTS_LAB_CHALLTESTSRV", "/usr/bin/pebble-challtestsrv")?;
    let pebble = program("CERTS_LAB_PEBBLE", "/usr/bin/pebble")?;
    let help = text(&Command::new(&dns).arg("-h").output().unwrap());
    let mut command = Command::new(dns);
    command.args([
        "-management",
        "127.0.0.1:8055",
        "-defaultIPv6",
        "",
        "-defaultIPv4",
        HUB,
    ]);
    command.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
    let at = format!("{HUB}:53");
    match help.contains("-dnsserver") {
        true => command.args(["-dnsserver", &at, "-doh", ""]),
        false => command.args(["-dns01", &at]),
    };
    let dns = logging(&mut command, &directory.join("dns.log"));
    let made = rcgen::generate_simple_self_signed([HUB.to_owned()]).unwrap();
    let file = |name: &str| directory.join(name);
    std::fs::write(file("root.pem"), made.cert.pem()).unwrap();
    std::fs::write(file("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let config = serde_json::json!({"pebble": {
        "listenAddress": format!("{HUB}:14000"), "managementListenAddress": format!("{HUB}:15000"),
        "certificate": file("root.pem"), "privateKey": file("key.pem"), "httpPort": 80, "tlsPort": 443,
        "ocspResponderURL": "", "externalAccountBindingRequired": false, "retryAfter": {"authz": 0, "order": 0},
    }});
    std::fs::write(file("config.json"), config.to_string()).unwrap();
    let mut command = Command::new(pebble);
    command
        .args(["-strict", "-dnsserver", &at, "-config"])
        .arg(file("config.json"));
    command
        .env("PEBBLE_VA_NOSLEEP", "1")
        .env("PEBBLE_AUTHZREUSE", "0")
        .env("PEBBLE_WFE_NONCEREJECT", "0");
    let pebble = logging(&mut command, &file("pebble.log"));
    until("Pebble", || {
        listens(&format!("{HUB}:14000")) && listens("127.0.0.1:8055")
    });
    Some((dns, pebble))
}

/// Leads port 80 to the machines in turn, but to those that do not reply.
fn start_balancer(directory: &Path, machines: &[String]) -> Option<Running> {
    let haproxy = program("CERTS_LAB_HAPROXY", "/usr/sbin/haproxy")?;
    let mut config = format!(
        "global\n log stdout format raw local0\ndefaults\n mode http\n timeout connect 1s\n timeout client 30s\n \
         timeout server 20s\n option redispatch 1\n retries 3\nfrontend port80\n bind {HUB}:80\n log global\n \
         log-format \"%s %ST %HP\"\n default_backend machines\nbackend machines\n balance roundrobin\n \
         option httpchk\n http-check send meth GET uri / ver HTTP/1.1 hdr Host health.example.com\n \
         http-check expect rstatus .\n default-server inter 1s fall 1 rise 1\n"
    );
    for (number, address) in machines.iter().enumerate() {
        writeln!(config, " server m{} {address}:80 check", number + 1).unwrap();
    }
    std::fs::write(directory.join("haproxy.cfg"), config).unwrap();
    let mut command = Command::new(haproxy);
    command
        .arg("-db")
        .arg("-f")
        .arg(directory.join("haproxy.cfg"));
    let balancer = logging(&mut command, &directory.join("balancer.log"));
    until("HAProxy", || listens(&format!("{HUB}:80")));
    Some(balancer)
}

impl Drop for World {
    fn drop(&mut self) {
        // The test may make another one, and the kernel takes its time to end a network.
        let machines = self.machines.iter().map(|machine| machine.name.as_str());
        for link in machines.chain(["store", "hub"]) {
            let mut ip = Command::new("ip");
            let _ = ip.args(["link", "delete", link]).output();
        }
    }
}
