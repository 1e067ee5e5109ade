//! The stores that a fleet shares, as real servers.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::network::{HUB, Network, listens, logging, request};
use crate::support::{NOBODY, Running, program, run, until, until_within};

/// Its own address, so that a machine can be cut off from it alone.
pub(super) const STORE: &str = "10.77.0.2";

/// The store that the machines share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Etcd,
    Postgres,
    S3,
    Directory,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Etcd, Self::Postgres, Self::S3, Self::Directory];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Postgres => "PostgreSQL",
            Self::S3 => "S3",
            Self::Directory => "directory",
        }
    }

    /// All machines serve a new certificate within this time, 99 times of 100.
    pub(super) fn bound(self) -> Duration {
        Duration::from_secs(match self {
            Self::Etcd | Self::Postgres => 2,
            // Nothing tells of changes.
            Self::S3 | Self::Directory => 15,
        })
    }

    /// The settings of machines with this store, whose data is below `directory`.
    pub(super) fn settings(self, directory: &Path) -> Vec<(&'static str, String)> {
        let store = match self {
            Self::Etcd => format!("etcd://{STORE}:2379/certs"),
            Self::Postgres => {
                format!("postgres://certs@{STORE}:5432/postgres?prefix=certs&sslmode=disable")
            }
            Self::Directory => directory.join("shared").display().to_string(),
            Self::S3 => {
                return vec![
                    ("CERTS_STORE", "s3://bucket/certs".to_owned()),
                    ("AWS_ENDPOINT_URL", format!("http://{STORE}:9000")),
                    ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE".to_owned()),
                    ("AWS_SECRET_ACCESS_KEY", "example".to_owned()),
                ];
            }
        };
        vec![("CERTS_STORE", store)]
    }

    /// A real server in `network`, with its data below `directory`.
    pub(super) fn start(self, network: &Network, directory: &Path) -> Option<Running> {
        let log = directory.join("store.log");
        match self {
            Self::Etcd => {
                let mut command = network.command(program("CERTS_LAB_ETCD", "/usr/bin/etcd")?);
                command.arg("--data-dir").arg(directory.join("etcd"));
                let (clients, peers) = (
                    format!("http://{STORE}:2379"),
                    format!("http://{STORE}:2380"),
                );
                for (option, url) in [("listen-client", &clients), ("advertise-client", &clients)] {
                    command.arg(format!("--{option}-urls={url}"));
                }
                command.arg(format!("--listen-peer-urls={peers}"));
                command.arg(format!("--initial-advertise-peer-urls={peers}"));
                command.arg(format!("--initial-cluster=default={peers}"));
                let running = logging(&mut command, &log);
                let healthy = |reply: String| reply.contains("\"true\"");
                until("etcd", || {
                    request(&format!("{STORE}:2379"), "GET /health").is_some_and(healthy)
                });
                Some(running)
            }
            Self::Postgres => {
                let programs = program("CERTS_LAB_POSTGRES", "/usr/lib/postgresql/15/bin")?;
                let data = directory.join("postgres");
                std::fs::create_dir(&data).unwrap();
                std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
                let started = |name: &str| {
                    let mut command = network.command("setpriv");
                    let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
                    command
                        .args(user)
                        .arg("--clear-groups")
                        .arg(programs.join(name));
                    command.arg("-D").arg(data.join("data")).current_dir(&data);
                    command
                };
                run(
                    started("initdb").args(["-U", "certs", "-N", "--auth=trust"]),
                    0,
                );
                let rules = format!("host all all {HUB}/24 trust\n");
                std::fs::write(data.join("data/pg_hba.conf"), rules).unwrap();
                let mut server = started("postgres");
                server
                    .arg("-k")
                    .arg(&data)
                    .args(["-h", STORE, "-c", "fsync=off"]);
                let running = logging(&mut server, &log);
                until("PostgreSQL", || {
                    let said = std::fs::read_to_string(&log).unwrap();
                    said.contains("ready to accept connections")
                });
                Some(running)
            }
            Self::S3 => {
                let mut command = network.command(program("CERTS_LAB_MOTO", "/usr/bin/python3")?);
                let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/s3.py");
                let running =
                    Running::start_with(command.args([script, STORE, "9000"]), Stdio::piped());
                let at = format!("{STORE}:9000");
                until_within("moto", Duration::from_secs(60), || listens(&at));
                let made = request(&at, "PUT /bucket").unwrap_or_default();
                assert!(made.contains(" 200 "), "{made}");
                Some(running)
            }
            Self::Directory => {
                std::fs::create_dir(directory.join("shared")).unwrap();
                let mut nothing = network.command("sleep");
                Some(Running::start(nothing.arg("infinity")))
            }
        }
    }
}
