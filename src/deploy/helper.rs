//! Targets that are told by a process apart. Whatever a program such as
//! `nginx -t` needs, its parent must be allowed as well; so the process that
//! holds keys and talks to the world asks another one, started before it gave
//! up what it does not need. What is asked are a target and one of a few errands.
//! No process number is taken from here, and a program of the user's own is run
//! only if it was configured when that process was started.

pub mod restart;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::target::DeployTarget;
use super::{Delivery, DeployError, Target};

/// What is to be done for a target.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Errand {
    Check(Delivery),
    Apply(Delivery),
    ListensOn,
    Obstacle(Delivery),
}

/// What comes back, as far as it was the errand and is to be seen.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Found {
    addresses: Option<Vec<SocketAddr>>,
    obstacle: Option<String>,
}

type Answer = Result<Found, DeployError>;

/// One line on the way there, and one on the way back.
#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    number: u64,
    value: T,
}

/// The way to the other process. Errands run side by side there: one that hangs
/// holds up no other.
#[derive(Debug)]
pub struct Hand {
    sender: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Arc<Waiting>,
}

/// Who waits for an answer.
#[derive(Debug)]
struct Waiting(Mutex<Asked>);

#[derive(Debug)]
struct Asked {
    last: u64,
    /// By number; `None` once the other process has ended.
    waiting: Option<BTreeMap<u64, oneshot::Sender<Answer>>>,
}

impl Waiting {
    fn enter(&self) -> io::Result<(u64, oneshot::Receiver<Answer>)> {
        let (sender, receiver) = oneshot::channel();
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Asked { last, waiting } = &mut *inside;
        let waiting = waiting
            .as_mut()
            .ok_or_else(|| io::Error::other("it has ended"))?;
        *last += 1;
        waiting.insert(*last, sender);
        Ok((*last, receiver))
    }

    fn answer(&self, number: u64, answer: Answer) {
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = inside
            .waiting
            .as_mut()
            .and_then(|waiting| waiting.remove(&number));
        if let Some(waiting) = waiting {
            // Whoever asked may not wait any more.
            let _ = waiting.send(answer);
        }
    }

    fn end(&self) {
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inside.waiting = None;
    }
}

impl Hand {
    /// Errands go through `stream`, to where [`serve`] is at its other end, which
    /// runs `programs` of the user's own and no other.
    ///
    /// # Errors
    /// As the system has them.
    pub fn new(
        mut stream: std::os::unix::net::UnixStream,
        programs: &[DeployTarget],
    ) -> io::Result<Arc<Self>> {
        // Before anything from the network is read: later it is asked in vain.
        let mut line = serde_json::to_vec(programs)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let (receiver, sender) = asynchronous(stream)?.into_split();
        let waiting = Arc::new(Waiting(Mutex::new(Asked {
            last: 0,
            waiting: Some(BTreeMap::new()),
        })));
        tokio::spawn(receive(receiver, waiting.clone()));
        Ok(Arc::new(Self {
            sender: tokio::sync::Mutex::new(sender),
            waiting,
        }))
    }

    /// The target of `spec`, told by the other process.
    #[must_use]
    pub fn target(self: &Arc<Self>, spec: &DeployTarget) -> Arc<dyn Target> {
        let (hand, spec) = (self.clone(), spec.clone());
        let name = spec.target().name().to_owned();
        Arc::new(Distant { hand, spec, name })
    }

    async fn exchange(&self, errand: (DeployTarget, Errand)) -> io::Result<Answer> {
        let (number, answer) = self.waiting.enter()?;
        let mut line = serde_json::to_vec(&Numbered {
            number,
            value: errand,
        })?;
        line.push(b'\n');
        self.sender.lock().await.write_all(&line).await?;
        answer.await.map_err(|_| io::Error::other("it has ended"))
    }
}

async fn receive(receiver: OwnedReadHalf, waiting: Arc<Waiting>) {
    let mut lines = BufReader::new(receiver).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Numbered<Answer>>(&line) {
            Ok(Numbered { number, value }) => waiting.answer(number, value),
            Err(error) => tracing::error!("the process that tells servers: {error}"),
        }
    }
    waiting.end();
    tracing::error!(
        "the process that tells servers is gone; hint: restart certs run: until then no server is told"
    );
}

