//! The points at which a process is killed: before and after each durable step,
//! that is each write to the store, to the disk and to the proxy.

use crate::random::Random;

/// A point before or after a durable step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KillPoint {
    /// Before a read, which is not durable: no process is killed there.
    Read,
    /// Around a save of a record.
    Save,
    /// Around a save with a new pair.
    Pair,
    /// Around a save of the CA state.
    CaState,
    /// Around each file of a pair, and its publication.
    Publish,
    /// Around the signal to the proxy.
    Apply,
}

/// The most points of one kind that a process passes before it is killed.
const LONGEST: u64 = 6;

/// Kills a process at a point of a drawn kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct KillSwitch {
    pub(super) moment: KillPoint,
    /// The points of that kind to pass before.
    pub(super) left: u64,
}

impl KillSwitch {
    pub(super) fn draw(random: &dyn Random) -> Self {
        use KillPoint::{Apply, CaState, Pair, Publish, Save};
        let moment = [Save, Pair, CaState, Publish, Apply][random.below(5) as usize];
        let left = random.below(LONGEST);
        Self { moment, left }
    }

    /// Whether the process is killed at this point.
    pub(super) fn fires(&mut self, moment: KillPoint) -> bool {
        if moment != self.moment {
            return false;
        }
        let now = self.left == 0;
        self.left = self.left.saturating_sub(1);
        now
    }
}
