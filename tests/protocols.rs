//! Targets with a protocol of their own: units over D-Bus, containers through Docker's API, Caddy by its
//! admin API. If the server itself cannot run in a test, a script answers by the server's documentation, over
//! a real bus or socket.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::extract::{Path as Part, State};
use axum::http::{StatusCode, Uri};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use zbus::object_server::SignalEmitter;
use zbus::zvariant::OwnedObjectPath;

use crate::support::embedded::EmbeddedCa;
use crate::support::{Running, certs, free_port, listens, program, run, until};
use crate::targets::{NAME, generation, issued, live, verify};

/// The unit jobs, in order.
pub(crate) type Calls = Arc<Mutex<Vec<String>>>;

/// The interface as org.freedesktop.systemd1 documents it.
struct SystemdManager {
    done: Calls,
    result: &'static str,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl SystemdManager {
    fn subscribe(&self) {}

    fn load_unit(&self, name: String) -> zbus::fdo::Result<OwnedObjectPath> {
        match name.as_str() {
            "web.service" => Ok(OwnedObjectPath::try_from("/unit/web").unwrap()),
            _ => Err(zbus::fdo::Error::Failed(format!("no unit {name}"))),
        }
    }

    async fn reload_unit(
        &self,
        name: String,
        mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> OwnedObjectPath {
        self.done.lock().unwrap().push(format!("{name} {mode}"));
        let job = OwnedObjectPath::try_from("/job/7").unwrap();
        Self::job_removed(&emitter, 7, job.clone(), name, self.result.to_owned())
            .await
            .unwrap();
        job
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

struct SystemdUnit;

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl SystemdUnit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        "active".to_owned()
    }
}

/// A private bus with a manager whose jobs end with `result`.
fn bus(
    ca: &EmbeddedCa,
    result: &'static str,
) -> Option<(Running, tokio::runtime::Runtime, String, Calls)> {
    let program = program("CERTS_LAB_DBUS", "/usr/bin/dbus-daemon")?;
    let socket = ca.path("bus");
    let address = format!("unix:path={}", socket.display());
    let daemon = Running::start(Command::new(program).args([
        "--session",
        "--nofork",
        "--nopidfile",
        "--address",
        &address,
    ]));
    until("the bus", || socket.exists());
    let done = Calls::default();
    let manager = SystemdManager {
        done: done.clone(),
        result,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
    let connection = runtime.block_on(async {
        zbus::connection::Builder::address(address.as_str())
            .unwrap()
            .name("org.freedesktop.systemd1")
            .unwrap()
            .serve_at("/org/freedesktop/systemd1", manager)
            .unwrap()
            .serve_at("/unit/web", SystemdUnit)
            .unwrap()
            .build()
            .await
            .unwrap()
    });
    runtime.spawn(async move {
        let _held = connection;
        std::future::pending::<()>().await;
    });
    Some((daemon, runtime, address, done))
}

/// Renews with a `[deploy.NAME]` of these keys.
fn renew(ca: &EmbeddedCa, keys: &str, code: i32) -> String {
    std::fs::write(ca.path("certs.toml"), format!("[deploy.it]\n{keys}\n")).unwrap();
    let mut command = ca.issue(&[NAME, "--force", "--deploy=it"]);
    run(command.current_dir(ca.path("")), code)
}

#[test]
fn systemd_target_reloads_unit_over_bus_and_reports_its_failure() {
    let ca = issued();
    let Some((_daemon, _runtime, address, done)) = bus(&ca, "done") else {
        return;
    };
    let keys = |unit: &str| format!("kind = 'systemd'\nunit = '{unit}'\nbus = '{address}'");
    renew(&ca, &keys("web"), 0);
    assert_eq!(*done.lock().unwrap(), ["web.service replace"]);
    let printed = renew(&ca, &keys("absent"), 7);
    assert!(printed.contains("no unit absent.service"), "{printed}");

    let ca = issued();
    let Some((_daemon, _runtime, address, _)) = bus(&ca, "failed") else {
        return;
    };
    let keys = format!("kind = 'systemd'\nunit = 'web'\nbus = '{address}'");
    let printed = renew(&ca, &keys, 7);
    assert!(
        printed.contains("its reload ended with `failed`"),
        "{printed}"
    );
    assert_eq!(generation(&ca), 1);
}

/// Docker's API as far as it is used; `create` is the status of requests to create a container.
#[derive(Clone)]
struct DockerApi {
    create: u16,
    exit_code: i64,
    done: Calls,
}

async fn kill(
    State(api): State<DockerApi>,
    Part(name): Part<String>,
    asked: Uri,
) -> (StatusCode, Json<Value>) {
    if name != "web" {
        let message = json!({"message": format!("No such container: {name}")});
        return (StatusCode::NOT_FOUND, Json(message));
    }
    let signal = asked.query().unwrap().strip_prefix("signal=").unwrap();
    api.done
        .lock()
        .unwrap()
        .push(format!("kill {name} {signal}"));
    (StatusCode::NO_CONTENT, Json(json!({})))
}

async fn exec(State(api): State<DockerApi>, Json(asked): Json<Value>) -> (StatusCode, Json<Value>) {
    api.done
        .lock()
        .unwrap()
        .push(format!("run {}", asked["Cmd"]));
    (StatusCode::CREATED, Json(json!({"Id": "4f1e"})))
}

pub(crate) fn docker(
    ca: &EmbeddedCa,
    create: u16,
    exit_code: i64,
) -> (tokio::runtime::Runtime, String, Calls) {
    let api = DockerApi {
        create,
        exit_code,
        done: Calls::default(),
    };
    let done = api.done.clone();
    let router =
        Router::new()
            .route(
                "/containers/create",
                post(|State(api): State<DockerApi>| async move {
                    StatusCode::from_u16(api.create).unwrap()
                }),
            )
            .route("/containers/{name}/kill", post(kill))
            .route("/containers/{name}/exec", post(exec))
            // The output is longer than the part that is kept.
            .route("/exec/{id}/start", post(|| async { "out".repeat(1 << 20) }))
            .route(
                "/exec/{id}/json",
                get(|State(api): State<DockerApi>| async move {
                    Json(json!({"ExitCode": api.exit_code}))
                }),
            )
            .with_state(api);
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
    let socket = ca.path(&format!("docker-{create}-{exit_code}.sock"));
    let inside = runtime.enter();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    drop(inside);
    runtime.spawn(async move { axum::serve(listener, router).await });
    (runtime, format!("unix://{}", socket.display()), done)
}

#[test]
fn systemd_target_refuses_bus_that_is_not_a_socket() {
    let ca = issued();
    for bus in [
        "unixexec:path=/bin/true",
        "tcp:host=localhost,port=1",
        "unix:path=/a;unixexec:path=/b",
    ] {
        let printed = renew(
            &ca,
            &format!("kind = 'systemd'\nunit = 'web'\nbus = '{bus}'"),
            2,
        );
        assert!(
            printed.contains("a bus is one `unix:` address"),
            "{printed}"
        );
    }
    assert_eq!(generation(&ca), 1);
}

#[test]
fn docker_target_signals_container_through_filtered_api_only() {
    let ca = issued();
    let (_runtime, host, done) = docker(&ca, 403, 0);
    // The variable that Docker's own programs read.
    let mut command = ca.issue(&[NAME, "--force", "--deploy=docker:web:USR1"]);
    run(command.env("DOCKER_HOST", &host), 0);
    assert_eq!(*done.lock().unwrap(), ["kill web USR1"]);
    let keys = |more: &str| format!("kind = 'docker'\nhost = '{host}'\n{more}");
    let printed = renew(&ca, &keys("container = 'other'"), 7);
    assert!(printed.contains("No such container: other"), "{printed}");
    let program = "container = 'web'\ncommand = ['nginx', '-s', 'reload']";
    renew(&ca, &keys(program), 0);
    assert_eq!(done.lock().unwrap()[1], "run [\"nginx\",\"-s\",\"reload\"]");

    let (_runtime, host, _) = docker(&ca, 403, 3);
    let printed = renew(
        &ca,
        &format!("kind = 'docker'\nhost = '{host}'\n{program}"),
        7,
    );
    assert!(printed.contains("ended with 3"), "{printed}");
}

#[test]
fn docker_target_uses_unfiltered_api_only_when_configured() {
    let ca = issued();
    let (_runtime, host, done) = docker(&ca, 400, 0);
    let keys = format!("kind = 'docker'\ncontainer = 'web'\nhost = '{host}'");
    let printed = renew(&ca, &keys, 7);
    assert!(
        printed.contains("root on the host") && printed.contains("accept_raw_socket"),
        "{printed}"
    );
    assert!(done.lock().unwrap().is_empty());
    assert_eq!(generation(&ca), 1);
    renew(&ca, &format!("{keys}\naccept_raw_socket = true"), 0);
    assert_eq!(*done.lock().unwrap(), ["kill web HUP"]);
}

/// Caddy with its port and its admin port; `None` if it ended before it listened.
fn begin_caddy(ca: &EmbeddedCa, program: &std::path::Path, admin: &str) -> Option<(Running, u16)> {
    let (port, plain) = (free_port(), free_port());
    let file = ca.path("Caddyfile");
    let live = live(ca).display().to_string();
    let config = format!(
        "{{\n  admin {admin}\n  auto_https off\n  http_port {plain}\n}}\n\
         https://{NAME}:{port} {{\n  bind 127.0.0.1\n  tls {live}/fullchain.pem {live}/privkey.pem\n  respond ok\n}}\n"
    );
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&file);
    command.env("HOME", ca.path("")).process_group(0);
    let mut running = Running::start(&mut command);
    let mut ended = false;
    until("Caddy", || {
        ended = running.has_ended();
        // Its admin API listens first.
        ended || listens(port)
    });
    (!ended).then_some((running, port))
}

#[test]
fn caddy_target_reloads_configuration_with_new_pair() {
    let ca = issued();
    let Some(program) = program("CERTS_LAB_CADDY", "/usr/bin/caddy") else {
        return;
    };
    // Another process may take a free port before Caddy binds it.
    let start = |admin: &str| {
        let mut tries = (0..5).filter_map(|_| begin_caddy(&ca, &program, admin));
        tries.next().expect("Caddy does not start")
    };
    let admin = format!("localhost:{}", free_port());
    let (running, port) = start(&admin);
    let deploy = format!("--deploy=caddy:{admin}");
    for wanted in 2..=3 {
        run(&mut ca.issue(&[NAME, "--force", &deploy, &verify(port)]), 0);
        assert_eq!(generation(&ca), wanted);
    }
    run(certs(&ca.path("")).args(["rollback", NAME]), 0);
    assert_eq!(generation(&ca), 2);
    drop(running);
    let admin = format!("unix/{}", ca.path("admin.sock").display());
    let (_running, port) = start(&admin);
    let deploy = format!("--deploy=caddy:{admin}");
    run(&mut ca.issue(&[NAME, "--force", &deploy, &verify(port)]), 0);
    assert_eq!(generation(&ca), 4);
}

#[test]
fn copies_are_written_before_reloads_and_rolled_back_with_them() {
    let ca = issued();
    let password = ca.path("password");
    std::fs::write(&password, "changeit\n").unwrap();
    let store = ca.path("store.p12");
    let hook = ca.path("hook");
    let log = ca.path("seen");
    let seen = format!("sha256sum {} >>{}", store.display(), log.display());
    crate::targets::script(&hook, &seen);
    let config = format!(
        "[deploy.java]\nkind = 'file'\nformat = 'pkcs12'\npath = '{}'\npassword_file = '{}'\nmode = '0600'\n\
         [deploy.copy]\nkind = 'file'\npath = '{}/{{name}}.pem'\n[deploy.hook]\nkind = 'exec'\ncommand = ['{}']\n",
        store.display(),
        password.display(),
        ca.path("").display(),
        hook.display()
    );
    std::fs::write(ca.path("certs.toml"), config).unwrap();
    let renew = |code: i32| {
        let deploy = ["--deploy=hook", "--deploy=java", "--deploy=copy"];
        let mut command = ca.issue(&[NAME, "--force", deploy[0], deploy[1], deploy[2]]);
        run(command.current_dir(ca.path("")), code)
    };
    renew(0);
    let copy = ca.path(&format!("{NAME}.pem"));
    let combined = live(&ca).join("combined.pem");
    let same = || std::fs::read(&copy).unwrap() == std::fs::read(&combined).unwrap();
    assert!(same());
    // The hook has the store as input: copies come first, whatever their position in the list.
    assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 1);
    let sound = std::fs::read(&combined).unwrap();
    crate::targets::script(&hook, "exit 1");
    renew(7);
    assert!(same() && std::fs::read(&copy).unwrap() == sound);
    if let Some(keytool) = program("CERTS_LAB_OPENSSL", "/usr/bin/openssl") {
        let mut command = Command::new(keytool);
        command
            .args(["pkcs12", "-nodes", "-passin", "pass:changeit", "-in"])
            .arg(&store);
        let printed = run(&mut command, 0);
        assert!(
            printed.contains("BEGIN PRIVATE KEY") && printed.contains(NAME),
            "{printed}"
        );
    }
    std::fs::remove_file(&password).unwrap();
    let printed = renew(7);
    assert!(printed.contains("password"), "{printed}");
}

