//! What makes a machine and its programs trust a root: the system's store, which is changed
//! here, and the stores of browsers, Java and Node.js, for which a user gets the commands.
//!
//! A root is one file in the system's directory of further roots, named after its
//! fingerprint. The system's own program makes the bundle from it; only a bundle that
//! contains the root counts as trust.

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::pem;
use crate::files::beneath::Directory;
use crate::files::{self, in_directories};
use crate::fingerprint::Fingerprint;
use crate::program::{Call, DEADLINE, ProgramError};
use crate::text::shell_word;

const PROGRAMS: [&str; 2] = ["/usr/sbin", "/usr/bin"];
/// The bundle of a distribution takes a quarter of a MiB.
const LARGEST_BUNDLE: u64 = 16 << 20;

/// A root certificate.
pub(crate) struct Root {
    pub(crate) pem: String,
    pub(crate) fingerprint: Fingerprint,
    /// Whether it permits certain names only.
    pub(crate) is_constrained: bool,
    /// Whether its file is in DER, which the programs of systems do not read.
    pub(crate) is_der: bool,
}

/// Where a family of systems keeps further roots.
pub(crate) struct TrustStore {
    systems: &'static str,
    directory: &'static str,
    extension: &'static str,
    program: &'static str,
    /// The argument without which that program leaves links to a removed root.
    after_removal: &'static [&'static str],
    bundle: &'static str,
}

/// The known ones. The first whose directory and program exist is this machine's.
const TRUST_STORES: [TrustStore; 4] = [
    TrustStore {
        systems: "Fedora, RHEL, Rocky, Amazon Linux",
        directory: "/etc/pki/ca-trust/source/anchors",
        extension: "pem",
        program: "update-ca-trust",
        after_removal: &[],
        bundle: "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    },
    TrustStore {
        systems: "openSUSE, SLES",
        directory: "/etc/pki/trust/anchors",
        extension: "pem",
        program: "update-ca-certificates",
        after_removal: &[],
        bundle: "/var/lib/ca-certificates/ca-bundle.pem",
    },
    TrustStore {
        systems: "Arch Linux",
        directory: "/etc/ca-certificates/trust-source/anchors",
        extension: "crt",
        program: "update-ca-trust",
        after_removal: &[],
        bundle: "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
    },
    TrustStore {
        systems: "Debian, Ubuntu, Alpine",
        directory: "/usr/local/share/ca-certificates",
        extension: "crt",
        program: "update-ca-certificates",
        after_removal: &["--fresh"],
        bundle: "/etc/ssl/certs/ca-certificates.crt",
    },
];

/// Why the system's store could not be changed.
#[derive(Debug, Error)]
pub(crate) enum TrustError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{0}: {1}")]
    Program(String, ProgramError),
    #[error("{0}")]
    Unchanged(String),
}

