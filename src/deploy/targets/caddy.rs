//! Caddy, which does not watch certificate files: this target reads the running
//! configuration from its admin API and posts it back, and Caddy then reads the files.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::json;

use crate::deploy::keys::address::Address;
use crate::deploy::keys::values::within;
use crate::deploy::target_settings::prelude::*;
use crate::net::dns::lookup::Resolver;
use crate::net::http::{Longest, Origin};

const ADMIN: &str = "localhost:2019";
const CONFIG: (&str, &str) = ("GET", "/config/");
const LOAD: (&str, &str) = ("POST", "/load");
const LARGEST_CONFIGURATION: Longest = Longest::Whole(1 << 20);

settings! {
    /// Caddy does not watch certificate files. Its configuration must name the files of `live/NAME`; `certs` fetches that
    /// configuration from Caddy's admin API and loads it again, and Caddy reads the files with it.
    struct Settings {
        /// HOST:PORT or the Unix socket of the admin API
        #[schemars(extend("default" = ADMIN))]
        admin: Option<Address>,
        /// How long the reload may take, from 1s to 60m
        #[schemars(extend("default" = "2m"))]
        timeout: Option<Timeout>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "caddy";
    const SHORT: ShortForm = ShortForm::Keys(&["admin"]);
    const EXAMPLE: &'static str = r#"admin = "localhost:2019""#;
    const STAGE: DeployStage = DeployStage::AllCertificates;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        None
    }

    fn rights(&self) -> Rights {
        Rights {
            connects_to: self.admin.as_ref().and_then(Address::unix),
            ..Rights::over(Processes::Untouched)
        }
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }

    fn deadline(&self) -> Duration {
        within(self.timeout.as_ref())
    }
}

impl Settings {
    /// The address, and the `Host` that Caddy accepts there.
    fn admin(&self, resolver: &Resolver) -> (Origin, String) {
        let tcp = |admin: &str| {
            let admin = admin.to_owned();
            (Origin::Tcp(admin.clone(), resolver.clone()), admin)
        };
        match self.admin.as_ref() {
            Some(Address::Unix(path)) => (Origin::Unix(path.to_path_buf()), String::new()),
            Some(Address::Tcp(admin)) => tcp(admin),
            None => tcp(ADMIN),
        }
    }

    fn failed(&self, detail: &str) -> DeployCause {
        let admin = self.admin.clone().map(String::from);
        let admin = admin.as_deref().unwrap_or(ADMIN);
        let detail = format!("its admin API at {admin}: {detail}");
        DeployCause::unreachable(&detail)
    }

    async fn query(
        &self,
        resolver: &Resolver,
        (method, path): (&str, &str),
        body: Bytes,
    ) -> Result<Bytes, DeployCause> {
        let (admin, host) = self.admin(resolver);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .header("content-type", "application/json")
            // Without this header Caddy ignores an unchanged configuration.
            .header("cache-control", "must-revalidate")
            .body(Full::from(body))
            .map_err(|error| self.failed(&error.to_string()))?;
        let answer = admin.send(request, self.deadline(), LARGEST_CONFIGURATION);
        let answer = answer.await;
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

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let running = self.query(&delivery.resolver, CONFIG, Bytes::new());
        running.await.map(drop)
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let resolver = &delivery.resolver;
        let running = self.query(resolver, CONFIG, Bytes::new()).await?;
        self.query(resolver, LOAD, running).await.map(drop)
    }
}
