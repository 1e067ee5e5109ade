//! Restarts the helper process after its death. The sandboxed process may not start one,
//! so that a third process does: it forwards the requests, and replies to those that the
//! dead helper left without a reply. The allowed programs arrive once, before any data
//! from the network was read. It never runs a request itself.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream as Blocking;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::time::Instant;

use super::{HelperRequest, HelperResult, Numbered, asynchronous};
use crate::deploy::DeployError;
use crate::deploy::target::DeployTarget;

/// The backoff after the first death; it doubles with each further one.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The connection to the sandboxed process.
struct Sidecar {
    asked: Lines<BufReader<OwnedReadHalf>>,
    answers: OwnedWriteHalf,
}

impl Sidecar {
    /// The next request with its number and its target; `None` after the sandboxed
    /// process has ended.
    async fn next(&mut self) -> io::Result<Option<(String, u64, String)>> {
        while let Some(line) = self.asked.next_line().await? {
            match serde_json::from_str::<Numbered<(DeployTarget, HelperRequest)>>(&line) {
                Ok(Numbered { number, value }) => {
                    let target = value.0.target().name().to_owned();
                    return Ok(Some((line, number, target)));
                }
                Err(error) => tracing::error!("invalid request: {error}"),
            }
        }
        Ok(None)
    }

    async fn refuse(&mut self, number: u64, target: String, detail: &str) -> io::Result<()> {
        let detail = detail.to_owned();
        let value: HelperResult = Err(DeployError::Helper { target, detail });
        let mut line = serde_json::to_vec(&Numbered { number, value })?;
        line.push(b'\n');
        self.answers.write_all(&line).await
    }
}

/// Forwards requests to a helper that `start` starts with one end of a stream, and
/// restarts the helper when it ends. Returns when the sandboxed process has ended.
///
/// # Errors
/// Those of the socket, when the sandboxed process ends.
pub(crate) async fn keep_running(
    stream: Blocking,
    start: impl Fn(Blocking) -> io::Result<Child>,
) -> io::Result<()> {
    let (receiver, answers) = asynchronous(stream)?.into_split();
    let asked = BufReader::new(receiver).lines();
    let mut sidecar = Sidecar { asked, answers };
    let programs = sidecar.asked.next_line().await?;
    let programs = programs.unwrap_or_else(|| "[]".to_owned());
    let mut pause = PAUSE;
    loop {
        let begun = Instant::now();
        let Some(why) = run_one(&mut sidecar, &programs, &start).await? else {
            return Ok(());
        };
        if begun.elapsed() > LONGEST_PAUSE {
            pause = PAUSE;
        }
        tracing::error!("the helper process {why}; it restarts in {pause:?}");
        let again = Instant::now() + pause;
        while let Ok(next) = tokio::time::timeout_at(again, sidecar.next()).await {
            let Some((_, number, target)) = next? else {
                return Ok(());
            };
            let detail = format!("it {why}, and restarts");
            sidecar.refuse(number, target, &detail).await?;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Why the helper has ended; `None` after the sandboxed process has.
async fn run_one(
    sidecar: &mut Sidecar,
    programs: &str,
    start: &impl Fn(Blocking) -> io::Result<Child>,
) -> io::Result<Option<String>> {
    let (near, far) = Blocking::pair()?;
    let mut child = match start(far) {
        Ok(child) => child,
        Err(error) => return Ok(Some(format!("could not be started ({error})"))),
    };
    let (receiver, mut requests) = asynchronous(near)?.into_split();
    let mut answers = BufReader::new(receiver).lines();
    let mut waiting = BTreeMap::new();
    let mut lives = forward(&mut requests, programs).await;
    while lives {
        tokio::select! {
            next = sidecar.next() => {
                let Some((line, number, target)) = next? else {
                    return Ok(None);
                };
                waiting.insert(number, target);
                lives = forward(&mut requests, &line).await;
            }
            answer = answers.next_line() => match answer {
                Ok(Some(answer)) => {
                    if let Ok(Numbered { number, .. }) = serde_json::from_str::<Numbered<HelperResult>>(&answer) {
                        waiting.remove(&number);
                    }
                    sidecar.answers.write_all(format!("{answer}\n").as_bytes()).await?;
                }
                _ => lives = false,
            }
        }
    }
    // It may have closed only its end of the stream.
    let _ = child.start_kill();
    let why = match child.wait().await {
        Ok(status) => format!("has ended ({status})"),
        Err(error) => format!("has ended ({error})"),
    };
    for (number, target) in waiting {
        sidecar
            .refuse(number, target, &format!("it {why} before it replied"))
            .await?;
    }
    Ok(Some(why))
}

/// Whether the helper took the line.
async fn forward(requests: &mut OwnedWriteHalf, line: &str) -> bool {
    requests
        .write_all(format!("{line}\n").as_bytes())
        .await
        .is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::process::Stdio;
    use std::sync::Arc;

    use super::super::Helper;
    use super::*;
    use crate::deploy::{Target, sample};

    /// A shell in the place of the helper; the requests are the input of `script`.
    fn kept_running(script: &'static str) -> Arc<Helper> {
        let (one, other) = Blocking::pair().unwrap();
        tokio::spawn(keep_running(other, move |stream| {
            let answers = stream.try_clone()?;
            let mut command = tokio::process::Command::new("/bin/sh");
            command.args(["-c", script]).kill_on_drop(true);
            let command = command.stdin(Stdio::from(OwnedFd::from(stream)));
            command.stdout(Stdio::from(OwnedFd::from(answers))).spawn()
        }));
        Helper::new(one, &[]).unwrap()
    }

    fn nginx(helper: &Arc<Helper>) -> Arc<dyn Target> {
        helper.target(&"nginx:/run/nginx.pid".parse().unwrap())
    }

    #[tokio::test]
    async fn next_request_goes_to_a_new_helper_after_a_death() {
        // It reads its programs, replies to the first request, and ends.
        let helper = kept_running(
            "read programs; [ \"$programs\" = '[]' ] || exit 9; read request; number=${request#*:}; \
             printf '{\"number\":%s,\"value\":{\"Ok\":{\"addresses\":null,\"obstacle\":null}}}\\n' ${number%%,*}",
        );
        let (mut answered, mut message) = (0, String::new());
        let asked = async {
            while answered < 3 {
                match nginx(&helper).apply(&sample()).await {
                    Ok(()) => answered += 1,
                    // Sent while no helper was running.
                    Err(error) => message = error.to_string(),
                }
            }
        };
        let asked = tokio::time::timeout(Duration::from_secs(60), asked).await;
        asked.expect("no other helper was started");
        assert!(
            message.is_empty()
                || message.contains("restarts")
                || message.contains("before it replied"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn pending_request_fails_at_once_after_a_death() {
        let helper = kept_running("read programs; read request; exit 3");
        let error = nginx(&helper).apply(&sample()).await.unwrap_err();
        assert!(matches!(error, DeployError::Helper { .. }), "{error}");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }
}
