//! When the CA would have a certificate renewed (RFC 9773 section 4): an
//! unsigned GET. It judges no window; [`crate::renew::window`] does.

use std::time::Duration;

use super::error::{Cause, printable};
use super::exchange::Session;
use crate::record::Window;
use crate::time::{Clock, Timestamp};

/// Where the CA does not say when to ask again.
const ASK_AGAIN: Duration = Duration::from_secs(6 * 3600);
/// Before the second and the third try (section 4.3.3).
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// The suggested window of the certificate `id` and when to ask again; `None`
/// when `id` is no certificate identifier.
pub(super) async fn ask(
    session: &Session,
    url: &str,
    id: &str,
    clock: &dyn Clock,
) -> Result<Option<(Window, Duration)>, Cause> {
    if !is_identifier(id) {
        return Ok(None);
    }
    let url = format!("{}/{id}", url.trim_end_matches('/'));
    let mut pauses = PAUSES.iter();
    let reply = loop {
        match (session.get("renewal-info", &url).await, pauses.next()) {
            (Err(Cause::Unreachable(_)), Some(pause)) => {
                clock.sleep_until(clock.now() + *pause).await;
            }
            (ended, _) => break ended?,
        }
    };
    let info: instant_acme::RenewalInfo = reply.json()?;
    if let Some(explanation) = &info.explanation_url {
        tracing::debug!(url = %printable(explanation), "the CA explains its renewal window");
    }
    let window = Window {
        start: Timestamp::from(info.suggested_window.start),
        end: Timestamp::from(info.suggested_window.end),
    };
    Ok(Some((window, reply.retry_after.unwrap_or(ASK_AGAIN))))
}

/// `base64url.base64url` (section 4.1); anything else would change the URL.
fn is_identifier(text: &str) -> bool {
    let fine = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.split_once('.')
        .is_some_and(|(authority, serial)| fine(authority) && fine(serial))
}
