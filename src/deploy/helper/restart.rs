//! Keeps a process at the errands. The confined process may start none, so what
//! starts another one when the first has died is neither of them: it reads lines,
//! passes them on, and answers those that nobody is left to answer. What programs
//! may be run is told once, before anything from the network was read.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream as Blocking;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::time::Instant;

use super::{Answer, Errand, Numbered, asynchronous};
use crate::deploy::DeployError;
use crate::deploy::target::DeployTarget;

/// After the first death; it doubles with each in a row, up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The way to whoever asks.
struct Asker {
    asked: Lines<BufReader<OwnedReadHalf>>,
    answers: OwnedWriteHalf,
}

impl Asker {
    /// The next errand with its number and its target; `None` when nobody asks
    /// any more.
    async fn next(&mut self) -> io::Result<Option<(String, u64, String)>> {
        while let Some(line) = self.asked.next_line().await? {
            match serde_json::from_str::<Numbered<(DeployTarget, Errand)>>(&line) {
                Ok(Numbered { number, value }) => {
                    let target = value.0.target().name().to_owned();
                    return Ok(Some((line, number, target)));
                }
                Err(error) => tracing::error!("what is asked is no errand: {error}"),
            }
        }
        Ok(None)
    }

    async fn refuse(&mut self, number: u64, target: String, detail: &str) -> io::Result<()> {
        let detail = detail.to_owned();
        let value: Answer = Err(DeployError::Hand { target, detail });
        let mut line = serde_json::to_vec(&Numbered { number, value })?;
        line.push(b'\n');
        self.answers.write_all(&line).await
    }
}

/// Passes errands on to a process that `start` starts, at the other end of the
/// stream that it is given, and to another one when that has ended; until nobody
/// asks any more.
///
/// # Errors
/// As the system has them, at the asker's end.
pub async fn keep(
    stream: Blocking,
    start: impl Fn(Blocking) -> io::Result<Child>,
) -> io::Result<()> {
    let (receiver, answers) = asynchronous(stream)?.into_split();
    let asked = BufReader::new(receiver).lines();
    let mut asker = Asker { asked, answers };
    let programs = asker.asked.next_line().await?;
    let programs = programs.unwrap_or_else(|| "[]".to_owned());
    let mut pause = PAUSE;
    loop {
        let begun = Instant::now();
        let Some(why) = employ(&mut asker, &programs, &start).await? else {
            return Ok(());
        };
        if begun.elapsed() > LONGEST_PAUSE {
            pause = PAUSE;
        }
        tracing::error!(
            "the process that tells servers {why}; another one is started in {pause:?}"
        );
        let again = Instant::now() + pause;
        while let Ok(next) = tokio::time::timeout_at(again, asker.next()).await {
            let Some((_, number, target)) = next? else {
                return Ok(());
            };
            let detail = format!("it {why}, and is started again");
            asker.refuse(number, target, &detail).await?;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Why the process has ended; `None` when nobody asks any more.
async fn employ(
    asker: &mut Asker,
    programs: &str,
    start: &impl Fn(Blocking) -> io::Result<Child>,
) -> io::Result<Option<String>> {
    let (near, distant) = Blocking::pair()?;
    let mut child = match start(distant) {
        Ok(child) => child,
        Err(error) => return Ok(Some(format!("could not be started ({error})"))),
    };
    let (receiver, mut errands) = asynchronous(near)?.into_split();
    let mut answers = BufReader::new(receiver).lines();
    let mut waiting = BTreeMap::new();
    let mut lives = pass_on(&mut errands, programs).await;
    while lives {
        tokio::select! {
            next = asker.next() => {
                let Some((line, number, target)) = next? else {
                    return Ok(None);
                };
                waiting.insert(number, target);
                lives = pass_on(&mut errands, &line).await;
            }
            answer = answers.next_line() => match answer {
                Ok(Some(answer)) => {
                    if let Ok(Numbered { number, .. }) = serde_json::from_str::<Numbered<Answer>>(&answer) {
                        waiting.remove(&number);
                    }
                    asker.answers.write_all(format!("{answer}\n").as_bytes()).await?;
                }
                _ => lives = false,
            }
        }
    }
    // It may have closed its end only.
    let _ = child.start_kill();
    let why = match child.wait().await {
        Ok(status) => format!("has ended ({status})"),
        Err(error) => format!("has ended ({error})"),
    };
    for (number, target) in waiting {
        asker
            .refuse(number, target, &format!("it {why} meanwhile"))
            .await?;
    }
    Ok(Some(why))
}

/// Whether there is anybody to pass it on to.
async fn pass_on(errands: &mut OwnedWriteHalf, line: &str) -> bool {
    errands
        .write_all(format!("{line}\n").as_bytes())
        .await
        .is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::process::Stdio;
    use std::sync::Arc;

    use super::super::Hand;
    use super::*;
    use crate::deploy::{Target, sample};

    /// A shell that plays the process, `script` with the errands as its input.
    fn kept(script: &'static str) -> Arc<Hand> {
        let (one, other) = Blocking::pair().unwrap();
        tokio::spawn(keep(other, move |stream| {
            let answers = stream.try_clone()?;
            let mut command = tokio::process::Command::new("/bin/sh");
            command.args(["-c", script]).kill_on_drop(true);
            let command = command.stdin(Stdio::from(OwnedFd::from(stream)));
            command.stdout(Stdio::from(OwnedFd::from(answers))).spawn()
        }));
        Hand::new(one, &[]).unwrap()
    }

    fn nginx(hand: &Arc<Hand>) -> Arc<dyn Target> {
        hand.target(&"nginx:/run/nginx.pid".parse().unwrap())
    }

    #[tokio::test]
    async fn one_that_dies_at_an_errand_is_told_and_another_takes_the_next() {
        // It knows its programs, answers the first errand that it gets, and dies.
        let hand = kept(
            "read programs; [ \"$programs\" = '[]' ] || exit 9; read errand; number=${errand#*:}; \
             printf '{\"number\":%s,\"value\":{\"Ok\":{\"addresses\":null,\"obstacle\":null}}}\\n' ${number%%,*}",
        );
        let (mut answered, mut told) = (0, String::new());
        let asked = async {
            while answered < 3 {
                match nginx(&hand).apply(&sample()).await {
                    Ok(()) => answered += 1,
                    // Asked while there was none.
                    Err(error) => told = error.to_string(),
                }
            }
        };
        let asked = tokio::time::timeout(Duration::from_secs(60), asked).await;
        asked.expect("there is no other one");
        assert!(
            told.is_empty() || told.contains("started again") || told.contains("meanwhile"),
            "{told}"
        );
    }

    #[tokio::test]
    async fn whoever_waits_for_one_that_has_died_is_told_at_once() {
        let hand = kept("read programs; read errand; exit 3");
        let error = nginx(&hand).apply(&sample()).await.unwrap_err();
        assert!(matches!(error, DeployError::Hand { .. }), "{error}");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }
}
