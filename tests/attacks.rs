//! Attacks by an unprivileged user on `certs` that root runs, each beside the everyday case that must go on
//! working: processes, pid files, sockets, programs and configuration of that user.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::embedded::EmbeddedCa;
use crate::support::{
    NOBODY, Nginx, Running, as_nobody, certs, make_program, make_script, program, run, text, until,
};
use crate::targets::{NAME, issued, live, verify};

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("SKIPPED: attacks on root need root");
    }
    is_root
}

/// A directory of root's, with one of the unprivileged user's in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.set("", 0o755);
        std::fs::create_dir(place.path("eve")).unwrap();
        place.give("eve");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn set(&self, name: &str, mode: u32) {
        let mode = PermissionsExt::from_mode(mode);
        std::fs::set_permissions(self.path(name), mode).unwrap();
    }

    fn give(&self, name: &str) {
        chown(self.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }

    fn take(&self, name: &str) {
        chown(self.path(name), Some(0), Some(0)).unwrap();
    }

    /// A shell with the name of a server's program.
    fn shell(&self, name: &str) -> PathBuf {
        let shell = std::fs::File::open("/bin/sh").unwrap();
        make_program(&self.path(name), shell);
        self.path(name)
    }
}

/// A process that only waits, and dies of SIGHUP; it ends with its test.
struct Waits(Child);

impl Waits {
    fn start(program: &Path, title: &str, user: u32) -> Self {
        let mut command = Command::new(program);
        command.arg0(title).uid(user).gid(user);
        // It reads commands, or a password, that never come.
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let started = Self(command.stderr(Stdio::null()).spawn().unwrap());
        let title = title.as_bytes();
        let cmdline = format!("/proc/{}/cmdline", started.0.id());
        until("its title", || {
            std::fs::read(&cmdline).unwrap().starts_with(title)
        });
        started
    }

