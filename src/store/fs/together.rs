//! All records with their options, in one walk: the directory of the records is opened once,
//! and each file of a certificate once. A program with many certificates starts so. Each
//! processor reads its share of them.

use std::io::ErrorKind;
use std::panic::resume_unwind;
use std::thread;

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

/// Threads that read at the same time, at most.
const MOST_READERS: usize = 8;
/// A thread costs as much as some records.
const LEAST_EACH: usize = 100;

impl FileStore {
    /// Every certificate with a record, by name, as `take` makes it of what is stored: each
    /// thread holds no more than one whole. `take` runs as the owner of the data directory.
    ///
    /// # Errors
    /// When the directory cannot be read. A damaged certificate is given to `take`.
    pub fn together<T: Send>(
        &self,
        take: impl Fn(Together) -> T + Sync,
    ) -> Result<Vec<T>, StoreError> {
        let _acting = self.owner.act();
        let path = self.root.join("records");
        let read = at("read", &path);
        let records = Directory::open(&path).map_err(&read)?;
        let names = records.names().map_err(&read)?;
        let lineages = names.iter().filter_map(|name| name.to_str());
        let lineages = lineages.filter_map(|name| Lineage::parse(name).ok());
        let mut lineages: Vec<Lineage> = lineages.collect();
        lineages.sort_unstable();
        Ok(side_by_side(&lineages, |lineage, memory| {
            one(&records, lineage.clone(), memory).map(&take)
        }))
    }
}

/// What `read` makes of each, in their order, with memory that it may use. A thread has the rights
/// of the one that starts it.
fn side_by_side<T: Send>(
    lineages: &[Lineage],
    read: impl Fn(&Lineage, &mut Vec<u8>) -> Option<T> + Sync,
) -> Vec<T> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let readers = processors
        .min(MOST_READERS)
        .min(lineages.len() / LEAST_EACH)
        .max(1);
    let mut parts = lineages.chunks(lineages.len().div_ceil(readers).max(1));
    let all = &|part: &[Lineage]| {
        let mut memory = Vec::new();
        let each = part.iter().filter_map(|one| read(one, &mut memory));
        each.collect::<Vec<T>>()
    };
    thread::scope(|scope| {
        let first = parts.next().unwrap_or_default();
        let started: Vec<_> = parts
            .map(|part| {
                let reader = thread::Builder::new().spawn_scoped(scope, move || all(part));
                reader.map_err(|_| part)
            })
            .collect();
        let mut made = all(first);
        for reader in started {
            made.extend(match reader {
                Ok(reader) => reader.join().unwrap_or_else(|cause| resume_unwind(cause)),
                // The limit of threads is reached.
                Err(part) => all(part),
            });
        }
        made
    })
}

impl FileStore {
    /// What is stored of one certificate; `None` without a record.
    #[must_use]
    pub fn one(&self, lineage: Lineage) -> Option<Together> {
        let _acting = self.owner.act();
        let path = self.root.join("records");
        match Directory::open(&path) {
            Ok(records) => one(&records, lineage, &mut Vec::new()),
            Err(error) => Some(Together {
                record: Err(at("read", &path)(error)),
                options: Ok(None),
                lineage,
            }),
        }
    }
}

/// The files of one certificate, read into `memory`; `None` without a record.
fn one(records: &Directory, lineage: Lineage, memory: &mut Vec<u8>) -> Option<Together> {
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
    let unread = |file: &'static str| {
        let path = &path;
        move |error| corrupt_or_unread(&path(file), error)
    };
    let record = directory.text_in("record.json", LARGEST_DATA, memory);
    let record = record.map_err(unread("record.json")).transpose()?;
    let record = record.and_then(|json| {
        let stored: Stored = parsed(&path("record.json"), json)?;
        Ok(stored.kept(&lineage))
    });
    let options = directory.text_in("options.json", LARGEST_DATA, memory);
    let options = options.map(|json| json.map(str::to_owned));
    let options = options.map_err(unread("options.json"));
    Some(Together {
        lineage,
        record,
        options,
    })
}