/// A target at the other end of a [`Hand`].
struct Distant {
    hand: Arc<Hand>,
    spec: DeployTarget,
    name: String,
}

impl Distant {
    async fn ask(&self, errand: Errand) -> Answer {
        let (hand, errand) = (self.hand.clone(), (self.spec.clone(), errand));
        // In a task of its own: one that nobody waits for any more must not leave
        // half a line.
        let asked = tokio::spawn(async move { hand.exchange(errand).await });
        let failed = |detail: String| DeployError::Hand {
            target: self.name.clone(),
            detail,
        };
        let within = self.spec.answers_within();
        let asked = tokio::time::timeout(within, asked).await;
        let asked = asked.map_err(|_| failed(format!("no answer within {within:?}")))?;
        let answer = asked.map_err(|error| failed(error.to_string()))?;
        answer.map_err(|error| failed(error.to_string()))?
    }
}

#[async_trait]
impl Target for Distant {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployError> {
        self.ask(Errand::Check(delivery.clone())).await.map(drop)
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployError> {
        self.ask(Errand::Apply(delivery.clone())).await.map(drop)
    }

    async fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        self.ask(Errand::ListensOn).await.ok()?.addresses
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        let errand = Errand::Obstacle(delivery.clone());
        self.ask(errand).await.ok()?.obstacle
    }
}

/// Runs errands side by side until the other end is closed. A line that is none ends
/// nothing.
///
/// # Errors
/// As the system has them, and when it is not told what programs it may run.
pub async fn serve(stream: std::os::unix::net::UnixStream) -> io::Result<()> {
    let (receiver, sender) = asynchronous(stream)?.into_split();
    let sender = Arc::new(tokio::sync::Mutex::new(sender));
    let mut lines = BufReader::new(receiver).lines();
    let allowed = lines.next_line().await?.unwrap_or_else(|| "[]".to_owned());
    let allowed: Arc<Vec<DeployTarget>> = Arc::new(serde_json::from_str(&allowed)?);
    while let Some(line) = lines.next_line().await? {
        let asked: Numbered<(DeployTarget, Errand)> = match serde_json::from_str(&line) {
            Ok(asked) => asked,
            Err(error) => {
                tracing::error!("what is asked is no errand: {error}");
                continue;
            }
        };
        let (sender, allowed) = (sender.clone(), allowed.clone());
        tokio::spawn(async move {
            let (spec, errand) = asked.value;
            let answer = Numbered {
                number: asked.number,
                value: run(&spec, errand, &allowed).await,
            };
            let mut line = serde_json::to_vec(&answer).unwrap_or_default();
            line.push(b'\n');
            // Nobody is left to be told that nobody is left.
            let _ = sender.lock().await.write_all(&line).await;
        });
    }
    Ok(())
}

async fn run(spec: &DeployTarget, errand: Errand, allowed: &[DeployTarget]) -> Answer {
    let target = spec.target();
    let refused = |detail: &str| {
        Err(DeployError::Hand {
            target: target.name().to_owned(),
            detail: detail.to_owned(),
        })
    };
    if !spec.needs_helper() {
        return refused("it does nothing that can be done without it");
    }
    if spec.runs_program() && !allowed.contains(spec) {
        return refused("it runs no program that was not configured when it was started");
    }
    let mut found = Found::default();
    match errand {
        Errand::Check(delivery) => target.check(&delivery).await?,
        Errand::Apply(delivery) => target.apply(&delivery).await?,
        Errand::ListensOn => found.addresses = target.listens_on().await,
        Errand::Obstacle(delivery) => found.obstacle = target.obstacle(&delivery).await,
    }
    Ok(found)
}