impl Root {
    /// Reads the only root of a file in PEM or DER.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn parse(content: &[u8]) -> Result<Self, String> {
        let is_der = content.first() == Some(&0x30);
        let found: Vec<_> = match is_der {
            true => vec![CertificateDer::from(content.to_vec())],
            false => CertificateDer::pem_slice_iter(content).flatten().collect(),
        };
        let der = match found.as_slice() {
            [] => return Err("no certificate in PEM or DER found".to_owned()),
            [only] => only,
            // Only the first would be trusted, by some programs.
            several => return Err(format!("it has {} certificates", several.len())),
        };
        let parsed = X509Certificate::from_der(der);
        let (_, certificate) = parsed.map_err(|_| "the certificate is invalid")?;
        if !certificate.is_ca() || certificate.subject() != certificate.issuer() {
            return Err("the certificate is not a root: it is not a CA's own".to_owned());
        }
        let is_bound =
            |one: &ParsedExtension<'_>| matches!(one, ParsedExtension::NameConstraints(_));
        let mut extensions = certificate.extensions().iter();
        Ok(Self {
            is_constrained: extensions.any(|one| is_bound(one.parsed_extension())),
            fingerprint: Fingerprint::of(der),
            pem: pem(der),
            is_der,
        })
    }

    /// Its name in every store: two roots never share one.
    pub(crate) fn name(&self) -> String {
        format!("certs-{:.8}", self.fingerprint.to_string())
    }

    /// Its SHA-256 as `openssl` and browsers show it.
    pub(crate) fn sha256(&self) -> String {
        let digits = self.fingerprint.to_string().to_uppercase();
        let pairs = digits.as_bytes().chunks(2).map(String::from_utf8_lossy);
        pairs.collect::<Vec<_>>().join(":")
    }

    /// The commands for every store, with comments; `file` is its path. Those of users name
    /// the file in the store of `system`, which all can read.
    pub(crate) fn commands(&self, file: &Path, system: Option<&TrustStore>) -> String {
        let name = self.name();
        let path = shell_word(&file.display().to_string());
        let mut text = String::new();
        let is_here =
            |store: &TrustStore| system.is_some_and(|system| system.directory == store.directory);
        let mut stores: Vec<&TrustStore> = TRUST_STORES.iter().collect();
        stores.sort_by_key(|store| !is_here(store));
        for store in stores {
            let here = if is_here(store) { ", this machine" } else { "" };
            let (anchor, update) = (store.anchor(self), store.program);
            let (anchor, systems) = (anchor.display(), store.systems);
            let undo: String = store
                .after_removal
                .iter()
                .map(|one| format!(" {one}"))
                .collect();
            text += &format!(
                "# {systems}{here}: curl, wget, OpenSSL, Python, Go, PHP\n\
                 sudo install -m 644 {path} {anchor} && sudo {update}\n\
                 # undo: sudo rm -f {anchor} && sudo {update}{undo}\n\n"
            );
        }
        let anchor = system.map(|store| store.anchor(self).display().to_string());
        let anchor = anchor.unwrap_or_else(|| path.clone());
        text + &format!(
            "# macOS, with Safari and Chrome\n\
             sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {path}\n\
             # undo: sudo security remove-trusted-cert -d {path}\n\
             \n\
             # Chromium and Chrome on Linux, this user's (certutil: package libnss3-tools or nss-tools)\n\
             mkdir -p \"$HOME/.pki/nssdb\" && certutil -d \"sql:$HOME/.pki/nssdb\" -A -t C,, -n {name} -i {anchor}\n\
             # undo: certutil -d \"sql:$HOME/.pki/nssdb\" -D -n {name}\n\
             \n\
             # Firefox, this user's profiles; start it again afterwards\n\
             for db in {PROFILES}; do [ ! -e \"$db\" ] || certutil -d \"sql:${{db%/*}}\" -A -t C,, -n {name} -i {anchor}; done\n\
             # undo: for db in {PROFILES}; do [ ! -e \"$db\" ] || certutil -d \"sql:${{db%/*}}\" -D -n {name}; done\n\
             # For all users and new profiles: in /etc/firefox/policies/policies.json, beside other policies,\n\
             # {{\"policies\": {{\"Certificates\": {{\"Install\": [\"{anchor}\"]}}}}}}\n\
             \n\
             # Java\n\
             sudo keytool -importcert -noprompt -cacerts -storepass changeit -alias {name} -file {anchor}\n\
             # undo: sudo keytool -delete -cacerts -storepass changeit -alias {name}\n\
             \n\
             # Node.js; or NODE_OPTIONS=--use-system-ca from version 22.15 on\n\
             export NODE_EXTRA_CA_CERTS={anchor}\n"
        )
    }
}

/// The databases of Firefox profiles: its own package, the snap and the Flatpak.
const PROFILES: &str = "\"$HOME\"/.mozilla/firefox/*/cert9.db \
     \"$HOME\"/snap/firefox/common/.mozilla/firefox/*/cert9.db \
     \"$HOME\"/.var/app/org.mozilla.firefox/.mozilla/firefox/*/cert9.db";

