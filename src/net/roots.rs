//! The roots that this machine trusts, beside those that are built in: those of its CA bundle,
//! or of `SSL_CERT_FILE`, and those of `SSL_CERT_DIR`, as for OpenSSL. They are read and never
//! written; a file that cannot be read is skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::files::named;

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

    /// The file and the directories that the environment names.
    pub(crate) fn named(&self) -> impl Iterator<Item = &PathBuf> {
        self.file.iter().chain(&self.directories)
    }

    /// Adds them to `roots`.
    pub(crate) fn add_to(&self, roots: &mut RootCertStore) {
        let bundle = || BUNDLES.iter().map(Path::new).find(|bundle| bundle.exists());
        match &self.file {
            Some(file) => add(roots, file, "SSL_CERT_FILE"),
            None => {
                if let Some(bundle) = bundle() {
                    add(roots, bundle, "the CA bundle of this machine");
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
            let files = entries.flatten().map(|entry| entry.path());
            for file in files.filter(|file| file.is_file()).take(MOST_FILES) {
                add(roots, &file, "SSL_CERT_DIR");
            }
        }
    }
}

/// Adds the certificates of a PEM file; invalid roots are skipped.
fn add(roots: &mut RootCertStore, file: &Path, source: &str) {
    match named::read_data(file) {
        Ok(pem) => {
            let all = CertificateDer::pem_slice_iter(pem.expose().as_bytes());
            roots.add_parsable_certificates(all.flatten());
        }
        Err(error) => not_read(source, file, &error.to_string()),
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
}
