//! A container, reached through Docker's API: a signal to its first process, or a program
//! run inside it. An unfiltered API is refused unless the configuration accepts it: a
//! process that may use the whole API is root on the host.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::deploy::docker::{Api, Filter, SOCKET};
use crate::deploy::keys::values::{Argv, within};
use crate::deploy::mounts::{self, Mount};
use crate::deploy::target_settings::prelude::*;
use crate::net::dns::lookup::Resolver;

settings! {
    /// A container gets a signal, or a program runs inside it, through Docker's API. Give `certs` a filtering proxy
    /// that allows the container's `kill` (or `exec`) alone. An unfiltered API is refused unless
    /// `accept_raw_socket = true`: a process that may use it is root on the host. **Docker counts each signal by its
    /// API as a stop by hand.** Until its next start, the container is not restarted if it says `unless-stopped`, nor
    /// with `always` or `on-failure` if its image has no stop signal of its own (seen with Docker 20.10; moby#41302 is
    /// open). So `certs` lets `sh` inside the container send the signal if the proxy also allows
    /// `GET /containers/NAME/json`, `POST /containers/NAME/exec`, `POST /exec/ID/start` and `GET /exec/ID/json`;
    /// otherwise it signals by the API, and warns. No API is needed with a shared PID namespace (`nginx`, `coturn`),
    /// a runtime socket (`haproxy`), or a watcher in the server's container (`deploy/compose.watcher.yaml`).
    struct Settings {
        /// The container's name or identifier
        container: String,
        /// The signal for its first process
        #[schemars(extend("default" = "HUP"))]
        signal: Option<String>,
        /// A program to run inside it, instead of a signal
        command: Option<Argv>,
        /// How long the program may take, from 1s to 60m
        #[schemars(extend("default" = "2m"))]
        timeout: Option<Timeout>,
        /// The address of the API: tcp://HOST:PORT or unix:///PATH
        #[schemars(extend("x-default" = "$DOCKER_HOST, else unix:///var/run/docker.sock"))]
        host: Option<String>,
        /// Whether an unfiltered API may be used
        #[schemars(extend("default" = false))]
        accept_raw_socket: Option<bool>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "docker";
    const SHORT: ShortForm = ShortForm::Keys(&["container", "signal"]);
    const EXAMPLE: &'static str = r#"container = "web"
signal = "HUP"
host = "tcp://docker-proxy:2375""#;
    const STAGE: DeployStage = DeployStage::AllCertificates;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        let words = [
            ("container", Some(&self.container)),
            ("signal", self.signal.as_ref()),
        ];
        let word = words
            .into_iter()
            .find(|(_, word)| word.is_some_and(|word| !is_a_word(word)));
        let (key, message) = match word {
            Some((key, _)) => (
                key,
                "only letters, digits, `_`, `.` and `-` are allowed here",
            ),
            None if self
                .host
                .as_deref()
                .is_some_and(|host| Api::at(host, &Resolver::default()).is_err()) =>
            {
                ("host", "write tcp://HOST:PORT or unix:///PATH")
            }
            None if self.signal.is_some() && self.command.is_some() => {
                ("command", "`signal` and `command` exclude each other")
            }
            None => return None,
        };
        Some(InvalidTarget::key(key, message))
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: self.host().strip_prefix("unix://").map(PathBuf::from),
            reads: None,
            writes: Writes::Nothing,
        }
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }

    fn deadline(&self) -> Duration {
        within(self.timeout.as_ref())
    }
}

impl Settings {
    fn host(&self) -> &str {
        self.host.as_deref().unwrap_or(SOCKET)
    }

    /// Sets the API to `host`, unless one is configured.
    pub(in crate::deploy) fn at(&mut self, host: &str) {
        self.host.get_or_insert_with(|| host.to_owned());
    }

    /// The container, by the API that the delivery leads to.
    fn reached_for(&self, delivery: &Delivery) -> Result<Container<'_>, DeployCause> {
        let api = Api::at(self.host(), &delivery.resolver);
        let api = api.map_err(|detail| DeployCause::unreachable(&detail))?;
        Ok(Container {
            settings: self,
            api,
        })
    }
}

/// A container behind an API.
struct Container<'s> {
    settings: &'s Settings,
    api: Api,
}

impl Deref for Container<'_> {
    type Target = Settings;
    fn deref(&self) -> &Settings {
        self.settings
    }
}

