//! When the CA would have a certificate renewed (RFC 9773 section 4): an
//! unsigned GET. It judges no window; [`crate::renew::window`] does.

use std::time::Duration;

use super::error::Cause;
use super::exchange::Session;
use crate::record::Window;
use crate::text::printable;
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
                clock.sleep(*pause).await;
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

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCa, Memory, NOW, Scripted};
    use super::super::{AcmeError, Issuer};
    use super::*;
    use serde_json::json;

    async fn asked(
        ca: &std::sync::Arc<FakeCa>,
        id: &str,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        let mut journal = Memory::default();
        let ended = ca.client().renewal_info(id, &mut journal).await;
        assert!(journal.account.is_none(), "an account was made for it");
        ended
    }

    #[tokio::test]
    async fn a_window_needs_the_directory_alone_and_has_a_default_pause() {
        let ca = FakeCa::new();
        let (window, again) = asked(&ca, "YQ.Yg").await.unwrap().unwrap();
        assert_eq!(window.start.to_string(), "2027-02-01T00:00:00Z");
        assert_eq!(again, ASK_AGAIN);
        assert_eq!(ca.seen(), ["directory", "renewal-info"]);
        let info = json!({"suggestedWindow": {"start": "2027-02-01T00:00:00Z", "end": "2027-02-02T00:00:00Z"}});
        ca.script(
            "renewal-info",
            Scripted::json(&info).with("retry-after", 900),
        );
        let (_, again) = asked(&ca, "YQ.Yg").await.unwrap().unwrap();
        assert_eq!(again, Duration::from_secs(900));
    }

    #[tokio::test]
    async fn an_outage_is_tried_three_times_with_pauses() {
        let ca = FakeCa::new();
        let down = || Scripted(502, "text/html", String::new(), vec![]);
        for _ in 0..2 {
            ca.script("renewal-info", down());
        }
        asked(&ca, "YQ.Yg").await.unwrap().unwrap();
        assert_eq!(ca.count("renewal-info"), 3);
        assert_eq!(ca.clock.now().since(NOW), Duration::from_secs(5));
        for _ in 0..3 {
            ca.script("renewal-info", down());
        }
        let ended = asked(&ca, "YQ.Yg").await;
        assert!(matches!(ended.unwrap_err().cause, Cause::Unreachable(_)));
        assert_eq!(ca.count("renewal-info"), 6);
    }

    #[tokio::test]
    async fn no_window_no_sense_and_a_refusal_are_told_apart() {
        let ca = FakeCa::new();
        assert!(asked(&ca, "../../new-order").await.unwrap().is_none());
        assert!(asked(&ca, "YQ").await.unwrap().is_none());
        assert_eq!(ca.count("renewal-info"), 0);
        for body in [
            "",
            "{}",
            "[]",
            "{\"suggestedWindow\":{}}",
            "{\"suggestedWindow\":{\"start\":\"soon\",\"end\":1}}",
        ] {
            ca.script(
                "renewal-info",
                Scripted(200, "application/json", body.into(), vec![]),
            );
            let ended = asked(&ca, "YQ.Yg").await;
            assert!(
                matches!(ended.unwrap_err().cause, Cause::Protocol(_)),
                "{body}"
            );
        }
        ca.script("renewal-info", Scripted::problem(404, "malformed"));
        assert!(matches!(
            asked(&ca, "YQ.Yg").await.unwrap_err().cause,
            Cause::Refused(_)
        ));
        ca.script(
            "renewal-info",
            Scripted::problem(429, "rateLimited").with("retry-after", 60),
        );
        assert!(matches!(
            asked(&ca, "YQ.Yg").await.unwrap_err().cause,
            Cause::RateLimited { .. }
        ));
    }
}
