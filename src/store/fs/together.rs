//! All records with their options, in one walk: the directory of the records is opened once,
//! and each file of a certificate once. A program with many certificates starts so.

use std::io::ErrorKind;

use super::single::{at, corrupt_or_unread, parsed};
use super::{FileStore, Stored};
use crate::files::LARGEST_DATA;
use crate::files::beneath::Directory;
use crate::lineage::Lineage;
use crate::record::{Record, Revision};
use crate::store::StoreError;

/// What is stored of one certificate but its pairs.
#[derive(Debug)]
pub struct Together {
    /// Its name.
    pub lineage: Lineage,
    /// Its record, and the revision to save it against.
    pub record: Result<(Record, Revision), StoreError>,
    /// The user's options, if there were any.
    pub options: Result<Option<String>, StoreError>,
}

impl FileStore {
    /// Every certificate with a record, by name, as `take` makes it of what is stored: no more
    /// than one is held whole. `take` runs as the owner of the data directory.
    ///
    /// # Errors
    /// When the directory cannot be read. A damaged certificate is given to `take`.
    pub fn together<T>(&self, mut take: impl FnMut(Together) -> T) -> Result<Vec<T>, StoreError> {
        let _acting = self.owner.act();
        let path = self.root.join("records");
        let read = at("read", &path);
        let records = Directory::open(&path).map_err(&read)?;
        let names = records.names().map_err(&read)?;
        let lineages = names.iter().filter_map(|name| name.to_str());
        let lineages = lineages.filter_map(|name| Lineage::parse(name).ok());
        let mut lineages: Vec<Lineage> = lineages.collect();
        lineages.sort_unstable();
        let all = lineages.into_iter();
        Ok(all
            .filter_map(|lineage| one(&records, lineage))
            .map(&mut take)
            .collect())
    }
}

impl FileStore {
    /// What is stored of one certificate; `None` without a record.
    #[must_use]
    pub fn one(&self, lineage: Lineage) -> Option<Together> {
        let _acting = self.owner.act();
        let path = self.root.join("records");
        match Directory::open(&path) {
            Ok(records) => one(&records, lineage),
            Err(error) => Some(Together {
                record: Err(at("read", &path)(error)),
                options: Ok(None),
                lineage,
            }),
        }
    }
}

/// The files of one certificate; `None` without a record.
fn one(records: &Directory, lineage: Lineage) -> Option<Together> {
    let path = |file: &str| records.path().join(lineage.as_str()).join(file);
    let directory = match records.child(lineage.as_str()) {
        Ok(directory) => directory,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            let record = Err(corrupt_or_unread(&path("record.json"), error));
            return Some(Together {
                options: Ok(None),
                record,
                lineage,
            });
        }
    };
    let text = |file: &str| {
        let read = directory.text(file, LARGEST_DATA);
        read.map_err(|error| corrupt_or_unread(&path(file), error))
    };
    let record = text("record.json").transpose()?;
    let record = record.and_then(|json| {
        let stored: Stored = parsed(&path("record.json"), &json)?;
        Ok(stored.of(&lineage))
    });
    Some(Together {
        options: text("options.json"),
        record,
        lineage,
    })
}
