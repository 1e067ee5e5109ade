//! The CA's suggested renewal window (RFC 9773 section 4), by an unsigned GET. It
//! never judges a window; [`crate::renew::window`] does.

use std::time::Duration;

use super::error::Cause;
use super::exchange::Transport;
use super::jws::is_base64url;
use crate::record::Window;
use crate::text::printable;
use crate::time::Timestamp;

/// The interval without a `Retry-After`.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// The pauses before the second and the third try (section 4.3.3).
const RETRY_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// The suggested window of the certificate `id` and when to fetch it again; `None`
/// if `id` is not a certificate identifier.
pub(super) async fn read(
    transport: &Transport,
    url: &str,
    id: &str,
) -> Result<Option<(Window, Duration)>, Cause> {
    if !is_identifier(id) {
        return Ok(None);
    }
    let url = format!("{}/{id}", url.trim_end_matches('/'));
    let mut pauses = RETRY_PAUSES.iter();
    let reply = loop {
        match (transport.get("renewal-info", &url).await, pauses.next()) {
            (Err(Cause::Unreachable(_)), Some(pause)) => transport.clock.sleep(*pause).await,
            (result, _) => break result?,
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
    let interval = reply.retry_after.unwrap_or(DEFAULT_INTERVAL);
    Ok(Some((window, interval)))
}

/// `base64url.base64url` (section 4.1); other characters would change the URL's path.
fn is_identifier(text: &str) -> bool {
    let parts = text.split_once('.');
    parts.is_some_and(|(key, serial)| is_base64url(key) && is_base64url(serial))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCa, NOW, Scripted};
    use super::super::{AcmeError, Issuer};
    use super::*;
    use crate::time::Clock;
    use serde_json::json;

    async fn fetched(
        ca: &std::sync::Arc<FakeCa>,
        id: &str,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        ca.client().renewal_info(id).await
    }

    #[tokio::test]
    async fn window_needs_no_account_and_has_a_default_interval() {
        let ca = FakeCa::new();
        let (window, interval) = fetched(&ca, "YQ.Yg").await.unwrap().unwrap();
        assert_eq!(window.start.to_string(), "2027-02-01T00:00:00Z");
        assert_eq!(interval, DEFAULT_INTERVAL);
        assert_eq!(ca.take_endpoints(), ["directory", "renewal-info"]);
        let info = json!({"suggestedWindow": {"start": "2027-02-01T00:00:00Z", "end": "2027-02-02T00:00:00Z"}});
        ca.script(
            "renewal-info",
            Scripted::json(&info).with("retry-after", 900),
        );
        let (_, interval) = fetched(&ca, "YQ.Yg").await.unwrap().unwrap();
        assert_eq!(interval, Duration::from_secs(900));
    }

    #[tokio::test]
    async fn fetch_tries_three_times_in_an_outage() {
        let ca = FakeCa::new();
        let down = || Scripted(502, "text/html", String::new(), vec![]);
        for _ in 0..2 {
            ca.script("renewal-info", down());
        }
        fetched(&ca, "YQ.Yg").await.unwrap().unwrap();
        assert_eq!(ca.count("renewal-info"), 3);
        assert_eq!(ca.clock.now().since(NOW), Duration::from_secs(5));
        for _ in 0..3 {
            ca.script("renewal-info", down());
        }
        let result = fetched(&ca, "YQ.Yg").await;
        assert!(matches!(result.unwrap_err().cause, Cause::Unreachable(_)));
        assert_eq!(ca.count("renewal-info"), 6);
    }

    #[tokio::test]
    async fn fetch_distinguishes_no_window_invalid_reply_and_refusal() {
        let ca = FakeCa::new();
        assert!(fetched(&ca, "../../new-order").await.unwrap().is_none());
        assert!(fetched(&ca, "YQ").await.unwrap().is_none());
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
            let result = fetched(&ca, "YQ.Yg").await;
            assert!(
                matches!(result.unwrap_err().cause, Cause::Protocol(_)),
                "{body}"
            );
        }
        ca.script("renewal-info", Scripted::problem(404, "malformed"));
        assert!(matches!(
            fetched(&ca, "YQ.Yg").await.unwrap_err().cause,
            Cause::Refused(_)
        ));
        ca.script(
            "renewal-info",
            Scripted::problem(429, "rateLimited").with("retry-after", 60),
        );
        assert!(matches!(
            fetched(&ca, "YQ.Yg").await.unwrap_err().cause,
            Cause::RateLimited { .. }
        ));
    }
}
