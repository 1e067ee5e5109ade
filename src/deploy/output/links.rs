//! Links for the further names of a certificate: `live/NAME2` leads to `live/NAME`, so that a
//! server that looks for the name a client sends finds every name. They follow the live link,
//! so that all names switch with it. A name of several certificates leads to the one that was
//! published last, or to that whose own name it is.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Output, move_link};
use crate::deploy::Outlet;
use crate::files::beneath::Directory;
use crate::identifier::Identifier;
use crate::lineage::Lineage;

/// One second in all.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

impl Output {
    /// With links for the further names of its certificates.
    #[must_use]
    pub(crate) fn linked(mut self, links: bool) -> Self {
        self.links = links;
        self
    }

    /// Keeps the links of `lineage` for its `names`, and no others. It takes those of other
    /// certificates, unless it is a placeholder.
    pub(super) fn keep_links(
        &self,
        live: &Directory,
        lineage: &Lineage,
        names: &BTreeSet<Identifier>,
        is_placeholder: bool,
    ) {
        if self.links {
            let stays = |link: &str| names.iter().any(|name| Lineage::of(name).as_str() == link);
            warn_of(lineage, live, remove_links(live, lineage, stays));
            self.add_links(live, lineage, names, !is_placeholder);
        }
    }

    /// Adds the missing links of `lineage` for its `names`. A failure is logged: the
    /// certificate is live under its own name, and the next pass tries again.
    pub(super) fn add_links(
        &self,
        live: &Directory,
        lineage: &Lineage,
        names: &BTreeSet<Identifier>,
        takes: bool,
    ) {
        let names = names.iter().filter(|_| self.links).map(Lineage::of);
        let mut is_changed = false;
        for name in names.filter(|name| name != lineage) {
            match keep_link(live, lineage, &name, takes) {
                Ok(is_new) => is_changed |= is_new,
                Err(error) => warn_of(lineage, live, Err(error)),
            }
        }
        if is_changed {
            warn_of(lineage, live, live.sync());
        }
    }

    /// Whether the name of `lineage` leads to a live pair of another certificate.
    pub(super) fn is_linked(&self, lineage: &Lineage) -> bool {
        let target = std::fs::read_link(self.live_path(lineage)).ok();
        let other = target.and_then(|target| linked_lineage(&target));
        other.is_some_and(|other| self.live(&other).is_ok_and(|live| live.is_some()))
    }
}

/// Keeps other processes from moving links in `live` until the returned file is closed: a
/// link that is read must still be there when it is replaced. Every reader of the directory
/// could hold this lock, so that it is not waited for for ever.
pub(in crate::deploy) fn alone(live: &Directory) -> Option<File> {
    let opened = live.opened().ok()?;
    for _ in 0..LOCK_TRIES {
        match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(opened),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            // Not every file system has locks.
            Err(_) => return None,
        }
    }
    None
}

/// Links `name`, unless it is another certificate's own name. Returns whether the link is new.
fn keep_link(live: &Directory, lineage: &Lineage, name: &Lineage, takes: bool) -> io::Result<bool> {
    let target = Path::new(lineage.as_str());
    match live.link(target, name.as_str()) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = live.read_link(name.as_str());
            let found = found.map_err(|_| io::Error::other(format!("{name} is not a link")))?;
            let is_linked = linked_lineage(&found).is_some();
            if !is_linked && !found.starts_with("../archive") {
                return Err(io::Error::other(format!("{name} is a link to elsewhere")));
            }
            let moves = takes && found != target && is_linked;
            if moves {
                move_link(live, name, target)?;
            }
            Ok(moves)
        }
        linked => linked.map(|()| true),
    }
}

/// The certificate to which a link for a further name leads.
fn linked_lineage(target: &Path) -> Option<Lineage> {
    Lineage::parse(target.to_str()?).ok()
}

