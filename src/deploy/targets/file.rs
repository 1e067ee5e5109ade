//! A copy of the pair in one file, in the format that a consumer reads. It is replaced in
//! one step, and has its own owner, group and mode.

use std::path::PathBuf;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::certificate::Secret;
use crate::deploy::copy;
use crate::deploy::keys::values::{AsWritten, FileMode, GroupNumber, UserNumber, owner_of};
use crate::deploy::owner::Owner;
use crate::deploy::target_settings::prelude::*;
use crate::deploy::{off_thread, output};
use crate::lineage::Lineage;

settings! {
    /// A copy in one file, which `certs` replaces in one step, with an owner, a group and a mode of its own. `certs run`
    /// notices within a minute if it is missing, and writes it again.
    ///
    /// `pkcs12` is for Java and Spring Boot, which also accept it in place of JKS.
    struct Settings {
        /// The file; `{name}` is replaced by the certificate's name
        path: PathKey,
        /// combined (leaf, issuers, key), fullchain, key, cert, chain or pkcs12
        #[schemars(extend("default" = "combined", "enum" = FORMATS.map(|(name, _)| name)))]
        format: Option<AsWritten<CopyFormat>>,
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
}

impl TargetSettings for Settings {
    const KIND: &'static str = "file";
    const SHORT: ShortForm = ShortForm::Keys(&["path"]);
    const EXAMPLE: &'static str = r#"path = "/srv/app/{name}.p12"
format = "pkcs12"
password_file = "/etc/certs/keystore-password"
owner = "root"
group = "root"
mode = "0640""#;
    const STAGE: DeployStage = DeployStage::Copy;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        let has_none = self.format() == PKCS12 && self.password_file.is_none();
        has_none.then(|| InvalidTarget::key("format", "pkcs12 needs `password_file`"))
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: None,
            reads: self.password_file.as_deref().cloned(),
            writes: Writes::File(self.path.to_path_buf(), self.owner()),
        }
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }

    fn needs_key(&self) -> bool {
        let format = self.format();
        format == PKCS12 || ["combined.pem", "privkey.pem"].contains(&format.0)
    }
}

/// The content of a copy: that of a file of the output, or [`PKCS12`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CopyFormat(&'static str);

/// A key store under a password.
const PKCS12: CopyFormat = CopyFormat("");
const COMBINED: CopyFormat = CopyFormat("combined.pem");
const FORMATS: [(&str, CopyFormat); 6] = [
    ("combined", COMBINED),
    ("fullchain", CopyFormat("fullchain.pem")),
    ("key", CopyFormat("privkey.pem")),
    ("cert", CopyFormat("cert.pem")),
    ("chain", CopyFormat("chain.pem")),
    ("pkcs12", PKCS12),
];

impl FromStr for CopyFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = FORMATS.iter().find(|(name, _)| *name == text);
        known.map(|(_, format)| *format).ok_or_else(|| {
            let names = FORMATS.map(|(name, _)| name).join(", ");
            format!("the formats are {names}; Java accepts pkcs12 in place of JKS")
        })
    }
}

impl Settings {
    fn format(&self) -> CopyFormat {
        let format = self.format.as_ref();
        format.map_or(COMBINED, AsWritten::value)
    }

    fn owner(&self) -> Owner {
        owner_of(self.owner.as_ref(), self.group.as_ref())
    }

    /// The password; empty without a file.
    fn password(&self) -> Result<Secret, DeployCause> {
        let Some(file) = &self.password_file else {
            return Ok(Secret::new(String::new()));
        };
        let text = copy::read_secret(file)?;
        match text.expose().lines().next() {
            Some(password) if !password.is_empty() => Ok(Secret::new(password.to_owned())),
            _ => Err(copy::unusable_secret(file, "its first line is empty")),
        }
    }

    /// The content, and its usual mode: a key is not readable to all users.
    fn content(&self, delivery: &Delivery) -> Result<(Zeroizing<Vec<u8>>, u32), DeployCause> {
        let (bundle, CopyFormat(wanted)) = (copy::read_pair(delivery)?, self.format());
        let mut published = output::contents(&bundle).into_iter();
        if let Some((_, mode, text)) = published.find(|(name, ..)| *name == wanted) {
            return Ok((Zeroizing::new(text.expose().as_bytes().to_vec()), mode));
        }
        if !bundle.has_key() {
            let why = "its key is not here: the format must be fullchain, cert or chain";
            return Err(copy::failed(&self.path, false, why));
        }
        let store = bundle.pkcs12(delivery.lineage.as_str(), &self.password()?);
        let store = store.map_err(|detail| copy::failed(&self.path, false, detail))?;
        Ok((store, output::KEY))
    }

    fn look(&self) -> Result<(), DeployCause> {
        copy::may_be_written(&self.path)?;
        self.password().map(drop)
    }

    fn write(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let (content, usual) = self.content(delivery)?;
        let mode = self.mode.as_ref().map_or(usual, |mode| mode.value().0);
        let written = copy::replace(&self.path, mode, self.owner(), &content);
        written.map_err(|error| copy::unwritten(&self.path, &error))
    }
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        self.short_form()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        let copy = self.clone();
        off_thread(move || copy.look()).await
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let (copy, delivery) = (self.clone(), delivery.clone());
        off_thread(move || copy.write(&delivery)).await
    }

    fn copy_of(&self, _: &Lineage) -> Option<PathBuf> {
        Some(self.path.to_path_buf())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;

    use super::*;
    use crate::deploy::copy::tests::published;
    use crate::deploy::target::{DeployTarget, TargetKeys};

    fn file(path: &Path, format: &str) -> Arc<dyn Target> {
        let key = |key: &str, value: String| (key.to_owned(), vec![value]);
        let keys = TargetKeys::from([
            key("path", path.display().to_string()),
            key("format", format.to_owned()),
            key(
                "password_file",
                path.with_file_name("password").display().to_string(),
            ),
        ]);
        DeployTarget::long("file", keys).unwrap().target()
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
            let copy = file(&path, format);
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
        assert!("jks".parse::<CopyFormat>().is_err());
    }

    #[tokio::test]
    async fn missing_or_empty_password_fails_the_check() {
        let directory = tempfile::tempdir().unwrap();
        let delivery = published(directory.path());
        let copy = file(&directory.path().join("copy.p12"), "pkcs12");
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
        assert!(file(&path, "combined").apply(&delivery).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        let nowhere = file(&directory.path().join("a/b"), "combined");
        let message = nowhere.check(&delivery).await.unwrap_err().to_string();
        assert!(message.contains("a/b"), "{message}");
    }
}
