//! Calls continue while certificates are renewed: a browser with fake media, a page served by nginx, two
//! peers relayed by coturn over TLS, and WebSocket signalling through nginx.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use certs::identifier::Identifier;
use certs::tls::dialer::Dialer;
use futures_util::{SinkExt, StreamExt};
use rustix::process::Signal;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use crate::support::embedded::EmbeddedCa;
use crate::support::{Running, by_depth, free_port, listens, program, run, until, until_within};
use crate::targets::{Coturn, NAME, live};

/// The messages for each named end of the signalling.
type SignallingEnds = Arc<Mutex<BTreeMap<String, mpsc::UnboundedSender<Message>>>>;

/// The signalling server behind nginx. It relays messages between ends 0 and 1, returns those of `echo`, and
/// keeps those of `report`.
struct Signalling {
    port: u16,
    reports: Arc<Mutex<Vec<Value>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Signalling {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let bound = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = bound.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (ends, reports) = (SignallingEnds::default(), Arc::new(Mutex::new(Vec::new())));
        let kept = reports.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(relay(stream, ends.clone(), kept.clone()));
            }
        });
        Self {
            port,
            reports,
            _runtime: runtime,
        }
    }

    fn reports(&self) -> Vec<Value> {
        self.reports.lock().unwrap().clone()
    }
}

async fn relay(stream: TcpStream, ends: SignallingEnds, reports: Arc<Mutex<Vec<Value>>>) {
    let mut end = String::new();
    #[allow(clippy::result_large_err)] // the library's own type
    let remember = |request: &Request, response: Response| {
        end = request.uri().path().rsplit('/').next().unwrap().to_owned();
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, remember).await else {
        return;
    };
    let (mut out, mut heard) = socket.split();
    let (sender, mut relayed) = mpsc::unbounded_channel();
    ends.lock().unwrap().insert(end.clone(), sender.clone());
    let other = match end.as_str() {
        "0" => Some("1"),
        "1" => Some("0"),
        _ => None,
    };
    loop {
        tokio::select! {
            message = relayed.recv() => {
                let Some(message) = message else { return };
                if out.send(message).await.is_err() {
                    return;
                }
            },
            message = heard.next() => {
                let Some(Ok(message)) = message else { return };
                let Message::Text(text) = &message else { continue };
                match (end.as_str(), other) {
                    ("report", _) => reports.lock().unwrap().push(serde_json::from_str(text).unwrap()),
                    (_, Some(other)) => {
                        let other = ends.lock().unwrap().get(other).cloned();
                        if let Some(other) = other { let _ = other.send(message); }
                    }
                    _ => { let _ = sender.send(message); }
                }
            }
        }
    }
}

/// An nginx that is stopped with its workers: after a plain kill they would stay.
struct SignallingNginx(Running);

impl Drop for SignallingNginx {
    fn drop(&mut self) {
        self.0.signal(Signal::TERM);
        self.0.exit_code();
    }
}

