//! `certs issue`, and the work that it shares with `certs renew`: done by this
//! process, or by the sidecar that runs on the same data directory.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::Call;
use super::catalog::{all_known, confirm, existing_store};
use super::factory::{Factory, wanted};
use super::kept::{dropped_keys, orphan_dropped};
use super::listener::{ChallengeSockets, listeners, serve};
use super::meant;
use super::output::{replacing, say, say_json};
use super::progress::Display;
use crate::challenge::protocol::Listen;
use crate::challenge::responses::Responses;
use crate::config::{CertificateSettings, Settings};
use crate::control::{self, Done, Task};
use crate::deploy::Outlet;
use crate::deploy::confirmed::Right;
use crate::deploy::output::Output;
use crate::failure::Failure;
use crate::lineage::{Lineage, reissue};
use crate::manage::preflight;
use crate::manage::{CannotOrder, Outcome, Trigger};
use crate::observe::ProofState;
use crate::random::SystemRandom;
use crate::renew::policy::SIDE_BY_SIDE;
use crate::sandbox;
use crate::store::memory::MemoryStore;
use crate::store::{Store, StoreError};
use crate::time::{Clock, SystemClock};

/// Obtains the certificate, or reports that the stored one is not due.
pub(crate) async fn issue(call: &Call, task: Task) -> Result<(), Failure> {
    let mut sources = call.sources.clone();
    sources.rehearses = task == Task::Rehearsal;
    let settings = meant::named(&sources).await?;
    ordered(call, settings, task).await
}

/// The same with the settings of the command.
pub(super) async fn ordered(
    call: &Call,
    mut settings: Settings,
    task: Task,
) -> Result<(), Failure> {
    meant::check_command(&call.sources, &settings).await?;
    for certificate in &settings.certificates {
        for unused in call.sources.unused_options(certificate) {
            tracing::warn!("{unused}");
        }
    }
    if settings
        .certificates
        .iter()
        .any(|one| one.request.is_some())
        && let Some(option) = call.sources.key_option()
    {
        return Err(Failure::usage(
            format!("{option}: the key is that of a signing request; nothing was ordered"),
            format!("leave {option} out; for another key, certs csr FILE --force with its request"),
        ));
    }
    match task {
        Task::Rehearsal => {
            at_staging(&mut settings.certificates);
            work(call, &settings, task, BTreeSet::new()).await
        }
        Task::Pass(trigger) => pass(call, &settings, trigger).await,
    }
}

/// One pass for each certificate of `settings`, whose rights the command confirms.
pub(super) async fn pass(
    call: &Call,
    settings: &Settings,
    trigger: Trigger,
) -> Result<(), Failure> {
    // What only the store names is confirmed by no command that does not repeat it.
    let own = |one: &CertificateSettings| {
        let rights = one.rights().into_iter();
        let rights = rights.filter(|right| !one.unconfirmed.contains(right));
        rights.collect::<Vec<_>>()
    };
    let rights = settings.certificates.iter().flat_map(own).collect();
    let dropped = dropped_keys(settings).await?;
    let ended = work(call, settings, Task::Pass(trigger), rights).await;
    orphan_dropped(settings, dropped).await?;
    ended
}

/// Replaces each CA's directory by its staging directory.
pub(crate) fn at_staging(certificates: &mut [CertificateSettings]) {
    for certificate in certificates {
        let again = reissue(&certificate.lineage, &certificate.names);
        let directory = &mut certificate.ca.directory;
        match directory.staging() {
            Some(staging) => *directory = staging,
            None => {
                certificate.cannot_order = Some(CannotOrder {
                    why: format!("{directory} has no staging directory for a dry run"),
                    hint: format!(
                        "{again} --ca letsencrypt --dry-run tests names, port 80 and DNS just as well"
                    ),
                    only_when_due: false,
                });
            }
        }
    }
}

/// The process that does the work.
enum Worker {
    /// This process.
    Here(Box<Factory>),
    /// The sidecar on the same data directory, which has port 80.
    Sidecar {
        /// The settings of this command, with the output that it expects.
        settings: Box<Settings>,
        /// Whether the command names that output, and accepts no other.
        names_output: bool,
        display: Display,
    },
}

impl Worker {
    async fn work(&self, settings: &CertificateSettings, task: Task) -> Result<Done, Failure> {
        match self {
            Self::Here(factory) => factory.work(settings, task).await,
            Self::Sidecar {
                settings: own,
                names_output,
                display,
            } => {
                let lineage = &settings.lineage;
                let mut asked = settings.clone();
                asked.output.take_if(|_| !names_output);
                let delegated = control::delegate(&own.data_dir, &asked, task);
                let done = display.during(lineage, delegated).await?;
                if let Done::Passed { path, .. } = &done
                    && *path != Output::new(own.output_of(settings).directory).live_path(lineage)
                {
                    tracing::warn!(%lineage, "the running `certs run` writes to {}", path.display());
                }
                Ok(done)
            }
        }
    }
}

