//! The progress line: the phase of each certificate in progress, cut to one line of
//! the terminal.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::output::Terminal;
use crate::lineage::Lineage;
use crate::manage::Progress;
use crate::time::{Clock, SystemClock, Timestamp};

const REFRESH: Duration = Duration::from_millis(500);
const WIDTH: usize = 78;

/// The phase of each certificate, and since when the certificate is in progress.
type Phases = BTreeMap<Lineage, (String, Timestamp)>;

/// Shows phases if standard error is a terminal.
#[derive(Debug)]
pub(crate) struct Display {
    terminal: Terminal,
    phases: Mutex<Phases>,
}

impl Display {
    pub(crate) fn new(terminal: Terminal) -> Self {
        Self {
            terminal,
            phases: Mutex::default(),
        }
    }

    /// Runs `work` on `lineage` and shows its phase meanwhile.
    pub(crate) async fn during<T>(&self, lineage: &Lineage, work: impl Future<Output = T>) -> T {
        if !self.terminal.shows_progress() {
            return work.await;
        }
        self.phase(lineage, "starting");
        let ended = tokio::select! {
            ended = work => ended,
            never = self.tick() => match never {},
        };
        self.phases().remove(lineage);
        self.draw();
        ended
    }

    async fn tick(&self) -> Infallible {
        loop {
            tokio::time::sleep(REFRESH).await;
            self.draw();
        }
    }

    fn draw(&self) {
        let line = line(&self.phases(), SystemClock.now());
        self.terminal.show(line);
    }

    fn phases(&self) -> MutexGuard<'_, Phases> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Display {
    fn phase(&self, lineage: &Lineage, phase: &str) {
        let now = SystemClock.now();
        self.phases()
            .entry(lineage.clone())
            .and_modify(|(shown, _)| phase.clone_into(shown))
            .or_insert_with(|| (phase.to_owned(), now));
        self.draw();
    }
}

fn line(phases: &Phases, now: Timestamp) -> String {
    let parts: Vec<String> = phases
        .iter()
        .map(|(lineage, (phase, begun))| {
            format!("{lineage}: {phase} ({} s)", now.since(*begun).as_secs())
        })
        .collect();
    let line = parts.join("  ");
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_line_shows_phase_and_time_within_width() {
        let begun = Timestamp::from_seconds(100);
        let lineage = |text: &str| Lineage::parse(text).unwrap();
        let mut phases = BTreeMap::from([(
            lineage("example.com"),
            ("proving control".to_owned(), begun),
        )]);
        let now = Timestamp::from_seconds(107);
        assert_eq!(line(&phases, now), "example.com: proving control (7 s)");
        for number in 0..9 {
            let name = lineage(&format!("host{number}.example.com"));
            phases.insert(name, ("placing the order".to_owned(), begun));
        }
        assert_eq!(line(&phases, now).chars().count(), WIDTH + 1);
        assert_eq!(line(&BTreeMap::new(), now), "");
    }
}
