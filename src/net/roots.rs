//! The roots that this machine trusts, beside those that are built in: those of its CA bundle,
//! or of `SSL_CERT_FILE`, and those of `SSL_CERT_DIR`, as for OpenSSL. They are read and never
//! written; a file that cannot be read is skipped.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::files::named::{self, Unread};

/// The CA bundles of Linux distributions.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The most files of a directory that are read.
const MOST_FILES: usize = 2000;
/// The most bytes of all files together; the bundle of a distribution has 250 KB.
const LARGEST: usize = 16 << 20;

/// Where the roots of this machine are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SystemRoots {
    /// `SSL_CERT_FILE`, instead of the distribution's bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// `SSL_CERT_DIR`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    directories: Vec<PathBuf>,
}

impl SystemRoots {
    /// Those that the environment names.
    pub(crate) fn of(environment: &BTreeMap<String, String>) -> Self {
        let set = |name| environment.get(name).filter(|value| !value.is_empty());
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let directories = set("SSL_CERT_DIR").into_iter();
        Self {
            file: set("SSL_CERT_FILE").map(|file| absolute(file.into())),
            directories: directories
                .flat_map(std::env::split_paths)
                .map(absolute)
                .collect(),
        }
    }

    /// Those that the environment of this process names, for a client without settings.
    #[allow(clippy::disallowed_methods)] // OpenSSL has named these variables
    pub(crate) fn of_this_process() -> Self {
        let names = ["SSL_CERT_FILE", "SSL_CERT_DIR"]
            .map(str::to_owned)
            .into_iter();
        let set = names.filter_map(|name| Some((name.clone(), std::env::var(name).ok()?)));
        Self::of(&set.collect())
    }

    /// The file and the directories that the environment names.
    pub(crate) fn named(&self) -> impl Iterator<Item = &PathBuf> {
        self.file.iter().chain(&self.directories)
    }

    /// Adds them to `roots`.
    pub(crate) fn add_to(&self, roots: &mut RootCertStore) {
        self.add_up_to(LARGEST, roots);
    }

    fn add_up_to(&self, largest: usize, roots: &mut RootCertStore) {
        let (known, room) = (HashSet::new(), largest);
        let mut reading = Reading { roots, known, room };
        let bundle = || BUNDLES.iter().map(Path::new).find(|bundle| bundle.exists());
        match &self.file {
            Some(file) => reading.add(file, "SSL_CERT_FILE"),
            None => {
                if let Some(bundle) = bundle() {
                    reading.add(bundle, "the CA bundle of this machine");
                }
            }
        }
        for directory in &self.directories {
            let entries = match std::fs::read_dir(directory) {
                Ok(entries) => entries,
                Err(error) => {
                    not_read("SSL_CERT_DIR", directory, &error.to_string());
                    continue;
                }
            };
            for entry in entries.flatten().take(MOST_FILES) {
                reading.add_entry(&entry.path());
            }
        }
    }
}

/// The roots that are read so far, each once: a directory often has the files of a bundle too,
/// under two names.
struct Reading<'r> {
    roots: &'r mut RootCertStore,
    known: HashSet<CertificateDer<'static>>,
    /// How many more bytes are read.
    room: usize,
}

impl Reading<'_> {
    fn add(&mut self, file: &Path, source: &str) {
        if let Err(error) = self.read(file) {
            not_read(source, file, &error.to_string());
        }
    }

    /// Adds a file of a directory.
    fn add_entry(&mut self, entry: &Path) {
        match self.read(entry) {
            Err(error) if !is_skipped(&error) => {
                not_read("SSL_CERT_DIR", entry, &error.to_string());
            }
            _ => {}
        }
    }

    /// Adds the certificates of a PEM file; invalid roots are skipped.
    fn read(&mut self, file: &Path) -> Result<(), Unread> {
        let pem = named::read_data(file)?;
        let pem = pem.expose().as_bytes();
        let room = self.room.checked_sub(pem.len());
        self.room = room.ok_or_else(|| io::Error::other("with it the roots are too large"))?;
        for root in CertificateDer::pem_slice_iter(pem).flatten() {
            if self.known.insert(root.clone()) {
                self.roots.add_parsable_certificates([root]);
            }
        }
        Ok(())
    }
}

