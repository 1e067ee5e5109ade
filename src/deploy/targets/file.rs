//! A copy of the pair in one file, in the format that a consumer reads. It is replaced in
//! one step, and has its own owner, group and mode.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::certificate::Secret;
use crate::deploy::copy;
use crate::deploy::keys::values::{
    AsWritten, FileMode, GroupNumber, PathKey, UserNumber, owner_of,
};
use crate::deploy::owner::Owner;
use crate::deploy::target_settings::{
    self, DeployStage, InvalidTarget, Paths, Processes, Rights, ShortForm, TargetSettings, Writes,
};
use crate::deploy::{Delivery, DeployError, Target, off_thread};
use crate::lineage::Lineage;

/// A copy in one file, which `certs` replaces in one step, with an owner, a group and a mode of its own. `certs run`
/// notices within a minute if it is missing, and writes it again.
///
/// `pkcs12` is for Java and Spring Boot, which also accept it in place of JKS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The file; `{name}` is replaced by the certificate's name
    path: PathKey,
    /// combined (leaf, issuers, key), fullchain, key, cert, chain or pkcs12
    #[schemars(extend("default" = "combined"))]
    format: Option<CopyFormat>,
    /// The file whose first line is the password of a pkcs12
    password_file: Option<PathKey>,
    /// The user that owns it, by name or number
    #[schemars(extend("x-default" = "the process's own"))]
    owner: Option<AsWritten<UserNumber>>,
    /// The group that owns it, by name or number
    #[schemars(extend("x-default" = "the process's own"))]
    group: Option<AsWritten<GroupNumber>>,
    /// Its mode in octal digits
    #[schemars(extend("x-default" = "0640 with a key in it, else 0644"))]
    mode: Option<AsWritten<FileMode>>,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "file";
    const SHORT: ShortForm = ShortForm::Where("path");
    const EXAMPLE: &'static str = r#"kind = "file"
path = "/srv/app/{name}.p12"
format = "pkcs12"
password_file = "/etc/certs/keystore-password"
owner = "root"
group = "root"
mode = "0640""#;

    fn check(&self) -> Result<(), InvalidTarget> {
        match (self.format(), &self.password_file) {
            (CopyFormat::Pkcs12, None) => {
                Err(InvalidTarget::key("format", "pkcs12 needs `password_file`"))
            }
            _ => Ok(()),
        }
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: None,
            reads: self.password_file.as_deref().cloned(),
            writes: Writes::File(self.path.to_path_buf(), self.owner()),
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
            read: self.password_file.as_mut().into_iter().collect(),
            written: Some(&mut self.path),
        }
    }

    fn target(&self, name: String) -> Arc<dyn Target> {
        let usual = self.format().usual_mode();
        Arc::new(FileCopy {
            name,
            path: self.path.to_path_buf(),
            format: self.format(),
            password_file: self.password_file.as_deref().cloned(),
            owner: self.owner(),
            mode: self.mode.as_ref().map_or(usual, |mode| mode.value().0),
        })
    }
}

impl Settings {
    fn format(&self) -> CopyFormat {
        self.format.unwrap_or(CopyFormat::Combined)
    }

    fn owner(&self) -> Owner {
        owner_of(self.owner.as_ref(), self.group.as_ref())
    }
}

/// The content of a copy.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, extend("enum" = FORMATS.map(|(name, _)| name)))]
pub enum CopyFormat {
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

const FORMATS: [(&str, CopyFormat); 6] = [
    ("combined", CopyFormat::Combined),
    ("fullchain", CopyFormat::Fullchain),
    ("key", CopyFormat::Key),
    ("cert", CopyFormat::Leaf),
    ("chain", CopyFormat::Chain),
    ("pkcs12", CopyFormat::Pkcs12),
];

impl TryFrom<String> for CopyFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let known = FORMATS.iter().find(|(name, _)| *name == text);
        known.map(|(_, format)| *format).ok_or_else(|| {
            let names = FORMATS.map(|(name, _)| name).join(", ");
            format!("the formats are {names}; Java accepts pkcs12 in place of JKS")
        })
    }
}

impl From<CopyFormat> for String {
    fn from(format: CopyFormat) -> Self {
        let name = FORMATS.iter().find(|(_, known)| *known == format);
        name.map_or_else(String::new, |(name, _)| (*name).to_owned())
    }
}

impl CopyFormat {
    /// The default mode; a key is not readable to all users.
    fn usual_mode(self) -> u32 {
        match self {
            Self::Combined | Self::Key | Self::Pkcs12 => 0o640,
            Self::Fullchain | Self::Leaf | Self::Chain => 0o644,
        }
    }
}

/// A copy in one file.
#[derive(Clone, Debug)]
struct FileCopy {
    name: String,
    path: PathBuf,
    format: CopyFormat,
    password_file: Option<PathBuf>,
    owner: Owner,
    mode: u32,
}

