//! A copy of the output for one consumer: a directory of generations like the output, with
//! its own owner and group.

use std::path::PathBuf;

use crate::deploy::copy;
use crate::deploy::keys::values::{AsWritten, GroupNumber, PathKey, UserNumber, owner_of};
use crate::deploy::output::Output;
use crate::deploy::owner::Owner;
use crate::deploy::target_settings::prelude::*;
use crate::deploy::{Outlet, off_thread};
use crate::lineage::Lineage;

settings! {
    /// Another tree like the output directory, with `live/NAME` and `archive/NAME` and three generations, for a consumer
    /// that runs as another user. `certs run` notices within a minute if it is missing, and writes it again.
    struct Settings {
        /// The directory, created if its parent exists
        path: PathKey,
        /// The user that owns its files, by name or number; its directories stay those of `certs`
        #[schemars(extend("x-default" = "the process's own"))]
        owner: Option<AsWritten<UserNumber>>,
        /// The group that may enter it and read the keys, by name or number
        #[schemars(extend("x-default" = "the owner's, else the process's own"))]
        group: Option<AsWritten<GroupNumber>>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "directory";
    const SHORT: ShortForm = ShortForm::Keys(&["path"]);
    const EXAMPLE: &'static str = r#"path = "/srv/mail/tls"
group = "mail""#;
    const STAGE: DeployStage = DeployStage::Copy;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        None
    }

    fn rights(&self) -> Rights {
        Rights::to_write(Writes::Directory(self.path.to_path_buf(), self.owner()))
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }
}

impl Settings {
    fn owner(&self) -> Owner {
        owner_of(self.owner.as_ref(), self.group.as_ref())
    }

    fn output(&self) -> Output {
        Output::new(self.path.to_path_buf()).owned_by(self.owner())
    }

    fn write(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let bundle = copy::read_pair(delivery)?;
        let (lineage, generation) = (&delivery.lineage, delivery.generation);
        let published = self.output().publish(lineage, generation, &bundle);
        published.map_err(|error| copy::failed(&self.path, error.is_refusal(), error))
    }
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        self.short_form()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        Ok(())
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let (copy, delivery) = (self.clone(), delivery.clone());
        off_thread(move || copy.write(&delivery)).await
    }

    fn copy_of(&self, lineage: &Lineage) -> Option<PathBuf> {
        Some(self.output().live_path(lineage).join("privkey.pem"))
    }
}

#[cfg(test)]
mod tests {
    use crate::deploy::copy::tests::published;
    use crate::deploy::target::DeployTarget;
    use crate::record::Generation;

    #[tokio::test]
    async fn directory_keeps_three_generations() {
        let directory = tempfile::tempdir().unwrap();
        let mut delivery = published(directory.path());
        let root = directory.path().join("java");
        let copy: DeployTarget = format!("directory:{}", root.display()).parse().unwrap();
        let copy = copy.target();
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