impl TrustStore {
    /// That of this machine, if it has one.
    pub(crate) fn of_this_machine() -> Option<&'static Self> {
        let mut stores = TRUST_STORES.iter();
        stores.find(|one| Path::new(one.directory).is_dir() && one.updater().is_some())
    }

    /// The file of a root.
    pub(crate) fn anchor(&self, root: &Root) -> PathBuf {
        Path::new(self.directory).join(format!("{}.{}", root.name(), self.extension))
    }

    fn updater(&self) -> Option<PathBuf> {
        in_directories(self.program, PROGRAMS.into_iter())
    }

    /// Whether the system's bundle contains the root.
    ///
    /// # Errors
    /// When the bundle cannot be read.
    pub(crate) fn trusts(&self, root: &Root) -> Result<bool, TrustError> {
        let bundle = Path::new(self.bundle);
        // On some systems the bundle is a link.
        let read = std::fs::canonicalize(bundle).and_then(|path| {
            let (place, name) = Directory::of(&path)?;
            place.text(name, LARGEST_BUNDLE)
        });
        let text = match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => read.map_err(|source| file_error(bundle, source))?,
        };
        let joined = |text: &str| text.split_whitespace().collect::<String>();
        Ok(joined(&text.unwrap_or_default()).contains(&joined(&root.pem)))
    }

    /// Adds the root; `false` if the system trusts it already.
    ///
    /// # Errors
    /// When it is not in the system's bundle afterwards.
    pub(crate) async fn add(&self, root: &Root) -> Result<bool, TrustError> {
        let anchor = self.anchor(root);
        let failed = |source| file_error(&anchor, source);
        let stored = files::read_data(&anchor).map_err(failed)?;
        let is_stored = stored.as_deref() == Some(&root.pem);
        if is_stored && self.trusts(root)? {
            return Ok(false);
        }
        if !is_stored {
            let written = Directory::of(&anchor).and_then(|(place, name)| {
                place.replace(name, 0o644, root.pem.as_bytes(), |_| Ok(()))
            });
            written.map_err(failed)?;
        }
        let ended = match self.update(&[]).await {
            Ok(()) => self.trusts(root),
            Err(error) => Err(error),
        };
        if let Ok(true) = ended {
            return Ok(true);
        }
        // The next update of the system must not trust what this command reports as failed.
        if Directory::of(&anchor).is_ok_and(|(place, name)| place.remove(name).is_ok()) {
            let _ = self.update(self.after_removal).await;
        }
        Err(ended
            .err()
            .unwrap_or_else(|| self.unchanged("lacks the root")))
    }

    /// Removes the root; `false` if the system does not have it.
    ///
    /// # Errors
    /// When it is still in the system's bundle afterwards.
    pub(crate) async fn remove(&self, root: &Root) -> Result<bool, TrustError> {
        let anchor = self.anchor(root);
        let was_trusted = self.trusts(root)?;
        let had_file = std::fs::symlink_metadata(&anchor).is_ok();
        if !was_trusted && !had_file {
            return Ok(false);
        }
        let removed = Directory::of(&anchor).and_then(|(place, name)| place.remove(name));
        removed.map_err(|source| file_error(&anchor, source))?;
        self.update(self.after_removal).await?;
        match self.trusts(root)? {
            false => Ok(true),
            true => Err(self.unchanged("still has the root, from another file")),
        }
    }

    async fn update(&self, arguments: &[&str]) -> Result<(), TrustError> {
        let absent = || self.unchanged("cannot be made: its program is gone");
        let program = self.updater().ok_or_else(absent)?;
        let call = Call {
            program,
            arguments: arguments.iter().map(|one| (*one).to_owned()).collect(),
        };
        let shown = call.to_string();
        let ended = call.run(&[], DEADLINE).await.map(drop);
        ended.map_err(|error| TrustError::Program(shown, error))
    }

    fn unchanged(&self, what: &str) -> TrustError {
        let (bundle, program) = (self.bundle, self.program);
        TrustError::Unchanged(format!("{bundle} {what}, after {program}"))
    }
}

fn file_error(path: &Path, source: io::Error) -> TrustError {
    let path = path.to_owned();
    TrustError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Signing;
    use crate::time::{Clock, SystemClock};

    #[test]
    fn only_a_root_is_read() {
        let signing = Signing::new(SystemClock.now()).unwrap();
        let root = Root::parse(signing.root_pem().as_bytes()).unwrap();
        assert!(!root.is_constrained);
        assert_eq!(root.sha256().len(), 32 * 3 - 1);
        assert_eq!(root.name().len(), "certs-".len() + 8);
        let der = CertificateDer::from_pem_slice(signing.root_pem().as_bytes()).unwrap();
        let from_der = Root::parse(&der).unwrap();
        assert!(from_der.is_der && !root.is_der && from_der.pem == root.pem);
        let other = Signing::new(SystemClock.now()).unwrap();
        let two = signing.root_pem().to_owned() + other.root_pem();
        let leaf = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        for (text, why) in [
            ("", "no certificate in PEM"),
            (two.as_str(), "it has 2 certificates"),
            (leaf.cert.pem().as_str(), "not a root"),
            (
                leaf.signing_key.serialize_pem().as_str(),
                "no certificate in PEM",
            ),
        ] {
            let error = Root::parse(text.as_bytes()).err().unwrap_or_default();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn commands_begin_with_those_of_this_machine() {
        let signing = Signing::new(SystemClock.now()).unwrap();
        let root = Root::parse(signing.root_pem().as_bytes()).unwrap();
        for store in &TRUST_STORES {
            let text = root.commands(Path::new("/srv/root.pem"), Some(store));
            let first = format!("# {}, this machine: ", store.systems);
            assert!(text.starts_with(&first), "{text}");
            assert_eq!(
                text.matches("# undo: sudo rm -f ").count(),
                TRUST_STORES.len()
            );
        }
    }

    #[test]
    fn commands_quote_the_path_and_undo_what_they_do() {
        let signing = Signing::new(SystemClock.now()).unwrap();
        let root = Root::parse(signing.root_pem().as_bytes()).unwrap();
        let text = root.commands(Path::new("/srv/it's a root.pem"), None);
        assert!(text.contains("'/srv/it'\\''s a root.pem'"), "{text}");
        let commands = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        let undone = text.lines().filter(|line| line.starts_with("# undo: "));
        // A variable ends with its shell.
        assert_eq!(commands.count(), undone.count() + 1, "{text}");
    }
}