/// Does `task` for each certificate, in the sidecar if one runs, and confirms `rights` once
/// it can begin.
pub(crate) async fn work(
    call: &Call,
    settings: &Settings,
    task: Task,
    rights: BTreeSet<Right>,
) -> Result<(), Failure> {
    if control::is_running(&settings.data_dir).await? {
        confirm(&settings.data_dir, rights)?;
        for unused in call.sources.own_ways() {
            tracing::warn!("{unused}");
        }
        let worker = Worker::Sidecar {
            settings: Box::new(settings.clone()),
            names_output: call.sources.names_an_output(),
            display: Display::new(call.terminal.clone()),
        };
        return each(call, &worker, settings, task).await;
    }
    let responses = Responses::default();
    let needed = needed_listeners(settings, task).await?;
    let ChallengeSockets {
        listeners, refused, ..
    } = listeners(call, &needed, &responses).await?;
    if let Some(failure) = refused.failure(&settings.certificates) {
        return Err(failure);
    }
    let store: Arc<dyn Store> = match task {
        Task::Pass(_) => call.store(settings)?,
        Task::Rehearsal => Arc::new(MemoryStore::default()),
    };
    confirm(&settings.data_dir, rights)?;
    if let Some(fleet) = &call.fleet {
        responses.share_through(fleet.clone());
    }
    let mut factory = Factory::new(call, settings, store, responses)?;
    factory.refused = refused;
    if settings.gives_up_root {
        // After the listener is bound, as in `certs run`.
        factory.services.output.prepare();
        let deployed = settings.certificates.iter();
        for certificate in deployed.filter(|_| task != Task::Rehearsal) {
            // While this process may give files to their readers; an error is reported later.
            let _ = factory.open_published(certificate);
        }
        let known = all_known(&call.sources, settings)?;
        factory.prepare_issuers(&known);
        factory.confine(sandbox::confine(&call.surroundings(), settings, &known)?);
    }
    let worker = Worker::Here(Box::new(factory));
    tokio::select! {
        ended = each(call, &worker, settings, task) => ended,
        () = serve(listeners) => Err(Failure::unexpected("the challenge listener stopped")),
        failure = interrupted() => Err(failure),
    }
}

/// The failure of a command that a user or the service manager ends. Its work is dropped, and
/// with it the challenge answers in other directories.
pub(super) async fn interrupted() -> Failure {
    let wait = |kind, number: u8| async move {
        match signal(kind) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        };
        let hint = "run the same command again: it continues from here, and repeats no order";
        let message = format!("interrupted by signal {number}");
        Failure::new(128 + number, vec![(message, hint.to_owned())])
    };
    // A terminal that is closed; nohup has the signal ignored.
    let hangup = async {
        match ignores_hangup() {
            true => std::future::pending().await,
            false => wait(SignalKind::hangup(), 1).await,
        }
    };
    tokio::select! {
        failure = hangup => failure,
        failure = wait(SignalKind::interrupt(), 2) => failure,
        failure = wait(SignalKind::terminate(), 15) => failure,
    }
}

/// Whether SIGHUP is ignored by this process since its start: proc_pid_status(5).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// Whether `task` may place an order: only orders need port 80.
pub(crate) async fn may_order(
    store: &dyn Store,
    settings: &CertificateSettings,
    task: Task,
) -> bool {
    let Task::Pass(trigger) = task else {
        return true;
    };
    let stored = match store.load(&settings.lineage).await {
        Ok(stored) => stored,
        // The pass may succeed in reading it, and order.
        Err(StoreError::Io { source, .. }) if source.kind() != ErrorKind::PermissionDenied => {
            return true;
        }
        // The pass reports the error and orders nothing.
        Err(_) => return false,
    };
    let record = stored.as_ref().map(|(record, _)| record);
    let (wanted, now) = (wanted(settings), SystemClock.now());
    preflight::may_order(record, &wanted, trigger, now, &SystemRandom)
}

/// The addresses of the challenges of those certificates that may be ordered.
async fn needed_listeners(settings: &Settings, task: Task) -> Result<Vec<Listen>, Failure> {
    let store = existing_store(settings.data_dir.clone())?;
    let mut able = Vec::new();
    for certificate in &settings.certificates {
        let may_order = match &store {
            _ if certificate.cannot_order.is_some() => false,
            Some(store) => may_order(store, certificate, task).await,
            None => true,
        };
        able.extend(may_order.then(|| certificate.clone()));
    }
    let is_needed = !able.is_empty();
    let able = Settings {
        certificates: able,
        docker: None,
        ..settings.clone()
    };
    Ok(match is_needed {
        true => able.listens(),
        false => Vec::new(),
    })
}

