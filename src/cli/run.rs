//! `certs run`.

use std::sync::Arc;

use super::Call;
use super::output::Failure;
use super::parts::{Factory, listener, open_store, serve, settings};
use crate::challenge::responses::Responses;
use crate::config::Purpose;
use crate::manage::supervise::supervise;

/// Keeps every certificate issued, renewed, deployed and proven until SIGTERM.
pub(super) async fn run(call: &Call) -> Result<(), Failure> {
    let settings = settings(call, &Purpose::All)?;
    let responses = Responses::default();
    let listener = listener(call, &settings, &responses)?;
    let store = Arc::new(open_store(settings.data_dir.clone())?);
    let factory = Factory::new(call, &settings, store, responses);
    let certificates = settings
        .certificates
        .iter()
        .map(|settings| factory.certificate(settings))
        .collect::<Result<Vec<_>, _>>()?;
    let signal = |kind| {
        tokio::signal::unix::signal(kind).map_err(|error| Failure::unexpected(error.to_string()))
    };
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::select! {
        ended = supervise(&factory.parts, &certificates) => ended.map_err(|error| Failure::of("certs run", &error)),
        () = serve(listener) => Err(Failure::unexpected("the challenge listener has stopped".into())),
        // Everything is stored before it is acted upon: an order that is cut
        // off here is resumed by the next start.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
