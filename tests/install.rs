//! `certs install nginx` on a real nginx: its edits, its refusals, the site that clients then get, and an
//! undo that restores every byte.

mod beside;
mod cut_off;
mod issued;
mod names;
mod redirects;
mod said;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use crate::support::{
    NOBODY, as_nobody, assert_says, by_depth, certs, free_port, listens, program, run, text, until,
};

/// A Debian-like configuration in a directory of its own.
struct Machine {
    directory: TempDir,
    nginx: PathBuf,
    curl: PathBuf,
    http: u16,
    https: u16,
}

const PLAIN: &str = "\
# The team's site.
server {
\tlisten 127.0.0.1:HTTP default_server; # plain
\tserver_name www.example.com Example.com;

\t# Ours.
\tlocation / { return 200 'hello'; }
}

server { listen 127.0.0.1:HTTP; server_name other.example.com *.wild.example.com ~^x\\d+\\.example\\.com$; return 200 'other'; }
";

impl Machine {
    fn new(site: &str) -> Option<Self> {
        let machine = Self {
            nginx: program("CERTS_LAB_NGINX", "/usr/sbin/nginx")?,
            curl: program("CERTS_LAB_CURL", "/usr/bin/curl")?,
            directory: tempfile::tempdir().unwrap(),
            http: free_port(),
            https: free_port(),
        };
        for directory in ["sites-available", "sites-enabled", "www"] {
            std::fs::create_dir(machine.path(directory)).unwrap();
        }
        let root = machine.path("").display().to_string();
        let root = root.trim_end_matches('/');
        let user = if rustix::process::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let main = format!(
            "{user} pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; events {{}}\n\
             http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n\
             uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
             types {{ text/html html; text/css css; application/javascript js; }}\n\
             include sites-enabled/*; }}\n"
        );
        std::fs::write(machine.path("nginx.conf"), main).unwrap();
        machine.write_site(site);
        let link = machine.path("sites-enabled/site");
        std::os::unix::fs::symlink("../sites-available/site", link).unwrap();
        Some(machine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write_site(&self, site: &str) {
        let site = site.replace("HTTP", &self.http.to_string());
        std::fs::write(self.path("sites-available/site"), site).unwrap();
    }

    fn site(&self) -> String {
        std::fs::read_to_string(self.path("sites-available/site")).unwrap()
    }

    fn install(&self, arguments: &[&str]) -> Command {
        let mut command = certs(self.directory.path());
        command
            .args(["install", "nginx", "--nginx"])
            .arg(&self.nginx);
        if !arguments.contains(&"--undo") {
            command.arg("--conf").arg(self.path("nginx.conf"));
            command.args(["--http-port", &self.http.to_string()]);
            command.args(["--https-port", &self.https.to_string()]);
        }
        command.args(arguments);
        command
    }

    /// Every file and link of the configuration, with its content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        for directory in ["", "sites-available", "sites-enabled"] {
            for entry in std::fs::read_dir(self.path(directory)).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                let kind = entry.file_type().unwrap();
                if kind.is_symlink() {
                    let target = std::fs::read_link(entry.path()).unwrap();
                    files.insert(entry.path(), target.into_os_string().into_encoded_bytes());
                } else if kind.is_file() && name != "nginx.pid" && name != "error.log" {
                    files.insert(entry.path(), std::fs::read(entry.path()).unwrap());
                }
            }
        }
        files
    }

    fn signal(&self, arguments: &[&str]) -> bool {
        let mut command = Command::new(&self.nginx);
        command
            .arg("-c")
            .arg(self.path("nginx.conf"))
            .args(arguments);
        command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    fn start(&self) {
        assert!(self.signal(&[]));
        // nginx listens before it has workers to answer.
        until("nginx", || listens(self.http) && !self.workers().is_empty());
    }

    /// The pids of its workers.
    fn workers(&self) -> Vec<String> {
        let pid = std::fs::read_to_string(self.path("nginx.pid")).unwrap();
        let pid = pid.trim();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(children).unwrap();
        children.split_whitespace().map(str::to_owned).collect()
    }

    /// Returns once all workers of `former` are gone.
    fn until_replaced(&self, former: &[String]) {
        until("the new workers", || {
            let workers = self.workers();
            !workers.is_empty() && !workers.iter().any(|worker| former.contains(worker))
        });
    }

    /// The output of curl: the headers in lower case, and the body.
    fn ask(&self, url: &str, more: &[&str]) -> String {
        let mut command = Command::new(&self.curl);
        command.args(["-ksi", "--max-time", "10", "--noproxy", "*"]);
        for (port, host) in [
            (self.http, "www.example.com"),
            (self.https, "www.example.com"),
            (self.http, "other.example.com"),
        ] {
            command.args(["--resolve", &format!("{host}:{port}:127.0.0.1")]);
        }
        let url = url
            .replace("HTTPS", &self.https.to_string())
            .replace("HTTP", &self.http.to_string());
        text(&command.args(more).arg(url).output().unwrap()).to_lowercase()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.path("nginx.pid").exists() {
            self.signal(&["-s", "stop"]);
            until("nginx's end", || !listens(self.http));
        }
    }
}

#[test]
fn install_adds_tls_once_and_undo_restores_every_byte() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    machine.start();
    let before = machine.files();
    let former = machine.workers();
    let printed = run(&mut machine.install(&["--domain", "www.example.com"]), 0);
    assert!(
        printed.contains("certs issue www.example.com example.com --webroot"),
        "{printed}"
    );
    assert!(printed.contains("was reloaded"), "{printed}");
    let after = machine.site();
    for kept in [
        "# The team's site.\n",
        " default_server; # plain\n\tserver_name",
        "\t# Ours.\n\tlocation / { return 200 'hello'; }\n}\n",
    ] {
        let bare = kept.replace(" default_server; # plain\n\tserver_name", "# plain\n");
        assert!(after.contains(&bare), "{bare}: {after}");
    }
    machine.until_replaced(&former);
    until("TLS", || listens(machine.https));
    assert!(
        machine
            .ask("https://www.example.com:HTTPS/", &[])
            .ends_with("hello")
    );
    // No redirect leads to a certificate that no CA has issued.
    let plain = machine.ask("http://www.example.com:HTTP/a?b", &[]);
    assert!(plain.ends_with("hello"), "{plain}");
    assert!(
        machine
            .ask("http://other.example.com:HTTP/", &[])
            .ends_with("other")
    );
    let webroot = machine.path("data-webroot/.well-known/acme-challenge");
    std::fs::create_dir_all(&webroot).unwrap();
    std::fs::write(webroot.join("token"), "token.thumb").unwrap();
    let answer = machine.ask(
        "http://www.example.com:HTTP/.well-known/acme-challenge/token",
        &[],
    );
    assert!(answer.ends_with("token.thumb"), "{answer}");

    let printed = run(&mut machine.install(&["--domain", "www.example.com"]), 0);
    assert!(printed.contains("nothing to change"), "{printed}");
    assert_eq!(machine.site(), after);

    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.files(), before);
    until("plain HTTP again", || {
        machine
            .ask("http://www.example.com:HTTP/", &[])
            .ends_with("hello")
    });
    let printed = run(&mut machine.install(&["--undo"]), 0);
    assert!(printed.contains("nothing to undo"), "{printed}");
    // A named site that is not found is an error.
    let printed = run(
        &mut machine.install(&["--undo", "--domain", "www.example.com"]),
        2,
    );
    assert!(
        printed.contains("hint: repeat the command with the --data-dir"),
        "{printed}"
    );
}

#[test]
fn install_refuses_impossible_requests_and_loses_nothing() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    let before = machine.files();
    let refused = |arguments: &[&str], words: &[&str]| {
        let printed = run(&mut machine.install(arguments), 2);
        for word in words {
            assert!(
                printed.contains(word),
                "{arguments:?}: no {word} in {printed}"
            );
        }
        assert_eq!(machine.files(), before, "{arguments:?}");
    };
    refused(&[], &["which server block", "--domain"]);
    refused(
        &["--domain", "absent.example"],
        &["no server block", "other.example.com", "www.example.com"],
    );
    refused(&["--domain", "a.wild.example.com"], &["*.wild.example.com"]);
    refused(
        &["--domain", "x1.example.com"],
        &["regular expressions are not tried"],
    );
    refused(&["--domain", "a..b"], &["--domain"]);
    machine
        .write_site("server { listen 127.0.0.1:HTTP; server_name www.example.com; nonsense on; }");
    let broken = machine.files();
    let printed = run(&mut machine.install(&["--domain", "www.example.com"]), 2);
    assert!(
        printed.contains("unknown directive \"nonsense\"") && printed.contains("as it is"),
        "{printed}"
    );
    assert_eq!(machine.files(), broken);
}

#[test]
fn install_never_activates_what_nginx_refuses() {
    // A valid configuration, with a session cache of our name but another size.
    let site = "ssl_session_cache shared:certs_tls:1m;\nserver { listen 127.0.0.1:HTTP; server_name www.example.com; }";
    let Some(machine) = Machine::new(site) else {
        return;
    };
    let before = machine.files();
    let printed = run(&mut machine.install(&[]), 2);
    assert_says(
        &printed,
        &["nothing was changed", "conflicts", "sites-available/site:"],
    );
    assert_eq!(machine.files(), before);
    assert!(!machine.path("data.install/0001").exists());
}

#[test]
fn next_command_recovers_from_crash_between_writes() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    let before = machine.files();
    run(&mut machine.install(&["--domain", "www.example.com"]), 0);
    let installed = machine.site();
    // The state after a crash behind the last rename.
    std::fs::remove_file(machine.path("data.install/0001/done")).unwrap();
    let printed = run(&mut machine.install(&["--domain", "www.example.com"]), 0);
    assert!(printed.contains("cut off"), "{printed}");
    assert_eq!(machine.site(), installed);
    std::fs::remove_file(machine.path("data.install/0001/done")).unwrap();
    let conf = machine.path("nginx.conf");
    run(machine.install(&["--undo"]).arg("--conf").arg(conf), 0);
    assert_eq!(machine.files(), before);
}

#[test]
fn undo_keeps_manual_edit_and_names_original() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    run(&mut machine.install(&["--domain", "www.example.com"]), 0);
    let edited = machine.site() + "# mine\n";
    machine.write_site(&edited);
    let printed = run(&mut machine.install(&["--undo"]), 2);
    assert!(printed.contains("data.install/0001/0"), "{printed}");
    assert_eq!(machine.site(), edited);
}

#[test]
fn edited_file_of_a_whole_install_gets_its_first_original_by_the_printed_commands() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    let ca = issued::ca_of(&machine);
    machine.start();
    let before = machine.files();
    run(
        &mut issued::whole(&machine, &ca, &["--domain", "example.com"]),
        0,
    );
    machine.write_site(&(machine.site() + "# mine\n"));
    let printed = run(&mut machine.install(&["--undo"]), 2);
    let (_, copy) = printed.split_once("to have the original: ").unwrap();
    let (copy, rest) = copy.split_once(", then certs ").unwrap();
    let copied = Command::new("sh").args(["-c", copy]).status().unwrap();
    assert!(copied.success(), "{copy}");
    let (undo, _) = rest.split_once(" again;").unwrap();
    let mut undone = certs(machine.directory.path());
    run(undone.args(undo.split(' ')), 0);
    assert_eq!(machine.files(), before);
}

fn json(command: &mut Command) -> serde_json::Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Installs as a user with permission to read everything and to write everywhere but the site.
fn install_as_nobody(machine: &Machine) {
    // nginx creates its directories first.
    assert!(machine.signal(&["-t"]));
    let own = |path: &Path| chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    own(machine.directory.path());
    for log in ["error.log", "nginx.pid"] {
        std::fs::write(machine.path(log), "").unwrap();
        own(&machine.path(log));
    }
    let mut whole = machine.install(&["--domain", "example.com"]);
    whole.env("CERTS_DATA_DIR", machine.path("data"));
    let printed = run(&mut as_nobody(&whole, machine.directory.path()), 2);
    assert_says(
        &printed,
        &[
            "sites-available/site: cannot be written",
            "nothing was changed",
            "hint: run as a user that may write the file",
        ],
    );
    // Root obeys no configuration in another user's directory.
    chown(machine.directory.path(), Some(0), Some(0)).unwrap();
    std::fs::remove_file(machine.path("certs")).unwrap();
    for made in ["data", "data.install", "data-webroot"] {
        std::fs::remove_dir_all(machine.path(made)).unwrap();
    }
}

#[test]
fn install_without_write_permission_reports_and_prints_json() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    let before = machine.files();
    if rustix::process::geteuid().is_root() {
        install_as_nobody(&machine);
        assert_eq!(machine.files(), before);
    }

    let mut command = machine.install(&["--domain", "example.com", "--json"]);
    let shown = json(&mut command);
    assert_eq!(shown["name"], "example.com");
    assert_eq!(shown["names"].as_array().unwrap().len(), 2);
    let site = machine.path("sites-available/site");
    assert_eq!(shown["changed"][0], site.to_str().unwrap());
    assert_eq!(
        (&shown["issued"], &shown["reloaded"]),
        (&false.into(), &false.into())
    );
    assert!(shown["next"].as_str().unwrap().starts_with("certs issue "));
    // Undoes by its other name, and prints JSON too.
    let mut command = machine.install(&["--undo", "--domain", "www.example.com", "--json"]);
    let undone = json(&mut command);
    assert_eq!(undone["undone"][0]["name"], "example.com");
    assert_eq!(machine.files(), before);
}

/// A site in a directory of another user, and a file of root's. `None` without root.
fn site_of_another_user(what: &str) -> Option<(Machine, PathBuf)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {what}: only root may give files away");
        return None;
    }
    let machine = Machine::new(PLAIN)?;
    let secret = machine.path("shadow");
    std::fs::write(&secret, "root's own").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    for path in ["sites-available", "sites-available/site"] {
        chown(machine.path(path), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    Some((machine, secret))
}

fn assert_is_roots_own(secret: &Path, case: &str) {
    let found = std::fs::metadata(secret).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o600), "{case}");
    assert_eq!(std::fs::read(secret).unwrap(), b"root's own", "{case}");
}

#[test]
fn race_for_the_new_file_of_an_install_gives_away_no_file_of_root() {
    for round in 0..by_depth(3, 20, 200) {
        let Some((machine, secret)) = site_of_another_user("a race for an install") else {
            return;
        };
        let aside = machine.path("sites-available/.site.certs-new");
        let ended = AtomicBool::new(false);
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    // The name exists or not; both are part of the race.
                    let _ = std::fs::remove_file(&aside);
                    let _ = std::fs::hard_link(&secret, &aside);
                }
            });
            let output = machine.install(&["--domain", "example.com"]).output();
            ended.store(true, Ordering::Relaxed);
            output.unwrap()
        });
        let case = format!("round {round}: {}", text(&output));
        assert_is_roots_own(&secret, &case);
        assert!(output.status.code().is_some(), "{case}");
    }
}

#[test]
fn undo_follows_no_link_of_another_user() {
    let Some((machine, secret)) = site_of_another_user("an undo behind a link") else {
        return;
    };
    run(&mut machine.install(&["--domain", "example.com"]), 0);
    let site = std::fs::metadata(machine.path("sites-available/site")).unwrap();
    assert_eq!(site.uid(), NOBODY, "the new file is its user's");
    let (sites, other) = (machine.path("sites-available"), machine.path("other"));
    std::fs::rename(&sites, machine.path("before")).unwrap();
    std::fs::create_dir(&other).unwrap();
    let aside = other.join(".site.certs-new");
    for path in [other.join("site"), aside.clone()] {
        std::fs::hard_link(&secret, path).unwrap();
    }
    std::os::unix::fs::symlink(&other, &sites).unwrap();
    std::os::unix::fs::lchown(&sites, Some(NOBODY), Some(NOBODY)).unwrap();
    let printed = run(&mut machine.install(&["--undo"]), 8);
    assert_says(
        &printed,
        &[
            "sites-available is a link that another user can replace",
            "hint: certs did not make it",
        ],
    );
    assert_is_roots_own(&secret, &printed);
    assert!(aside.exists() && other.join("site").exists());
    std::fs::remove_file(&sites).unwrap();
    std::fs::rename(machine.path("before"), &sites).unwrap();
    run(&mut machine.install(&["--undo"]), 0);
}

/// A pair of another tool, below `name`.
fn pair(machine: &Machine, name: &str) -> String {
    let directory = machine.path(name);
    std::fs::create_dir_all(&directory).unwrap();
    let made = rcgen::generate_simple_self_signed(["www.example.com".to_owned()]).unwrap();
    std::fs::write(directory.join("fullchain.pem"), made.cert.pem()).unwrap();
    std::fs::write(
        directory.join("privkey.pem"),
        made.signing_key.serialize_pem(),
    )
    .unwrap();
    directory.display().to_string()
}

#[test]
fn certbot_certificate_stays_until_replaced() {
    let Some(machine) = Machine::new("") else {
        return;
    };
    let live = pair(&machine, "letsencrypt/live/www.example.com");
    let site = format!(
        "server {{\n    server_name www.example.com;\n    listen 127.0.0.1:{} ssl; # managed by Certbot\n    \
         ssl_certificate {live}/fullchain.pem; # managed by Certbot\n    \
         ssl_certificate_key {live}/privkey.pem; # managed by Certbot\n}}\n\
         server {{\n    if ($host = www.example.com) {{ return 301 https://$host$request_uri; }}\n    \
         listen 127.0.0.1:HTTP;\n    server_name www.example.com;\n    return 404; # managed by Certbot\n}}\n",
        machine.https
    );
    machine.write_site(&site);
    let before = machine.site();
    let printed = run(&mut machine.install(&[]), 0);
    assert!(printed.contains("it keeps its certificate"), "{printed}");
    let once = machine.site();
    assert!(
        once.contains("/.well-known/acme-challenge/") && once.contains(&live),
        "{once}"
    );
    // Imitates an issued certificate.
    let archive = machine.path("out/archive/www.example.com");
    std::fs::rename(archive.join("0000"), archive.join("0001")).unwrap_or_else(|_| {
        std::fs::rename(archive.join("0"), archive.join("1")).unwrap();
    });
    let link = machine.path("out/live/www.example.com");
    let target = std::fs::read_link(&link).unwrap();
    let number = target
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .replacen('0', "1", 1);
    let number = if archive.join(&number).exists() {
        number
    } else {
        "0001".to_owned()
    };
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(format!("../archive/www.example.com/{number}"), &link).unwrap();
    let printed = run(&mut machine.install(&[]), 0);
    // Its files stay for the way back.
    assert!(
        printed.contains("systemctl disable --now certbot.timer") && !printed.contains("delete"),
        "{printed}"
    );
    assert!(!machine.site().contains(&live), "{}", machine.site());
    assert!(machine.site().contains("# managed by Certbot"));
    let printed = run(&mut machine.install(&[]), 0);
    assert!(printed.contains("nothing to change"), "{printed}");
    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.site(), before);
}

/// Answers every request with its own text, and an upgrade with 101.
fn back_end() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut request) = (stream.unwrap(), Vec::new());
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                request.push(byte[0]);
            }
            let asked = String::from_utf8_lossy(&request).into_owned();
            let answer = if asked.contains("Upgrade: websocket") {
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n".to_owned()
            } else {
                format!(
                    "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{asked}",
                    asked.len()
                )
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

fn write(path: &Path, content: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

#[test]
fn site_serves_front_end_and_back_end() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    write(&machine.path("sites-available/site"), "");
    let before = machine.files();
    let www = machine.path("www");
    write(
        &www.join("index.html"),
        &format!("<p>app {}</p>", "x".repeat(2000)),
    );
    write(&www.join("assets/app-DiwrgTda.js"), "app()");
    write(&www.join("robots.txt"), "robots");
    let api = format!("http://127.0.0.1:{}", back_end());
    let www = www.to_str().unwrap();
    let site = [
        "--site",
        "--domain",
        "www.example.com",
        "--root",
        www,
        "--api",
        &api,
        "--cors-origin",
        "https://app.example.org",
    ];
    let printed = run(&mut machine.install(&site), 0);
    assert!(
        printed.contains("sites-available/www.example.com.conf"),
        "{printed}"
    );
    assert!(
        machine
            .path("sites-enabled/www.example.com.conf")
            .is_symlink()
    );
    assert!(run(&mut machine.install(&site), 0).contains("nothing to change"));
    // A second site shares no variable with the first.
    let mut other = site;
    other[2] = "other.example.com";
    run(&mut machine.install(&other), 0);
    machine.start();
    until("TLS", || listens(machine.https));
    let ask = |path: &str, more: &[&str]| {
        machine.ask(&format!("https://www.example.com:HTTPS{path}"), more)
    };

    let page = ask("/some/deep/page", &["--compressed"]);
    assert!(
        page.contains("<p>app ") && page.contains("cache-control: no-cache"),
        "{page}"
    );
    assert!(page.contains("content-encoding: gzip"), "{page}");
    assert!(
        page.contains("strict-transport-security: max-age=63072000"),
        "{page}"
    );
    assert!(page.starts_with("http/2 200"), "{page}");
    let asset = ask("/assets/app-DiwrgTda.js", &[]);
    assert!(
        asset.ends_with("app()") && asset.contains("immutable"),
        "{asset}"
    );
    assert!(ask("/assets/app-AAAAAAAA.js", &[]).starts_with("http/2 404"));
    assert!(!ask("/robots.txt", &[]).contains("immutable"));

    let called = ask("/api/users?x=1", &["-H", "X-Forwarded-For: 6.6.6.6"]);
    for word in [
        "get /api/users?x=1 ",
        "host: www.example.com",
        "x-forwarded-proto: https",
        "x-forwarded-for: 127.0.0.1",
        "strict-transport-security",
    ] {
        assert!(called.contains(word), "{word}: {called}");
    }
    assert!(
        !called.contains("access-control-allow-origin") && !called.contains("6.6.6.6"),
        "{called}"
    );
    let upgrade = ask(
        "/api/socket",
        &[
            "--http1.1",
            "-H",
            "Connection: Upgrade",
            "-H",
            "Upgrade: websocket",
            "--max-time",
            "2",
        ],
    );
    assert!(upgrade.starts_with("http/1.1 101"), "{upgrade}");

    let preflight = |origin: &str| {
        let origin = format!("Origin: {origin}");
        ask(
            "/api/users",
            &[
                "-X",
                "OPTIONS",
                "-H",
                &origin,
                "-H",
                "Access-Control-Request-Method: PUT",
                "-H",
                "Access-Control-Request-Headers: x-token",
            ],
        )
    };
    let allowed = preflight("https://app.example.org");
    for word in [
        "http/2 204",
        "access-control-allow-origin: https://app.example.org",
        "allow-credentials: true",
        "allow-headers: x-token",
        "put, ",
    ] {
        assert!(allowed.contains(word), "{word}: {allowed}");
    }
    for origin in [
        "https://evil.example.org",
        "https://app.example.org.evil.net",
        "https://appxexample.org",
    ] {
        let refused = preflight(origin);
        assert!(
            !refused.contains("access-control-allow-origin") && !refused.contains("credentials"),
            "{refused}"
        );
    }
    let plain = ask("/api/users", &["-H", "Origin: https://app.example.org"]);
    assert_eq!(
        plain.matches("\naccess-control-allow-origin:").count(),
        1,
        "{plain}"
    );
    let moved = machine.ask("http://www.example.com:HTTP/x", &[]);
    assert!(moved.contains(" 307 "), "{moved}");

    assert!(run(&mut machine.install(&["--undo"]), 0).contains("as it was before"));
    assert_eq!(machine.files(), before);
}

#[test]
fn site_with_invalid_options_is_refused() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    let before = machine.files();
    let site = |more: &[&str]| {
        let all = [
            &["--site", "--domain", "new.example.com", "--root", "/srv"],
            more,
        ]
        .concat();
        let printed = run(&mut machine.install(&all), 2);
        assert_eq!(machine.files(), before);
        printed
    };
    assert!(site(&["--cors-origin", "*"]).contains("invalid origin"));
    assert!(site(&["--cors-origin", "https://a.example/path"]).contains("invalid origin"));
    assert!(site(&["--api", "http://x; }"]).contains("invalid URL"));
    let elsewhere = machine.path("elsewhere.conf");
    assert!(site(&["--file", elsewhere.to_str().unwrap()]).contains("no include"));
}