/// Works on all certificates at once, to coalesce the reloads of their servers, and
/// prints the results in order. A failure does not stop the others; the first one
/// gives the exit code.
async fn each(
    call: &Call,
    worker: &Worker,
    settings: &Settings,
    task: Task,
) -> Result<(), Failure> {
    let mut ended = Ok(());
    let works = settings.certificates.iter().map(async |certificate| {
        let done = worker.work(certificate, task).await;
        (certificate, done)
    });
    let mut works = stream::iter(works).buffered(SIDE_BY_SIDE);
    while let Some((certificate, done)) = works.next().await {
        match done {
            Ok(done) => print(call, certificate, task, &done),
            Err(failure) => {
                failure.show(&call.terminal);
                if call.json || settings.certificates.len() > 1 {
                    print_failure(call, certificate.lineage.as_str(), task, &failure);
                }
                ended = ended.and(Err(failure.code_only()));
            }
        }
    }
    ended
}

/// Prints the result of a failed certificate on standard output.
pub(crate) fn print_failure(call: &Call, lineage: &str, task: Task, failure: &Failure) {
    let code = failure.code;
    if !call.json {
        return say(format_args!("{lineage}: failed (exit code {code})"));
    }
    let mut json = json!({
        "name": lineage, "issued": false, "exit_code": code, "error": failure.summary(),
    });
    if task == Task::Rehearsal {
        json["dry_run"] = true.into();
    }
    say_json(json);
}

/// Whether a timer's mail need not say it.
fn is_well(outcome: &Outcome) -> bool {
    let is_served = outcome.revoked.contains_key(&outcome.generation);
    outcome.excluded.is_empty() && outcome.proof.state != ProofState::NotProven && !is_served
}

/// Says which settings wait for the next order.
fn print_changed(call: &Call, lineage: &Lineage, changed: &[String]) {
    if !changed.is_empty() {
        let changed = changed.join(", ");
        let line = format!(
            "{lineage}: {changed} applies to the next renewal; hint: certs renew {lineage} --force applies it now"
        );
        say(call.terminal.hint(&line));
    }
}

fn print(call: &Call, settings: &CertificateSettings, task: Task, done: &Done) {
    let (lineage, ca) = (&settings.lineage, &settings.ca.directory);
    let now = SystemClock.now();
    match done {
        Done::Passed { outcome, path } if call.json => say_json(json!({
            "name": lineage, "issued": outcome.issued, "generation": outcome.generation,
            "not_after": outcome.not_after, "next": outcome.next, "renewal": outcome.renewal, "path": path,
            "left_out": outcome.excluded, "proof": outcome.proof.state,
            "proof_at": outcome.proof.at, "proof_detail": outcome.proof.detail,
            "revoked": outcome.revoked, "changed": outcome.changed,
        })),
        Done::Passed { outcome, .. } if call.terminal.is_quiet() && is_well(outcome) => {}
        Done::Passed { outcome, path } => {
            let result = match (outcome.issued, task) {
                (true, _) => "issued",
                (false, Task::Pass(trigger)) if trigger.never_orders() => "deployed again",
                (false, Task::Pass(Trigger::Revoke { .. })) => "nothing was ordered",
                (false, Task::Pass(Trigger::CancelRevocation)) => "the revocation is given up",
                (false, _) => "not due",
            };
            let (generation, path) = (outcome.generation, path.display());
            let not_after = outcome.not_after.seen_at(now);
            let renewal = outcome.renewal.unwrap_or(outcome.next).seen_at(now);
            say(format_args!(
                "{lineage}: {result}; generation {generation} in {path}, valid to {not_after}, renewal at {renewal}"
            ));
            say(format_args!("{lineage}: {}", outcome.proof.seen_at(now)));
            print_changed(call, lineage, &outcome.changed);
            for (generation, revoked) in &outcome.revoked {
                let (reason, at) = (revoked.reason, revoked.at.seen_at(now));
                say(format_args!(
                    "{lineage}: generation {generation} is revoked since {at} ({reason})"
                ));
            }
            if outcome.revoked.contains_key(&outcome.generation) {
                let replace = replacing(lineage, settings.request.is_some());
                let line = format!(
                    "{lineage}: the revoked certificate is still live; hint: {replace} replaces it, certs delete {lineage} ends it"
                );
                say(call.terminal.hint(&line));
            }
            for one in &outcome.excluded {
                let retry_at = one.retry_at.unwrap_or(outcome.next).seen_at(now);
                let (name, reason) = (&one.identifier, &one.reason);
                say(format_args!(
                    "{lineage}: excluded for now: {name}: {reason}; retry at {retry_at}"
                ));
            }
        }
        Done::Rehearsed(facts) if call.json => say_json(json!({
            "name": lineage, "dry_run": true, "ca": ca.identity(),
            "not_before": facts.not_before, "not_after": facts.not_after,
        })),
        Done::Rehearsed(facts) => {
            let not_after = facts.not_after.seen_at(now);
            say(format_args!(
                "dry run: {lineage} would be issued; {ca} signed a certificate valid to {not_after}, which was not stored"
            ));
        }
    }
}
