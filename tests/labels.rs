//! Containers that request certificates by labels: `certs run` against a scripted Docker API whose containers
//! come and go, and whose answers may be wrong.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::embedded::EmbeddedCa;
use crate::support::{Running, certs, free_port, run, until, until_within};

/// How the API answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ApiBehaviour {
    Valid,
    /// Refuses even the list.
    Refuses,
    ServerError,
    Garbage,
    /// A list that does not end.
    Endless,
    /// One byte at long intervals.
    Slow,
    Hangs,
    /// Valid lists, but invalid events.
    InvalidEvents,
    /// Allows everything.
    Unfiltered,
}

struct ApiState {
    behaviour: ApiBehaviour,
    /// Each with its entries in `GET /containers/json` and `…/ID/json`.
    containers: Vec<(Value, Value)>,
    made: u64,
    streams: Vec<TcpStream>,
    asked: BTreeSet<String>,
}

/// Docker's API behind a filter, as far as it is used.
pub(crate) struct Docker {
    port: u16,
    state: Arc<Mutex<ApiState>>,
    ended: Arc<AtomicBool>,
}

impl Docker {
    pub(crate) fn start() -> Self {
        Self::start_at(free_port())
    }

    fn start_at(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let state = Arc::new(Mutex::new(ApiState {
            behaviour: ApiBehaviour::Valid,
            containers: Vec::new(),
            made: 0,
            streams: Vec::new(),
            asked: BTreeSet::new(),
        }));
        let ended = Arc::new(AtomicBool::new(false));
        let (shared, ends) = (state.clone(), ended.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, shared) = (stream.unwrap(), shared.clone());
                // A client may close its connection at any time.
                std::thread::spawn(move || answer(stream, &shared).ok());
            }
        });
        Self { port, state, ended }
    }

    pub(crate) fn host(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    pub(crate) fn add(&self, name: &str, labels: Value) {
        self.add_with(name, labels, &[]);
    }

    fn add_with(&self, name: &str, labels: Value, environment: &[&str]) {
        let mut state = self.state.lock().unwrap();
        state.made += 1;
        let id = format!("{:064x}", state.made);
        let listed =
            json!({"Id": id, "Names": [format!("/{name}")], "Created": 1, "Labels": labels});
        state
            .containers
            .push((listed, json!({"Config": {"Env": environment}})));
        send_event(&mut state, "start");
    }

    fn remove(&self, name: &str) {
        let mut state = self.state.lock().unwrap();
        let name = json!([format!("/{name}")]);
        state
            .containers
            .retain(|(listed, _)| listed["Names"] != name);
        send_event(&mut state, "die");
    }

    /// Also closes open connections.
    fn behaves(&self, behaviour: ApiBehaviour) {
        let mut state = self.state.lock().unwrap();
        state.behaviour = behaviour;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn was_asked(&self, what: &str) -> bool {
        let state = self.state.lock().unwrap();
        state.asked.iter().any(|asked| asked.contains(what))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.behaves(ApiBehaviour::Refuses);
        // Wakes the listener so that it sees the end.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn send_event(state: &mut ApiState, action: &str) {
    let event = json!({"Type": "container", "Action": action}).to_string();
    let chunk = format!("{:x}\r\n{event}\n\r\n", event.len() + 1);
    state
        .streams
        .retain(|mut stream| stream.write_all(chunk.as_bytes()).is_ok());
}

fn answer(mut stream: TcpStream, shared: &Mutex<ApiState>) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let (mut line, mut length) = (String::new(), 0);
    request.read_line(&mut line)?;
    loop {
        let mut header = String::new();
        request.read_line(&mut header)?;
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if header.trim().is_empty() {
            break;
        }
    }
    request.take(length).read_to_end(&mut Vec::new())?;
    let asked = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
    let mut state = shared.lock().unwrap();
    state.asked.insert(asked.clone());
    let behaviour = state.behaviour;
    let is_list = asked == "GET /containers/json";
    let mut reply = |status: u16, body: &str| {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())
    };
    if asked.starts_with("POST") {
        return match behaviour {
            ApiBehaviour::Unfiltered => reply(400, "{\"message\": \"config cannot be empty\"}"),
            _ => reply(403, "no"),
        };
    }
    match behaviour {
        ApiBehaviour::Refuses => return reply(403, "no"),
        ApiBehaviour::ServerError => return reply(503, "no server is available"),
        ApiBehaviour::Garbage => return reply(200, "<html>welcome"),
        ApiBehaviour::Endless if is_list => {
            drop(state);
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[")?;
            loop {
                stream.write_all(&[b' '; 65536])?;
            }
        }
        ApiBehaviour::Slow | ApiBehaviour::Hangs => {
            drop(state);
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            if behaviour == ApiBehaviour::Slow {
                loop {
                    stream.write_all(b" ")?;
                    std::thread::sleep(Duration::from_millis(300));
                }
            }
            return stream.read_to_end(&mut Vec::new()).map(drop);
        }
        _ => {}
    }
    if asked.starts_with("GET /events?") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        if behaviour == ApiBehaviour::InvalidEvents {
            stream.write_all(b"4\r\nhm?\n\r\n")?;
        }
        state.streams.push(stream);
        return Ok(());
    }
    if is_list {
        let listed = state.containers.iter().map(|(listed, _)| listed.clone());
        let listed = Value::from(listed.collect::<Vec<_>>()).to_string();
        return reply(200, &listed);
    }
    let found = state.containers.iter().find(|(listed, _)| {
        let id = listed["Id"].as_str().unwrap_or_default();
        asked == format!("GET /containers/{id}/json")
    });
    match found {
        Some((_, inspected)) if inspected["Config"]["Env"] != json!([]) => {
            let inspected = inspected.to_string();
            reply(200, &inspected)
        }
        _ => reply(403, "no"),
    }
}

