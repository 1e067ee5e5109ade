//! Why a pass fails. An error says itself what it means: its hint, its exit code, when
//! to try again, and whether the CA was unreachable or has judged. It decides nothing.

use thiserror::Error;

use crate::acme::{AcmeError, Cause, FailedName, Phase};
use crate::ca_state::Limit;
use crate::certificate::BundleError;
use crate::deploy::DeployError;
use crate::deploy::output::OutputError;
use crate::deploy::verify::VerifyError;
use crate::failure::{Failure, STORE_HINT};
use crate::identifier::Lineage;
use crate::renew::backoff::FailureKind;
use crate::renew::ledger::Line;
use crate::store::StoreError;
use crate::time::Timestamp;

/// Why a pass did not reach its end.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub(crate) enum ManageError {
    #[error(transparent)]
    Acme(#[from] AcmeError),
    #[error("the certificate that {ca} sent is not usable: {source}")]
    Bundle { ca: String, source: BundleError },
    #[error("the stored certificate is not usable: {0}")]
    Stored(BundleError),
    #[error("a private key could not be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("no new try before {until}; the last one ended with: {last}")]
    BackingOff { until: Timestamp, last: String },
    #[error("not handed over, and no new try before {until}; the last one ended with: {last}")]
    NotHandedOver { until: Timestamp, last: String },
    #[error("{ca} has not answered since {since}, and is asked again at {until}: {last}")]
    Down {
        ca: String,
        since: Timestamp,
        until: Timestamp,
        last: String,
    },
    #[error("{} by our own ledger: no order before {until}", exhausted(.limit, .subject))]
    OutOfBudget {
        limit: Limit,
        subject: String,
        until: Timestamp,
        line: Option<Box<Line>>,
    },
    #[error("it is due by this machine's clock ({ours}) and not by that of {ca} ({theirs})")]
    NotDueThere {
        ca: String,
        ours: Timestamp,
        theirs: Timestamp,
        until: Timestamp,
    },
    #[error("the running `certs run` keeps it {kept}, and not as this command asks for")]
    KeptOtherwise { kept: String },
    #[error("`certs run` ended before the work did")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Deploy(#[from] DeployError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("{lineage}: {why}")]
    NoWayBack { lineage: Lineage, why: String },
    #[error("nothing can be done: {0}")]
    Halted(String),
}

