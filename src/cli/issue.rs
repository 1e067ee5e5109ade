//! `certs issue`.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::Call;
use super::args::Issue;
use super::control;
use super::output::{Failure, say};
use super::parts::{Factory, listener, open_store, remember, serve, settings, wanted};
use super::progress::Display;
use crate::challenge::responses::Responses;
use crate::config::{CertificateSettings, Purpose, Settings};
use crate::deploy::output::Output;
use crate::manage::foresee;
use crate::manage::issue::{Urge, pass};
use crate::manage::rehearse::rehearse;
use crate::manage::{Certificate, ManageError, Outcome};
use crate::random::SystemRandom;
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::time::{Clock, SystemClock};

/// Obtains the certificate, or says that the stored one is not due.
pub(super) async fn issue(call: &Call, options: &Issue) -> Result<(), Failure> {
    let mut settings = settings(call, &Purpose::Named)?;
    if options.dry_run {
        return rehearse_all(call, &mut settings).await;
    }
    let urge = if options.force {
        Urge::Force
    } else {
        Urge::Asked
    };
    work(call, &settings, urge).await
}

/// Who does the work.
enum Worker {
    /// This process.
    Here(Box<Factory>),
    /// The sidecar on the same data directory: port 80 is its own.
    Sidecar(PathBuf, Display),
}

/// One pass over each certificate, by the sidecar where one runs.
pub(super) async fn work(call: &Call, settings: &Settings, urge: Urge) -> Result<(), Failure> {
    if control::answers(&settings.data_dir).await {
        let display = Display::new(call.terminal.clone());
        let worker = Worker::Sidecar(settings.data_dir.clone(), display);
        return each(call, &worker, settings, urge).await;
    }
    let responses = Responses::default();
    let listener = if may_order(settings, urge).await? {
        listener(call, settings, &responses)?
    } else {
        None
    };
    let store = Arc::new(open_store(settings.data_dir.clone())?);
    let worker = Worker::Here(Box::new(Factory::new(call, settings, store, responses)?));
    tokio::select! {
        ended = each(call, &worker, settings, urge) => ended,
        () = serve(listener) => Err(Failure::unexpected("the challenge listener has stopped".into())),
    }
}

