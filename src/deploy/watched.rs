//! Servers that watch a file of their own. Envoy reads the pair from disk when
//! the `live` directory changes (file-based SDS); Traefik when the file that names
//! the pair does, so that it is written anew for each generation; Caddy takes its
//! configuration again when told to by its admin API, and the files with it.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};

use super::http::Server;
use super::{Delivery, DeployError, Target, off_thread};
use crate::files;
use crate::text::printable;

/// It names paths, and no key.
const MODE: u32 = 0o644;

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A `DiscoveryResponse` with one TLS secret, called as the certificate is.
    Envoy,
    /// A file of Traefik's file provider.
    Traefik,
}

/// A server that watches `file`.
#[derive(Debug)]
pub struct Watched {
    name: String,
    format: Format,
    file: PathBuf,
}

impl Watched {
    /// Known to records as `name`.
    #[must_use]
    pub fn new(name: String, format: Format, file: PathBuf) -> Self {
        Self { name, format, file }
    }
}

#[async_trait]
impl Target for Watched {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
        let parent = self.file.parent().unwrap_or(Path::new("/"));
        match tokio::fs::metadata(parent).await {
            Ok(found) if found.is_dir() => Ok(()),
            _ => Err(unwritten(
                &self.name,
                &self.file,
                "its directory is not there",
            )),
        }
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployError> {
        let content = match self.format {
            Format::Envoy => envoy(delivery),
            Format::Traefik => traefik(delivery),
        };
        let (name, file) = (self.name.clone(), self.file.clone());
        off_thread(&self.name, move || {
            if std::fs::read_to_string(&file).is_ok_and(|found| found == content) {
                return Ok(());
            }
            files::replace(&file, MODE, content.as_bytes())
                .map_err(|error| unwritten(&name, &file, &error.to_string()))
        })
        .await
    }
}

fn unwritten(target: &str, path: &Path, detail: &str) -> DeployError {
    DeployError::Write {
        target: target.to_owned(),
        path: path.display().to_string(),
        detail: detail.to_owned(),
    }
}

/// A string of YAML, which all of JSON's are.
fn quoted(path: &Path) -> String {
    Value::from(path.to_string_lossy()).to_string()
}

fn envoy(delivery: &Delivery) -> String {
    let live = &delivery.live;
    format!(
        "resources:\n\
         - \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  \
           name: {name}\n  \
           tls_certificate:\n    \
             certificate_chain: {{filename: {chain}}}\n    \
             private_key: {{filename: {key}}}\n    \
             watched_directory: {{path: {watched}}}\n",
        name = quoted(Path::new(delivery.lineage.as_str())),
        chain = quoted(&live.join("fullchain.pem")),
        key = quoted(&live.join("privkey.pem")),
        watched = quoted(live.parent().unwrap_or(live)),
    )
}

fn traefik(delivery: &Delivery) -> String {
    let live = &delivery.live;
    format!(
        "# Generation {generation} of {lineage}, written by certs: Traefik reads the pair when this file changes.\n\
         tls:\n  \
           certificates:\n  \
           - certFile: {chain}\n    \
             keyFile: {key}\n",
        generation = delivery.generation,
        lineage = delivery.lineage,
        chain = quoted(&live.join("fullchain.pem")),
        key = quoted(&live.join("privkey.pem")),
    )
}

/// A Caddy whose configuration names the live files.
#[derive(Debug)]
pub struct Caddy {
    name: String,
    /// `host:port` of its admin API.
    admin: String,
}

impl Caddy {
    /// Known to records as `name`.
    #[must_use]
    pub fn new(name: String, admin: String) -> Self {
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
            // Without it nothing is read again where nothing else has changed.
            .header("cache-control", "must-revalidate")
            .body(Full::from(body))
            .map_err(|error| self.failed(&error.to_string()))?;
        let answer = Server::Tcp(self.admin.clone()).send(request).await;
        let (status, body) = answer.map_err(|detail| self.failed(&detail))?;
        if status.is_success() {
            return Ok(body);
        }
        let said = serde_json::from_slice(&body).unwrap_or_else(|_| json!({}));
        let said = said["error"].as_str().unwrap_or_default();
        Err(DeployError::Refused {
            target: self.name.clone(),
            detail: printable(&format!("{status} {said}")),
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

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[tokio::test]
    async fn each_generation_is_another_file_for_traefik_and_the_same_for_envoy() {
        let directory = tempfile::tempdir().unwrap();
        let mut delivery = sample();
        for (format, changes) in [(Format::Traefik, true), (Format::Envoy, false)] {
            let file = directory.path().join("tls.yaml");
            let target = Watched::new("watched".into(), format, file.clone());
            target.check(&delivery).await.unwrap();
            let mut seen = Vec::new();
            for generation in [7, 8] {
                delivery.generation = crate::record::Generation(generation);
                target.apply(&delivery).await.unwrap();
                seen.push(std::fs::read_to_string(&file).unwrap());
            }
            assert_eq!(seen[0] != seen[1], changes);
            for line in match format {
                Format::Traefik => [
                    "  - certFile: \"/certs/live/example.com/fullchain.pem\"",
                    "    keyFile: \"/certs/live/example.com/privkey.pem\"",
                ],
                Format::Envoy => [
                    "  name: \"example.com\"",
                    "    watched_directory: {path: \"/certs/live\"}",
                ],
            } {
                assert!(seen[0].lines().any(|found| found == line), "{}", seen[0]);
            }
        }
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_told_before_the_switch() {
        let file = PathBuf::from("/absent/tls.yaml");
        let target = Watched::new("traefik".into(), Format::Traefik, file);
        let error = target.check(&sample()).await.unwrap_err();
        assert!(error.to_string().contains("/absent/tls.yaml"), "{error}");
    }
}
