//! Caddy, which does not watch certificate files: this target reads the running
//! configuration from its admin API and posts it back, and Caddy then reads the files.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::json;

use crate::deploy::target_settings::prelude::*;
use crate::net::http::{Longest, Origin};

const ADMIN: &str = "localhost:2019";
const WITHIN: Duration = Duration::from_secs(15);
const LARGEST_CONFIGURATION: Longest = Longest::Whole(1 << 20);

settings! {
    /// Caddy does not watch certificate files. Its configuration must name the files of `live/NAME`; `certs` fetches that
    /// configuration from Caddy's admin API and loads it again, and Caddy reads the files with it.
    struct Settings {
        /// HOST:PORT of the admin API
        #[schemars(extend("default" = ADMIN))]
        admin: Option<String>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "caddy";
    const SHORT: ShortForm = ShortForm::Keys(&["admin"]);
    const EXAMPLE: &'static str = r#"admin = "localhost:2019""#;
    const STAGE: DeployStage = DeployStage::AllCertificates;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        // Such as a URL, whose user and password would be part of the target's name.
        let is_address = !self.admin().contains(['/', '@']);
        (!is_address).then(|| InvalidTarget::key("admin", "write HOST:PORT"))
    }

    fn rights(&self) -> Rights {
        Rights::over(Processes::Untouched)
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }
}

impl Settings {
    fn admin(&self) -> &str {
        self.admin.as_deref().unwrap_or(ADMIN)
    }

    fn failed(&self, detail: &str) -> DeployCause {
        let detail = format!("its admin API at {}: {detail}", self.admin());
        DeployCause::unreachable(&detail)
    }

    async fn query(&self, method: &str, path: &str, body: Bytes) -> Result<Bytes, DeployCause> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.admin())
            .header("content-type", "application/json")
            // Without this header Caddy ignores an unchanged configuration.
            .header("cache-control", "must-revalidate")
            .body(Full::from(body))
            .map_err(|error| self.failed(&error.to_string()))?;
        let admin = Origin::Tcp(self.admin().to_owned());
        let answer = admin.send(request, WITHIN, LARGEST_CONFIGURATION).await;
        let (status, body) = answer.map_err(|error| self.failed(&error.to_string()))?;
        if status.is_success() {
            return Ok(body);
        }
        let reply = serde_json::from_slice(&body).unwrap_or_else(|_| json!({}));
        let reason = reply["error"].as_str().unwrap_or_default();
        Err(DeployCause::Refused(printable(&format!(
            "{status} {reason}"
        ))))
    }
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        self.short_form()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        self.query("GET", "/config/", Bytes::new()).await.map(drop)
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployCause> {
        let running = self.query("GET", "/config/", Bytes::new()).await?;
        self.query("POST", "/load", running).await.map(drop)
    }
}
