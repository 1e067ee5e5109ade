//! Servers that watch a file which names the pair and holds no key. The content of that
//! file is made in the server's module below `targets/`.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde_json::Value;

use super::{Delivery, DeployError, Target, copy, off_thread};
use crate::files;

/// The file names paths and holds no key.
const MODE: u32 = 0o644;

/// Makes the content of a server's file.
type Content = fn(&Delivery) -> String;

/// A server that watches `file`.
#[derive(Debug)]
pub(super) struct Watched {
    name: String,
    content: Content,
    file: PathBuf,
}

impl Watched {
    /// `name` is its name in records; `content` makes the content of `file`.
    #[must_use]
    pub(super) fn new(name: String, content: Content, file: PathBuf) -> Self {
        Self {
            name,
            content,
            file,
        }
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
            _ => Err(copy::unwritten(&self.name, &self.file, "no such directory")),
        }
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployError> {
        let content = (self.content)(delivery);
        let (name, file) = (self.name.clone(), self.file.clone());
        off_thread(&self.name, move || {
            if std::fs::read_to_string(&file).is_ok_and(|found| found == content) {
                return Ok(());
            }
            files::replace(&file, MODE, content.as_bytes())
                .map_err(|error| copy::unwritten(&name, &file, error))
        })
        .await
    }
}

/// A string of YAML; every JSON string is one.
pub(super) fn quoted(path: &Path) -> String {
    Value::from(path.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::super::targets::{envoy, traefik};
    use super::*;

    #[tokio::test]
    async fn generations_change_traefiks_file_and_not_envoys() {
        let directory = tempfile::tempdir().unwrap();
        let mut delivery = sample();
        let of_traefik = [
            "  - certFile: \"/certs/live/example.com/fullchain.pem\"",
            "    keyFile: \"/certs/live/example.com/privkey.pem\"",
        ];
        let of_envoy = [
            "  name: \"example.com\"",
            "    watched_directory: {path: \"/certs/live\"}",
        ];
        let contents: [(Content, _, _); 2] = [
            (traefik::provider, true, of_traefik),
            (envoy::secret, false, of_envoy),
        ];
        for (content, changes, lines) in contents {
            let file = directory.path().join("tls.yaml");
            let target = Watched::new("watched".into(), content, file.clone());
            target.check(&delivery).await.unwrap();
            let mut seen = Vec::new();
            for generation in [7, 8] {
                delivery.generation = crate::record::Generation(generation);
                target.apply(&delivery).await.unwrap();
                seen.push(std::fs::read_to_string(&file).unwrap());
            }
            assert_eq!(seen[0] != seen[1], changes);
            for line in lines {
                assert!(seen[0].lines().any(|found| found == line), "{}", seen[0]);
            }
        }
    }

    #[tokio::test]
    async fn missing_directory_fails_the_check() {
        let file = PathBuf::from("/absent/tls.yaml");
        let target = Watched::new("traefik".into(), traefik::provider, file);
        let error = target.check(&sample()).await.unwrap_err();
        assert!(error.to_string().contains("/absent/tls.yaml"), "{error}");
    }
}
