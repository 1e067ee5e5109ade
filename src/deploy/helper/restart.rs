//! Restarts the helper process after its death. The sandboxed process may not start one,
//! so that a third process does: it forwards the requests, and replies to those that the
//! dead helper left without a reply. The permits arrive once, before any data
//! from the network was read. It never runs a request itself.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::UnixStream as Blocking;
use std::time::Duration;

use serde::de::IgnoredAny;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::time::Instant;

use super::{HelperResult, Numbered, asynchronous, line_of};
use crate::deploy::DeployCause;

/// The backoff after the first death; it doubles with each further one.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The connection to the sandboxed process.
struct Sidecar {
    requests: Lines<BufReader<OwnedReadHalf>>,
    replies: OwnedWriteHalf,
}

impl Sidecar {
    /// The next request and its number; `None` after the sandboxed process has ended.
    async fn next(&mut self) -> io::Result<Option<(String, u64)>> {
        while let Some(line) = self.requests.next_line().await? {
            match serde_json::from_str::<Numbered<IgnoredAny>>(&line) {
                Ok(request) => return Ok(Some((line, request.number))),
                Err(error) => tracing::error!("invalid request: {error}"),
            }
        }
        Ok(None)
    }

    async fn refuse(&mut self, number: u64, detail: String) -> io::Result<()> {
        let value: HelperResult = Err(DeployCause::Helper(detail));
        self.replies
            .write_all(&line_of(&Numbered { number, value })?)
            .await
    }
}

/// Forwards requests to a helper that `start` starts with one end of a stream, and
/// restarts the helper when it ends. Returns when the sandboxed process has ended.
pub(crate) async fn run_with_restarts(
    stream: Blocking,
    start: impl Fn(Blocking) -> io::Result<Child>,
) -> io::Result<()> {
    let (receiver, replies) = asynchronous(stream)?.into_split();
    let requests = BufReader::new(receiver).lines();
    let mut sidecar = Sidecar { requests, replies };
    let Some(permits) = sidecar.requests.next_line().await? else {
        return Ok(());
    };
    let mut pause = PAUSE;
    loop {
        let begun = Instant::now();
        let Some(why) = run_one(&mut sidecar, &permits, &start).await? else {
            return Ok(());
        };
        if begun.elapsed() > LONGEST_PAUSE {
            pause = PAUSE;
        }
        let seconds = pause.as_secs_f32();
        tracing::error!("the helper process {why}; it restarts in {seconds:.1} s");
        let restart = Instant::now() + pause;
        while let Ok(next) = tokio::time::timeout_at(restart, sidecar.next()).await {
            let Some((_, number)) = next? else {
                return Ok(());
            };
            let detail = format!("it {why}, and restarts");
            sidecar.refuse(number, detail).await?;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Why the helper has ended; `None` after the sandboxed process has.
async fn run_one(
    sidecar: &mut Sidecar,
    permits: &str,
    start: &impl Fn(Blocking) -> io::Result<Child>,
) -> io::Result<Option<String>> {
    let (near, far) = Blocking::pair()?;
    let mut child = match start(far) {
        Ok(child) => child,
        Err(error) => return Ok(Some(format!("could not be started ({error})"))),
    };
    let (receiver, mut requests) = asynchronous(near)?.into_split();
    let mut replies = BufReader::new(receiver).lines();
    let mut pending = BTreeSet::new();
    let mut lives = requests
        .write_all(format!("{permits}\n").as_bytes())
        .await
        .is_ok();
    while lives {
        tokio::select! {
            next = sidecar.next() => {
                let Some((line, number)) = next? else {
                    return Ok(None);
                };
                pending.insert(number);
                lives = requests.write_all(format!("{line}\n").as_bytes()).await.is_ok();
            }
            reply = replies.next_line() => match reply {
                Ok(Some(reply)) => {
                    if let Ok(answered) = serde_json::from_str::<Numbered<IgnoredAny>>(&reply) {
                        pending.remove(&answered.number);
                    }
                    sidecar.replies.write_all(format!("{reply}\n").as_bytes()).await?;
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
    for number in pending {
        let detail = format!("it {why} before it replied");
        sidecar.refuse(number, detail).await?;
    }
    Ok(Some(why))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::process::Stdio;
    use std::sync::Arc;

    use super::super::{Helper, Permits};
    use super::*;
    use crate::deploy::{Target, sample};

    /// A shell in the place of the helper; the requests are the input of `script`.
    fn with_restarts(script: &'static str) -> Arc<Helper> {
        let (one, other) = Blocking::pair().unwrap();
        tokio::spawn(run_with_restarts(other, move |stream| {
            let answers = stream.try_clone()?;
            let mut command = tokio::process::Command::new("/bin/sh");
            command.args(["-c", script]).kill_on_drop(true);
            let command = command.stdin(Stdio::from(OwnedFd::from(stream)));
            command.stdout(Stdio::from(OwnedFd::from(answers))).spawn()
        }));
        Helper::new(one, &Permits::default()).unwrap()
    }

    fn nginx(helper: &Arc<Helper>) -> Arc<dyn Target> {
        helper.target(&"nginx:/run/nginx.pid".parse().unwrap())
    }

    #[tokio::test]
    async fn next_request_goes_to_a_new_helper_after_a_death() {
        // It reads its permits, replies to the first request, and ends.
        let helper = with_restarts(
            "read permits; [ \"${permits#?}\" != \"$permits\" ] || exit 9; read request; number=${request#*:}; \
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
        let helper = with_restarts("read permits; read request; exit 3");
        let error = nginx(&helper).apply(&sample()).await.unwrap_err();
        assert!(matches!(error, DeployCause::Helper(_)), "{error}");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }
}
