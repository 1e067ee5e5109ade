//! The errors of a pass. Each error knows its hint, its exit code, the time of the next
//! retry, and whether the CA was unreachable or refused. It decides nothing.

use thiserror::Error;

use super::cannot_order::CannotOrder;
use crate::acme::{AcmeError, Cause, FailedName, Phase};
use crate::ca_state::Limit;
use crate::certificate::BundleError;
use crate::deploy::DeployError;
use crate::deploy::output::OutputError;
use crate::deploy::verify::VerifyError;
use crate::failure::{Failure, STORE_HINT, hint_for};
use crate::renew::backoff::FailureKind;
use crate::renew::rate_limits::Line;
use crate::store::StoreError;
use crate::time::Timestamp;

/// Why a pass did not complete.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub(crate) enum ManageError {
    #[error(transparent)]
    Acme(#[from] AcmeError),
    #[error("the certificate from {ca} is invalid: {source}")]
    Bundle { ca: String, source: BundleError },
    #[error("the stored certificate is invalid: {0}")]
    Stored(BundleError),
    #[error("no private key could be generated: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the next try is at {until}; the last one failed: {last}")]
    BackingOff { until: Timestamp, last: String },
    #[error("not deployed; the next try is at {until}; the last one failed: {last}")]
    NotDeployed { until: Timestamp, last: String },
    #[error("{ca} has been unreachable since {since}; the next probe is at {until}: {last}")]
    Unreachable {
        ca: String,
        since: Timestamp,
        until: Timestamp,
        last: String,
    },
    #[error("{} (as counted here): no order before {until}", exhausted(.limit, .subject))]
    LimitExhausted {
        limit: Limit,
        subject: String,
        until: Timestamp,
        line: Option<Box<Line>>,
    },
    #[error("due by this machine's clock ({ours}), but not by the clock of {ca} ({theirs})")]
    NotDueAtCa {
        ca: String,
        ours: Timestamp,
        theirs: Timestamp,
        until: Timestamp,
    },
    #[error(
        "the running `certs run` manages it {current}; this command asks for another configuration"
    )]
    ConfiguredDifferently { current: String },
    #[error("`certs run` stopped before the work was done")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Deploy(#[from] DeployError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("{why}")]
    Impossible { why: String, hint: String },
    #[error("it cannot be ordered: {}", .0.why)]
    CannotOrder(CannotOrder),
    #[error("the pass cannot continue: {0}")]
    Halted(String),
}

/// The hint for an order on a machine that only serves.
pub(crate) const ONLY_SERVES: &str = "run this command on a machine of role full";

/// Our own error, which a journal passed through the client.
fn own_of(error: &AcmeError) -> Option<&ManageError> {
    match &error.cause {
        Cause::Journal(own) => own.downcast_ref(),
        _ => None,
    }
}

impl ManageError {
    /// The next action for the operator.
    #[must_use]
    pub(crate) fn hint(&self) -> String {
        let of_shared = match self {
            Self::Store(error) => error.hint_of_shared(),
            _ => None,
        };
        of_shared.map_or_else(|| self.own_hint(), str::to_owned)
    }

    /// The same for an error that is not of the store of a fleet.
    fn own_hint(&self) -> String {
        match self {
            Self::Acme(acme) => own_of(acme).map_or_else(|| acme.hint(), Self::hint),
            Self::Bundle { .. } => {
                "nothing was published; the previous certificate is still served".into()
            }
            Self::BackingOff { .. } => {
                "certs issue with the same names retries at once, unless the CA asked to wait; after an unusable certificate only --force does; the certificate in use stays".into()
            }
            Self::NotDeployed { .. } => {
                "repair the cause; certs issue with the same names retries at once".into()
            }
            Self::Unreachable { .. } => {
                "the probe runs by itself, once for all certificates; certs issue with the same names retries at once".into()
            }
            Self::LimitExhausted { limit: Limit::NewAccounts, .. } => {
                "use one data directory for all certificates: each new one registers an account, and the CA counts accounts by this machine's address".into()
            }
            Self::LimitExhausted { .. } => {
                "a reserve is kept for urgent orders: certs issue --force may use it; certs status shows the tokens left".into()
            }
            Self::NotDueAtCa { .. } => {
                "set this machine's clock, best by NTP; nothing was ordered".into()
            }
            Self::Impossible { hint, .. } => hint.clone(),
            Self::CannotOrder(cause) => cause.hint.clone(),
            Self::ConfiguredDifferently { .. } => {
                "change the configuration of `certs run` and send it SIGHUP, or issue another certificate with --name NAME".into()
            }
            Self::Stopped => {
                "run the same command again: the order is resumed, not repeated".into()
            }
            Self::Store(StoreError::Corrupt { .. }) => {
                "restore that file from a backup, or move it away: certs makes a new one, and the live certificate stays".into()
            }
            Self::Store(StoreError::Newer { .. }) => {
                "run the version of certs that wrote it, or a newer one; nothing was changed".into()
            }
            Self::Store(StoreError::OnlyServes) => ONLY_SERVES.into(),
            Self::Store(StoreError::Leased { .. }) => {
                "wait until the other process ends, or let it do the work".into()
            }
            Self::Store(StoreError::Taken { .. }) => "choose another name: certs list shows the stored ones".into(),
            Self::Store(
                StoreError::Conflict { .. }
                | StoreError::AccountChanged { .. }
                | StoreError::GenerationExists { .. },
            ) => {
                "another process was faster: run the same command again to continue from its result".into()
            }
            Self::Output(output) if output.is_refusal() => output.hint().into(),
            Self::Store(StoreError::Io { subject: path, source, .. })
            | Self::Output(OutputError::Io { path, source, .. }) => hint_for(path.as_ref(), source),
            Self::Stored(_)
            | Self::Store(
                StoreError::Seal { .. }
                | StoreError::OtherKey { .. }
                | StoreError::OtherFleet
                | StoreError::Older { .. },
            )
            | Self::Output(_) => {
                STORE_HINT.into()
            }
            Self::Deploy(deploy) => deploy.hint().to_string(),
            Self::Verify(verify) => verify.hint().to_string(),
            Self::Key(_) | Self::Halted(_) => "run again with -v and report the output".into(),
        }
    }

