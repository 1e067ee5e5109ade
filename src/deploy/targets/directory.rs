//! A copy of the output for one consumer: a directory of generations like the output, with
//! its own owner and group.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::deploy::copy;
use crate::deploy::keys::values::{AsWritten, GroupNumber, PathKey, UserNumber, owner_of};
use crate::deploy::output::Output;
use crate::deploy::owner::Owner;
use crate::deploy::target_settings::{
    self, DeployStage, InvalidTarget, Paths, Processes, Rights, ShortForm, TargetSettings, Writes,
};
use crate::deploy::{Delivery, DeployError, Outlet, Target, off_thread};
use crate::lineage::Lineage;

/// Another tree like the output directory, with `live/NAME` and `archive/NAME` and three generations, for a consumer
/// that runs as another user. `certs run` notices within a minute if it is missing, and writes it again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The directory, created if its parent exists
    path: PathKey,
    /// The user that owns it, by name or number
    #[schemars(extend("x-default" = "the process's own"))]
    owner: Option<AsWritten<UserNumber>>,
    /// The group that owns it, by name or number
    #[schemars(extend("x-default" = "the process's own"))]
    group: Option<AsWritten<GroupNumber>>,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "directory";
    const SHORT: ShortForm = ShortForm::Where("path");
    const EXAMPLE: &'static str = r#"kind = "directory"
path = "/srv/mail/tls"
group = "mail""#;

    fn check(&self) -> Result<(), InvalidTarget> {
        Ok(())
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: None,
            reads: None,
            writes: Writes::Directory(self.path.to_path_buf(), self.owner()),
        }
    }

    fn stage(&self) -> DeployStage {
        DeployStage::Copy
    }

    fn coalesces(&self) -> bool {
        false
    }

    fn deadline(&self) -> Duration {
        target_settings::DEADLINE
    }

    fn paths(&mut self) -> Paths<'_> {
        Paths {
            read: Vec::new(),
            written: Some(&mut self.path),
        }
    }

    fn target(&self, name: String) -> Arc<dyn Target> {
        Arc::new(DirectoryCopy {
            name,
            root: self.path.to_path_buf(),
            owner: self.owner(),
        })
    }
}

impl Settings {
    fn owner(&self) -> Owner {
        owner_of(self.owner.as_ref(), self.group.as_ref())
    }
}

/// `live/NAME` and `archive/NAME` below a directory.
#[derive(Clone, Debug)]
struct DirectoryCopy {
    name: String,
    root: PathBuf,
    owner: Owner,
}

impl DirectoryCopy {
    fn write(&self, delivery: &Delivery) -> Result<(), DeployError> {
        let bundle = copy::read_pair(&self.name, delivery)?;
        let output = Output::new(self.root.clone()).owned_by(self.owner);
        let published = output.publish(&delivery.lineage, delivery.generation, &bundle);
        published.map_err(|error| copy::unwritten(&self.name, &self.root, error))
    }
}

#[async_trait]
impl Target for DirectoryCopy {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
        Ok(())
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployError> {
        let (copy, delivery) = (self.clone(), delivery.clone());
        off_thread(&self.name, move || copy.write(&delivery)).await
    }

    fn has_copies(&self) -> bool {
        true
    }

    async fn is_gone(&self, lineage: &Lineage) -> bool {
        let live = Output::new(self.root.clone()).live_path(lineage);
        copy::is_missing(&live.join("privkey.pem")).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::copy::tests::published;
    use crate::record::Generation;

    #[tokio::test]
    async fn directory_keeps_three_generations() {
        let directory = tempfile::tempdir().unwrap();
        let mut delivery = published(directory.path());
        let root = directory.path().join("java");
        let copy = DirectoryCopy {
            name: "directory".into(),
            root: root.clone(),
            owner: Owner::default(),
        };
        for generation in 1..=4 {
            delivery.generation = Generation(generation);
            copy.check(&delivery).await.unwrap();
            copy.apply(&delivery).await.unwrap();
        }
        let kept = std::fs::read_dir(root.join("archive/example.com")).unwrap();
        assert_eq!(kept.count(), 3);
        assert!(root.join("live/example.com/privkey.pem").is_file());
    }
}
