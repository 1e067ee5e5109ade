//! A copy of the pair for one consumer, where it reads and in the form it reads: a
//! file that is replaced in one step, or a directory of generations like the
//! output itself, with an owner, a group and a mode of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::output::Output;
use super::owner::Owner;
use super::{Delivery, DeployError, Outlet, Target, off_thread};
use crate::certificate::{Bundle, Freshness, Secret};
use crate::files;
use crate::identifier::Lineage;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Leaf and issuers, then the key: HAProxy, hitch, lighttpd.
    Combined,
    /// Leaf and issuers.
    Fullchain,
    /// The key.
    Key,
    /// The leaf.
    Leaf,
    /// The issuers.
    Chain,
    /// A PKCS#12 key store, under a password.
    Pkcs12,
}

impl FromStr for Form {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "combined" => Self::Combined,
            "fullchain" => Self::Fullchain,
            "key" => Self::Key,
            "cert" => Self::Leaf,
            "chain" => Self::Chain,
            "pkcs12" => Self::Pkcs12,
            _ => return Err(()),
        })
    }
}

impl Form {
    /// The mode where none is said: what holds a key is not for everybody.
    #[must_use]
    pub fn usual_mode(self) -> u32 {
        match self {
            Self::Combined | Self::Key | Self::Pkcs12 => 0o640,
            Self::Fullchain | Self::Leaf | Self::Chain => 0o644,
        }
    }
}

/// Where a copy stands.
#[derive(Clone, Debug)]
pub enum Place {
    /// One file.
    File {
        /// Its path.
        path: PathBuf,
        /// What it holds.
        form: Form,
        /// Of a key store.
        password_file: Option<PathBuf>,
        /// Its mode.
        mode: u32,
    },
    /// `live/NAME` and `archive/NAME` below this directory.
    Directory(PathBuf),
}

/// A copy.
#[derive(Clone, Debug)]
pub struct Copy {
    name: String,
    place: Place,
    owner: Owner,
}

impl Copy {
    /// Known to records as `name`.
    #[must_use]
    pub fn new(name: String, place: Place, owner: Owner) -> Self {
        Self { name, place, owner }
    }

    fn path(&self) -> &Path {
        match &self.place {
            Place::File { path, .. } => path,
            Place::Directory(root) => root,
        }
    }

    fn failed(&self, detail: impl ToString) -> DeployError {
        DeployError::Write {
            target: self.name.clone(),
            path: self.path().display().to_string(),
            detail: detail.to_string(),
        }
    }

    fn bundle(&self, delivery: &Delivery) -> Result<Bundle, DeployError> {
        let pair = |detail: String| DeployError::Pair {
            target: self.name.clone(),
            path: delivery.live.display().to_string(),
            detail,
        };
        let read = |name: &str| {
            let text = std::fs::read_to_string(delivery.live.join(name));
            text.map_err(|error| pair(error.to_string()))
        };
        let (key, chain) = (Secret::new(read("privkey.pem")?), read("fullchain.pem")?);
        let (names, now) = (&delivery.names, delivery.not_after);
        let bundle = Bundle::new(key, &chain, names, now, Freshness::Any);
        bundle.map_err(|error| pair(error.to_string()))
    }

    fn password(&self) -> Result<Option<Secret>, DeployError> {
        let Place::File {
            password_file: Some(file),
            ..
        } = &self.place
        else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|error| self.failed(format!("{}: {error}", file.display())))?;
        let password = Secret::new(text.lines().next().unwrap_or_default().to_owned());
        match password.expose().is_empty() {
            true => Err(self.failed(format!("{} is empty", file.display()))),
            false => Ok(Some(password)),
        }
    }

    fn content(&self, form: Form, delivery: &Delivery) -> Result<Zeroizing<Vec<u8>>, DeployError> {
        let bundle = self.bundle(delivery)?;
        let chain = bundle.chain_pem();
        let text = match form {
            Form::Combined => chain + bundle.key_pem().expose(),
            Form::Fullchain => chain,
            Form::Key => bundle.key_pem().expose().to_owned(),
            Form::Leaf => bundle.leaf_pem(),
            Form::Chain => bundle.issuers_pem(),
            Form::Pkcs12 => {
                let password = self.password()?;
                let password = password.ok_or_else(|| self.failed("it has no password_file"))?;
                let store = bundle.pkcs12(delivery.lineage.as_str(), &password);
                return store.map_err(|detail| self.failed(detail));
            }
        };
        Ok(Zeroizing::new(text.into_bytes()))
    }

    fn look(&self) -> Result<(), DeployError> {
        if let Place::File { path, .. } = &self.place {
            let parent = path.parent().unwrap_or(Path::new("/"));
            if !parent.is_dir() {
                return Err(self.failed("its directory is not there"));
            }
        }
        self.password().map(drop)
    }

    fn write(&self, delivery: &Delivery) -> Result<(), DeployError> {
        match &self.place {
            Place::Directory(root) => {
                let bundle = self.bundle(delivery)?;
                let output = Output::new(root.clone()).owned_by(self.owner);
                let published = output.publish(&delivery.lineage, delivery.generation, &bundle);
                published.map_err(|error| self.failed(error))
            }
            Place::File {
                path, form, mode, ..
            } => {
                let content = self.content(*form, delivery)?;
                let written = replace(path, *mode, self.owner, &content);
                written.map_err(|error| self.failed(error))
            }
        }
    }
}

