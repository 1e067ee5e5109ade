//! Files for consumers: an immutable directory for each generation below `archive/`, and
//! one symbolic link below `live/` that one rename moves, so that a reader never gets the
//! key of one generation with the chain of another.
//!
//! The directories stay this process's own, and the group of the configuration may enter
//! them; only the files of a generation are given to the configured owner. The output
//! itself may belong to another user: below it everything goes by descriptors, and what
//! is neither ours nor that owner's is refused.

mod links;
mod shared;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use thiserror::Error;

pub(super) use self::links::{alone, is_of_another, remove_links};
use super::Outlet;
use super::owner::Owner;
use crate::certificate::{Bundle, Freshness, Secret};
use crate::failure::STORE_HINT;
use crate::files::beneath::{self, Directory};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::record::Generation;
use crate::time::Timestamp;

const DIRECTORY: u32 = 0o2750;
/// The signing request, where the key is with the user.
pub(super) const REQUEST: &str = "request.pem";
pub(super) const KEY: u32 = 0o640;
const CERTIFICATE: u32 = 0o644;
/// More than any file of a pair, in bytes.
const LARGEST: u64 = 1 << 20;

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

impl OutputError {
    /// Whether something is in the way that `certs` did not make.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Io { source, .. } if beneath::is_refusal(source))
    }

    /// The next thing to do.
    #[must_use]
    pub(crate) fn hint(&self) -> &'static str {
        match self.is_refusal() {
            true => beneath::REFUSED_HINT,
            false => STORE_HINT,
        }
    }
}

/// The directory that consumers such as a proxy read.
#[derive(Debug)]
pub(crate) struct Output {
    root: PathBuf,
    owner: Owner,
    /// Whether every further name of a certificate is linked.
    links: bool,
}

impl Output {
    /// The output below `root`; no file is touched yet.
    #[must_use]
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            owner: Owner::default(),
            links: false,
        }
    }

    /// The directory with the live pairs of all certificates, each below its name.
    #[must_use]
    pub(crate) fn live_path_of_all(&self) -> PathBuf {
        self.root.join("live")
    }

    /// Sets the owner of all files written from now on. Without a group it is that user's.
    #[must_use]
    pub(crate) fn owned_by(mut self, owner: Owner) -> Self {
        self.owner = owner.with_own_group();
        self
    }
}

impl Outlet for Output {
    fn prepare(&self) {
        if let Err(error) = self.top() {
            tracing::debug!("{error}");
        }
    }

    fn publish(
        &self,
        lineage: &Lineage,
        generation: Generation,
        bundle: &Bundle,
    ) -> Result<(), OutputError> {
        let top = self.top()?;
        let archive = self.shared(&top, "archive")?;
        let generations = self.shared(&archive, lineage.as_str())?;
        let contents = contents(bundle);
        let name = generation.to_string();
        if self.is_whole(&generations, &name, &contents) {
            // A process that was killed may have written it without flushing it.
            flush(&generations)?;
        } else {
            self.write_generation(&generations, &name, &contents)?;
        }
        let live = self.shared(&top, "live")?;
        let target = link_target(lineage, &name);
        let alone = links::alone(&live);
        match live.read_link(lineage.as_str()) {
            Ok(found) if found == target => flush(&live)?,
            _ => switch(&live, lineage, &target)?,
        }
        let (names, is_placeholder) = (&bundle.facts().identifiers, generation == Generation(0));
        self.keep_links(&live, lineage, names, is_placeholder);
        drop(alone);
        prune(&generations, generation);
        Ok(())
    }

