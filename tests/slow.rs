//! nginx that takes long, and pairs that move while it reads them. Its configuration includes a pipe: nginx waits
//! there until the test opens it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::embedded::EmbeddedCa;
use crate::support::{Nginx, certs, free_port, run};
use crate::targets::{NAME, generation, issued, live, verify};

/// A pipe before all servers in nginx's configuration, as long as this lives.
struct Pipe {
    path: PathBuf,
    config: PathBuf,
    sound: String,
}

impl Pipe {
    fn add_to(config: &Path) -> Self {
        let pipe = config.with_file_name("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let sound = fs::read_to_string(config).unwrap();
        fs::write(config, format!("include {};\n{sound}", pipe.display())).unwrap();
        Self {
            path: pipe,
            config: config.to_owned(),
            sound,
        }
    }

    /// Lets a waiting nginx go on; `false` if none waits.
    fn open(&self) -> bool {
        const NONBLOCK: i32 = 0o4000;
        let pipe = OpenOptions::new()
            .write(true)
            .custom_flags(NONBLOCK)
            .open(&self.path);
        pipe.is_ok()
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // nginx reads it to stop.
        let _ = fs::write(&self.config, &self.sound);
    }
}

/// Calls `step` until `work` has ended.
fn beside<T: Send>(work: impl FnOnce() -> T + Send, mut step: impl FnMut()) -> T {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let value = work();
            ended.store(true, Ordering::SeqCst);
            value
        });
        while !ended.load(Ordering::SeqCst) && !worker.is_finished() {
            step();
        }
        worker.join().unwrap()
    })
}

fn deploy_for(ca: &EmbeddedCa, nginx: &Nginx, timeout: &str) {
    let table = format!(
        "[deploy.web]\nkind = 'nginx'\npid_file = '{}'\ntimeout = '{timeout}'\n",
        nginx.pid_file.display()
    );
    fs::write(ca.path("certs.toml"), table).unwrap();
}

#[test]
fn slow_nginx_check_is_waited_for_as_long_as_configured() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let config = nginx.pid_file.with_file_name("nginx.conf");
    let pipe = Pipe::add_to(&config);
    let verify = verify(nginx.port);
    let renew = || {
        let mut command = ca.issue(&[NAME, "--force", "--deploy=web", &verify]);
        command.current_dir(ca.path(""));
        command
    };
    deploy_for(&ca, &nginx, "1s");
    let printed = run(&mut renew(), 7);
    for part in [
        "`nginx -t` did not end within 1 s",
        "`timeout` in its [deploy.NAME]",
    ] {
        assert!(printed.contains(part), "no `{part}` in {printed}");
    }
    assert_eq!(generation(&ca), 1);
    deploy_for(&ca, &nginx, "1m");
    let mut opened = 0;
    beside(
        || run(&mut renew(), 0),
        || {
            std::thread::sleep(Duration::from_millis(1200));
            opened += usize::from(pipe.open());
        },
    );
    assert!(opened >= 3, "{opened}");
}

#[test]
fn nginx_check_is_repeated_when_another_process_moved_a_pair() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let config = nginx.pid_file.with_file_name("nginx.conf");
    let sound = fs::read_to_string(&config).unwrap();
    // A pair of another tool, whose key is replaced after its chain.
    let (chain, key) = (ca.path("chain.pem"), ca.path("key.pem"));
    let pairs =
        [0, 1].map(|_| rcgen::generate_simple_self_signed(["o.example".to_owned()]).unwrap());
    fs::write(&chain, pairs[0].cert.pem()).unwrap();
    fs::write(&key, pairs[0].signing_key.serialize_pem()).unwrap();
    let server = format!(
        "server {{ listen 127.0.0.1:{} ssl; ssl_certificate {}; ssl_certificate_key {}; }} }}\n",
        free_port(),
        chain.display(),
        key.display()
    );
    let (before, _) = sound.trim_end().rsplit_once('}').unwrap();
    fs::write(&config, format!("{before}{server}")).unwrap();
    let pipe = Pipe::add_to(&config);
    deploy_for(&ca, &nginx, "1m");
    let mut command = ca.issue(&[NAME, "--force", "--deploy=web", &verify(nginx.port)]);
    command.current_dir(ca.path(""));
    let mut opened = 0;
    beside(
        || run(&mut command, 0),
        || {
            // nginx reads the pairs after it has read the configuration.
            let half = match opened {
                0 => pairs[1].cert.pem(),
                _ => pairs[0].cert.pem(),
            };
            fs::write(&chain, half).unwrap();
            opened += usize::from(pipe.open());
            std::thread::sleep(Duration::from_millis(100));
        },
    );
    assert!(opened >= 4, "{opened}");
}

#[test]
fn pairs_of_one_nginx_never_mismatch_while_all_are_renewed() {
    const MANY: usize = 12;
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let config = nginx.pid_file.with_file_name("nginx.conf");
    let sound = fs::read_to_string(&config).unwrap();
    let mut more = String::new();
    let mut servers = String::new();
    for number in 0..MANY {
        let name = format!("n{number}.example.com");
        more += &format!("[[certificate]]\nnames = ['{name}']\n");
        let live = ca.path("out/live").join(&name);
        servers += &format!(
            "server {{ listen 127.0.0.1:{} ssl; server_name {name}; ssl_certificate {live}/fullchain.pem; ssl_certificate_key {live}/privkey.pem; }}\n",
            nginx.port,
            live = live.display()
        );
    }
    let common = format!(
        "ca = '{}'\nca_root = 'root.pem'\nagree_tos = true\nhttp_listen = ['127.0.0.1:{}']\n",
        ca.server.directory_url(),
        ca.http_port,
    );
    let renew = |deploy: &str, arguments: &[&str]| {
        fs::write(ca.path("certs.toml"), format!("{common}{deploy}{more}")).unwrap();
        run(
            certs(&ca.path("")).args(arguments).current_dir(ca.path("")),
            0,
        )
    };
    // nginx can start with these pairs only once they exist.
    renew("", &["renew", "--force"]);
    let (before, _) = sound.trim_end().rsplit_once('}').unwrap();
    fs::write(&config, format!("{before}{servers}}}\n")).unwrap();
    let deploy = format!(
        "deploy = ['nginx:{}']\nverify = ['127.0.0.1:{}']\n",
        nginx.pid_file.display(),
        nginx.port
    );
    for _ in 0..2 {
        let printed = renew(&deploy, &["renew", "--force"]);
        assert!(!printed.contains("mismatch"), "{printed}");
    }
    let log = fs::read_to_string(config.with_file_name("error.log")).unwrap();
    assert!(!log.contains("mismatch"), "{log}");
    fs::write(&config, sound).unwrap();
}

#[test]
fn key_that_the_workers_read_is_judged_by_their_user() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: workers of another user need root");
    }
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let config = nginx.pid_file.with_file_name("nginx.conf");
    let sound = fs::read_to_string(&config).unwrap();
    let variable = sound.replace(&format!("/live/{NAME}/"), "/live/$ssl_server_name/");
    fs::write(&config, format!("user daemon daemon;\n{variable}")).unwrap();
    let deploy = format!("--deploy=nginx:{}", nginx.pid_file.display());
    let printed = run(
        &mut ca.issue(&[NAME, "--force", &deploy, &verify(nginx.port)]),
        7,
    );
    assert!(printed.contains("nginx (uid 1, "), "{printed}");
    fs::write(&config, sound).unwrap();
    assert_eq!(generation(&ca), 1);
}