/// A `certs run` that follows labels.
pub(crate) struct DiscoverySidecar<'a> {
    ca: &'a EmbeddedCa,
    running: Running,
    log: PathBuf,
    admin: u16,
}

impl<'a> DiscoverySidecar<'a> {
    pub(crate) fn start(ca: &'a EmbeddedCa, host: &str, change: impl FnOnce(&mut Command)) -> Self {
        Self::start_configured(ca, |command| {
            command.args(["--docker-host", host]);
            change(command);
        })
    }

    fn start_configured(ca: &'a EmbeddedCa, change: impl FnOnce(&mut Command)) -> Self {
        let (log, admin) = (ca.path("run.log"), free_port());
        let mut command = certs(&ca.path(""));
        command
            .arg("run")
            .env("CERTS_AGREE_TOS", "true")
            .env("CERTS_CA", ca.server.directory_url())
            .env("CERTS_CA_ROOT", ca.path("root.pem"))
            .env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{}", ca.http_port))
            .env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        change(&mut command);
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log);
        let running = Running::start_logging(&mut command, Stdio::from(file.unwrap()));
        Self {
            ca,
            running,
            log,
            admin,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn until_logged(&self, what: &str) {
        until_within(what, Duration::from_secs(40), || self.log().contains(what));
    }

    fn is_issued(&self, name: &str) -> bool {
        self.generations(name) > 0
    }

    pub(crate) fn until_issued(&self, name: &str) {
        until_within(name, Duration::from_secs(40), || self.is_issued(name));
        let live = self.ca.path("out/live").join(name);
        assert!(live.join("fullchain.pem").exists());
    }

    fn generations(&self, name: &str) -> u64 {
        let shown = self.status(&["--json"]);
        let rows: Value = serde_json::from_str(&shown).unwrap();
        let mut rows = rows.as_array().unwrap().iter();
        let row = rows.find(|row| row["name"] == name);
        row.and_then(|row| row["generation_issued"].as_u64())
            .unwrap_or(0)
    }

    fn status(&self, arguments: &[&str]) -> String {
        let mut command = certs(&self.ca.path(""));
        run(command.arg("status").args(arguments), 0)
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin)).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }
}

