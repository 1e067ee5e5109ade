//! A real nginx for the demonstration: its own prefix, configuration and port, and
//! no privileges. Only the process started here is stopped.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;

use super::{LOOPBACK, Site};
use crate::failure::Failure;
use crate::files::{self, trust};

const UP_WITHIN: Duration = Duration::from_secs(10);
const DOWN_WITHIN: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Directories that distributions put on root's `PATH` only.
const BESIDE_PATH: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// A running nginx, stopped when dropped.
pub(super) struct Nginx {
    master: Child,
    pub(super) address: SocketAddr,
    /// The file with its master's process id.
    pub(super) pid_file: PathBuf,
}

/// The program, on `PATH` or in a directory of the system.
pub(crate) fn find(environment: &BTreeMap<String, String>) -> Result<PathBuf, Failure> {
    let path = environment.get("PATH").map_or("", String::as_str);
    let found = files::in_directories("nginx", path.split(':').chain(BESIDE_PATH));
    let found = found.ok_or_else(|| {
        Failure::usage(
            "no nginx found on PATH",
            "install the package `nginx` (apt install nginx, dnf install nginx, apk add nginx), or run `certs demo` without it",
        )
    })?;
    trust::resolve(&found)?;
    Ok(found)
}

impl Nginx {
    /// Starts nginx below `directory` for the live pairs of `sites`, which must
    /// exist.
    pub(super) async fn start(
        program: &Path,
        directory: &Path,
        sites: &[Site],
    ) -> Result<Self, Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::unexpected(format!("nginx: {what}: {error}"))
        };
        // nginx can neither inherit a socket nor report a port chosen by the system.
        let address = TcpListener::bind(LOOPBACK).and_then(|free| free.local_addr());
        let address = address.map_err(|error| failed("no port", error))?;
        std::fs::create_dir(directory).map_err(|error| failed("no directory", error))?;
        let config = directory.join("nginx.conf");
        let text = configuration(directory, address, sites);
        std::fs::write(&config, text).map_err(|error| failed("no configuration", error))?;
        let stderr_log = directory.join("stderr.log");
        let stderr = std::fs::File::create(&stderr_log).map_err(|error| failed("no log", error))?;
        let master = Command::new(program)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            // Ctrl-C must not stop nginx before the clients.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(&program.display().to_string(), error))?;
        let mut nginx = Self {
            master,
            address,
            pid_file: directory.join("nginx.pid"),
        };
        nginx.until_it_listens(&stderr_log).await?;
        Ok(nginx)
    }

    async fn until_it_listens(&mut self, stderr_log: &Path) -> Result<(), Failure> {
        let up = async {
            while TcpStream::connect(self.address).await.is_err() || !self.pid_file.exists() {
                if !matches!(self.master.try_wait(), Ok(None)) {
                    return false;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            true
        };
        if matches!(tokio::time::timeout(UP_WITHIN, up).await, Ok(true)) {
            return Ok(());
        }
        let stderr_log = std::fs::read_to_string(stderr_log).unwrap_or_default();
        let shown = stderr_log.trim().escape_debug();
        Err(Failure::unexpected(format!("nginx did not start: {shown}")))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = i32::try_from(self.master.id()).ok().and_then(Pid::from_raw);
        // Not reaped yet, so no other process has this id.
        let signalled = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
        let mut left = DOWN_WITHIN;
        while signalled && !left.is_zero() {
            if !matches!(self.master.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL_INTERVAL);
            left = left.saturating_sub(POLL_INTERVAL);
        }
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

fn configuration(directory: &Path, address: SocketAddr, sites: &[Site]) -> String {
    let root = directory.display();
    let server = |site: &Site| {
        let (name, live) = (&site.name, site.live.display());
        format!(
            "  server {{\n    listen {address} ssl;\n    server_name {name};\n    \
             ssl_certificate \"{live}/fullchain.pem\";\n    \
             ssl_certificate_key \"{live}/privkey.pem\";\n    \
             location / {{ return 200 \"served by nginx\\n\"; }}\n  }}\n"
        )
    };
    let servers: String = sites.iter().map(server).collect();
    // Only a reload may end a kept connection, not nginx's request limit.
    format!(
        "daemon off;\nworker_processes 2;\npid \"{root}/nginx.pid\";\nerror_log \"{root}/error.log\";\n\
         events {{ worker_connections 512; }}\nhttp {{\n  access_log off;\n  keepalive_requests 1000000;\n  \
         client_body_temp_path \"{root}/body\";\n  proxy_temp_path \"{root}/proxy\";\n  \
         fastcgi_temp_path \"{root}/fastcgi\";\n  uwsgi_temp_path \"{root}/uwsgi\";\n  \
         scgi_temp_path \"{root}/scgi\";\n{servers}}}\n"
    )
}