#[test]
fn sandboxed_sidecar_reloads_every_target() {
    let ca = issued();
    let (directory, port, admin) = (ca.path("haproxy"), free_port(), free_port());
    let file = directory.join("example.pem");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(live(&ca).join("combined.pem"), &file).unwrap();
    let Some(_haproxy) = crate::targets::haproxy(&directory, port, &file) else {
        return;
    };
    let (hook, log) = (ca.path("hook"), ca.path("seen"));
    crate::targets::script(&hook, &format!("echo $RENEWED_DOMAINS >>{}", log.display()));
    let (_runtime, host, done) = docker(&ca, 403, 0);
    let is_root = rustix::process::geteuid().is_root();
    let owner = if is_root { "owner = '4321'\n" } else { "" };
    let config = format!(
        "ca = '{}'\nca_root = 'root.pem'\nagree_tos = true\nhttp_listen = ['127.0.0.1:{}']\n\
         data_dir = 'data'\noutput_dir = 'out'\n[admin]\nlisten = '127.0.0.1:{admin}'\n\
         [deploy.front]\nkind = 'haproxy'\nsocket = '{}'\ncertificate = '{}'\n\
         [deploy.hook]\nkind = 'exec'\ncommand = ['{}']\n\
         [deploy.web]\nkind = 'docker'\ncontainer = 'web'\nhost = '{host}'\n\
         [deploy.copy]\nkind = 'file'\npath = 'copies/{{name}}.pem'\n\
         [deploy.store]\nkind = 'file'\npath = 'copies/{{name}}.p12'\nformat = 'pkcs12'\npassword_file = 'secret/password'\n{owner}\
         [[certificate]]\nnames = ['{NAME}']\nverify = ['127.0.0.1:{port}']\n",
        ca.server.directory_url(),
        ca.http_port,
        directory.join("admin.sock").display(),
        file.display(),
        hook.display(),
    );
    std::fs::create_dir(ca.path("copies")).unwrap();
    std::fs::create_dir(ca.path("secret")).unwrap();
    std::fs::write(ca.path("secret/password"), "changeit\n").unwrap();
    std::fs::write(ca.path("certs.toml"), config).unwrap();
    let said = std::fs::File::create(ca.path("log")).unwrap();
    let mut command = certs(&ca.path(""));
    command.arg("run").current_dir(ca.path(""));
    let _sidecar = Running::start_logging(&mut command, said.into());
    until("the control socket", || ca.path("data/admin.sock").exists());
    let mut renew = certs(&ca.path(""));
    let printed = run(renew.current_dir(ca.path("")).args(["renew", "--force"]), 0);
    assert!(printed.contains("generation 0002"), "{printed}");
    assert_eq!(generation(&ca), 2);
    let combined = std::fs::read(live(&ca).join("combined.pem")).unwrap();
    for copy in [file, ca.path(&format!("copies/{NAME}.pem"))] {
        assert_eq!(std::fs::read(copy).unwrap(), combined);
    }
    let store = std::fs::metadata(ca.path(&format!("copies/{NAME}.p12"))).unwrap();
    assert!(!is_root || std::os::unix::fs::MetadataExt::uid(&store) == 4321);
    assert!(std::fs::read_to_string(log).unwrap().contains(NAME));
    assert_eq!(done.lock().unwrap().last().unwrap(), "kill web HUP");
    let mut reload = certs(&ca.path(""));
    let printed = run(reload.current_dir(ca.path("")).args(["reload"]), 0);
    assert!(
        printed.contains("deployed again; generation 0002"),
        "{printed}"
    );
}