    fn write_pid(&self, file: &Path) {
        std::fs::write(file, self.0.id().to_string()).unwrap();
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn nginx(file: &Path) -> String {
    format!("--deploy=nginx:{}", file.display())
}

#[test]
fn setuid_programs_with_a_servers_title_are_neither_run_nor_signalled() {
    if !is_root() {
        return;
    }
    let (ca, place) = (issued(), Place::new());
    let marker = place.path("eve/marker");
    make_script(
        &place.path("eve/x.sh"),
        &format!("touch {}", marker.display()),
    );
    // The program of another name, and one with nginx's.
    let named = place.path("nginx");
    make_program(&named, std::fs::File::open("/bin/sleep").unwrap());
    place.set("nginx", 0o4755);
    let su = program("CERTS_LAB_SU", "/usr/bin/su");
    let pid_file = place.path("eve/nginx.pid");
    for program in [su, Some(named)].into_iter().flatten() {
        let is_su = program.ends_with("su");
        let x = place.shown("eve/x.sh");
        let mut command = Command::new(&program);
        let title = format!("nginx: master process su -c {x} -- root");
        command.arg0(&title).uid(NOBODY).gid(NOBODY);
        match is_su {
            true => command.args(["-c", &x, "--", "root"]),
            false => command.arg("600"),
        };
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut attack = Waits(command.stderr(Stdio::null()).spawn().unwrap());
        let exe = format!("/proc/{}/exe", attack.0.id());
        until("its program", || {
            std::fs::read_link(&exe).is_ok_and(|exe| exe == program)
        });
        attack.write_pid(&pid_file);
        place.give("eve/nginx.pid");
        let printed = run(&mut ca.issue(&[NAME, "--force", &nginx(&pid_file)]), 7);
        let why = match is_su {
            true => "/usr/bin/su",
            false => "its user ids (real, effective, saved, files) are 65534, 0, 0, 0",
        };
        assert!(
            printed.contains(why) && printed.contains("hint:"),
            "{printed}"
        );
        assert!(attack.lives() && !marker.exists(), "{printed}");
    }
}

#[test]
fn stale_pid_file_signals_no_process_of_another_user() {
    if !is_root() {
        return;
    }
    let (ca, place) = (issued(), Place::new());
    let program = place.shell("eve/nginx");
    let mut attack = Waits::start(&program, "nginx: master process nginx", NOBODY);
    // Root's nginx wrote it, and was killed.
    let pid_file = place.path("nginx.pid");
    attack.write_pid(&pid_file);
    let file = std::fs::File::options()
        .write(true)
        .open(&pid_file)
        .unwrap();
    let now = file.metadata().unwrap().modified().unwrap();
    file.set_modified(now - Duration::from_secs(3600)).unwrap();
    let printed = run(&mut ca.issue(&[NAME, "--force", &nginx(&pid_file)]), 7);
    assert!(
        printed.contains("is not trusted") && printed.contains("stale"),
        "{printed}"
    );
    assert!(attack.lives());
    // A pid file of that user names no process of root's.
    let own = place.shell("nginx");
    let mut roots = Waits::start(&own, "nginx: master process nginx", 0);
    let theirs = place.path("eve/nginx.pid");
    roots.write_pid(&theirs);
    place.give("eve/nginx.pid");
    let printed = run(&mut ca.issue(&[NAME, "--force", &nginx(&theirs)]), 7);
    assert!(
        printed.contains("the pid file belongs to user 65534"),
        "{printed}"
    );
    assert!(roots.lives());
}

/// Processes whose title names a program to run, beside an nginx that serves what is verified.
struct Titled {
    // It ends first: its files are the CA's.
    real: Nginx,
    ca: EmbeddedCa,
    place: Place,
}

impl Titled {
    fn new() -> Option<Self> {
        let (ca, place) = (is_root().then(issued)?, Place::new());
        let real = Nginx::start(&live(&ca))?;
        let touch = format!("touch {}", place.shown("marker"));
        make_script(&place.path("run"), &touch);
        Some(Self { real, ca, place })
    }

    /// Issues by `through`, with `program` as a server of `user`'s: whether it was signalled,
    /// whether the program was run, and the output.
    fn issue(
        &self,
        program: &Path,
        user: u32,
        through: impl FnOnce(Command) -> Command,
    ) -> (bool, bool, String) {
        let Self { ca, place, real } = self;
        // Run with that option, this program would run what the title says.
        let title = format!("nginx: master process nginx -c {}", place.shown("run"));
        let mut server = Waits::start(program, &title, user);
        let file = place.path("nginx.pid");
        server.write_pid(&file);
        chown(&file, Some(user), None).unwrap();
        let (deploy, verify) = (nginx(&real.pid_file), verify(real.port));
        let issue = ca.issue(&[NAME, "--force", &nginx(&file), &deploy, &verify]);
        let done = through(issue).output().unwrap();
        if done.status.success() {
            until("its reload", || !server.lives());
        }
        let was_run = std::fs::remove_file(place.path("marker")).is_ok();
        (!server.lives(), was_run, text(&done))
    }
}

#[test]
fn server_of_another_user_is_signalled_and_its_program_is_not_run() {
    let Some(titled) = Titled::new() else {
        return;
    };
    let place = &titled.place;
    let runs = |program: &Path, user: u32| {
        let (is_signalled, was_run, printed) = titled.issue(program, user, |issue| issue);
        assert!(is_signalled, "{printed}");
        was_run
    };
    let theirs = place.shell("eve/nginx");
    place.give("eve/nginx");
    assert!(!runs(&theirs, NOBODY), "another user's process");
    assert!(!runs(&theirs, 0), "another user's program");
    std::fs::create_dir(place.path("sbin")).unwrap();
    let own = place.shell("sbin/nginx");
    assert!(!runs(&own, NOBODY), "root's program, another user's");
    assert!(runs(&own, 0), "root's own");
    for (part, mode) in [("sbin/nginx", 0o757), ("sbin", 0o775), ("sbin", 0o1777)] {
        place.set(part, mode);
        let is_sticky = mode == 0o1777;
        assert_eq!(runs(&own, 0), is_sticky, "{part} {mode:o}");
        place.set(part, 0o755);
    }
}

#[test]
fn server_is_signalled_and_not_run_where_its_program_is_hidden() {
    let Some(titled) = Titled::new() else {
        return;
    };
    // As in a container without capabilities, beside a server that has some.
    let confined = |issue: Command| {
        let mut without = Command::new("setpriv");
        without.args(["--bounding-set=-all", "--inh-caps=-all"]);
        without.arg(issue.get_program()).args(issue.get_args());
        let set = issue.get_envs();
        without.envs(set.filter_map(|(name, value)| Some((name, value?))));
        without
    };
    for (name, wanted) in [("nginx", true), ("other", false)] {
        let program = titled.place.shell(name);
        let (is_signalled, was_run, printed) = titled.issue(&program, 0, confined);
        assert_eq!((is_signalled, was_run), (wanted, false), "{printed}");
        assert_eq!(printed.contains("not nginx"), !wanted, "{printed}");
    }
}

#[test]
fn programs_that_another_user_can_change_are_not_run() {
    if !is_root() {
        return;
    }
    let (ca, place) = (issued(), Place::new());
    let marker = place.path("marker");
    std::fs::create_dir_all(place.path("a/b")).unwrap();
    make_script(
        &place.path("a/b/hook"),
        &format!("touch {}", marker.display()),
    );
    symlink(place.path("a/b/hook"), place.path("eve/link")).unwrap();
    let deploy = |hook: &str, code| {
        let hook = format!("--deploy=exec:{}", place.shown(hook));
        let printed = run(&mut ca.issue(&[NAME, "--force", &hook]), code);
        assert_eq!(marker.exists(), code == 0, "{printed}");
        let _ = std::fs::remove_file(&marker);
        printed
    };
    deploy("a/b/hook", 0);
    for (part, mode) in [("a", 0o775), ("a/b", 0o757), ("a/b/hook", 0o775)] {
        place.set(part, mode);
        let printed = deploy("a/b/hook", 7);
        let message = format!(
            "{} can be changed by its group or by all users (mode {mode:04o})",
            place.shown(part)
        );
        assert!(
            printed.contains(&message) && printed.contains("chmod go-w"),
            "{printed}"
        );
        place.set(part, 0o755);
    }
    for part in ["a", "a/b", "a/b/hook"] {
        place.give(part);
        let printed = deploy("a/b/hook", 7);
        assert!(printed.contains("belongs to user 65534"), "{printed}");
        place.take(part);
    }
    deploy("eve/link", 7);
    deploy("a/b/hook", 0);
}

#[test]
fn root_reads_no_configuration_of_another_user() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let check = |directory: &str, arguments: &[&str], code| {
        let mut command = certs(&place.path("state"));
        command.args(["config", "check"]).args(arguments);
        run(command.current_dir(place.path(directory)), code)
    };
    let file = "eve/certs.toml";
    std::fs::write(place.path(file), "email = 'eve@example.com'\n").unwrap();
    // The directory is not root's, and then neither is the file.
    for _ in 0..2 {
        let printed = check("eve", &[], 0);
        assert!(printed.contains("./certs.toml is not read: "), "{printed}");
        assert!(
            printed.contains("hint: chown root: ") && printed.contains("(no file)"),
            "{printed}"
        );
        place.give(file);
    }
    let shown = place.shown(file);
    let printed = check("", &["--config", &shown], 2);
    assert!(
        printed.contains("--config: ") && printed.contains("hint: chown root: "),
        "{printed}"
    );
    let mut command = certs(&place.path("state"));
    command
        .args(["config", "check"])
        .env("CERTS_CONFIG", &shown);
    let printed = run(&mut command, 2);
    assert!(printed.contains("CERTS_CONFIG: "), "{printed}");
    place.take("eve");
    place.take(file);
    for mode in [0o775, 0o1777] {
        place.set("eve", mode);
        let printed = check("eve", &[], 0);
        assert!(printed.contains("is not read"), "{printed}");
    }
    place.set("eve", 0o755);
    assert!(check("eve", &[], 0).contains("(certs.toml)"));
    check("", &["--config", &shown], 0);
    // That user obeys its own files, and what it names.
    place.give("eve");
    place.give(file);
    let mut command = certs(&place.path("state"));
    command
        .args(["config", "check"])
        .current_dir(place.path("eve"));
    let own = as_nobody(&command, &place.path(""));
    assert!(run(&mut { own }, 0).contains("(certs.toml)"));
    place.take(file);
    let own = as_nobody(&command, &place.path(""));
    assert!(run(&mut { own }, 0).contains("(certs.toml)"));
}

#[test]
fn group_of_root_may_not_order_from_a_sidecar_of_root() {
    if !is_root() {
        return;
    }
    let Some(curl) = program("CERTS_LAB_CURL", "/usr/bin/curl") else {
        return;
    };
    let place = Place::new();
    let data = place.path("data");
    let mut sidecar = certs(&place.path(""));
    // A sidecar that stays root.
    sidecar.args(["run", "--http-listen", "127.0.0.1:0", "--agree-tos"]);
    sidecar.args(["--harden", "off"]);
    sidecar.env("CERTS_ADMIN_LISTEN", "off");
    let log = std::fs::File::create(place.path("log")).unwrap();
    let _running = Running::start_logging(&mut sidecar, log.into());
    until("the control socket", || data.join("admin.sock").exists());
    place.set("data", 0o755);
    let post = |user: u32, group: u32| {
        let mut post = Command::new(&curl);
        post.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-d", "{}"]);
        post.args(["-H", "content-type: application/json", "--unix-socket"]);
        post.arg(data.join("admin.sock"))
            .arg("http://certs/v1/work");
        text(&post.uid(user).gid(group).output().unwrap())
    };
    assert_eq!(post(NOBODY, 0), "403");
    // Not an order, but it was read.
    assert_eq!(post(0, 0), "422");
}

#[test]
fn key_is_not_sent_to_a_socket_of_another_user() {
    const LISTEN: &str = "import socket, sys\n\
        server = socket.socket(socket.AF_UNIX)\nserver.bind(sys.argv[1])\nserver.listen()\n\
        while True:\n    client, _ = server.accept()\n    open(sys.argv[2], 'ab').write(client.recv(65536))\n    client.close()\n";
    if !is_root() {
        return;
    }
    let Some(python) = program("CERTS_LAB_PYTHON", "/usr/bin/python3") else {
        return;
    };
    let (ca, place) = (issued(), Place::new());
    let tell = |directory: &str| {
        let (socket, log) = (
            place.shown(&format!("{directory}/admin.sock")),
            place.path("eve/log"),
        );
        let mut listen = Command::new(&python);
        listen.args(["-c", LISTEN, &socket]).arg(&log);
        let _listens = Running::start(listen.uid(NOBODY).gid(NOBODY));
        until("the socket", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        let _ = std::fs::remove_file(&log);
        let deploy = format!("--deploy=haproxy:{socket}");
        let printed = run(&mut ca.issue(&[NAME, "--force", &deploy]), 7);
        let received = std::fs::read(&log).unwrap_or_default();
        let _ = std::fs::remove_file(&socket);
        (printed, !received.is_empty())
    };
    for mode in [0o777, 0o1777] {
        std::fs::create_dir_all(place.path("run")).unwrap();
        place.set("run", mode);
        let (printed, received) = tell("run");
        assert!(!received, "{printed}");
        assert!(printed.contains("is of user 65534"), "{printed}");
    }
    // A server's user with a directory of its own, as HAProxy's on Debian.
    std::fs::create_dir(place.path("haproxy")).unwrap();
    place.give("haproxy");
    place.set("haproxy", 0o2775);
    let (printed, received) = tell("haproxy");
    assert!(received, "{printed}");
}

#[test]
fn import_reports_each_program_and_webroot_and_refuses_those_of_another_user() {
    if !is_root() {
        return;
    }
    let (ca, place) = (issued(), Place::new());
    let home = place.path("eve/.acme.sh");
    let own = home.join(format!("{NAME}_ecc"));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::create_dir(place.path("www")).unwrap();
    for (from, to) in [
        ("privkey.pem", format!("{NAME}.key")),
        ("fullchain.pem", "fullchain.cer".to_owned()),
    ] {
        std::fs::copy(live(&ca).join(from), own.join(to)).unwrap();
    }
    make_script(&place.path("hook"), "true");
    make_script(&place.path("eve/hook"), "true");
    let import = |hook: &str, more: &[&str]| {
        let conf = format!(
            "Le_Domain='{NAME}'\nLe_Alt='no'\nLe_Webroot='{}'\nLe_API='{}'\nLe_ReloadCmd='{}'\n",
            place.shown("www"),
            ca.server.directory_url(),
            place.shown(hook),
        );
        std::fs::write(own.join(format!("{NAME}.conf")), conf).unwrap();
        let mut command = certs(&place.path(""));
        command.args(["import", "acme.sh"]).arg(&home).args(more);
        run(&mut command, 0)
    };
    let printed = import("eve/hook", &["--dry-run"]);
    let refused = format!("{} belongs to user 65534", place.shown("eve"));
    assert!(
        printed.contains("not taken") && printed.contains(&refused),
        "{printed}"
    );
    let printed = import("hook", &[]);
    let lines = [
        format!(
            "taken       certificate {NAME}, deployment: exec:{} after each renewal",
            place.shown("hook")
        ),
        format!(
            "taken       certificate {NAME}, webroot: certs writes challenge answers below {}",
            place.shown("www")
        ),
    ];
    for line in lines {
        assert!(printed.contains(&line), "no `{line}` in {printed}");
    }
}

#[test]
fn every_command_makes_a_private_data_directory() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let mode = |name: &str| {
        let found = std::fs::metadata(at(name).join("data")).unwrap();
        found.permissions().mode() & 0o7777
    };
    let mut ca = certs(&at("ca"));
    let _running = Running::start(ca.args(["ca", "serve", "--listen", "127.0.0.1:0"]));
    until("the CA's directory", || {
        at("ca/data/ca/state.json").exists() || at("ca/data/ca/root.pem").exists()
    });
    assert_eq!(mode("ca"), 0o700);
    let Some(nginx) = program("CERTS_LAB_NGINX", "/usr/sbin/nginx") else {
        return;
    };
    let mut install = certs(&at("install"));
    install.args(["install", "nginx", "--nginx"]).arg(nginx);
    std::fs::write(at("nginx.conf"), "invalid").unwrap();
    run(install.arg("--conf").arg(at("nginx.conf")), 2);
    assert_eq!(mode("install"), 0o700);
}

#[test]
fn nginx_of_another_user_is_not_configured_by_root() {
    if !is_root() {
        return;
    }
    let Some(nginx) = program("CERTS_LAB_NGINX", "/usr/sbin/nginx") else {
        return;
    };
    let place = Place::new();
    let main = place.path("eve/nginx.conf");
    std::fs::write(&main, "events {}\nhttp {}\n").unwrap();
    let copy = place.path("eve/nginx");
    make_program(&copy, std::fs::File::open(&nginx).unwrap());
    for program in [&copy, &nginx] {
        let mut install = certs(&place.path(""));
        install.args(["install", "nginx", "--nginx"]).arg(program);
        let printed = run(install.arg("--conf").arg(&main), 2);
        let refused = format!("{} belongs to user 65534", place.shown("eve"));
        assert!(
            printed.contains(&refused) && printed.contains("hint: "),
            "{printed}"
        );
    }
}

#[test]
fn root_reads_no_file_of_the_configuration_that_another_user_can_change() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("theirs");
    let path = file.to_str().unwrap();
    let private = ["--ca", "https://ca.invalid/directory", "--agree-tos"];
    let issue = ["issue", "example.com", "--http-listen", "127.0.0.1:0"];
    let root = [&issue[..], &private, &["--ca-root", path]].concat();
    let key = [
        &issue[..],
        &private,
        &["--eab-kid", "k", "--eab-hmac-file", path],
    ]
    .concat();
    let serve = ["ca", "serve", "--listen", "127.0.0.1:0", "--eab-kid", "k"];
    let serve = [&serve[..], &["--eab-hmac-file", path]].concat();
    for (arguments, variable) in [
        (&root, None),
        (&key, None),
        (&serve, None),
        (&vec!["status"], Some("CERTS_DEPLOY_FILE")),
        (&vec!["config", "check"], Some("CERTS_EMAIL_FILE")),
        (&vec!["status"], Some("CERTS_CONFIG")),
    ] {
        let refused = |hint: &str| {
            let mut command = certs(directory.path());
            command.args(arguments);
            if let Some(variable) = variable {
                command.env(variable, &file);
            }
            let printed = run(&mut command, 2);
            assert!(
                printed.contains(hint),
                "no `{hint}` of {command:?}: {printed}"
            );
        };
        std::fs::write(&file, "").unwrap();
        chown(&file, Some(NOBODY), None).unwrap();
        refused(&format!("hint: chown root: {path}"));
        chown(&file, Some(0), None).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        refused(&format!("hint: chmod go-w {path}"));
        std::fs::remove_file(&file).unwrap();
        // Without a writer it would never end.
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, 0o600.into()).unwrap();
        refused("it is a pipe");
        std::fs::remove_file(&file).unwrap();
    }
}
