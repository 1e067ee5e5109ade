//! Files for consumers: an immutable directory for each generation below `archive/`, and
//! one symbolic link below `live/` that one rename moves, so that a reader never gets the
//! key of one generation with the chain of another.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use thiserror::Error;

use super::Outlet;
use super::owner::Owner;
use crate::certificate::{Bundle, Freshness, Secret};
use crate::files;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::record::Generation;
use crate::time::Timestamp;

const DIRECTORY: u32 = 0o2750;
pub(super) const KEY: u32 = 0o640;
const CERTIFICATE: u32 = 0o644;

/// Why the output could not be written or read.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum OutputError {
    #[error("{operation} {path}: {source}")]
    Io {
        operation: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("the placeholder could not be made: {0}")]
    Placeholder(String),
}

/// The directory that consumers such as a proxy read.
#[derive(Debug)]
pub(crate) struct Output {
    root: PathBuf,
    owner: Owner,
}

impl Output {
    /// The output below `root`; no file is touched yet.
    #[must_use]
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            owner: Owner::default(),
        }
    }

    /// The directory with the live pairs of all certificates, each below its name.
    #[must_use]
    pub(crate) fn live_path_of_all(&self) -> PathBuf {
        self.root.join("live")
    }

    /// Sets the owner of all files written from now on.
    #[must_use]
    pub(crate) fn owned_by(mut self, owner: Owner) -> Self {
        self.owner = owner;
        self
    }
}

impl Outlet for Output {
    fn prepare(&self) {
        if let Err(error) = make_shared(&self.root, self.owner) {
            tracing::debug!("{error}");
        }
    }

    fn publish(
        &self,
        lineage: &Lineage,
        generation: Generation,
        bundle: &Bundle,
    ) -> Result<(), OutputError> {
        let archive = self.root.join("archive").join(lineage.as_str());
        let place = archive.join(generation.to_string());
        let contents = contents(bundle);
        if is_intact(&place, &contents) {
            // A process that was killed may have written it without flushing it.
            files::sync_parent(&place).map_err(at("flush", &place))?;
        } else {
            for directory in [&self.root, &self.root.join("archive"), &archive] {
                make_shared(directory, self.owner)?;
            }
            write_generation(&archive, &place, generation, &contents, self.owner)?;
        }
        let link = self.live_path(lineage);
        if self.live(lineage) == Some(generation) {
            files::sync_parent(&link).map_err(at("flush", &link))?;
        } else {
            self.switch(lineage, generation)?;
        }
        self.prune(&archive, generation);
        Ok(())
    }

    fn live(&self, lineage: &Lineage) -> Option<Generation> {
        let link = self.live_path(lineage);
        let target = std::fs::read_link(&link).ok()?;
        let generation = target.file_name()?.to_str()?.parse().ok().map(Generation);
        // Only a missing or empty file counts: an unreadable one may be readable later.
        let exists = |name: &str| match std::fs::metadata(link.join(name)) {
            Ok(found) => found.len() > 0,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        generation.filter(|_| exists("privkey.pem") && exists("fullchain.pem"))
    }

    fn is_live(&self, lineage: &Lineage, generation: Generation, bundle: &Bundle) -> bool {
        self.live(lineage) == Some(generation)
            && is_intact(&self.live_path(lineage), &contents(bundle))
    }

    fn placeholder(
        &self,
        lineage: &Lineage,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
    ) -> Result<bool, OutputError> {
        if self.live(lineage).is_some() {
            return Ok(false);
        }
        let bundle = self_signed(identifiers, now).map_err(OutputError::Placeholder)?;
        // This replaces a placeholder that a crash left, which has another key.
        self.publish(lineage, Generation(0), &bundle)?;
        Ok(true)
    }

    fn live_path(&self, lineage: &Lineage) -> PathBuf {
        self.root.join("live").join(lineage.as_str())
    }
}

impl Output {
    fn switch(&self, lineage: &Lineage, generation: Generation) -> Result<(), OutputError> {
        let link = self.live_path(lineage);
        let live = self.root.join("live");
        make_shared(&live, self.owner)?;
        let aside = live.join(format!(".{lineage}.new"));
        files::remove_if_there(&aside).map_err(at("remove", &aside))?;
        let target = format!("../archive/{lineage}/{generation}");
        symlink(target, &aside).map_err(at("link", &aside))?;
        std::fs::rename(&aside, &link).map_err(at("switch", &link))?;
        files::sync_parent(&link).map_err(at("flush", &link))
    }

