//! Removes the files of one certificate from the output: the links first, since a consumer
//! must not follow one to files that are gone. Nothing else is removed that has another name. The store is not touched.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::output::{OutputError, alone, at, is_of_another, remove_links};
use crate::files::DirectoryOwner;
use crate::files::beneath::{self, Directory};
use crate::lineage::Lineage;

/// An output, and the user as which its files are removed.
#[derive(Debug)]
pub(crate) struct Emptied {
    root: PathBuf,
    owner: DirectoryOwner,
}

impl Emptied {
    /// The output at `root`, with files of `owner`.
    #[must_use]
    pub(crate) fn new(root: PathBuf, owner: DirectoryOwner) -> Self {
        Self { root, owner }
    }

    /// The existing live link and archive of `lineage`.
    ///
    /// # Errors
    /// When it cannot be seen whether they exist.
    pub(crate) fn present(&self, lineage: &Lineage) -> Result<Vec<PathBuf>, OutputError> {
        let _acting = self.owner.act();
        let mut found = Vec::new();
        let live = part(&self.root, "live").ok().flatten();
        let is_anothers = live.is_some_and(|live| is_of_another(&live, lineage));
        let places = places(&self.root, lineage);
        for path in places.into_iter().skip(usize::from(is_anothers)) {
            match path.symlink_metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(at("read", &path)(error)),
                Ok(_) => found.push(path),
            }
        }
        Ok(found)
    }

    /// Removes them, but leaves the live name as a link to that of another certificate if it
    /// is given.
    ///
    /// # Errors
    /// The first that cannot be removed or linked. The next call continues.
    pub(crate) fn leave(
        &self,
        lineage: &Lineage,
        link_to: Option<&Lineage>,
    ) -> Result<(), OutputError> {
        let Some(other) = link_to else {
            return self.remove(lineage);
        };
        let _acting = self.owner.act();
        let [link, archive] = places(&self.root, lineage);
        let (name, aside) = (lineage.as_str(), format!(".{lineage}.new"));
        if let Some(live) = part(&self.root, "live").map_err(at("open", &link))? {
            let _alone = alone(&live);
            let linked = live
                .remove(&aside)
                .and_then(|()| live.link(Path::new(other.as_str()), &aside))
                .and_then(|()| live.rename(&aside, name))
                .and_then(|()| live.sync());
            linked.map_err(at("link", &link))?;
        }
        self.remove_archive(lineage, &archive)
    }

    /// Removes them; succeeds if they do not exist.
    ///
    /// # Errors
    /// The first that cannot be removed. The next call continues.
    pub(crate) fn remove(&self, lineage: &Lineage) -> Result<(), OutputError> {
        let _acting = self.owner.act();
        let [link, archive] = places(&self.root, lineage);
        let name = lineage.as_str();
        if let Some(live) = part(&self.root, "live").map_err(at("open", &link))? {
            let _alone = alone(&live);
            let removed = live.remove(format!(".{lineage}.new"));
            let removed = removed
                .and_then(|()| remove_links(&live, lineage, |_| false))
                .and_then(|()| match is_of_another(&live, lineage) {
                    true => Ok(()),
                    false => live.remove(name),
                })
                .and_then(|()| live.sync());
            removed.map_err(at("remove", &link))?;
        }
        self.remove_archive(lineage, &archive)
    }

    fn remove_archive(&self, lineage: &Lineage, archive: &Path) -> Result<(), OutputError> {
        if let Some(all) = part(&self.root, "archive").map_err(at("open", archive))? {
            let removed = remove_generations(&all, lineage.as_str()).and_then(|()| all.sync());
            removed.map_err(at("remove", archive))?;
        }
        Ok(())
    }
}

/// A directory of the output, through no link.
fn part(root: &Path, name: &str) -> io::Result<Option<Directory>> {
    match Directory::open(root).and_then(|root| root.child(name)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn remove_generations(archive: &Directory, name: &str) -> io::Result<()> {
    let generations = match archive.child(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    for generation in generations.names()? {
        match generations.prune(&generation) {
            // A link, or a file.
            Err(error) if beneath::is_refusal(&error) => generations.remove(&generation)?,
            pruned => pruned?,
        }
    }
    archive.prune(name)
}

fn places(root: &Path, lineage: &Lineage) -> [PathBuf; 2] {
    ["live", "archive"].map(|part| root.join(part).join(lineage.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remove_takes_one_certificate_and_follows_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (gone, kept) = (
            Lineage::parse("gone").unwrap(),
            Lineage::parse("kept").unwrap(),
        );
        for lineage in [&gone, &kept] {
            std::fs::create_dir_all(root.join(format!("archive/{lineage}/0001"))).unwrap();
            std::fs::create_dir_all(root.join("live")).unwrap();
            let target = format!("../archive/{lineage}/0001");
            std::os::unix::fs::symlink(target, root.join(format!("live/{lineage}"))).unwrap();
        }
        std::os::unix::fs::symlink(root.join("archive/kept"), root.join("archive/gone/0002"))
            .unwrap();
        let output = Emptied::new(root.to_owned(), DirectoryOwner::default());
        assert_eq!(output.present(&gone).unwrap().len(), 2);
        for _ in 0..2 {
            output.remove(&gone).unwrap();
            assert_eq!(output.present(&gone).unwrap().len(), 0);
        }
        assert_eq!(output.present(&kept).unwrap().len(), 2);
        assert!(root.join("archive/kept/0001").is_dir());
    }
}