impl FileCopy {
    fn failed(&self, detail: impl ToString) -> DeployError {
        copy::unwritten(&self.name, &self.path, detail)
    }

    fn password(&self) -> Result<Option<Secret>, DeployError> {
        let Some(file) = &self.password_file else {
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

    fn content(&self, delivery: &Delivery) -> Result<Zeroizing<Vec<u8>>, DeployError> {
        let bundle = copy::read_pair(&self.name, delivery)?;
        let chain = bundle.chain_pem();
        let text = match self.format {
            CopyFormat::Combined => chain + bundle.key_pem().expose(),
            CopyFormat::Fullchain => chain,
            CopyFormat::Key => bundle.key_pem().expose().to_owned(),
            CopyFormat::Leaf => bundle.leaf_pem(),
            CopyFormat::Chain => bundle.issuers_pem(),
            CopyFormat::Pkcs12 => {
                let password = self.password()?;
                let password = password.ok_or_else(|| self.failed("it has no password_file"))?;
                let store = bundle.pkcs12(delivery.lineage.as_str(), &password);
                return store.map_err(|detail| self.failed(detail));
            }
        };
        Ok(Zeroizing::new(text.into_bytes()))
    }

    fn look(&self) -> Result<(), DeployError> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        if !parent.is_dir() {
            return Err(self.failed("no such directory"));
        }
        self.password().map(drop)
    }

    fn write(&self, delivery: &Delivery) -> Result<(), DeployError> {
        let content = self.content(delivery)?;
        let written = copy::replace(&self.path, self.mode, self.owner, &content);
        written.map_err(|error| self.failed(error))
    }
}

#[async_trait]
impl Target for FileCopy {
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

    async fn is_gone(&self, _: &Lineage) -> bool {
        copy::is_missing(&self.path).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::deploy::copy::tests::published;

    fn file(path: &Path, format: CopyFormat) -> FileCopy {
        FileCopy {
            name: format!("file:{}", path.display()),
            path: path.to_owned(),
            format,
            password_file: Some(path.with_file_name("password")),
            owner: Owner::default(),
            mode: format.usual_mode(),
        }
    }

    #[tokio::test]
    async fn each_format_replaces_the_file_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let delivery = published(directory.path());
        std::fs::write(directory.path().join("password"), "secret\n").unwrap();
        let path = directory.path().join("copy");
        let mut before = 0;
        for (format, begins, mode) in [
            ("combined", "-----BEGIN CERTIFICATE-----", 0o640),
            ("fullchain", "-----BEGIN CERTIFICATE-----", 0o644),
            ("key", "-----BEGIN PRIVATE KEY-----", 0o640),
            ("cert", "-----BEGIN CERTIFICATE-----", 0o644),
            ("chain", "", 0o644),
            ("pkcs12", "0", 0o640),
        ] {
            let copy = file(&path, format.to_owned().try_into().unwrap());
            copy.check(&delivery).await.unwrap();
            copy.apply(&delivery).await.unwrap();
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{format}");
            // A reader that has the old file open still reads the old content.
            assert_ne!(std::mem::replace(&mut before, found.ino()), found.ino());
            let content = std::fs::read(&path).unwrap();
            assert!(content.starts_with(begins.as_bytes()), "{format}");
            let key = String::from_utf8_lossy(&content).contains("PRIVATE KEY");
            assert_eq!(key, ["combined", "key"].contains(&format), "{format}");
        }
        assert!(CopyFormat::try_from("jks".to_owned()).is_err());
    }

    #[tokio::test]
    async fn missing_or_empty_password_fails_the_check() {
        let directory = tempfile::tempdir().unwrap();
        let delivery = published(directory.path());
        let copy = file(&directory.path().join("copy.p12"), CopyFormat::Pkcs12);
        let message = copy.check(&delivery).await.unwrap_err().to_string();
        assert!(message.contains("password"), "{message}");
        std::fs::write(directory.path().join("password"), "\n").unwrap();
        let message = copy.check(&delivery).await.unwrap_err().to_string();
        assert!(message.contains("is empty"), "{message}");
    }

    #[tokio::test]
    async fn failed_write_leaves_the_previous_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut delivery = published(directory.path());
        let path = directory.path().join("copy");
        std::fs::write(&path, "before").unwrap();
        delivery.live = directory.path().join("absent");
        assert!(
            file(&path, CopyFormat::Combined)
                .apply(&delivery)
                .await
                .is_err()
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        let nowhere = file(&directory.path().join("a/b"), CopyFormat::Combined);
        let message = nowhere.check(&delivery).await.unwrap_err().to_string();
        assert!(message.contains("a/b"), "{message}");
    }
}