#[test]
#[allow(clippy::disallowed_methods)] // real servers take real time
fn new_container_gets_certificate_and_removed_one_is_reported() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    docker.add(
        "web",
        json!({"certs.domains": "a.example.com www.example.com; b.example.com"}),
    );
    docker.add("db", json!({"other": "label"}));
    let sidecar = DiscoverySidecar::start(&ca, &docker.host(), |_| ());
    sidecar.until_issued("a.example.com");
    sidecar.until_issued("b.example.com");
    sidecar.until_logged("LETSENCRYPT_HOST in the environment of containers is ignored");

    let began = Instant::now();
    docker.add(
        "late",
        json!({"certs.domains": "late.example.com", "certs.email": "a@example.com"}),
    );
    sidecar.until_issued("late.example.com");
    let took = began.elapsed();
    eprintln!("a container that was added has its certificate after {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(sidecar.get("/").contains("requested by container late"));
    let metrics = sidecar.get("/metrics");
    let series = "certs_certificate_asked_for{name=\"b.example.com\",container=\"web\"} 1";
    assert!(metrics.contains(series), "{metrics}");

    docker.remove("web");
    sidecar.until_logged("container web no longer requests it; renewed until");
    // It is stored after it is logged.
    until("the status", || {
        let shown = sidecar.status(&[]);
        shown.contains("  no longer requested by container web since ")
    });
    assert!(
        sidecar
            .get("/metrics")
            .contains(&series.replace("} 1", "} 0"))
    );
    let before = sidecar.generations("b.example.com");
    let mut renewal = certs(&ca.path(""));
    run(renewal.args(["renew", "--force", "b.example.com"]), 0);
    assert_eq!(sidecar.generations("b.example.com"), before + 1);
    // After its return, the certificate is requested as before.
    docker.add(
        "web",
        json!({"certs.domains": "a.example.com www.example.com; b.example.com"}),
    );
    sidecar.until_logged("requested again by container web");
    assert!(!docker.was_asked("kill") && !docker.was_asked("exec"));
}

#[test]
fn api_faults_remove_no_certificate() {
    let faults = [
        (ApiBehaviour::Refuses, "refused /containers/json: 403"),
        (ApiBehaviour::ServerError, "503"),
        (ApiBehaviour::Garbage, "invalid list of containers"),
        (ApiBehaviour::Endless, "no answer within 15 s"),
        (
            ApiBehaviour::Unfiltered,
            "is not filtered: it gives root on the host",
        ),
    ];
    // Each with a sidecar of its own: the backoff between two tries doubles.
    std::thread::scope(|scope| {
        for (behaviour, printed) in faults {
            scope.spawn(move || api_fault_removes_no_certificate(behaviour, printed));
        }
    });
}

fn api_fault_removes_no_certificate(behaviour: ApiBehaviour, printed: &str) {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    docker.add("web", json!({"certs.domains": "a.example.com"}));
    let sidecar = DiscoverySidecar::start(&ca, &docker.host(), |_| ());
    sidecar.until_issued("a.example.com");
    sidecar.until_logged("watching the labels of containers");
    docker.behaves(behaviour);
    docker.state.lock().unwrap().asked.clear();
    sidecar.until_logged(printed);
    docker.behaves(ApiBehaviour::Valid);
    until("events", || docker.was_asked("GET /events"));
    assert!(
        !sidecar.log().contains("no longer requests it"),
        "{}",
        sidecar.log()
    );
    assert!(sidecar.status(&[]).contains("requested by container web"));
    let before = sidecar.generations("a.example.com");
    let mut renewal = certs(&ca.path(""));
    run(renewal.args(["renew", "--force"]), 0);
    assert_eq!(sidecar.generations("a.example.com"), before + 1);
}

#[test]
fn slow_or_noisy_api_is_reported_and_new_containers_are_found() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    docker.behaves(ApiBehaviour::Slow);
    let sidecar = DiscoverySidecar::start(&ca, &docker.host(), |command| {
        command.env("CERTS_DOMAINS", "configured.example.com");
    });
    // Configured certificates do not wait for the API.
    sidecar.until_issued("configured.example.com");
    sidecar.until_logged("no answer within 15 s");
    docker.add("web", json!({"certs.domains": "a.example.com"}));
    docker.behaves(ApiBehaviour::InvalidEvents);
    sidecar.until_issued("a.example.com");
    sidecar.until_logged("no events from Docker, containers are listed once a minute");
    docker.behaves(ApiBehaviour::Hangs);
    assert!(sidecar.is_issued("a.example.com"));
}