    /// Keeps the newest few. A failure is harmless, and only logged.
    fn prune(&self, archive: &Path, live: Generation) {
        let Ok(entries) = std::fs::read_dir(archive) else {
            return;
        };
        let mut generations: Vec<u64> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        generations.sort_unstable_by(|one, other| other.cmp(one));
        let old = generations
            .into_iter()
            .skip(Generation::KEPT as usize)
            .map(Generation);
        for old in old.filter(|old| *old != live) {
            if let Err(error) = std::fs::remove_dir_all(archive.join(old.to_string())) {
                tracing::warn!(%error, generation = %old, "an old generation could not be removed");
            }
        }
    }
}

/// The files of a generation with their modes.
pub(super) fn contents(bundle: &Bundle) -> [(&'static str, u32, Secret); 5] {
    let (key, chain) = (bundle.key_pem().clone(), bundle.chain_pem());
    let combined = format!("{chain}{}", key.expose());
    [
        ("privkey.pem", KEY, key),
        ("fullchain.pem", CERTIFICATE, Secret::new(chain)),
        ("cert.pem", CERTIFICATE, Secret::new(bundle.leaf_pem())),
        ("chain.pem", CERTIFICATE, Secret::new(bundle.issuers_pem())),
        ("combined.pem", KEY, Secret::new(combined)),
    ]
}

fn is_intact(place: &Path, contents: &[(&str, u32, Secret)]) -> bool {
    contents.iter().all(|(name, _, content)| {
        std::fs::read(place.join(name)).is_ok_and(|found| found == content.expose().as_bytes())
    })
}

/// Writes and flushes all files in a directory that only this user can enter; the last
/// step renames it.
fn write_generation(
    archive: &Path,
    place: &Path,
    generation: Generation,
    contents: &[(&str, u32, Secret)],
    owner: Owner,
) -> Result<(), OutputError> {
    let staged = archive.join(format!(".new-{generation}"));
    remove_directory(&staged)?;
    files::new_directory(&staged, 0o700).map_err(at("create", &staged))?;
    for (name, mode, content) in contents {
        let path = staged.join(name);
        files::write_new(&path, *mode, content.expose().as_bytes()).map_err(at("write", &path))?;
        set_owner(&path, *mode, owner)?;
    }
    set_owner(&staged, DIRECTORY, owner)?;
    files::sync(&staged).map_err(at("flush", &staged))?;
    if place.exists() {
        // An unfinished or changed generation. It may be live, and so it is replaced in one
        // step.
        exchange(&staged, place).map_err(at("replace", place))?;
        files::sync_parent(place).map_err(at("flush", place))?;
        return remove_directory(&staged);
    }
    std::fs::rename(&staged, place).map_err(at("rename", place))?;
    files::sync_parent(place).map_err(at("flush", place))
}

/// Swaps both names in one step, or in three if the file system cannot do that.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            let aside = one.with_extension("old");
            std::fs::rename(other, &aside)?;
            std::fs::rename(one, other)?;
            std::fs::rename(aside, one)
        }
        exchanged => Ok(exchanged?),
    }
}