impl ManageError {
    /// The next thing for a person to do.
    #[must_use]
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Acme(acme) => acme.cause.hint().into(),
            Self::Bundle { .. } => {
                "nothing was published; what was served before is still served".into()
            }
            Self::BackingOff { .. } => {
                "certs issue with the same names tries at once, unless the CA itself asked to wait; the certificate in use is untouched".into()
            }
            Self::NotHandedOver { .. } => {
                "mend what the last try ended with; certs issue with the same names tries at once".into()
            }
            Self::Down { .. } => {
                "it is asked again by itself, once for all certificates; certs issue with the same names asks at once".into()
            }
            Self::OutOfBudget { limit: Limit::NewAccounts, .. } => {
                "use one data directory for all that is issued here: each new one makes an account, and the CA counts them by this machine's address".into()
            }
            Self::OutOfBudget { .. } => {
                "a part of what the CA allows is kept for what cannot wait: certs issue --force may use it; certs status shows what is left".into()
            }
            Self::NotDueThere { .. } => {
                "set this machine's clock, best by NTP; nothing was ordered".into()
            }
            Self::NoWayBack { .. } => {
                "certs status shows what is served; the last three generations are kept: --to GENERATION names one".into()
            }
            Self::KeptOtherwise { .. } => {
                "change its configuration and send it SIGHUP, or make another certificate with --name NAME".into()
            }
            Self::Stopped => {
                "run the same command again: what was ordered is resumed, not repeated".into()
            }
            Self::Store(StoreError::Corrupt { .. }) => {
                "restore that file from a backup, or move it away: what is missing is then made anew, and what is served stays".into()
            }
            Self::Store(StoreError::Leased { .. }) => {
                "wait until the other process has ended, or let it do the work".into()
            }
            Self::Store(StoreError::Conflict { .. } | StoreError::GenerationExists { .. }) => {
                "another process has done its work first: run the same command again, and it goes on from there".into()
            }
            Self::Stored(_) | Self::Store(_) | Self::Output(_) => STORE_HINT.into(),
            Self::Deploy(deploy) => deploy.hint().to_string(),
            Self::Verify(verify) => verify.hint().to_string(),
            Self::Key(_) | Self::Halted(_) => "run again with -v and report what it says".into(),
        }
    }

    /// The exit code of a command that ends with it.
    #[must_use]
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Acme(acme) => match &acme.cause {
                Cause::Unreachable(_) | Cause::Protocol(_) | Cause::TimedOut(_) => 3,
                Cause::Refused(_) | Cause::NoChallenge { .. } => 4,
                Cause::NotProven(_) => 5,
                Cause::RateLimited { .. } => 6,
                Cause::Solver(_) | Cause::Journal(_) => 8,
            },
            Self::Bundle { .. } | Self::Down { .. } => 3,
            Self::KeptOtherwise { .. } | Self::NotDueThere { .. } | Self::NoWayBack { .. } => 2,
            Self::BackingOff { .. } | Self::OutOfBudget { .. } => 6,
            Self::Stored(_) | Self::Store(_) | Self::Output(_) => 8,
            Self::Deploy(_) | Self::Verify(_) | Self::NotHandedOver { .. } => 7,
            Self::Key(_) | Self::Halted(_) | Self::Stopped => 1,
        }
    }

    /// Whether the CA was unreachable, or failed.
    #[must_use]
    pub(crate) fn is_outage(&self) -> bool {
        let Self::Acme(AcmeError { phase, cause, .. }) = self else {
            return false;
        };
        match cause {
            Cause::Unreachable(_) => true,
            // Another page in the place of the directory.
            Cause::Protocol(_) => *phase == Phase::Directory,
            _ => false,
        }
    }

    /// Whether the CA has understood and judged the order. One that is overloaded, or a
    /// gateway in its place, has not.
    #[must_use]
    pub(crate) fn is_verdict(&self) -> bool {
        match self {
            Self::Acme(error) => matches!(
                error.cause,
                Cause::NotProven(_) | Cause::Refused(_) | Cause::NoChallenge { .. }
            ),
            error => matches!(error, Self::Bundle { .. }),
        }
    }

    /// Whether it is about a server, and not about our own store.
    pub(super) fn is_about_a_server(&self) -> bool {
        matches!(self, Self::Deploy(_) | Self::Verify(_))
    }

    /// Whether the CA does not take the key of the order.
    pub(super) fn is_about_the_key(&self) -> bool {
        matches!(self, Self::Acme(error) if error.is_about_the_key())
    }

    /// When the certificates that a CA keeps waiting may go on.
    #[must_use]
    pub(crate) fn waits_until(&self) -> Option<Timestamp> {
        match self {
            Self::Down { until, .. }
            | Self::OutOfBudget { until, .. }
            | Self::NotDueThere { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// The names that an order failed for, where the CA names them.
    pub(super) fn failed_names(&self) -> &[FailedName] {
        match self {
            Self::Acme(error) => error.cause.failed_names(),
            _ => &[],
        }
    }

    /// Its kind, and whether the order has ended for good.
    pub(super) fn failure_kind(&self) -> (FailureKind, bool) {
        let Self::Acme(AcmeError { cause, .. }) = self else {
            return (FailureKind::Internal, true);
        };
        match cause {
            Cause::RateLimited { retry_after, .. } => (
                FailureKind::RateLimited {
                    retry_after: *retry_after,
                },
                false,
            ),
            Cause::Unreachable(_) | Cause::Protocol(_) | Cause::TimedOut(_) => {
                (FailureKind::Unreachable, false)
            }
            Cause::NotProven(_) => (FailureKind::Validation, true),
            Cause::Refused(_) | Cause::NoChallenge { .. } => (FailureKind::Refused, true),
            // Our own disk: the order is as good as before.
            Cause::Solver(_) | Cause::Journal(_) => (FailureKind::Internal, false),
        }
    }
}

impl Failure {
    /// The failure of working on `subject`.
    #[must_use]
    pub(crate) fn of(subject: &str, error: &ManageError) -> Self {
        let message = format!("{subject}: {error}");
        Self::new(error.exit_code(), vec![(message, error.hint())])
    }
}

fn exhausted(limit: &Limit, subject: &str) -> String {
    match subject {
        "" => format!("the {limit} are used up"),
        _ => format!("the {limit} of {subject} are used up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_in_the_place_of_the_directory_is_an_outage_and_a_reply_out_of_order_is_none() {
        let failed = |phase| {
            let (ca, cause) = ("https://ca".into(), Cause::Protocol("no JSON".into()));
            ManageError::Acme(AcmeError { ca, phase, cause })
        };
        assert!(failed(Phase::Directory).is_outage());
        assert!(!failed(Phase::Finalize).is_outage());
    }
}