    fn live(&self, lineage: &Lineage) -> Result<Option<Generation>, OutputError> {
        let link = self.live_path(lineage);
        let target = match std::fs::read_link(&link) {
            // Nothing, or no link: something that `certs` did not make.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
                return Ok(None);
            }
            target => target.map_err(at("read", &link))?,
        };
        let named = target.file_name().and_then(|name| name.to_str());
        let generation = named.and_then(|name| name.parse().ok()).map(Generation);
        let generation = generation.filter(|it| target == link_target(lineage, &it.to_string()));
        // Only a missing or empty file counts: an unreadable one may be readable later.
        let exists = |name: &str| match std::fs::metadata(link.join(name)) {
            Ok(found) => found.len() > 0,
            Err(error) => error.kind() != ErrorKind::NotFound,
        };
        let has_key = exists("privkey.pem") || exists(REQUEST);
        Ok(generation.filter(|_| has_key && exists("fullchain.pem")))
    }

    fn is_live(&self, lineage: &Lineage, generation: Generation, bundle: &Bundle) -> bool {
        let live = self.live(lineage);
        live.is_ok_and(|live| live == Some(generation))
            && self
                .place(lineage, &generation.to_string())
                .is_ok_and(|place| is_intact(&place, &contents(bundle)))
    }

    fn placeholder(
        &self,
        lineage: &Lineage,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
    ) -> Result<bool, OutputError> {
        if self.live(lineage)?.is_some() || self.is_linked(lineage) {
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

    fn led_here(&self, lineage: &Lineage, names: &BTreeSet<Identifier>) -> BTreeSet<Identifier> {
        let leads_elsewhere = |name: &Lineage| {
            let target = std::fs::read_link(self.live_path(name));
            let is_here = |target: &Path| target == Path::new(lineage.as_str());
            name != lineage && target.is_ok_and(|target| !is_here(&target))
        };
        let mut here = names.clone();
        here.retain(|name| !self.links || !leads_elsewhere(&Lineage::of(name)));
        match here.is_empty() {
            true => names.clone(),
            false => here,
        }
    }

    fn restore_links(&self, lineage: &Lineage, names: &BTreeSet<Identifier>) {
        if let Ok(live) = Directory::open(&self.root).and_then(|root| root.child("live")) {
            let _alone = links::alone(&live);
            self.add_links(&live, lineage, names, false);
        }
    }
}

impl Output {
    /// Writes and flushes all files in a directory that only this user can enter; the last
    /// step renames it.
    fn write_generation(
        &self,
        generations: &Directory,
        name: &str,
        contents: &[(&str, u32, Secret)],
    ) -> Result<(), OutputError> {
        let (staged, place) = (format!(".new-{name}"), generations.path().join(name));
        let path = generations.path().join(&staged);
        let prune = || generations.prune(&staged).map_err(at("remove", &path));
        prune()?;
        let directory = generations.make_child(&staged, 0o700);
        let directory = directory.map_err(at("create", &path))?;
        for (file, mode, content) in contents {
            let path = path.join(file);
            let give = |file: &std::fs::File| self.owner.apply_or_warn(file, &path, *mode);
            let written = directory.write_new(file, *mode, content.expose().as_bytes(), give);
            written.map_err(at("write", &path))?;
        }
        self.give_directory(&directory)?;
        directory.sync().map_err(at("flush", &path))?;
        if generations.has(name) {
            // An unfinished or changed generation. It may be live, and so it is replaced in
            // one step.
            let exchanged = generations.exchange(&staged, name);
            exchanged.map_err(at("replace", &place))?;
            flush(generations)?;
            return prune();
        }
        let renamed = generations.rename(&staged, name);
        renamed.map_err(at("rename", &place))?;
        flush(generations)
    }

    /// Whether a generation has these files, and its readers can open them.
    fn is_whole(
        &self,
        generations: &Directory,
        name: &str,
        contents: &[(&str, u32, Secret)],
    ) -> bool {
        let Ok(place) = generations.child(name) else {
            return false;
        };
        let is_given = |file: &str, mode: u32| {
            let found = place.file(file).and_then(|file| file.metadata());
            found.is_ok_and(|found| {
                self.owner.is_of(found.uid(), found.gid()) && found.mode() & 0o7777 == mode
            })
        };
        let found = place.opened().and_then(|opened| opened.metadata());
        let group = self.owner.group;
        found.is_ok_and(|found| {
            let is_open = group.is_none_or(|group| group == found.gid());
            is_open && !self.owner.is_given(found.uid())
        }) && is_intact(&place, contents)
            && contents.iter().all(|(file, mode, _)| is_given(file, *mode))
    }

    /// Whether readers are configured.
    pub(super) fn has_readers(&self) -> bool {
        self.owner != Owner::default()
    }

    /// Gives the published files to the configured readers, which may have changed since they
    /// were written.
    pub(super) fn open_published(&self, lineage: &Lineage) -> Result<(), OutputError> {
        let Some(generation) = self.live(lineage)?.filter(|_| self.has_readers()) else {
            return Ok(());
        };
        let top = self.top()?;
        self.shared(&top, "live")?;
        let archive = self.shared(&top, "archive")?;
        let generations = self.shared(&archive, lineage.as_str())?;
        self.shared(&generations, &generation.to_string())?;
        self.give_files(lineage, generation)
    }

    /// Gives the files of a published generation to the configured owner. The directories
    /// still belong to the user that wrote the files.
    pub(super) fn give_files(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<(), OutputError> {
        let place = self.place(lineage, &generation.to_string());
        let place = place.map_err(at("open", &self.root))?;
        let failed = at("set the owner of", place.path());
        let writer = place.stat().map_err(&failed)?.st_uid;
        for name in place.names().map_err(&failed)? {
            let path = place.path().join(&name);
            let file = place.file(&name).map_err(&failed)?;
            let found = file.metadata().map_err(&failed)?;
            let is_given = self.owner.is_of(found.uid(), found.gid());
            if found.uid() == writer && found.nlink() == 1 && !is_given {
                let given = self.owner.apply_or_warn(&file, &path, found.mode() & 0o777);
                given.map_err(&failed)?;
            }
        }
        Ok(())
    }

    /// The directory of a generation.
    fn place(&self, lineage: &Lineage, generation: &str) -> io::Result<Directory> {
        let archive = Directory::open(&self.root)?.child("archive")?;
        archive.child(lineage.as_str())?.child(generation)
    }
}

fn link_target(lineage: &Lineage, generation: &str) -> PathBuf {
    format!("../archive/{lineage}/{generation}").into()
}

/// Moves the link of `lineage` in one step.
fn switch(live: &Directory, lineage: &Lineage, target: &Path) -> Result<(), OutputError> {
    let link = live.path().join(lineage.as_str());
    move_link(live, lineage, target).map_err(at("switch", &link))?;
    flush(live)
}

fn move_link(live: &Directory, name: &Lineage, target: &Path) -> io::Result<()> {
    let aside = format!(".{name}.new");
    live.remove(&aside)?;
    live.link(target, &aside)?;
    live.rename(&aside, name.as_str())
}

fn flush(directory: &Directory) -> Result<(), OutputError> {
    directory.sync().map_err(at("flush", directory.path()))
}

/// Keeps the newest few generations. A failure is harmless, and only logged.
fn prune(directory: &Directory, live: Generation) {
    let names = directory.names().unwrap_or_default();
    let numbers = names.iter().filter_map(|name| name.to_str()?.parse().ok());
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable_by(|one, other| other.cmp(one));
    let old = numbers.into_iter().skip(Generation::KEPT as usize);
    for old in old.map(Generation).filter(|old| *old != live) {
        if let Err(error) = directory.prune(old.to_string()) {
            tracing::warn!(%error, generation = %old, "an old generation could not be removed");
        }
    }
}

/// A file of the pair behind the link `live`, which only `certs` makes.
pub(super) fn read_live(live: &Path, file: &str) -> io::Result<Secret> {
    let (directory, name) = Directory::of(live)?;
    let target = directory.read_link(name)?;
    let invalid = || io::Error::other("the link does not lead to a generation of that name");
    let generation = target.file_name().and_then(|name| name.to_str());
    let generation = generation.filter(|it| it.parse::<u64>().is_ok());
    let generation = generation.ok_or_else(invalid)?;
    let archive = Path::new("../archive").join(name);
    if target != archive.join(generation) {
        return Err(invalid());
    }
    let archive = live.with_file_name("archive");
    let output = live.parent().and_then(Path::parent).unwrap_or(&archive);
    let place = Directory::open(output)?.child("archive")?.child(name)?;
    let text = place.child(generation)?.read(file, LARGEST)?;
    let text = String::from_utf8(text).map_err(|_| ErrorKind::InvalidData)?;
    Ok(Secret::new(text))
}

/// The files of a generation with their modes.
pub(super) fn contents(bundle: &Bundle) -> Vec<(&'static str, u32, Secret)> {
    let (key, chain) = (bundle.key_pem().clone(), bundle.chain_pem());
    let combined = format!("{chain}{}", key.expose());
    let mut files = vec![
        ("fullchain.pem", CERTIFICATE, Secret::new(chain)),
        ("cert.pem", CERTIFICATE, Secret::new(bundle.leaf_pem())),
        ("chain.pem", CERTIFICATE, Secret::new(bundle.issuers_pem())),
    ];
    match bundle.has_key() {
        true => {
            files.insert(0, ("privkey.pem", KEY, key));
            files.push(("combined.pem", KEY, Secret::new(combined)));
        }
        false => files.insert(0, (REQUEST, CERTIFICATE, key)),
    }
    files
}

fn is_intact(place: &Directory, contents: &[(&str, u32, Secret)]) -> bool {
    let mut contents = contents.iter();
    contents.all(|(name, _, content)| place.holds(name, content.expose().as_bytes()))
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

pub(super) fn at(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> OutputError {
    let path = path.display().to_string();
    move |source| OutputError::Io {
        operation,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {

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
            let user = if path.is_dir() { 0 } else { 4321 };
            assert_eq!(found, (user, 8765, mode), "{}", path.display());
        }
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
        assert_eq!(output.live(&lineage()).unwrap(), Some(Generation(1)));
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
        assert_eq!(output.live(&lineage()).unwrap(), Some(Generation(1)));
    }

    #[test]
    fn placeholder_replaces_a_missing_generation() {
        let (_directory, output) = made();
        let bundle = self_signed(&names(), NOW).unwrap();
        output.publish(&lineage(), Generation(4), &bundle).unwrap();
        assert!(output.is_live(&lineage(), Generation(4), &bundle));
        let archive = output.root.join("archive/example.com");
        std::fs::write(archive.join("0004/privkey.pem"), "").unwrap();
        assert_eq!(output.live(&lineage()).unwrap(), None);
        output.publish(&lineage(), Generation(4), &bundle).unwrap();
        std::fs::write(archive.join("0004/chain.pem"), "damaged").unwrap();
        assert_eq!(output.live(&lineage()).unwrap(), Some(Generation(4)));
        assert!(!output.is_live(&lineage(), Generation(4), &bundle));
        std::fs::remove_dir_all(&archive).unwrap();
        assert_eq!(output.live(&lineage()).unwrap(), None);
        assert!(output.placeholder(&lineage(), &names(), NOW).unwrap());
        assert_eq!(output.live(&lineage()).unwrap(), Some(Generation(0)));
    }

    #[test]
    fn unreadable_live_link_is_not_taken_for_a_missing_one() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().to_owned());
        assert_eq!(output.live(&lineage()).unwrap(), None);
        std::fs::write(directory.path().join("live"), "").unwrap();
        let error = output.live(&lineage()).unwrap_err().to_string();
        assert!(error.contains("live/example.com"), "{error}");
    }
}