impl Container<'_> {
    async fn query(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), DeployCause> {
        let answer = self.api.query(method, path, body).await;
        answer.map_err(|detail| DeployCause::unreachable(&format!("its API: {detail}")))
    }

    /// The error for an unsuccessful reply.
    fn refusal(what: &str, status: StatusCode, body: &Value) -> DeployCause {
        let reason = body["message"].as_str().unwrap_or_default();
        DeployCause::unreachable(&format!("{what}: {status} {reason}"))
    }

    /// Whether the API is unfiltered, or may be.
    async fn is_raw(&self) -> Result<bool, DeployCause> {
        let filter = self.api.filter().await;
        let filter =
            filter.map_err(|detail| DeployCause::unreachable(&format!("its API: {detail}")))?;
        Ok(filter != Filter::Filtered)
    }

    /// What the API shows of the container; nothing if a proxy refuses that.
    async fn inspect(&self) -> Result<Value, DeployCause> {
        let path = format!("/containers/{}/json", self.container);
        let (status, found) = self.query("GET", &path, None).await?;
        Ok(match status.is_success() {
            true => found,
            false => Value::Null,
        })
    }

    /// Sends the signal to its first process, from inside the container where Docker would
    /// count it as a stop.
    async fn signal(&self, signal: &str) -> Result<(), DeployCause> {
        let found = self.inspect().await?;
        let is_stop = counts_as_stop(&found, signal);
        if is_stop == Some(true) && has_own_processes(&found) {
            // Without the program `kill`, which few images have.
            let name = name_of(signal);
            let inside = ["sh", "-c", "kill -s \"$1\" 1", "sh", &name].map(str::to_owned);
            match self.run(&inside).await {
                Ok(()) => return Ok(()),
                Err(cause) => {
                    tracing::debug!("{}: not signalled from inside: {cause}", self.name())
                }
            }
        }
        if is_stop != Some(false) {
            let name = &self.container;
            tracing::warn!(
                "{}: Docker counts this signal as a stop by hand: until its next start, its restart policy may not restart {name}; hint: let the API allow GET /containers/{name}/json, POST /containers/{name}/exec and /exec/ID/start, and GET /exec/ID/json, for a signal from inside, or reload the server without Docker, as docs/targets.md says",
                self.name()
            );
        }
        let path = format!("/containers/{}/kill?signal={signal}", self.container);
        let (status, reply) = self.query("POST", &path, None).await?;
        match status.is_success() {
            true => Ok(()),
            false => Err(Self::refusal("it cannot be signalled", status, &reply)),
        }
    }

    async fn run(&self, command: &[String]) -> Result<(), DeployCause> {
        let path = format!("/containers/{}/exec", self.container);
        let wanted = json!({"AttachStdout": true, "AttachStderr": true, "Cmd": command});
        let (status, made) = self.query("POST", &path, Some(wanted)).await?;
        let Some(id) = made["Id"]
            .as_str()
            .filter(|_| status.is_success())
            .filter(|id| id.chars().all(|digit| digit.is_ascii_alphanumeric()))
        else {
            return Err(Self::refusal(
                "a program cannot be run in it",
                status,
                &made,
            ));
        };
        let start = json!({"Detach": false, "Tty": false});
        let path = format!("/exec/{id}/start");
        let ended = self.api.run(&path, start, self.deadline()).await;
        let (status, reply) = ended.map_err(|error| {
            DeployCause::unreachable(&format!("the program in it: {error}; see `timeout`"))
        })?;
        if !status.is_success() {
            return Err(Self::refusal(
                "the program cannot be started",
                status,
                &reply,
            ));
        }
        let (_, ended) = self.query("GET", &format!("/exec/{id}/json"), None).await?;
        match ended["ExitCode"].as_i64() {
            Some(0) => Ok(()),
            code => Err(DeployCause::Program(format!(
                "`{}` ended with {}",
                command.first().map_or("", String::as_str),
                code.map_or("no code".to_owned(), |code| code.to_string())
            ))),
        }
    }
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        format!("docker:{}", self.container)
    }

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let container = self.reached_for(delivery)?;
        if self.accept_raw_socket != Some(true) && container.is_raw().await? {
            return Err(DeployCause::Unsafe(
                "this API is unfiltered, and a process that may use it is root on the host"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        self.check(delivery).await?;
        let container = self.reached_for(delivery)?;
        if let Some(command) = &self.command {
            return container.run(command).await;
        }
        container
            .signal(self.signal.as_deref().unwrap_or("HUP"))
            .await
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        let found = self.reached_for(delivery).ok()?.inspect().await.ok()?;
        let mounted = |one: &Value| {
            let path = |key: &str| one[key].as_str().map(PathBuf::from);
            let (source, place) = (path("Source")?, path("Destination")?);
            Some(Mount { source, place })
        };
        let mounts = found["Mounts"].as_array()?.iter().filter_map(mounted);
        let mounts: Vec<Mount> = mounts.collect();
        mounts::obstacle(&mounts, &self.container, &delivery.live)
    }
}

/// Whether Docker would not restart the container after this signal by its API; `None` if
/// `found` does not say.
fn counts_as_stop(found: &Value, signal: &str) -> Option<bool> {
    let policy = found["HostConfig"]["RestartPolicy"]["Name"].as_str()?;
    let stop = found["Config"]["StopSignal"].as_str().unwrap_or_default();
    let is_number = |signal: &str| signal.bytes().all(|byte| byte.is_ascii_digit());
    Some(match policy {
        "" | "no" => false,
        "unless-stopped" => true,
        _ if stop.is_empty() || is_number(stop) != is_number(signal) => true,
        _ => name_of(stop) == name_of(signal),
    })
}

fn name_of(signal: &str) -> String {
    let name = signal.to_ascii_uppercase();
    name.trim_start_matches("SIG").to_owned()
}

/// Whether process 1 inside the container is its own first process.
fn has_own_processes(found: &Value) -> bool {
    matches!(
        found["HostConfig"]["PidMode"].as_str(),
        Some("" | "private")
    )
}

/// Whether `text` can be the name or identifier of a container, or the name of a signal,
/// and is safe as a part of a path.
fn is_a_word(text: &str) -> bool {
    let known = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    !text.is_empty() && !text.starts_with('.') && text.chars().all(known)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;
    use crate::deploy::sample;

    const ASKS: &str = "GET /containers/web/json";
    const EXEC: &str = "POST /containers/web/exec";
    const KILL: &str = "POST /containers/web/kill?signal=HUP";

    /// Docker's API, which shows `container` and allows what begins with one of `allowed`.
    /// Returns the target and the requests.
    async fn api(
        container: Value,
        allowed: &'static [&'static str],
    ) -> (Settings, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("tcp://{}", listener.local_addr().unwrap());
        let (sender, asked) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let (mut request, mut length) = (String::new(), 0);
                stream.read_line(&mut request).await.unwrap();
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await.unwrap();
                    let value = line.to_lowercase();
                    if let Some(value) = value.strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                stream.read_exact(&mut vec![0; length]).await.unwrap();
                let request = request.trim().trim_end_matches(" HTTP/1.1").to_owned();
                let body = match request.as_str() {
                    ASKS => container.clone(),
                    EXEC => json!({"Id": "e1"}),
                    "GET /exec/e1/json" => json!({"ExitCode": 0}),
                    _ => json!({}),
                };
                let status = match allowed.iter().any(|start| request.starts_with(start)) {
                    true => 200,
                    false => 403,
                };
                let _ = sender.send(request);
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).await.unwrap();
            }
        });
        let target = Settings {
            container: "web".into(),
            signal: None,
            command: None,
            host: Some(host),
            accept_raw_socket: None,
            timeout: None,
        };
        (target, asked)
    }

    fn container(policy: &str, stop: &str, pid_mode: &str) -> Value {
        json!({
            "HostConfig": {"RestartPolicy": {"Name": policy}, "PidMode": pid_mode},
            "Config": {"StopSignal": stop},
            "Mounts": [{"Source": "/out/live/example.com/fullchain.pem", "Destination": "/web.pem"}],
        })
    }

    #[tokio::test]
    async fn signal_comes_from_inside_where_docker_would_count_it_as_a_stop() {
        const ALL: &[&str] = &[ASKS, "POST /containers/web/", "POST /exec/", "GET /exec/"];
        for (container, allowed, inside) in [
            (container("unless-stopped", "SIGQUIT", ""), ALL, true),
            (container("always", "", "private"), ALL, true),
            (container("on-failure", "1", ""), ALL, true),
            (container("always", "SIGQUIT", ""), ALL, false),
            (container("always", "SIGHUP", ""), ALL, true),
            (container("no", "", ""), ALL, false),
            // Process 1 of the host, or of another container.
            (container("always", "", "host"), ALL, false),
            (container("unless-stopped", "", ""), &[ASKS, KILL], false),
            (container("unless-stopped", "", ""), &[KILL], false),
        ] {
            let (target, mut asked) = api(container.clone(), allowed).await;
            target.apply(&sample()).await.unwrap();
            let mut all = Vec::new();
            while let Ok(request) = asked.try_recv() {
                all.push(request);
            }
            let has = |what: &str| all.iter().any(|one| one == what);
            let found = (has("POST /exec/e1/start"), has(KILL));
            assert_eq!(found, (inside, !inside), "{container}: {all:?}");
        }
    }

    #[tokio::test]
    async fn obstacle_is_a_mount_of_a_single_file() {
        let (target, _asked) = api(container("no", "", ""), &[ASKS]).await;
        let found = target.obstacle(&sample()).await.unwrap();
        assert!(found.contains("web reads /web.pem, a mount of"), "{found}");
        let (target, _asked) = api(container("no", "", ""), &[KILL]).await;
        assert_eq!(target.obstacle(&sample()).await, None);
    }

    #[test]
    fn part_of_a_path_is_one_word() {
        for word in ["web", "my_web-1.x", "HUP", "4f1e"] {
            assert!(is_a_word(word), "{word}");
        }
        for other in ["", "..", ".x", "a/b", "a?b", "a b", "a%2f"] {
            assert!(!is_a_word(other), "{other}");
        }
    }
}