/// Starts nginx with a page at `/` and the signalling at `/api`.
fn nginx(ca: &EmbeddedCa, port: u16, back: u16) -> Option<(SignallingNginx, PathBuf)> {
    let program = program("CERTS_LAB_NGINX", "/usr/sbin/nginx")?;
    let directory = ca.path("web");
    let page = directory.join("page");
    std::fs::create_dir_all(&page).unwrap();
    std::fs::write(page.join("index.html"), include_str!("support/call.html")).unwrap();
    let (root, live) = (directory.display(), live(ca));
    let config = format!(
        "daemon off; user root; pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 2; events {{}}\n\
         http {{ access_log off; types {{ text/html html; }} client_body_temp_path {root}/b; proxy_temp_path {root}/p;\n\
         fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {live}/fullchain.pem; ssl_certificate_key {live}/privkey.pem;\n\
         root {root}/page;\n\
         location /api/ {{ proxy_pass http://127.0.0.1:{back}; proxy_http_version 1.1; proxy_read_timeout 1h;\n\
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }} }} }}\n",
        live = live.display()
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let running = Running::start(Command::new(program).arg("-c").arg(&file));
    let pid_file = directory.join("nginx.pid");
    until("nginx", || listens(port) && pid_file.exists());
    Some((SignallingNginx(running), pid_file))
}

fn issued() -> EmbeddedCa {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    ca
}

#[test]
fn hundred_websockets_survive_every_renewal() {
    let ca = issued();
    let (signalling, port) = (Signalling::start(), free_port());
    let Some((_nginx, pid_file)) = nginx(&ca, port, signalling.port) else {
        return;
    };
    let deploy = format!("--deploy=nginx:{}", pid_file.display());
    let verify = format!("--verify=127.0.0.1:{port}");
    let (sockets, renewals) = (100, by_depth(3, 3, 20));
    let root = std::fs::read(ca.path("root.pem")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut open: Vec<_> = (0..sockets)
        .map(|_| {
            runtime.block_on(async {
                let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
                let name = Identifier::parse(NAME).unwrap();
                let dialed = Dialer::new(&root).unwrap().connect(address, &name).await;
                let url = format!("wss://{NAME}/api/signal/echo");
                let opened = tokio_tungstenite::client_async(url, dialed.unwrap().0).await;
                opened.unwrap().0
            })
        })
        .collect();
    let mut echoed = 0;
    for round in 0..renewals {
        run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 0);
        runtime.block_on(async {
            for (number, socket) in open.iter_mut().enumerate() {
                let text = format!("{round} {number}");
                socket.send(Message::text(text.clone())).await.unwrap();
                let answer = tokio::time::timeout(Duration::from_secs(20), socket.next()).await;
                assert_eq!(answer.unwrap().unwrap().unwrap(), Message::text(text));
                echoed += 1;
            }
        });
    }
    println!("{sockets} WebSockets through nginx, {renewals} renewals: {echoed} messages, 0 lost");
}

/// Makes a home directory in which `root` is trusted.
fn home_trusting(home: &Path, root: &Path) -> Option<()> {
    let certutil = program("CERTS_LAB_CERTUTIL", "/usr/bin/certutil")?;
    let database = home.join(".pki/nssdb");
    std::fs::create_dir_all(&database).unwrap();
    let place = format!("sql:{}", database.display());
    for arguments in [
        &["-N", "--empty-password"][..],
        &[
            "-A",
            "-t",
            "C,,",
            "-n",
            "test",
            "-i",
            root.to_str().unwrap(),
        ],
    ] {
        let mut command = Command::new(&certutil);
        let output = command
            .arg("-d")
            .arg(&place)
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", crate::support::text(&output));
    }
    Some(())
}

#[test]
fn browser_call_continues_through_three_renewals() {
    let ca = issued();
    let Some(browser) = program("CERTS_LAB_CHROMIUM", "/usr/bin/chromium") else {
        return;
    };
    let (signalling, port) = (Signalling::start(), free_port());
    let home = ca.path("home");
    let Some(()) = home_trusting(&home, &ca.path("root.pem")) else {
        return;
    };
    let Some((_nginx, pid_file)) = nginx(&ca, port, signalling.port) else {
        return;
    };
    let Some(turn) = Coturn::start(&ca) else {
        return;
    };
    let settings = format!("{{\"turn\":\"turns:{NAME}:{}?transport=tcp\"}}", turn.port);
    let settings = settings
        .replace('{', "%7B")
        .replace('}', "%7D")
        .replace('"', "%22");
    let mut command = Command::new(browser);
    command
        .env("HOME", &home)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
        ])
        .args([
            "--allow-loopback-in-peer-connection",
            "--autoplay-policy=no-user-gesture-required",
        ])
        .arg(format!(
            "--user-data-dir={}",
            home.join("profile").display()
        ))
        .arg(format!("--host-resolver-rules=MAP {NAME} 127.0.0.1"))
        .arg(format!("https://{NAME}:{port}/#{settings}"))
        .stdin(Stdio::null())
        .process_group(0);
    let _browser = ProcessGroup(Running::start_logging(
        &mut command,
        std::fs::File::create(ca.path("browser.log"))
            .unwrap()
            .into(),
    ));
    let reports = || signalling.reports();
    let is_live = |report: &Value| report["frames"].as_u64() > Some(0) && report["relayed"] == true;
    until_within("the call", Duration::from_secs(60), || {
        let reports = reports();
        let failed = reports.iter().find(|report| report.get("error").is_some());
        assert!(failed.is_none(), "{failed:?}");
        reports.last().is_some_and(is_live)
    });
    let begun = reports().len();
    let nginx = format!("--deploy=nginx:{}", pid_file.display());
    let both = [
        format!("--verify=127.0.0.1:{port}"),
        format!("--verify=127.0.0.1:{}", turn.port),
    ];
    for renewal in 1..=3 {
        run(
            &mut ca.issue(&[NAME, "--force", &nginx, &turn.deploy, &both[0], &both[1]]),
            0,
        );
        // The call continues for at least two seconds before the next renewal.
        let before = reports().len();
        until_within("the call goes on", Duration::from_secs(20), || {
            reports().len() > before + 2
        });
        println!("renewal {renewal}: verified on nginx and coturn during the call");
    }
    let during = reports().split_off(begun);
    let silent = during.iter().filter(|report| !is_live(report)).count();
    let last = during.last().unwrap();
    println!(
        "{} seconds of the call, {silent} without frames; {} signalling messages, {} lost",
        during.len(),
        last["beats"],
        last["lost"]
    );
    assert_eq!((silent, &last["lost"]), (0, &Value::from(0)), "{during:?}");
    assert!(last["beats"].as_u64() > Some(20), "{last}");
}

/// A browser consists of many processes: the whole process group is killed.
struct ProcessGroup(Running);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}
