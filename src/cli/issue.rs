//! `certs issue`, and the work that it shares with `certs renew`: done by this
//! process, or by the sidecar that runs on the same data directory.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde_json::json;

use super::Call;
use super::args::Issue;
use super::catalog::{confirm, open_store};
use super::factory::{Factory, wanted};
use super::listener::{listener, serve};
use super::output::say;
use super::progress::Display;
use crate::challenge::responses::Responses;
use crate::config::{CertificateSettings, Purpose, Settings};
use crate::control::{self, Done, Task};
use crate::deploy::Outlet;
use crate::deploy::output::Output;
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::manage::Trigger;
use crate::manage::preflight;
use crate::random::SystemRandom;
use crate::renew::policy::SIDE_BY_SIDE;
use crate::store::fs::FileStore;
use crate::store::memory::MemoryStore;
use crate::store::{Store, StoreError};
use crate::time::{Clock, SystemClock};

/// Obtains the certificate, or reports that the stored one is not due.
pub(crate) async fn issue(call: &Call, options: &Issue) -> Result<(), Failure> {
    let mut settings = call.sources.settings(&Purpose::Named)?;
    keep_whole(call, &mut settings).await?;
    if options.dry_run {
        at_staging(&mut settings)?;
        return work(call, &settings, Task::Rehearsal).await;
    }
    let rights = settings
        .certificates
        .iter()
        .flat_map(CertificateSettings::rights);
    confirm(&settings.data_dir, rights.collect());
    let trigger = match options.force {
        true => Trigger::Forced,
        false => Trigger::Requested,
    };
    work(call, &settings, Task::Pass(trigger)).await
}

/// A subset of a stored certificate's names selects the whole certificate: a
/// command must not remove names that a server needs.
async fn keep_whole(call: &Call, settings: &mut Settings) -> Result<(), Failure> {
    let [certificate] = settings.certificates.as_mut_slice() else {
        return Ok(());
    };
    let lineage = &certificate.lineage;
    let named = call.sources.names_a_lineage || call.sources.configures(lineage);
    let store = FileStore::existing(settings.data_dir.clone());
    let (false, Some(store)) = (named, store) else {
        return Ok(());
    };
    let stored = store.load(lineage).await;
    let stored = stored.map_err(Failure::on(lineage.as_str()))?;
    let Some(issued) = stored.and_then(|(record, _)| record.issued) else {
        return Ok(());
    };
    let requested: BTreeSet<&Identifier> = certificate.names.iter().collect();
    let stored: BTreeSet<&Identifier> = issued.facts.identifiers.iter().collect();
    if requested.len() < stored.len() && requested.is_subset(&stored) {
        let others = stored.difference(&requested).map(ToString::to_string);
        let others = others.collect::<Vec<_>>().join(", ");
        tracing::info!(
            %lineage,
            "it keeps {others} too; to drop them use --name {lineage}, for another certificate another --name"
        );
        certificate.names = issued.facts.identifiers.into_iter().collect();
    }
    Ok(())
}

/// Replaces each CA's directory by its staging directory.
fn at_staging(settings: &mut Settings) -> Result<(), Failure> {
    for certificate in &mut settings.certificates {
        let ca = &mut certificate.ca;
        ca.directory = ca.directory.staging().ok_or_else(|| {
            let (lineage, directory) = (&certificate.lineage, &ca.directory);
            Failure::usage(
                format!("{lineage}: {directory} has no staging directory for a dry run"),
                "use --ca letsencrypt --dry-run: it tests names, port 80 and DNS just as well",
            )
        })?;
    }
    Ok(())
}

/// The process that does the work.
enum Worker {
    /// This process.
    Here(Box<Factory>),
    /// The sidecar on the same data directory, which has port 80.
    Sidecar {
        data_dir: PathBuf,
        /// The output that this command expects.
        output: Output,
        display: Display,
    },
}

impl Worker {
    async fn work(&self, settings: &CertificateSettings, task: Task) -> Result<Done, Failure> {
        match self {
            Self::Here(factory) => factory.work(settings, task).await,
            Self::Sidecar {
                data_dir,
                output,
                display,
            } => {
                let lineage = &settings.lineage;
                let delegated = control::delegate(data_dir, settings, task);
                let done = display.during(lineage, delegated).await?;
                if let Done::Passed { path, .. } = &done
                    && *path != output.live_path(lineage)
                {
                    tracing::warn!(%lineage, "the running `certs run` writes to {}", path.display());
                }
                Ok(done)
            }
        }
    }
}

/// Does `task` for each certificate, in the sidecar if one runs.
pub(crate) async fn work(call: &Call, settings: &Settings, task: Task) -> Result<(), Failure> {
    if control::is_running(&settings.data_dir).await {
        let worker = Worker::Sidecar {
            data_dir: settings.data_dir.clone(),
            output: Output::new(settings.output.directory.clone()),
            display: Display::new(call.terminal.clone()),
        };
        return each(call, &worker, settings, task).await;
    }
    let responses = Responses::default();
    let listener = match any_may_order(settings, task).await {
        true => listener(call, settings, &responses)?,
        false => None,
    };
    let store: Arc<dyn Store> = match task {
        Task::Pass(_) => Arc::new(open_store(settings.data_dir.clone())?),
        Task::Rehearsal => Arc::new(MemoryStore::default()),
    };
    let worker = Worker::Here(Box::new(Factory::new(call, settings, store, responses)?));
    tokio::select! {
        ended = each(call, &worker, settings, task) => ended,
        () = serve(listener) => Err(Failure::unexpected("the challenge listener stopped")),
    }
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

/// Whether any certificate of `settings` may place an order.
async fn any_may_order(settings: &Settings, task: Task) -> bool {
    let Some(store) = FileStore::existing(settings.data_dir.clone()) else {
        return true;
    };
    for certificate in &settings.certificates {
        if may_order(&store, certificate, task).await {
            return true;
        }
    }
    false
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
    say(json);
}

fn print(call: &Call, settings: &CertificateSettings, task: Task, done: &Done) {
    let (lineage, ca) = (&settings.lineage, &settings.ca.directory);
    let now = SystemClock.now();
    match done {
        Done::Passed { outcome, path } if call.json => say(json!({
            "name": lineage, "issued": outcome.issued, "generation": outcome.generation,
            "not_after": outcome.not_after, "next": outcome.next, "renewal": outcome.renewal, "path": path,
            "left_out": outcome.excluded,
        })),
        Done::Passed { outcome, path } => {
            let result = match (outcome.issued, task) {
                (true, _) => "issued",
                (false, Task::Pass(trigger)) if trigger.never_orders() => "deployed again",
                (false, _) => "not due",
            };
            let (generation, path) = (outcome.generation, path.display());
            let not_after = outcome.not_after.seen_at(now);
            let renewal = outcome.renewal.unwrap_or(outcome.next).seen_at(now);
            say(format_args!(
                "{lineage}: {result}; generation {generation} in {path}, valid to {not_after}, renewal at {renewal}"
            ));
            for one in &outcome.excluded {
                let retry_at = one.retry_at.unwrap_or(outcome.next).seen_at(now);
                let (name, reason) = (&one.identifier, &one.reason);
                say(format_args!(
                    "{lineage}: excluded for now: {name}: {reason}; retry at {retry_at}"
                ));
            }
        }
        Done::Rehearsed(facts) if call.json => say(json!({
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
