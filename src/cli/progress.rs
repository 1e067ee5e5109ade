//! The progress line: the phase of each certificate in progress, cut to one line of
//! the terminal.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::termios::tcgetwinsize;

use super::output::Terminal;
use crate::lineage::Lineage;
use crate::manage::Progress;
use crate::time::{Clock, SystemClock, Timestamp};

const REFRESH: Duration = Duration::from_millis(500);
/// The columns of a terminal that does not say how many it has.
const USUAL_WIDTH: u16 = 80;

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
        self.ended(lineage);
        ended
    }

    /// Shows the time that has passed, as long as it is polled.
    pub(crate) async fn tick(&self) -> Infallible {
        loop {
            tokio::time::sleep(REFRESH).await;
            if !self.phases().is_empty() {
                self.draw();
            }
        }
    }

    fn draw(&self) {
        let width = tcgetwinsize(std::io::stderr()).map_or(0, |size| size.ws_col);
        let width = if width == 0 { USUAL_WIDTH } else { width };
        let line = line(&self.phases(), SystemClock.now(), width.into());
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

    fn ended(&self, lineage: &Lineage) {
        if self.phases().remove(lineage).is_some() {
            self.draw();
        }
    }
}

/// The line, which leaves the last column of the terminal empty: some wrap after it.
fn line(phases: &Phases, now: Timestamp, columns: usize) -> String {
    let parts: Vec<String> = phases
        .iter()
        .map(|(lineage, (phase, begun))| {
            format!("{lineage}: {phase} ({} s)", now.since(*begun).as_secs())
        })
        .collect();
    let line = parts.join("  ");
    let most = columns.saturating_sub(1);
    match line.char_indices().nth(most) {
        _ if most == 0 => String::new(),
        Some(_) => line
            .chars()
            .take(most.saturating_sub(1))
            .chain(['…'])
            .collect(),
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
        let whole = "example.com: proving control (7 s)";
        assert_eq!(line(&phases, now, 80), whole);
        assert_eq!(line(&phases, now, whole.len() + 1), whole);
        assert_eq!(line(&phases, now, 12), "example.co…");
        for number in 0..9 {
            let name = lineage(&format!("host{number}.example.com"));
            phases.insert(name, ("placing the order".to_owned(), begun));
        }
        for columns in [0, 1, 2, 40, 80, 200] {
            let shown = line(&phases, now, columns).chars().count();
            assert_eq!(shown, columns.saturating_sub(1), "{columns}");
        }
        assert_eq!(line(&BTreeMap::new(), now, 80), "");
    }
}