#[test]
fn reload_without_docker_keeps_discovered_certificates_until_restart() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    let config = ca.path("certs.toml");
    let table = format!("[docker]\nhost = '{}'\n", docker.host());
    std::fs::write(&config, table).unwrap();
    docker.add("first", json!({"certs.domains": "first.example.com"}));
    let followed = DiscoverySidecar::start_configured(&ca, |command| {
        command.arg("--config").arg(&config);
    });
    followed.until_issued("first.example.com");
    std::fs::write(&config, "").unwrap();
    followed.running.signal(rustix::process::Signal::HUP);
    followed.until_logged("and the Docker host change only at a restart");
    followed.until_logged("the configuration was reloaded");
    docker.add("second", json!({"certs.domains": "second.example.com"}));
    followed.until_issued("second.example.com");
    assert!(!followed.log().contains("no longer requests it"));
    let kept = followed.status(&["--json"]);
    assert!(kept.contains("first.example.com"), "{kept}");
}

#[test]
fn restart_without_proxy_renews_discovered_certificates() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    docker.add("web", json!({"certs.domains": "a.example.com"}));
    let mut sidecar = DiscoverySidecar::start(&ca, &docker.host(), |_| ());
    sidecar.until_issued("a.example.com");
    let host = docker.host();
    drop(docker);
    sidecar.running.signal(rustix::process::Signal::TERM);
    until("the sidecar's end", || sidecar.running.has_ended());
    drop(sidecar);
    let sidecar = DiscoverySidecar::start(&ca, &host, |_| ());
    sidecar.until_logged("is unreachable");
    until("the certificate is managed", || {
        sidecar
            .get("/api/v1/certificates")
            .contains("a.example.com")
    });
    assert!(
        sidecar
            .get("/api/v1/certificates")
            .contains("\"containers\":[\"web\"]")
    );
    let before = sidecar.generations("a.example.com");
    let mut renewal = certs(&ca.path(""));
    run(renewal.args(["renew", "--force"]), 0);
    assert_eq!(sidecar.generations("a.example.com"), before + 1);
    // A complete list without the container ends its request at once when the grace period is zero; nothing
    // is deleted.
    sidecar.running.signal(rustix::process::Signal::TERM);
    let mut sidecar = sidecar;
    until("the sidecar's end", || sidecar.running.has_ended());
    drop(sidecar);
    let port = host.rsplit(':').next().unwrap().parse().unwrap();
    let docker = Docker::start_at(port);
    let sidecar = DiscoverySidecar::start(&ca, &host, |command| {
        command.env("CERTS_DOCKER_GRACE", "0s");
    });
    sidecar.until_logged("container web no longer requests it");
    docker.add("other", json!({}));
    sidecar.until_logged("no longer renewed: container web was the last to request it");
    until("the certificate is orphaned", || {
        let shown = sidecar.get("/api/v1/certificates");
        shown.contains("\"orphaned_why\":\"no container requests it any more\"")
    });
    assert!(
        sidecar
            .status(&[])
            .contains("  not renewed any more: not requested by container web since ")
    );
    assert!(ca.path("out/live/a.example.com/privkey.pem").exists());
}

#[test]
fn invalid_label_is_reported_and_affects_only_its_container() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    let ran = ca.path("ran");
    for (name, domains, key, value) in [
        (
            "runs",
            "runs.example.com",
            "deploy",
            format!("exec:{}", ran.display()),
        ),
        (
            "calls",
            "calls.example.com",
            "deploy",
            "https://evil.example.com/".to_owned(),
        ),
        (
            "reaches",
            "reaches.example.com",
            "deploy",
            "nginx:/tmp/other.pid".to_owned(),
        ),
        (
            "proves",
            "proves.example.com",
            "challenge",
            "dns-01".to_owned(),
        ),
        ("writes", "writes.example.com", "email", "nobody".to_owned()),
        ("wild", "*.example.com", "profile", String::new()),
        ("other", "a.example.org", "profile", String::new()),
        ("good", "good.example.com", "deploy", "copy".to_owned()),
        (
            "same",
            "configured.example.com other.example.com",
            "profile",
            String::new(),
        ),
        ("odd", "odd_!.example.com", "profile", String::new()),
    ] {
        let mut labels = json!({"certs.domains": domains});
        labels[format!("certs.{key}")] = json!(value);
        docker.add(name, labels);
    }
    let file = ca.path("labels.toml");
    let copy = ca.path("copy.pem");
    let configuration = format!(
        "[docker]\nallow = ['*.example.com']\n[deploy.copy]\nkind = 'file'\npath = '{}'\n\
         [[certificate]]\nnames = ['configured.example.com']\ndeploy = []\n",
        copy.display()
    );
    std::fs::write(&file, configuration).unwrap();
    let sidecar = DiscoverySidecar::start(&ca, &docker.host(), |command| {
        command.env("CERTS_CONFIG", &file);
    });
    sidecar.until_issued("good.example.com");
    until("the copy", || copy.exists());
    sidecar.until_issued("configured.example.com");
    sidecar.until_logged("container odd, certs.domains");
    let log = sidecar.log();
    let printed = log
        .lines()
        .filter_map(|line| Some(line[line.find("container ")?..].to_owned()));
    let printed: BTreeSet<String> = printed.filter(|line| line.contains("hint: ")).collect();
    let printed: Vec<_> = printed.into_iter().collect();
    let printed = printed
        .join("\n")
        .replace(&ran.display().to_string(), "/ran");
    insta::assert_snapshot!("labels-that-are-refused", printed);
    let shown = sidecar.status(&[]);
    for name in [
        "runs",
        "calls",
        "reaches",
        "proves",
        "writes",
        "a.example.org",
    ] {
        assert!(!shown.contains(name), "{name}: {shown}");
    }
    assert!(!ran.exists());
}

