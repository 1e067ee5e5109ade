//! Random numbers as a dependency: every draw goes through [`Random`], so that a seed
//! repeats a run exactly.

use std::sync::{Mutex, PoisonError};

/// A source of uniform draws.
pub trait Random: Send + Sync {
    /// A number in `0..bound`, each equally likely; 0 when `bound` is 0.
    fn below(&self, bound: u64) -> u64;
}

/// The operating system's randomness, by way of aws-lc.
#[derive(Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn below(&self, bound: u64) -> u64 {
        uniform(bound, || {
            let mut bytes = [0; 8];
            // aws-lc aborts the process rather than fail here. If that ever changes, 0 is
            // a valid draw: draws only spread load.
            let _ = aws_lc_rs::rand::fill(&mut bytes);
            u64::from_le_bytes(bytes)
        })
    }
}

/// A repeatable sequence (SplitMix64): the same seed gives the same draws.
#[derive(Debug)]
pub struct SeededRandom(Mutex<u64>);

impl SeededRandom {
    /// Starts the sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }
}

impl Random for SeededRandom {
    fn below(&self, bound: u64) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uniform(bound, || {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = *state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        })
    }
}

/// Rejects the uneven tail of the 64-bit range. The tail is less than half of the
/// range, so 64 rejections in a row mean a broken source: any draw is as good then.
fn uniform(bound: u64, mut draw: impl FnMut() -> u64) -> u64 {
    if bound == 0 {
        return 0;
    }
    let even = u64::MAX - u64::MAX % bound;
    let mut drawn = draw();
    for _ in 0..64 {
        if drawn < even {
            break;
        }
        drawn = draw();
    }
    drawn % bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_random_repeats_within_bounds() {
        let (one, two) = (SeededRandom::new(7), SeededRandom::new(7));
        for bound in 1..200 {
            let drawn = one.below(bound);
            assert!(drawn < bound);
            assert_eq!(drawn, two.below(bound));
        }
        assert_eq!(SystemRandom.below(0), 0);
        assert_eq!(SystemRandom.below(1), 0);
    }
}