fn asynchronous(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::sample;
    use super::*;

    fn pair() -> (Arc<Hand>, tokio::task::JoinHandle<io::Result<()>>) {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        (Hand::new(one, &[]).unwrap(), tokio::spawn(serve(other)))
    }

    #[tokio::test]
    async fn what_the_target_says_comes_back_as_it_was_said() {
        let (hand, served) = pair();
        let spec: DeployTarget = "nginx:/absent/nginx.pid".parse().unwrap();
        let (near, distant) = (spec.target(), hand.target(&spec));
        assert_eq!(near.name(), distant.name());
        for (one, other) in [
            (near.check(&sample()).await, distant.check(&sample()).await),
            (near.apply(&sample()).await, distant.apply(&sample()).await),
        ] {
            let (one, other) = (one.unwrap_err(), other.unwrap_err());
            assert!(matches!(one, DeployError::NoPidFile { .. }));
            assert_eq!(one.to_string(), other.to_string());
            assert_eq!(one.hint(), other.hint());
        }
        assert_eq!(distant.listens_on().await, None);
        drop((hand, distant));
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_errand_that_is_given_up_leaves_no_answer_for_the_next() {
        let (hand, _served) = pair();
        let target = hand.target(&"nginx:/absent/nginx.pid".parse().unwrap());
        for _ in 0..3 {
            // Asked for once, and dropped before the answer is there.
            assert_eq!(target.listens_on().now_or_never(), None);
            let error = target.check(&sample()).await.unwrap_err();
            assert!(matches!(error, DeployError::NoPidFile { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_line_that_is_no_errand_ends_nothing() {
        let (hand, served) = pair();
        let target = hand.target(&"nginx:/absent/nginx.pid".parse().unwrap());
        for bad in ["", "{", "[1]", "{\"number\":1,\"value\":null}"] {
            let line = format!("{bad}\n");
            hand.sender
                .lock()
                .await
                .write_all(line.as_bytes())
                .await
                .unwrap();
            let error = target.check(&sample()).await.unwrap_err();
            assert!(matches!(error, DeployError::NoPidFile { .. }), "{error}");
        }
        assert!(!served.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_answers_is_not_waited_for_for_ever() {
        let (one, _never_answers) = std::os::unix::net::UnixStream::pair().unwrap();
        let spec: DeployTarget = "nginx".parse().unwrap();
        let target = Hand::new(one, &[]).unwrap().target(&spec);
        let begun = tokio::time::Instant::now();
        let error = target.apply(&sample()).await.unwrap_err();
        assert!(error.to_string().contains("no answer within"), "{error}");
        assert_eq!(begun.elapsed().as_secs(), spec.answers_within().as_secs());
    }

    #[tokio::test]
    async fn an_end_that_is_gone_is_told_with_a_hint() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let target = Hand::new(one, &[])
            .unwrap()
            .target(&"nginx".parse().unwrap());
        drop(other);
        let error = target.apply(&sample()).await.unwrap_err();
        assert!(matches!(error, DeployError::Hand { .. }), "{error}");
        assert!(error.hint().contains("restart certs run"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_holds_up_no_other_and_one_that_is_not_known_is_not_run() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let hook = directory.path().join("hook");
        // Not written here: what another test starts meanwhile would hold it open.
        let make =
            r#"mkfifo "$1" && printf '#!/bin/sh\nread line <%s\n' "$1" >"$0" && chmod 755 "$0""#;
        let mut sh = std::process::Command::new("/bin/sh");
        let made = sh.args(["-c", make]).arg(&hook).arg(&fifo).status();
        assert!(made.unwrap().success());
        let spec: DeployTarget = format!("exec:{}", hook.display()).parse().unwrap();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let hand = Hand::new(one, std::slice::from_ref(&spec)).unwrap();
        tokio::spawn(serve(other));

        let hangs = hand.target(&spec);
        let waits = tokio::spawn(async move { hangs.apply(&sample()).await });
        let absent = hand.target(&"nginx:/absent/nginx.pid".parse().unwrap());
        assert!(absent.check(&sample()).await.is_err());
        let unknown = hand.target(&"exec:/bin/true".parse().unwrap());
        let error = unknown.apply(&sample()).await.unwrap_err();
        assert!(error.to_string().contains("not configured"), "{error}");
        // Whoever has taken the other process over has no files written here.
        let file = hand.target(&"file:/absent/file.pem".parse().unwrap());
        let error = file.check(&sample()).await.unwrap_err();
        assert!(matches!(error, DeployError::Hand { .. }), "{error}");
        assert!(!waits.is_finished());
        tokio::fs::write(&fifo, "go\n").await.unwrap();
        waits.await.unwrap().unwrap();
    }
}