/// Whether an entry of a directory is a further directory, or a link that leads nowhere.
fn is_skipped(error: &Unread) -> bool {
    match error {
        Unread::Untrusted(error) => error.is_absent(),
        Unread::Io(error) => {
            matches!(error.kind(), ErrorKind::IsADirectory | ErrorKind::NotFound)
        }
    }
}

fn not_read(source: &str, path: &Path, why: &str) {
    tracing::warn!(
        "{source}: {} is not read: {why}; hint: correct it, or name the CA's root with --ca-root",
        path.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (String, RootCertStore) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        (
            params.self_signed(&key).unwrap().pem(),
            RootCertStore::empty(),
        )
    }

    fn of(pairs: &[(&str, &Path)]) -> SystemRoots {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(name, path)| ((*name).to_owned(), path.display().to_string()));
        SystemRoots::of(&pairs.collect())
    }

    #[test]
    fn roots_of_file_and_directories_are_added_and_others_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bundle.pem");
        let (one, mut roots) = root();
        let (other, _) = root();
        let invalid = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        std::fs::write(&file, format!("# a comment\n{one}{invalid}{other}")).unwrap();
        let system = of(&[("SSL_CERT_FILE", &file)]);
        assert_eq!(system.named().collect::<Vec<_>>(), [&file]);
        system.add_to(&mut roots);
        assert_eq!(roots.len(), 2);
        let hashed = directory.path().join("certs");
        std::fs::create_dir_all(hashed.join("below")).unwrap();
        let (third, mut roots) = root();
        std::fs::write(hashed.join("5ad8a5d6.0"), third).unwrap();
        std::fs::write(hashed.join("README"), "no certificate").unwrap();
        let absent = directory.path().join("absent");
        let both = format!("{}:{}", absent.display(), hashed.display());
        let system = of(&[
            ("SSL_CERT_FILE", &absent),
            ("SSL_CERT_DIR", Path::new(&both)),
        ]);
        system.add_to(&mut roots);
        assert_eq!(roots.len(), 1);
    }
    #[test]
    fn root_in_several_files_is_added_once_and_the_sum_of_files_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let pems = [root().0, root().0, root().0];
        for (pem, name) in pems.iter().zip(["a.pem", "b.pem", "c.pem"]) {
            std::fs::write(at(name), pem).unwrap();
        }
        std::os::unix::fs::symlink("a.pem", at("0a1b2c3d.0")).unwrap();
        std::os::unix::fs::symlink("absent.pem", at("0a1b2c3d.1")).unwrap();
        for silent in ["0a1b2c3d.1", ""] {
            assert!(is_skipped(&named::read_data(&at(silent)).unwrap_err()));
        }
        let bundle = at("bundle");
        std::fs::write(&bundle, pems.concat()).unwrap();
        let both = [
            ("SSL_CERT_FILE", bundle.as_path()),
            ("SSL_CERT_DIR", directory.path()),
        ];
        let added = |largest: usize, named: &[(&str, &Path)]| {
            let mut roots = RootCertStore::empty();
            of(named).add_up_to(largest, &mut roots);
            roots.len()
        };
        assert_eq!(added(LARGEST, &both), 3);
        std::fs::remove_file(at("0a1b2c3d.0")).unwrap();
        std::fs::remove_file(&bundle).unwrap();
        let absent = at("absent");
        let alone = [("SSL_CERT_FILE", absent.as_path()), both[1]];
        let sum = pems.concat().len();
        assert_eq!(added(sum, &alone), 3);
        assert_eq!(added(sum - 1, &alone), 2);
    }
}