#[test]
fn containers_over_the_limit_get_no_certificate_and_existing_ones_stay() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    docker.add("z", json!({"certs.domains": "z.example.com"}));
    let sidecar = DiscoverySidecar::start(&ca, &docker.host(), |command| {
        command.env("CERTS_DOCKER_LIMIT", "2");
    });
    sidecar.until_issued("z.example.com");
    docker.add(
        "a",
        json!({"certs.domains": "a.example.com; b.example.com; c.example.com"}),
    );
    sidecar.until_logged("containers request more than 2 certificates; hint: raise [docker] limit");
    sidecar.until_issued("a.example.com");
    assert!(sidecar.status(&[]).contains("requested by container z"));
    assert!(!sidecar.is_issued("b.example.com"));
}

/// The same API at a Unix socket.
fn at_a_socket(docker: &Docker, path: &Path) -> String {
    let (listener, port) = (UnixListener::bind(path).unwrap(), docker.port);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let Ok(onward) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
                return;
            };
            let mut there = (stream.try_clone().unwrap(), onward.try_clone().unwrap());
            let mut back = (onward, stream);
            std::thread::spawn(move || std::io::copy(&mut there.0, &mut there.1).ok());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back.0, &mut back.1);
                let _ = back.1.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    format!("unix://{}", path.display())
}

#[test]
fn sandboxed_sidecar_reaches_local_docker_socket() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    docker.behaves(ApiBehaviour::Unfiltered);
    docker.add(
        "web",
        json!({"certs.domains": "a.example.com", "certs.deploy": "copy"}),
    );
    let beside = tempfile::tempdir().unwrap();
    let host = at_a_socket(&docker, &beside.path().join("docker.sock"));
    let copy = tempfile::tempdir().unwrap();
    let file = ca.path("labels.toml");
    let configuration = format!(
        "[docker]\naccept_raw_socket = true\n[deploy.copy]\nkind = 'file'\npath = '{}/{{name}}.pem'\n",
        copy.path().display()
    );
    std::fs::write(&file, configuration).unwrap();
    let sidecar = DiscoverySidecar::start(&ca, &host, |command| {
        command.env("CERTS_CONFIG", &file);
    });
    sidecar.until_issued("a.example.com");
    // The sandbox allows every path that a label may name, even when the configuration does not need it.
    until("the copy", || {
        copy.path().join("a.example.com.pem").exists()
    });
    assert!(sidecar.log().contains("Landlock"), "{}", sidecar.log());
    assert!(!docker.was_asked("POST"), "it is accepted");

    // A sidecar that an attacker controls gets nothing else of the API from the helper process.
    let relay = ca.path("data/docker.sock");
    if !relay.exists() {
        println!("SKIPPED: Docker's API through the helper process: it needs root");
        return;
    }
    let status = |request: &str| {
        let mut stream = UnixStream::connect(&relay).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: docker\r\n\r\n").unwrap();
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).unwrap();
        reply
    };
    for refused in [
        "POST /containers/web/kill",
        "POST /containers/create?name=x",
        "POST /v1.41/containers/create",
        "GET /images/json",
        "GET /containers/json?all=1",
        "GET /containers/../images/json",
        "GET /containers/web/logs?f=/json",
        "DELETE /containers/json",
    ] {
        assert!(status(refused).contains(" 403 "), "{refused}");
    }
    assert!(status("GET /containers/json").contains(" 200 "));
    for kept in ["POST", "DELETE", "GET /images", "GET /containers/web"] {
        assert!(!docker.was_asked(kept), "{kept}");
    }
}