#[test]
fn envoy_loads_each_generation_from_watched_directory() {
    let ca = issued();
    let Some(program) = program("CERTS_LAB_ENVOY", "/usr/bin/envoy") else {
        return;
    };
    let port = free_port();
    let secret = ca.path("sds.yaml");
    let deploy = format!("--deploy=envoy:{}", secret.display());
    // Envoy does not start without the file.
    run(&mut ca.issue(&[NAME, &deploy]), 0);
    let config = format!(
        "static_resources:\n  listeners:\n  - name: tls\n    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n    \
         filter_chains:\n    - transport_socket:\n        name: envoy.transport_sockets.tls\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n          \
         common_tls_context:\n            tls_certificate_sds_secret_configs:\n            - name: {NAME}\n              \
         sds_config: {{resource_api_version: V3, path_config_source: {{path: {secret}}}}}\n      \
         filters:\n      - name: envoy.filters.network.echo\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo\n",
        secret = secret.display()
    );
    let file = ca.path("envoy.yaml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command.args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]);
    command.args(["--service-node", "one", "--service-cluster", "test"]);
    command.arg("-c").arg(&file);
    let _running = Running::start(&mut command);
    until("Envoy", || listens(port));
    for wanted in 2..=4 {
        run(&mut ca.issue(&[NAME, "--force", &deploy, &verify(port)]), 0);
        assert_eq!(generation(&ca), wanted);
    }
}
