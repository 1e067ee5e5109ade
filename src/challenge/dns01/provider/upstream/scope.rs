//! Credentials that may change more zones than the one that needs it. Few providers say what
//! a token may do; where one lists the zones that a token sees, their number is said once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dns_update::http::HttpClientBuilder;
use serde_json::Value;

use super::super::Credentials;

/// It is advice: the order does not wait longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Providers that count the zones of a token: the field with the token, the list, and where
/// the count is in it.
const COUNTS: [(&str, &str, &str, &str); 3] = [
    (
        "cloudflare",
        "secret",
        "https://api.cloudflare.com/client/v4/zones?per_page=5",
        "/result_info/total_count",
    ),
    (
        "digitalocean",
        "auth_token",
        "https://api.digitalocean.com/v2/domains?per_page=1",
        "/meta/total",
    ),
    (
        "hetzner",
        "api_token",
        "https://api.hetzner.cloud/v1/zones?per_page=1",
        "/meta/pagination/total_entries",
    ),
];

/// Whether it was looked at.
#[derive(Default)]
pub(super) struct Scope(AtomicBool);

impl Scope {
    /// Says once if the credentials of `provider` see more than `zone`.
    pub(super) async fn look(&self, provider: &str, credentials: &Credentials, zone: &str) {
        let known = COUNTS.iter().find(|(name, ..)| *name == provider);
        let Some((_, field, url, place)) = known else {
            return;
        };
        if self.0.swap(true, Ordering::Relaxed) {
            return;
        }
        let token = credentials.get(field).unwrap_or_default().trim();
        let client = HttpClientBuilder::new()
            .with_timeout(Some(TIMEOUT))
            .with_header("Authorization", format!("Bearer {token}"))
            .build();
        let listed = client.get(*url).send::<Value>().await;
        let count = listed.ok().and_then(|list| list.pointer(place)?.as_u64());
        if let Some(count @ 2..) = count {
            tracing::warn!(
                "the credentials for {provider} see {count} zones, and only {zone} needs them; hint: make a token for this zone alone, so that a stolen one changes no other"
            );
        }
    }
}
