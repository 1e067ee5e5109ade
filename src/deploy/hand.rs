//! Targets that are told by a process apart. Whatever a program such as
//! `nginx -t` needs, its parent must be allowed as well; so the process that
//! holds keys and talks to the world asks another one, started before it gave
//! up what it does not need. What is asked are a target and one of three
//! errands: no program, no argument and no process number is taken from here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::spec::Spec;
use super::{DeployError, Target};

/// What is to be done for a target.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Errand {
    Check,
    Apply,
    ListensOn,
}

/// Where the target listens, when that was the errand and is to be seen.
type Answer = Result<Option<Vec<SocketAddr>>, DeployError>;

/// The way to the other process.
#[derive(Debug)]
pub struct Hand {
    stream: Mutex<BufReader<UnixStream>>,
}

impl Hand {
    /// Errands go through `stream`, to where [`serve`] is at its other end.
    ///
    /// # Errors
    /// As the system has them.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Arc<Self>> {
        let stream = Mutex::new(BufReader::new(asynchronous(stream)?));
        Ok(Arc::new(Self { stream }))
    }

    /// The target of `spec`, told by the other process.
    #[must_use]
    pub fn target(self: &Arc<Self>, spec: &Spec) -> Arc<dyn Target> {
        let (hand, spec) = (self.clone(), spec.clone());
        let name = spec.target().name().to_owned();
        Arc::new(Distant { hand, spec, name })
    }

    async fn exchange(&self, errand: &(Spec, Errand)) -> io::Result<Answer> {
        let mut stream = self.stream.lock().await;
        let mut line = serde_json::to_vec(errand)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        if stream.read_line(&mut answer).await? == 0 {
            return Err(io::Error::other("it has ended"));
        }
        Ok(serde_json::from_str(&answer)?)
    }
}

/// A target at the other end of a [`Hand`].
struct Distant {
    hand: Arc<Hand>,
    spec: Spec,
    name: String,
}

impl Distant {
    async fn ask(&self, errand: Errand) -> Answer {
        let (hand, errand) = (self.hand.clone(), (self.spec.clone(), errand));
        // In a task of its own: an errand that nobody waits for any more must
        // not leave its answer for the next one.
        let asked = tokio::spawn(async move { hand.exchange(&errand).await });
        let failed = |detail: String| DeployError::Hand {
            target: self.name.clone(),
            detail,
        };
        let answer = asked.await.map_err(|error| failed(error.to_string()))?;
        answer.map_err(|error| failed(error.to_string()))?
    }
}

#[async_trait]
impl Target for Distant {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Result<(), DeployError> {
        self.ask(Errand::Check).await.map(drop)
    }

    async fn apply(&self) -> Result<(), DeployError> {
        self.ask(Errand::Apply).await.map(drop)
    }

    async fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        self.ask(Errand::ListensOn).await.ok().flatten()
    }
}

/// Runs errands one after the other until the other end is closed.
///
/// # Errors
/// As the system has them, and when what comes is no errand.
pub async fn serve(stream: std::os::unix::net::UnixStream) -> io::Result<()> {
    let mut stream = BufReader::new(asynchronous(stream)?);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let (spec, errand): (Spec, Errand) = serde_json::from_str(&line)?;
        line.clear();
        let mut answer = serde_json::to_vec(&run(&spec, errand).await)?;
        answer.push(b'\n');
        stream.write_all(&answer).await?;
    }
    Ok(())
}

async fn run(spec: &Spec, errand: Errand) -> Answer {
    let target = spec.target();
    match errand {
        Errand::Check => target.check().await.map(|()| None),
        Errand::Apply => target.apply().await.map(|()| None),
        Errand::ListensOn => Ok(target.listens_on().await),
    }
}

fn asynchronous(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn pair() -> (Arc<Hand>, tokio::task::JoinHandle<io::Result<()>>) {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        (Hand::new(one).unwrap(), tokio::spawn(serve(other)))
    }

    #[tokio::test]
    async fn what_the_target_says_comes_back_as_it_was_said() {
        let (hand, served) = pair();
        let spec: Spec = "nginx:/absent/nginx.pid".parse().unwrap();
        let (near, distant) = (spec.target(), hand.target(&spec));
        assert_eq!(near.name(), distant.name());
        for (one, other) in [
            (near.check().await, distant.check().await),
            (near.apply().await, distant.apply().await),
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
            let error = target.check().await.unwrap_err();
            assert!(matches!(error, DeployError::NoPidFile { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn an_end_that_is_gone_is_told_with_a_hint() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let target = Hand::new(one).unwrap().target(&"nginx".parse().unwrap());
        drop(other);
        let error = target.apply().await.unwrap_err();
        assert!(matches!(error, DeployError::Hand { .. }), "{error}");
        assert!(error.hint().contains("restart certs run"));
    }
}
