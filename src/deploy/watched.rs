//! Servers that watch a file which names the pair and holds no key. The content of that
//! file is made in the server's module below `targets/`.

use std::path::Path;

use async_trait::async_trait;
use serde_json::Value;

use super::keys::values::PathKey;
use super::{Delivery, DeployCause, Target, copy, off_thread};
use crate::files::beneath::Directory;

/// The file names paths and holds no key.
const MODE: u32 = 0o644;

/// A server that watches `file`.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) name: String,
    /// Makes the content of `file`.
    pub(super) content: fn(&Delivery) -> String,
    pub(super) file: PathKey,
}

#[async_trait]
impl Target for Watched {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        let file = self.file.clone();
        off_thread(move || copy::may_be_written(&file)).await
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let (content, file) = ((self.content)(delivery), self.file.clone());
        off_thread(move || {
            let content = content.as_bytes();
            let written = Directory::of(&file).and_then(|(directory, name)| {
                match directory.holds(name, content) {
                    true => Ok(()),
                    false => directory.replace(name, MODE, content, |_| Ok(())),
                }
            });
            written.map_err(|error| copy::unwritten(&file, &error))
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
    use super::super::target::DeployTarget;

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
        for (kind, changes, lines) in [("traefik", true, of_traefik), ("envoy", false, of_envoy)] {
            let file = directory.path().join(format!("{kind}.yaml"));
            let target = format!("{kind}:{}", file.display());
            let target = target.parse::<DeployTarget>().unwrap().target();
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
        let target: DeployTarget = "traefik:/absent/tls.yaml".parse().unwrap();
        let error = target.target().check(&sample()).await.unwrap_err();
        assert!(error.to_string().contains("/absent/tls.yaml"), "{error}");
    }
}