    /// The hint while there is no certificate of that name.
    fn hint_before_first(&self, lineage: &str) -> String {
        let forget = format!("if the name is wrong, forget it: certs delete {lineage}");
        match self {
            Self::BackingOff { .. } => format!(
                "correct the cause; certs issue with the same names retries at once, unless the CA asked to wait; after an unusable certificate only --force does; {forget}"
            ),
            Self::Bundle { .. } => format!("nothing was published; {forget}"),
            error if error.is_verdict() => format!("{}; {forget}", error.hint()),
            error => error.hint(),
        }
    }

    /// The exit code of a command that ends with this error.
    #[must_use]
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Acme(acme) => match &acme.cause {
                Cause::Unreachable(_) | Cause::Protocol(_) | Cause::TimedOut(_) => 3,
                Cause::Refused(_) | Cause::NoChallenge { .. } => 4,
                Cause::NotValidated(_) => 5,
                Cause::RateLimited { .. } => 6,
                Cause::Binding(_) => 2,
                Cause::Solver(_) | Cause::Journal(_) => 8,
            },
            Self::Bundle { .. } | Self::Unreachable { .. } => 3,
            Self::ConfiguredDifferently { .. }
            | Self::NotDueAtCa { .. }
            | Self::CannotOrder(_)
            | Self::Impossible { .. } => 2,
            Self::BackingOff { .. } | Self::LimitExhausted { .. } => 6,
            Self::Store(StoreError::OnlyServes) => 2,
            Self::Stored(_) | Self::Store(_) | Self::Output(_) => 8,
            Self::Deploy(deploy) if deploy.is_refusal() => 8,
            Self::Deploy(_) | Self::Verify(_) | Self::NotDeployed { .. } => 7,
            Self::Key(_) | Self::Halted(_) | Self::Stopped => 1,
        }
    }

    /// Whether the CA was unreachable or failed.
    #[must_use]
    pub(crate) fn is_outage(&self) -> bool {
        let Self::Acme(AcmeError { phase, cause, .. }) = self else {
            return false;
        };
        match cause {
            Cause::Unreachable(_) => true,
            // A proxy's or a maintenance page instead of the directory.
            Cause::Protocol(_) => *phase == Phase::Directory,
            _ => false,
        }
    }

    /// Whether the CA has refused it because of a rate limit.
    #[must_use]
    pub(super) fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Acme(error) if matches!(error.cause, Cause::RateLimited { .. }))
    }

    /// Whether the CA has processed and rejected the order. An overloaded CA, or a gateway
    /// in front of it, has not.
    #[must_use]
    pub(crate) fn is_verdict(&self) -> bool {
        match self {
            Self::Acme(error) => matches!(
                error.cause,
                Cause::NotValidated(_) | Cause::Refused(_) | Cause::NoChallenge { .. }
            ),
            error => matches!(error, Self::Bundle { .. }),
        }
    }

    /// Whether a server failed, and not our own store.
    pub(super) fn is_server_failure(&self) -> bool {
        match self {
            Self::Deploy(_) => true,
            Self::Verify(error) => !error.was_blind(),
            _ => false,
        }
    }

    /// Whether the CA rejected the key of the order.
    pub(super) fn rejects_key(&self) -> bool {
        matches!(self, Self::Acme(error) if error.is_about_the_key())
    }

    /// When a certificate that waits for its CA may continue.
    #[must_use]
    pub(crate) fn waits_until(&self) -> Option<Timestamp> {
        match self {
            Self::Unreachable { until, .. }
            | Self::LimitExhausted { until, .. }
            | Self::NotDueAtCa { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Whether the CA limits the rate and does not say until when.
    fn names_no_end(&self) -> bool {
        let Self::Acme(AcmeError { cause, .. }) = self else {
            return false;
        };
        matches!(cause, Cause::RateLimited { retry_after, .. } if retry_after.is_none())
    }

    /// The names whose validation failed, if the CA names them.
    pub(super) fn failed_names(&self) -> &[FailedName] {
        match self {
            Self::Acme(error) => error.cause.failed_names(),
            _ => &[],
        }
    }

    /// The kind of failure, and whether the order has ended for good.
    pub(super) fn failure_kind(&self) -> (FailureKind, bool) {
        let cause = match self {
            Self::Acme(AcmeError { cause, .. }) => cause,
            Self::Bundle { .. } => return (FailureKind::Unusable, true),
            _ => return (FailureKind::Internal, true),
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
            Cause::NotValidated(_) => (FailureKind::Validation, true),
            Cause::Refused(_) | Cause::NoChallenge { .. } => (FailureKind::Refused, true),
            // A failure of our own disk leaves the order valid.
            Cause::Solver(_) | Cause::Journal(_) | Cause::Binding(_) => {
                (FailureKind::Internal, false)
            }
        }
    }
}

impl Failure {
    /// The failure of a command on `subject`, for `map_err`.
    pub(crate) fn on<E: Into<ManageError>>(subject: &str) -> impl Fn(E) -> Self {
        move |error| Self::of(subject, &error.into())
    }

    /// The same, for a pass that ended at `now`: the instant of the next try is shown with
    /// its distance. `exists`: whether the store has a certificate of that name.
    pub(crate) fn of_pass(
        subject: &str,
        error: &ManageError,
        now: Timestamp,
        exists: bool,
        retry_at: Option<Timestamp>,
    ) -> Self {
        let next = match error {
            ManageError::BackingOff { until, .. } | ManageError::NotDeployed { until, .. } => {
                Some(*until)
            }
            error => error.waits_until(),
        };
        let (mut message, mut hint) = (format!("{subject}: {error}"), error.hint());
        if !exists {
            message += &format!("; no certificate exists yet for {subject}");
            hint = error.hint_before_first(subject);
        }
        if let (true, Some(at)) = (error.names_no_end(), retry_at) {
            let at = at.seen_at(now);
            hint = format!("{hint}; the CA names no end, so that the next try is at {at}");
        }
        let mut failure = Self::new(error.exit_code(), vec![(message, hint)]);
        // The error itself is stored, too, where a distance from now would become wrong.
        if let Some(next) = next {
            failure.replace(&next.to_string(), &next.seen_at(now));
        }
        failure
    }

    fn of(subject: &str, error: &ManageError) -> Self {
        let message = format!("{subject}: {error}");
        Self::new(error.exit_code(), vec![(message, error.hint())])
    }
}

fn exhausted(limit: &Limit, subject: &str) -> String {
    match subject {
        "" => format!("the rate limit for {limit} is used up"),
        _ => format!("the rate limit for {limit} of {subject} is used up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_outage_only_for_protocol_errors_of_the_directory() {
        let failed = |phase| {
            let (ca, cause) = ("https://ca".into(), Cause::Protocol("no JSON".into()));
            ManageError::Acme(AcmeError { ca, phase, cause })
        };
        assert!(failed(Phase::Directory).is_outage());
        assert!(!failed(Phase::Finalize).is_outage());
    }

    #[test]
    fn error_of_a_shared_store_has_the_hint_of_its_kind() {
        let hint = "free space there";
        let advised = || {
            let message = "s3://bucket/certs: full".to_owned();
            std::io::Error::other(crate::failure::Advised { message, hint })
        };
        let shared = || StoreError::Io {
            operation: "write",
            subject: "fleet of the shared store".to_owned(),
            source: advised(),
        };
        assert_eq!(ManageError::from(shared()).hint(), hint);
        let of_answer = crate::challenge::SolverError::Io {
            operation: "share",
            path: "the challenge answer".to_owned(),
            source: std::io::Error::other(shared()),
        };
        for cause in [Cause::Journal(shared().into()), Cause::Solver(of_answer)] {
            assert_eq!(cause.hint(), hint, "{cause:?}");
        }
        let own = StoreError::Io {
            operation: "write",
            subject: "/absent/records".to_owned(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        assert_eq!(ManageError::from(own).hint(), STORE_HINT);
    }
}
