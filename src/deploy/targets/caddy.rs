//! Caddy, which does not watch certificate files: this target reads the running
//! configuration from its admin API and posts it back, and Caddy then reads the files.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::deploy::target_settings::{
    self, DeployStage, InvalidTarget, Paths, Processes, Rights, ShortForm, TargetSettings, Writes,
};
use crate::deploy::{Delivery, DeployError, Target};
use crate::net::http::{Longest, Origin};
use crate::text::printable;

const ADMIN: &str = "localhost:2019";
const WITHIN: Duration = Duration::from_secs(15);
const LARGEST_CONFIGURATION: Longest = Longest::Whole(1 << 20);

/// Caddy does not watch certificate files. Its configuration must name the files of `live/NAME`; `certs` fetches that
/// configuration from Caddy's admin API and loads it again, and Caddy reads the files with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// HOST:PORT of the admin API
    #[schemars(extend("default" = ADMIN))]
    admin: Option<String>,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "caddy";
    const SHORT: ShortForm = ShortForm::Where("admin");
    const EXAMPLE: &'static str = r#"kind = "caddy"
admin = "localhost:2019""#;

    fn check(&self) -> Result<(), InvalidTarget> {
        Ok(())
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: None,
            reads: None,
            writes: Writes::Nothing,
        }
    }

    fn stage(&self) -> DeployStage {
        DeployStage::Server
    }

    fn coalesces(&self) -> bool {
        true
    }

    fn deadline(&self) -> Duration {
        target_settings::DEADLINE
    }

    fn paths(&mut self) -> Paths<'_> {
        Paths::default()
    }

    fn target(&self, name: String) -> Arc<dyn Target> {
        let admin = self.admin.clone();
        let admin = admin.unwrap_or_else(|| ADMIN.to_owned());
        Arc::new(Caddy::new(name, admin))
    }
}

/// A Caddy whose configuration names the live files.
#[derive(Debug)]
pub(crate) struct Caddy {
    name: String,
    /// `host:port` of its admin API.
    admin: String,
}

impl Caddy {
    /// `name` is its name in records.
    #[must_use]
    pub(crate) fn new(name: String, admin: String) -> Self {
        Self { name, admin }
    }

    fn failed(&self, detail: &str) -> DeployError {
        DeployError::Unreachable {
            target: self.name.clone(),
            detail: printable(&format!("its admin API at {}: {detail}", self.admin)),
        }
    }

    async fn ask(&self, method: &str, path: &str, body: Bytes) -> Result<Bytes, DeployError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.admin)
            .header("content-type", "application/json")
            // Without this header Caddy ignores an unchanged configuration.
            .header("cache-control", "must-revalidate")
            .body(Full::from(body))
            .map_err(|error| self.failed(&error.to_string()))?;
        let admin = Origin::Tcp(self.admin.clone());
        let answer = admin.send(request, WITHIN, LARGEST_CONFIGURATION).await;
        let (status, body) = answer.map_err(|error| self.failed(&error.to_string()))?;
        if status.is_success() {
            return Ok(body);
        }
        let reply = serde_json::from_slice(&body).unwrap_or_else(|_| json!({}));
        let reason = reply["error"].as_str().unwrap_or_default();
        Err(DeployError::Refused {
            target: self.name.clone(),
            detail: printable(&format!("{status} {reason}")),
        })
    }
}

#[async_trait]
impl Target for Caddy {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
        self.ask("GET", "/config/", Bytes::new()).await.map(drop)
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployError> {
        let running = self.ask("GET", "/config/", Bytes::new()).await?;
        self.ask("POST", "/load", running).await.map(drop)
    }
}
