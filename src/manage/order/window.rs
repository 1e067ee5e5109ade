//! When to renew: the window that the CA suggests, and the instant drawn from it.

use std::time::Duration;

use super::journal::RecordJournal;
use crate::acme::Issuer;
use crate::manage::ca_state;
use crate::manage::error::ManageError;
use crate::manage::probes::Work;
use crate::manage::session::Pass;
use crate::record::{Issued, Window};
use crate::renew::backoff::spread;
use crate::renew::window;

/// What a CA has told of its window.
enum Told {
    /// It, and when to ask again.
    Window(Window, Duration),
    /// Nothing, or nothing that could be read.
    Nothing,
    /// It was not asked: whether it tells any is found out by one for all.
    NotAsked,
    /// There are none for this certificate.
    NoWindows,
}

/// RFC 9773 section 4.3.3: a temporary error waits this long.
const REFRESH_AFTER_FAILURE: Duration = Duration::from_secs(6 * 3600);
/// A pass that did not ask comes back when the CA may well answer.
const REFRESH_AFTER_SILENCE: Duration = Duration::from_secs(3600);

impl<'p> Pass<'p> {
    /// Asks for the renewal window and stores the instant drawn from it. A CA that
    /// does not answer leaves the share of the lifetime to decide.
    pub(in crate::manage) async fn refresh_window(&mut self) -> Result<(), ManageError> {
        let Some(issued) = self.record.issued.clone() else {
            return Ok(());
        };
        let told = match (&issued.facts.renewal_id, self.issuer_of(&issued)) {
            (Some(id), Some(issuer)) => self.window_of(&issued.ca, issuer, id).await,
            (Some(_), None) => Told::Nothing,
            (None, _) => Told::NoWindows,
        };
        // The clock that it is compared with, or it would be asked again at once.
        let now = self.now();
        let (random, facts) = (self.services.random.as_ref(), &issued.facts);
        let (accepted, again) = match told {
            Told::Window(suggested, again) => (
                window::accept(suggested.start, suggested.end, facts),
                Some(now + window::clamp_retry_after(again)),
            ),
            Told::Nothing => (None, Some(now + spread(REFRESH_AFTER_FAILURE, 10, random))),
            Told::NotAsked => (None, Some(now + spread(REFRESH_AFTER_SILENCE, 50, random))),
            Told::NoWindows => (None, None),
        };
        let spread = self.services.spread;
        let moment = window::Moment { now, spread };
        let before = issued.renewal.as_ref();
        let renewal = window::redraw(before, accepted, again, facts, moment, random);
        if let Some(issued) = self.record.issued.as_mut() {
            issued.renewal = Some(renewal);
        }
        self.save(None).await
    }

    /// The way to the CA that has issued it, where that is still one of ours.
    fn issuer_of(&self, issued: &Issued) -> Option<&'p dyn Issuer> {
        let certificate = self.certificate;
        let second = certificate.fallback.as_ref();
        match second.filter(|second| second.ca == issued.ca) {
            Some(second) => Some(second.issuer.as_ref()),
            None => Some(certificate.issuer.as_ref()).filter(|_| issued.ca == self.record.ca),
        }
    }

    async fn window_of(&mut self, ca: &str, issuer: &dyn Issuer, id: &str) -> Told {
        let services = self.services;
        let doubted = match ca_state::reach_windows(services, ca, issuer).await {
            Ok(doubted) => doubted,
            Err(ManageError::Down { .. }) => return Told::NotAsked,
            Err(error) => {
                tracing::warn!("whether {ca} tells renewal windows is not to be known: {error}");
                return Told::NotAsked;
            }
        };
        let mut journal = RecordJournal::new(self, ca);
        let error = match issuer.renewal_info(id, &mut journal).await {
            Ok(told) => {
                if doubted {
                    ca_state::tells_windows(services, ca).await;
                }
                return told.map_or(Told::Nothing, |(window, again)| Told::Window(window, again));
            }
            Err(error) => ManageError::from(error),
        };
        if error.is_outage() {
            ca_state::is_silent(services, ca, Work::Windows, &error.to_string()).await;
        }
        tracing::warn!(%error, "the renewal window is not to be had; the lifetime decides meanwhile");
        Told::Nothing
    }
}