fn warn_of(lineage: &Lineage, live: &Directory, done: io::Result<()>) {
    if let Err(error) = done {
        let live = live.path().display();
        tracing::warn!(%lineage, "a name of it has no link in {live}: {error}; hint: move away what has that name there");
    }
}

/// Whether the link of that name is for a further name of another certificate.
pub(in crate::deploy) fn is_of_another(live: &Directory, lineage: &Lineage) -> bool {
    let target = live.read_link(lineage.as_str()).ok();
    let other = target.and_then(|target| linked_lineage(&target));
    other.is_some_and(|other| other != *lineage)
}

/// Removes the links to `lineage`, but those whose name `stays`.
pub(in crate::deploy) fn remove_links(
    live: &Directory,
    lineage: &Lineage,
    stays: impl Fn(&str) -> bool,
) -> io::Result<()> {
    for name in live.names()? {
        let leads_here = || {
            let target = live.read_link(&name);
            target.is_ok_and(|target| target == Path::new(lineage.as_str()))
        };
        if !name.to_str().is_some_and(&stays) && leads_here() {
            live.remove(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::self_signed;
    use super::*;
    use crate::deploy::removal::Emptied;
    use crate::files::DirectoryOwner;
    use crate::record::Generation;
    use crate::time::Timestamp;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn set(names: &str) -> BTreeSet<Identifier> {
        names.split(' ').map(|name| name.parse().unwrap()).collect()
    }

    fn publish(output: &Output, lineage: &str, generation: u64, names: &str) {
        let bundle = self_signed(&set(names), NOW).unwrap();
        let lineage = Lineage::parse(lineage).unwrap();
        output
            .publish(&lineage, Generation(generation), &bundle)
            .unwrap();
    }

    /// The links in `live`, each with its target.
    fn links(output: &Output) -> Vec<(String, String)> {
        let mut found: Vec<_> = std::fs::read_dir(output.live_path_of_all())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let target = std::fs::read_link(entry.path()).unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, target.display().to_string())
            })
            .collect();
        found.sort();
        found
    }

    fn shown(output: &Output) -> String {
        let links = links(output).into_iter();
        let links = links.map(|(name, target)| format!("{name} {target}"));
        links.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn every_name_leads_to_the_live_pair_and_follows_it() {
        let directory = tempfile::tempdir().unwrap();
        let root: PathBuf = directory.path().join("certs");
        publish(
            &Output::new(root.clone()),
            "a.example",
            1,
            "a.example www.a.example",
        );
        let output = Output::new(root).linked(true);
        assert_eq!(links(&output).len(), 1, "not where it is not configured");
        let names = "a.example www.a.example *.a.example 2001:db8::1";
        publish(&output, "a.example", 1, names);
        publish(&output, "a.example", 2, names);
        insta::assert_snapshot!(shown(&output), @r"
        2001-db8--1 a.example
        _wildcard_.a.example a.example
        a.example ../archive/a.example/0002
        www.a.example a.example
        ");
        let live = output.live_path_of_all();
        assert!(live.join("www.a.example/privkey.pem").exists());
        // A name that is no longer in it.
        publish(&output, "a.example", 3, "a.example www.a.example");
        assert_eq!(links(&output).len(), 2);
        // A removed link returns, and nothing that is in the way is touched.
        std::fs::remove_file(live.join("www.a.example")).unwrap();
        std::fs::create_dir(live.join("mail.a.example")).unwrap();
        let all = set("a.example www.a.example mail.a.example");
        output.restore_links(&Lineage::parse("a.example").unwrap(), &all);
        assert!(live.join("www.a.example/privkey.pem").exists());
        assert!(live.join("mail.a.example").is_dir());
        // Both are reported.
        let [lineage, mail, ftp] = ["a.example", "mail.a.example", "ftp.a.example"]
            .map(|name| Lineage::parse(name).unwrap());
        std::os::unix::fs::symlink("/srv/elsewhere", live.join("ftp.a.example")).unwrap();
        let opened = Directory::open(&live).unwrap();
        for name in [mail, ftp] {
            assert!(keep_link(&opened, &lineage, &name, true).is_err(), "{name}");
        }
        let target = std::fs::read_link(live.join("ftp.a.example"));
        assert_eq!(target.unwrap(), Path::new("/srv/elsewhere"));
    }

    #[test]
    fn name_belongs_to_its_own_certificate_and_then_to_the_last_published() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().join("certs")).linked(true);
        let [a, www] = ["a.example", "www.a.example"].map(|name| Lineage::parse(name).unwrap());
        let names = set("a.example www.a.example");
        publish(&output, "a.example", 1, "a.example www.a.example");
        publish(&output, "b.example", 0, "b.example www.a.example");
        assert_eq!(links(&output)[2].1, "a.example", "not by a placeholder");
        assert_eq!(output.led_here(&a, &names), names);
        publish(&output, "b.example", 1, "b.example www.a.example");
        output.restore_links(&a, &names);
        assert_eq!(links(&output)[2].1, "b.example", "the last has it");
        assert_eq!(output.led_here(&a, &names), set("a.example"));
        // Until it is issued, the certificate that has the name is better than a placeholder.
        assert!(
            !output
                .placeholder(&www, &set("www.a.example"), NOW)
                .unwrap()
        );
        publish(&output, "www.a.example", 1, "www.a.example");
        publish(&output, "a.example", 2, "a.example www.a.example");
        assert_eq!(links(&output)[2].1, "../archive/www.a.example/0001");
        assert_eq!(output.live(&www).unwrap(), Some(Generation(1)));
        let emptied = Emptied::new(output.root.clone(), DirectoryOwner::default());
        assert_eq!(emptied.present(&www).unwrap().len(), 2);
        emptied.remove(&www).unwrap();
        publish(&output, "a.example", 2, "a.example www.a.example");
        assert_eq!(links(&output)[2].1, "a.example");
        // Without a pair of its own, it leaves that of another certificate.
        emptied.remove(&www).unwrap();
        assert_eq!(links(&output)[2].1, "a.example");
        assert!(emptied.present(&www).unwrap().is_empty());
        // Its links go with a certificate.
        emptied.remove(&a).unwrap();
        assert_eq!(shown(&output), "b.example ../archive/b.example/0001");
        assert!(
            output
                .placeholder(&www, &set("www.a.example"), NOW)
                .unwrap()
        );
    }

    #[test]
    fn own_link_of_a_certificate_outlives_every_race() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().join("certs")).linked(true);
        publish(&output, "b.example", 1, "b.example www.a.example");
        let bundles = [
            ("a.example", set("a.example www.a.example")),
            ("www.a.example", set("www.a.example")),
        ];
        let bundles = bundles.map(|(lineage, names)| {
            let lineage = Lineage::parse(lineage).unwrap();
            (lineage, self_signed(&names, NOW).unwrap())
        });
        let link = output.live_path_of_all().join("www.a.example");
        for round in 0..150 {
            // The name is another certificate's when both begin.
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink("b.example", &link).unwrap();
            let begin = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                for (lineage, bundle) in &bundles {
                    scope.spawn(|| {
                        begin.wait();
                        output.publish(lineage, Generation(1), bundle).unwrap();
                    });
                }
            });
            let target = std::fs::read_link(&link).unwrap();
            assert_eq!(
                target,
                Path::new("../archive/www.a.example/0001"),
                "{round}"
            );
        }
        // A reader that keeps the lock delays a publication, and no more.
        let live = Directory::open(&output.live_path_of_all()).unwrap();
        let _held = alone(&live).unwrap();
        publish(&output, "www.a.example", 2, "www.a.example");
        let target = std::fs::read_link(&link).unwrap();
        assert_eq!(target, Path::new("../archive/www.a.example/0002"));
    }
}
