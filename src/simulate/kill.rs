//! Where a process is killed: not only while it waits, but between any two
//! things that last: before and after what it writes to the store, to the disk
//! and to the proxy.

use crate::random::Random;

/// Between two things that last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Before something is read: nothing lasts of it, and nobody is killed there.
    Read,
    /// Around a save of a record.
    Save,
    /// Around a save that brings a new pair.
    Pair,
    /// Around a save of what is known of the CA.
    Ledger,
    /// Around each file of a pair, and its publication.
    Publish,
    /// Around the signal to the proxy.
    Apply,
}

const MOMENTS: [Moment; 5] = [
    Moment::Save,
    Moment::Pair,
    Moment::Ledger,
    Moment::Publish,
    Moment::Apply,
];

/// So many moments of one kind may pass at most.
const LONGEST: u64 = 6;

/// A death that comes with a moment of a drawn kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fuse {
    moment: Moment,
    left: u64,
}

impl Fuse {
    pub(super) fn draw(random: &dyn Random) -> Self {
        let moment = MOMENTS[random.below(MOMENTS.len() as u64) as usize];
        let left = random.below(LONGEST);
        Self { moment, left }
    }

    /// Whether this is the moment.
    pub(super) fn burns(&mut self, moment: Moment) -> bool {
        if moment != self.moment {
            return false;
        }
        let now = self.left == 0;
        self.left = self.left.saturating_sub(1);
        now
    }
}

#[cfg(test)]
impl Fuse {
    /// The process ends when so many moments of that kind have passed.
    pub(super) fn at(moment: Moment, left: u64) -> Self {
        Self { moment, left }
    }
}
