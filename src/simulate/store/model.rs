//! How each kind of store fails while its scenario lasts, as data.

use std::time::Duration;

use super::super::scenario::Scenario;
use super::super::{MINUTE, SECOND};

/// Of a thousand calls, so many …
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StoreModel {
    /// … fail and have no effect.
    pub(super) failed: u64,
    /// … have their effect, and the reply is lost.
    pub(super) lost: u64,
    /// … have it after the caller has given up.
    pub(super) late: u64,
    /// … take seconds.
    pub(super) slow: u64,
    /// A read may show the state of so long ago.
    pub(super) stale: Duration,
    /// Again and again after this time …
    pub(super) every: Duration,
    /// … it is unreachable, or it restarts,
    pub(super) gone: Duration,
    /// … and then it refuses writes.
    pub(super) read_only: Duration,
    /// It tells of no change.
    pub(super) is_silent: bool,
}

impl StoreModel {
    pub(super) fn of(scenario: Scenario) -> Self {
        let none = Self::default();
        match scenario {
            // 503 SlowDown, and time-outs.
            Scenario::StoreS3 => Self {
                failed: 100,
                lost: 50,
                late: 20,
                slow: 100,
                is_silent: true,
                ..none
            },
            // Elections, members that lag, and watches that break.
            Scenario::StoreEtcd => Self {
                failed: 20,
                lost: 50,
                late: 20,
                slow: 50,
                stale: SECOND * 5,
                every: MINUTE * 3,
                gone: SECOND * 10,
                is_silent: true,
                ..none
            },
            // A restart drops every connection; a replica takes over, and is promoted later.
            Scenario::StorePostgres => Self {
                failed: 10,
                lost: 20,
                slow: 50,
                stale: SECOND * 2,
                every: MINUTE * 20,
                gone: SECOND * 30,
                read_only: MINUTE * 5,
                is_silent: true,
                ..none
            },
            // The attributes of NFS are cached for a minute; ESTALE; a server that restarts.
            Scenario::StoreDirectory => Self {
                failed: 50,
                lost: 50,
                late: 10,
                slow: 100,
                stale: MINUTE,
                every: MINUTE * 30,
                gone: MINUTE * 2,
                is_silent: true,
                ..none
            },
            // Its disk is full.
            Scenario::StoreFull => Self {
                every: MINUTE,
                read_only: MINUTE,
                ..none
            },
            _ => none,
        }
    }

    /// Whether the store is unreachable, and whether it refuses writes, so long after the
    /// begin of its scenario.
    pub(super) fn phase(&self, after: Duration) -> (bool, bool) {
        let every = self.every.as_millis().max(1);
        let at = after.as_millis() % every;
        let gone = self.gone.as_millis();
        (at < gone, at < gone + self.read_only.as_millis())
    }
}
