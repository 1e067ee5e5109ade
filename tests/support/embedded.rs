//! The embedded CA on a port of its own. It ends with its test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use certs::ca::{Identity, Ports, Resolve, Server, Settings, Validation, serve};
use certs::fingerprint::Fingerprint;
use certs::identifier::Identifier;
use certs::tls::dialer::Dialer;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::clock::AdjustableClock;
use super::faults::{FaultyService, Script};
use super::{certs, free_port};

/// The embedded CA over TLS on loopback, with a script of faults. It resolves every name to loopback and
/// stores nothing.
pub(crate) struct EmbeddedCa {
    pub(crate) script: Script,
    pub(crate) server: Server,
    clock: Arc<AdjustableClock>,
    /// The port from which it fetches HTTP-01 answers.
    pub(crate) http_port: u16,
    /// The port at which it validates by TLS-ALPN-01.
    pub(crate) tls_port: u16,
    directory: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EmbeddedCa {
    pub(crate) fn start() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::created_ago(0, change)
    }

    /// A CA that was created `ago` seconds ago, with a server certificate of the same age.
    pub(crate) fn created_ago(ago: i64, change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let (http_port, tls_port) = (free_port(), free_port());
        let mut settings = Settings::new(format!("https://{address}"));
        settings.validation = Validation::Connect {
            ports: Ports {
                http: http_port,
                tls: tls_port,
            },
            resolve: Resolve::Fixed(Ipv4Addr::LOCALHOST.into()),
        };
        change(&mut settings);
        let clock = Arc::new(AdjustableClock::default());
        clock.set_ahead(-ago);
        let server = Server::new(settings, clock.clone()).unwrap();
        std::fs::write(directory.path().join("root.pem"), server.root_pem()).unwrap();
        let script = Script::default();
        let service = FaultyService::new(server.router(), script.clone());
        let router = axum::Router::new().fallback_service(service);
        let identity = Identity::new(&server, address.ip()).unwrap();
        clock.set_ahead(0);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, identity, router) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            script,
            server,
            clock,
            http_port,
            tls_port,
            directory,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Moves its own clock `seconds` ahead.
    pub(crate) fn set_time_ahead(&self, seconds: i64) {
        self.clock.set_ahead(seconds);
        self.script.set_ahead(seconds);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The leaf that a server on `port` shows for `name`, to a client that trusts this CA.
    pub(crate) fn leaf_at(&self, port: u16, name: &str) -> Fingerprint {
        let root = std::fs::read(self.path("root.pem")).unwrap();
        let (dialer, name) = (
            Dialer::new(&root).unwrap(),
            Identifier::parse(name).unwrap(),
        );
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let shown = runtime.block_on(dialer.connect(address, &name));
        shown.unwrap().1
    }

    /// `certs issue` against this CA, with a data directory of its own.
    pub(crate) fn issue(&self, arguments: &[&str]) -> Command {
        self.issue_below(self.directory.path(), arguments)
    }

    /// The same with its state below `directory`.
    pub(crate) fn issue_below(&self, directory: &Path, arguments: &[&str]) -> Command {
        let mut command = certs(directory);
        command
            .args(["issue", "--agree-tos", "--ca", &self.server.directory_url()])
            .arg("--ca-root")
            .arg(self.path("root.pem"));
        let is_other = |argument: &&str| argument.contains("tls-alpn-01") || *argument == "--dns";
        if !arguments.iter().any(is_other) {
            command.args(["--http-listen", &format!("127.0.0.1:{}", self.http_port)]);
        }
        command.args(arguments);
        command
    }
}

impl Drop for EmbeddedCa {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the CA's thread has failed"
            );
        }
    }
}