/// Whether any certificate may come to an order, which alone needs port 80.
async fn may_order(settings: &Settings, urge: Urge) -> Result<bool, Failure> {
    if !settings.data_dir.exists() {
        return Ok(true);
    }
    let store = open_store(settings.data_dir.clone())?;
    for certificate in &settings.certificates {
        let lineage = &certificate.lineage;
        let stored = store.load(lineage).await;
        let stored = stored.map_err(|error| Failure::of(lineage.as_str(), &error.into()))?;
        let record = stored.as_ref().map(|(record, _)| record);
        let (wanted, now) = (wanted(certificate), SystemClock.now());
        if foresee::may_order(record, &wanted, urge, now, &SystemRandom) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One that fails stops no other; the first one gives the exit code.
async fn each(
    call: &Call,
    worker: &Worker,
    settings: &Settings,
    urge: Urge,
) -> Result<(), Failure> {
    let output = Output::new(settings.output.directory.clone());
    let mut ended = Ok(());
    for certificate in &settings.certificates {
        let worked = match worker {
            Worker::Here(factory) => one(factory, certificate, urge).await,
            Worker::Sidecar(data_dir, display) => {
                let asked = control::hand_over(data_dir, certificate, urge);
                display.during(&certificate.lineage, asked).await
            }
        };
        match worked {
            Ok(outcome) => tell(call, &output, certificate, &outcome),
            Err(failure) => {
                failure.tell(&call.terminal);
                if call.json || settings.certificates.len() > 1 {
                    tell_failure(call, certificate, &failure);
                }
                ended = ended.and(Err(failure.told_already()));
            }
        }
    }
    ended
}

fn tell_failure(call: &Call, settings: &CertificateSettings, failure: &Failure) {
    let lineage = &settings.lineage;
    if call.json {
        let json = json!({
            "name": lineage, "issued": false, "exit_code": failure.code, "error": failure.summary(),
        });
        say(json);
    } else {
        say(format_args!(
            "{lineage}: failed (exit code {})",
            failure.code
        ));
    }
}

/// One pass over one certificate. The settings are kept for `certs renew` once
/// they have proven good, and before that when there are none.
async fn one(
    factory: &Factory,
    settings: &CertificateSettings,
    urge: Urge,
) -> Result<Outcome, Failure> {
    let certificate = factory.certificate(settings)?;
    let (lineage, store) = (&settings.lineage, factory.parts.store.as_ref());
    let failed = |error: &ManageError| Failure::of(lineage.as_str(), error);
    let kept = store.options(lineage).await;
    if kept.map_err(|error| failed(&error.into()))?.is_none() {
        remember(store, settings).await?;
    }
    let work = pass(&factory.parts, &certificate, urge);
    let ended = factory.display.during(lineage, work).await;
    if let Ok(_) | Err(ManageError::Deploy(_) | ManageError::Verify(_)) = &ended {
        remember(store, settings).await?;
    }
    ended.map_err(|error| failed(&error))
}

fn tell(call: &Call, output: &Output, settings: &CertificateSettings, outcome: &Outcome) {
    let lineage = &settings.lineage;
    let path = output.live_path(lineage);
    if call.json {
        let json = json!({
            "name": lineage, "issued": outcome.issued, "generation": outcome.generation,
            "not_after": outcome.not_after, "next": outcome.next, "renewal": outcome.renewal, "path": path,
        });
        say(json);
        return;
    }
    let what = if outcome.issued { "issued" } else { "not due" };
    let renewal = outcome.renewal.unwrap_or(outcome.next);
    say(format_args!(
        "{lineage}: {what}; generation {} in {}, valid to {}, to be renewed at {renewal}",
        outcome.generation,
        path.display(),
        outcome.not_after,
    ));
}

/// Orders at the staging directories, and keeps nothing.
async fn rehearse_all(call: &Call, settings: &mut Settings) -> Result<(), Failure> {
    for certificate in &mut settings.certificates {
        let ca = &mut certificate.ca;
        ca.directory = ca.directory.staging().ok_or_else(|| {
            Failure::usage(
                format!(
                    "{}: {} has no staging directory to rehearse at",
                    certificate.lineage, ca.directory
                ),
                "rehearse with --ca letsencrypt --dry-run: names, port 80 and DNS are tried alike",
            )
        })?;
    }
    let responses = Responses::default();
    let listener = listener(call, settings, &responses)?;
    let store = Arc::new(MemoryStore::default());
    let factory = Factory::new(call, settings, store, responses)?;
    let work = async {
        for settings in &settings.certificates {
            let certificate = factory.certificate(settings)?;
            rehearse_one(call, &factory, settings, &certificate).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = work => ended,
        () = serve(listener) => Err(Failure::unexpected("the challenge listener has stopped".into())),
    }
}

async fn rehearse_one(
    call: &Call,
    factory: &Factory,
    settings: &CertificateSettings,
    certificate: &Certificate,
) -> Result<(), Failure> {
    let lineage = &settings.lineage;
    let (issuer, parts) = (certificate.issuer.as_ref(), &factory.parts);
    let (store, clock) = (parts.store.as_ref(), parts.clock.as_ref());
    let work = rehearse(&certificate.wanted, issuer, store, clock);
    let facts = factory
        .display
        .during(lineage, work)
        .await
        .map_err(|error| Failure::of(&format!("dry run: {lineage}"), &error))?;
    if call.json {
        let json = json!({
            "name": lineage, "dry_run": true, "ca": certificate.wanted.ca,
            "not_before": facts.not_before, "not_after": facts.not_after,
        });
        say(json);
    } else {
        say(format_args!(
            "dry run: {lineage} would be issued; {} signed a certificate valid to {}, of which nothing was kept",
            settings.ca.directory, facts.not_after
        ));
    }
    Ok(())
}