/// Creates a shared directory, and renames it last: an unfinished directory after a crash
/// would look like the user's own, and stay closed to every consumer.
fn make_shared(path: &Path, owner: Owner) -> Result<(), OutputError> {
    if path.is_dir() {
        // The process that made it may have been killed before it flushed the name. The
        // parent of a user's own directory may not be flushable.
        let _ = files::sync_parent(path);
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        files::make_directory(parent, 0o755).map_err(at("create", parent))?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.new-{}", std::process::id()));
    remove_directory(&aside)?;
    files::new_directory(&aside, 0o700).map_err(at("create", path))?;
    set_owner(&aside, DIRECTORY, owner)?;
    files::sync(&aside).map_err(at("flush", path))?;
    match std::fs::rename(&aside, path) {
        // Another process was faster.
        Err(_) if path.is_dir() => remove_directory(&aside)?,
        named => named.map_err(at("create", path))?,
    }
    files::sync_parent(path).map_err(at("flush", path))
}

fn set_owner(path: &Path, mode: u32, owner: Owner) -> Result<(), OutputError> {
    let given = owner.apply_or_warn(path, mode);
    given.map_err(at("set the mode of", path))
}

fn remove_directory(path: &Path) -> Result<(), OutputError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

fn self_signed(identifiers: &BTreeSet<Identifier>, now: Timestamp) -> Result<Bundle, String> {
    let text = |error: rcgen::Error| error.to_string();
    let key = KeyPair::generate().map_err(text)?;
    let names: Vec<String> = identifiers.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).map_err(text)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "certs placeholder");
    params.distinguished_name = subject;
    let certificate = params.self_signed(&key).map_err(text)?;
    let key = Secret::new(key.serialize_pem());
    Bundle::new(key, &certificate.pem(), identifiers, now, Freshness::Any)
        .map_err(|error| error.to_string())
}

