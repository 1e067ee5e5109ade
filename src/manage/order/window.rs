//! The renewal window that the CA suggests (RFC 9773), and the instant drawn from it.
//! Nothing is ordered here.

use std::time::Duration;

use crate::acme::Issuer;
use crate::manage::ca_state::{Operation, note_available, note_outage, reach};
use crate::manage::error::ManageError;
use crate::manage::session::Pass;
use crate::record::{Issued, Window};
use crate::renew::backoff::spread;
use crate::renew::policy::{RECHECK, WINDOW_PAUSE};
use crate::renew::window;

impl<'p> Pass<'p> {
    /// Requests the renewal window and stores the instant drawn from it. Without a window the
    /// instant is a share of the lifetime.
    pub(in crate::manage) async fn refresh_window(&mut self) -> Result<(), ManageError> {
        let Some(issued) = self.record.issued.clone() else {
            return Ok(());
        };
        let (suggested, pause) = match (&issued.facts.renewal_id, self.issuer_of(&issued)) {
            (Some(id), Some(issuer)) => self.window_of(&issued.ca, issuer, id).await,
            (Some(_), None) => (None, Some(self.spread(WINDOW_PAUSE, 10))),
            (None, _) => (None, None),
        };
        // By the clock that decides, or the next request would be due at once.
        let now = self.now();
        let (random, facts) = (self.services.random.as_ref(), &issued.facts);
        let accepted = suggested.and_then(|window| window::accept(window.start, window.end, facts));
        let again = pause.map(|pause| now + pause);
        let spread = self.services.spread;
        let moment = window::Moment { now, spread };
        let before = issued.renewal.as_ref();
        let renewal = window::redraw(before, accepted, again, facts, moment, random);
        if let Some(issued) = self.record.issued.as_mut() {
            issued.renewal = Some(renewal);
        }
        self.save(None).await
    }

    /// The client for the CA that issued the certificate, if that CA is still configured.
    fn issuer_of(&self, issued: &Issued) -> Option<&'p dyn Issuer> {
        let mut cas = self.certificate.cas();
        cas.find_map(|(ca, issuer)| (*ca == issued.ca).then_some(issuer.as_ref()))
    }

    fn spread(&self, pause: Duration, percent: u32) -> Duration {
        spread(pause, percent, self.services.random.as_ref())
    }

    /// The window that the CA suggests, and the pause before the next request.
    async fn window_of(
        &mut self,
        ca: &str,
        issuer: &dyn Issuer,
        id: &str,
    ) -> (Option<Window>, Option<Duration>) {
        let services = self.services;
        if let Err(error) = reach(services, ca, issuer, Operation::Window).await {
            if !matches!(error, ManageError::Unreachable { .. }) {
                tracing::warn!("no renewal window was requested from {ca}: {error}");
            }
            // Another certificate probes for all.
            return (None, Some(self.spread(RECHECK, 50)));
        }
        let error = match issuer.renewal_info(id).await {
            Ok(reply) => {
                note_available(services, ca, Operation::Window).await;
                let failed = || (None, self.spread(WINDOW_PAUSE, 10));
                let reply =
                    reply.map(|(window, again)| (Some(window), window::clamp_retry_after(again)));
                let (window, pause) = reply.unwrap_or_else(failed);
                return (window, Some(pause));
            }
            Err(error) => ManageError::from(error),
        };
        if error.is_outage() {
            note_outage(services, ca, Operation::Window, &error.to_string()).await;
        }
        tracing::warn!(%error, "no renewal window from the CA; a share of the lifetime decides meanwhile");
        (None, Some(self.spread(WINDOW_PAUSE, 10)))
    }
}
