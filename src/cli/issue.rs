//! `certs issue` and `certs run`.

use std::collections::BTreeMap;

use super::args::{Global, Issue};
use super::output::Failure;
use super::parts::build;
use crate::challenge::http01::Listener;
use crate::manage::issue::{Urge, pass};
use crate::manage::supervise::supervise;
use crate::manage::{Certificate, Outcome, Parts};

/// Obtains one certificate, or says that the stored one is not due.
pub(super) async fn issue(
    global: &Global,
    options: Issue,
    environment: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let (certificates, parts, listener) = build(global, &options, environment)?;
    let urge = if options.force {
        Urge::Force
    } else {
        Urge::Asked
    };
    let work = async {
        for certificate in &certificates {
            let ended = pass(&parts, certificate, urge).await;
            let lineage = certificate.wanted.lineage.as_str();
            let outcome = ended.map_err(|error| Failure::of(lineage, &error))?;
            tell(global, &parts, certificate, &outcome);
        }
        Ok(())
    };
    tokio::select! {
        ended = work => ended,
        () = serve(listener) => Err(Failure::unexpected("the challenge listener has stopped".into())),
    }
}

/// Keeps every certificate issued, renewed, deployed and proven until SIGTERM.
pub(super) async fn run(
    global: &Global,
    options: Issue,
    environment: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let (certificates, parts, listener) = build(global, &options, environment)?;
    let signal = |kind| {
        tokio::signal::unix::signal(kind).map_err(|error| Failure::unexpected(error.to_string()))
    };
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::select! {
        ended = supervise(&parts, &certificates) => ended.map_err(|error| Failure::of("certs run", &error)),
        () = serve(listener) => Err(Failure::unexpected("the challenge listener has stopped".into())),
        // Everything is stored before it is acted upon: an order that is cut
        // off here is resumed by the next start.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn serve(listener: Option<Listener>) {
    match listener {
        Some(listener) => listener.serve().await,
        None => std::future::pending().await,
    }
}

fn tell(global: &Global, parts: &Parts, certificate: &Certificate, outcome: &Outcome) {
    let wanted = &certificate.wanted;
    let path = parts.output.live_path(&wanted.lineage);
    if global.json {
        let json = serde_json::json!({
            "name": wanted.lineage, "issued": outcome.issued, "generation": outcome.generation,
            "not_after": outcome.not_after, "next": outcome.next, "path": path,
        });
        println!("{json}");
        return;
    }
    let what = if outcome.issued { "issued" } else { "not due" };
    println!(
        "{}: {what}; generation {} in {}, valid to {}, next action {}",
        wanted.lineage,
        outcome.generation,
        path.display(),
        outcome.not_after,
        outcome.next
    );
}