fn at(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> OutputError {
    let path = path.display().to_string();
    move |source| OutputError::Io {
        operation,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn names() -> BTreeSet<Identifier> {
        BTreeSet::from([Identifier::parse("example.com").unwrap()])
    }

    fn lineage() -> Lineage {
        Lineage::parse("example.com").unwrap()
    }

    fn made() -> (tempfile::TempDir, Output) {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().join("certs"));
        (directory, output)
    }

    #[test]
    fn publish_sets_modes_and_keeps_three_generations() {
        let (_directory, output) = made();
        for generation in 1..=5 {
            let bundle = self_signed(&names(), NOW).unwrap();
            output
                .publish(&lineage(), Generation(generation), &bundle)
                .unwrap();
            let live = output.live_path(&lineage());
            assert_eq!(
                std::fs::read_link(&live).unwrap(),
                PathBuf::from(format!("../archive/example.com/{generation:04}"))
            );
            assert_eq!(
                std::fs::read_to_string(live.join("privkey.pem")).unwrap(),
                bundle.key_pem().expose()
            );
        }
        let live = output.live_path(&lineage());
        for (name, mode) in [
            ("privkey.pem", 0o640),
            ("combined.pem", 0o640),
            ("fullchain.pem", 0o644),
            ("cert.pem", 0o644),
            ("chain.pem", 0o644),
            ("", 0o2750),
            ("../../..", 0o2750),
        ] {
            assert_eq!(
                std::fs::metadata(live.join(name)).unwrap().mode() & 0o7777,
                mode,
                "{name}"
            );
        }
        let mut kept: Vec<_> = std::fs::read_dir(output.root.join("archive/example.com"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        kept.sort();
        assert_eq!(kept, ["0003", "0004", "0005"]);
    }

    #[test]
    fn publish_sets_the_configured_owner() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: the output's owner: only root may chown");
            return;
        }
        let (_directory, output) = made();
        let output = output.owned_by(Owner {
            user: Some(4321),
            group: Some(8765),
        });
        let bundle = self_signed(&names(), NOW).unwrap();
        output.publish(&lineage(), Generation(1), &bundle).unwrap();
        let live = output.live_path(&lineage());
        for (path, mode) in [(live.join("privkey.pem"), 0o640), (live.join(""), 0o2750)] {
            let found = std::fs::metadata(&path).unwrap();
            let found = (found.uid(), found.gid(), found.mode() & 0o7777);
            assert_eq!(found, (4321, 8765, mode), "{}", path.display());
        }
    }

    #[test]
    fn unfinished_directory_is_replaced_and_the_users_own_stays() {
        let (_directory, output) = made();
        let aside = format!(".certs.new-{}", std::process::id());
        let aside = output.root.with_file_name(aside);
        files::new_directory(&aside, 0o700).unwrap();
        make_shared(&output.root, Owner::default()).unwrap();
        let mode = std::fs::metadata(&output.root).unwrap().mode() & 0o7777;
        assert_eq!((mode, aside.exists()), (DIRECTORY, false));
        // A directory of the user's own keeps its mode.
        std::fs::set_permissions(&output.root, PermissionsExt::from_mode(0o755)).unwrap();
        make_shared(&output.root, Owner::default()).unwrap();
        let mode = std::fs::metadata(&output.root).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o755);
    }

    #[test]
    fn publish_repeated_changes_nothing_but_damaged_files() {
        let (_directory, output) = made();
        let bundle = self_signed(&names(), NOW).unwrap();
        let key = output.live_path(&lineage()).join("privkey.pem");
        output.publish(&lineage(), Generation(1), &bundle).unwrap();
        let inode = std::fs::metadata(&key).unwrap().ino();
        output.publish(&lineage(), Generation(1), &bundle).unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().ino(), inode);
        std::fs::write(&key, "").unwrap();
        output.publish(&lineage(), Generation(1), &bundle).unwrap();
        assert_eq!(
            std::fs::read_to_string(&key).unwrap(),
            bundle.key_pem().expose()
        );
    }

    #[test]
    fn publish_that_fails_keeps_the_live_pair() {
        let (_directory, output) = made();
        let first = self_signed(&names(), NOW).unwrap();
        output.publish(&lineage(), Generation(1), &first).unwrap();
        // A file blocks the staging directory.
        std::fs::write(output.root.join("archive/example.com/.new-0002"), "").unwrap();
        let error = output
            .publish(
                &lineage(),
                Generation(2),
                &self_signed(&names(), NOW).unwrap(),
            )
            .unwrap_err();
        assert!(error.to_string().contains(".new-0002"), "{error}");
        assert_eq!(output.live(&lineage()), Some(Generation(1)));
        let key =
            std::fs::read_to_string(output.live_path(&lineage()).join("privkey.pem")).unwrap();
        assert_eq!(key, first.key_pem().expose());
    }

    #[test]
    fn placeholder_never_replaces_a_real_certificate() {
        let (_directory, output) = made();
        assert!(output.placeholder(&lineage(), &names(), NOW).unwrap());
        assert!(!output.placeholder(&lineage(), &names(), NOW).unwrap());
        output
            .publish(
                &lineage(),
                Generation(1),
                &self_signed(&names(), NOW).unwrap(),
            )
            .unwrap();
        assert!(!output.placeholder(&lineage(), &names(), NOW).unwrap());
        assert_eq!(output.live(&lineage()), Some(Generation(1)));
    }

    #[test]
    fn placeholder_replaces_a_missing_generation() {
        let (_directory, output) = made();
        let bundle = self_signed(&names(), NOW).unwrap();
        output.publish(&lineage(), Generation(4), &bundle).unwrap();
        assert!(output.is_live(&lineage(), Generation(4), &bundle));
        let archive = output.root.join("archive/example.com");
        std::fs::write(archive.join("0004/privkey.pem"), "").unwrap();
        assert_eq!(output.live(&lineage()), None);
        output.publish(&lineage(), Generation(4), &bundle).unwrap();
        std::fs::write(archive.join("0004/chain.pem"), "damaged").unwrap();
        assert_eq!(output.live(&lineage()), Some(Generation(4)));
        assert!(!output.is_live(&lineage(), Generation(4), &bundle));
        std::fs::remove_dir_all(&archive).unwrap();
        assert_eq!(output.live(&lineage()), None);
        assert!(output.placeholder(&lineage(), &names(), NOW).unwrap());
        assert_eq!(output.live(&lineage()), Some(Generation(0)));
    }
}