#[test]
fn acme_companion_variables_are_read_when_proxy_allows() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    let hosts = "LETSENCRYPT_HOST=a.example.com,b.example.com";
    docker.add_with(
        "web",
        json!({}),
        &[hosts, "LETSENCRYPT_EMAIL=a@example.com", "SECRET=hunter2"],
    );
    let sidecar = DiscoverySidecar::start(&ca, &docker.host(), |_| ());
    sidecar.until_issued("a.example.com");
    let names = sidecar.status(&["--json"]);
    assert!(
        names.contains("b.example.com") && names.contains("\"containers\":[\"web\"]"),
        "{names}"
    );
    let kept = std::fs::read_to_string(ca.path("data/labels.json")).unwrap();
    assert!(!kept.contains("hunter2") && !sidecar.log().contains("hunter2"));
}

#[test]
fn newer_companion_variables_are_read_and_name_their_problems() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    let single = [
        "ACME_HOST=c.example.com, d.example.com",
        "ACME_SINGLE_DOMAIN_CERTS=true",
    ];
    docker.add_with("single", json!({}), &single);
    let key = ["ACME_HOST=e.example.com", "LETSENCRYPT_KEYSIZE=ec-384"];
    docker.add_with("key", json!({}), &key);
    for (name, variable) in [
        ("dns", "ACME_CHALLENGE=DNS-01"),
        ("size", "ACME_KEYSIZE=512"),
    ] {
        let host = format!("ACME_HOST={name}.example.com");
        docker.add_with(name, json!({}), &[&host, variable]);
    }
    let sidecar = DiscoverySidecar::start(&ca, &docker.host(), |_| ());
    for name in ["c.example.com", "d.example.com", "e.example.com"] {
        sidecar.until_issued(name);
    }
    sidecar.until_logged("container dns, ACME_CHALLENGE: ");
    sidecar.until_logged("container size, ACME_KEYSIZE: ");
    // acme-companion's test certificates are of the staging directory, whatever the CA is.
    let test = ["LETSENCRYPT_HOST=test.example.com", "LETSENCRYPT_TEST=true"];
    docker.add_with("test", json!({}), &test);
    until("the test certificate", || {
        let shown: Value = serde_json::from_str(&sidecar.status(&["--json"])).unwrap();
        let mut rows = shown.as_array().unwrap().iter();
        let row = rows.find(|row| row["name"] == "test.example.com");
        row.is_some_and(|row| row["ca"].as_str().unwrap().contains("staging"))
    });
}

#[test]
fn containers_that_share_names_in_any_order_all_get_theirs() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    docker.add(
        "one",
        json!({"certs.domains": "a.example.com b.example.com"}),
    );
    docker.add(
        "two",
        json!({"certs.domains": "b.example.com a.example.com"}),
    );
    let sidecar = DiscoverySidecar::start(&ca, &docker.host(), |_| ());
    sidecar.until_issued("a.example.com");
    docker.add(
        "three",
        json!({"certs.domains": "a.example.com b.example.com c.example.com"}),
    );
    sidecar.until_issued("c.example.com");
    let all = [
        (
            "two",
            json!({"certs.domains": "b.example.com a.example.com"}),
        ),
        (
            "four",
            json!({"certs.domains": "b.example.com d.example.com"}),
        ),
    ];
    docker.remove("two");
    for (name, labels) in all {
        docker.add(name, labels);
    }
    sidecar.until_issued("b.example.com");
    assert_eq!(
        (
            sidecar.generations("a.example.com"),
            sidecar.generations("c.example.com")
        ),
        (1, 1)
    );
    assert!(
        !sidecar.log().contains("another container has"),
        "{}",
        sidecar.log()
    );
    let target = std::fs::read_link(ca.path("out/live/d.example.com")).unwrap();
    assert_eq!(target, Path::new("b.example.com"));
}