pub(super) fn replace(path: &Path, mode: u32, owner: Owner, content: &[u8]) -> io::Result<()> {
    let give = |aside: &Path| owner.take_or_warn(aside, mode);
    files::replace_once_given(path, 0o600, content, give)
}

#[async_trait]
impl Target for Copy {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
        let copy = self.clone();
        off_thread(&self.name, move || copy.look()).await
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployError> {
        let (copy, delivery) = (self.clone(), delivery.clone());
        off_thread(&self.name, move || copy.write(&delivery)).await
    }

    fn has_copies(&self) -> bool {
        true
    }

    async fn is_gone(&self, lineage: &Lineage) -> bool {
        let path = match &self.place {
            Place::File { path, .. } => path.clone(),
            Place::Directory(root) => {
                let live = Output::new(root.clone()).live_path(lineage);
                live.join("privkey.pem")
            }
        };
        let found = tokio::fs::metadata(path).await;
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::super::sample;
    use super::*;
    use crate::record::Generation;
    use crate::time::Timestamp;

    /// A published pair, and what is told of it.
    fn published(root: &Path) -> Delivery {
        let mut delivery = sample();
        let output = Output::new(root.join("out"));
        let now = Timestamp::from_seconds(1_800_000_000);
        output
            .placeholder(&delivery.lineage, &delivery.names, now)
            .unwrap();
        delivery.live = output.live_path(&delivery.lineage);
        delivery
    }

    fn file(path: &Path, form: Form) -> Copy {
        let place = Place::File {
            path: path.to_owned(),
            form,
            password_file: Some(path.with_file_name("password")),
            mode: form.usual_mode(),
        };
        Copy::new(format!("file:{}", path.display()), place, Owner::default())
    }

    #[tokio::test]
    async fn each_form_is_a_whole_new_file_of_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let delivery = published(directory.path());
        std::fs::write(directory.path().join("password"), "secret\n").unwrap();
        let path = directory.path().join("copy");
        let mut before = 0;
        for (form, begins, mode) in [
            ("combined", "-----BEGIN CERTIFICATE-----", 0o640),
            ("fullchain", "-----BEGIN CERTIFICATE-----", 0o644),
            ("key", "-----BEGIN PRIVATE KEY-----", 0o640),
            ("cert", "-----BEGIN CERTIFICATE-----", 0o644),
            ("chain", "", 0o644),
            ("pkcs12", "0", 0o640),
        ] {
            let copy = file(&path, form.parse().unwrap());
            copy.check(&delivery).await.unwrap();
            copy.apply(&delivery).await.unwrap();
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{form}");
            // A reader that has the old one open goes on with it.
            assert_ne!(std::mem::replace(&mut before, found.ino()), found.ino());
            let content = std::fs::read(&path).unwrap();
            assert!(content.starts_with(begins.as_bytes()), "{form}");
            let key = String::from_utf8_lossy(&content).contains("PRIVATE KEY");
            assert_eq!(key, ["combined", "key"].contains(&form), "{form}");
        }
        assert!("jks".parse::<Form>().is_err());
    }

    #[tokio::test]
    async fn a_password_that_is_missing_or_empty_is_found_before_the_switch() {
        let directory = tempfile::tempdir().unwrap();
        let delivery = published(directory.path());
        let copy = file(&directory.path().join("copy.p12"), Form::Pkcs12);
        let told = copy.check(&delivery).await.unwrap_err().to_string();
        assert!(told.contains("password"), "{told}");
        std::fs::write(directory.path().join("password"), "\n").unwrap();
        let told = copy.check(&delivery).await.unwrap_err().to_string();
        assert!(told.contains("is empty"), "{told}");
    }

    #[tokio::test]
    async fn what_cannot_be_written_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut delivery = published(directory.path());
        let path = directory.path().join("copy");
        std::fs::write(&path, "before").unwrap();
        delivery.live = directory.path().join("absent");
        assert!(file(&path, Form::Combined).apply(&delivery).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        let nowhere = file(&directory.path().join("a/b"), Form::Combined);
        let told = nowhere.check(&delivery).await.unwrap_err().to_string();
        assert!(told.contains("a/b"), "{told}");
    }

    #[tokio::test]
    async fn a_directory_keeps_generations_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let mut delivery = published(directory.path());
        let root = directory.path().join("java");
        let place = Place::Directory(root.clone());
        let copy = Copy::new("directory".into(), place, Owner::default());
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
