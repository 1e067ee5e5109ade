//! The stored certificates, each read once: what a start, and a command about all of them,
//! needs to know before it works on one. It orders nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::{CertificateSettings, DirectoryUrl, Remembered, Settings, StoredSettings};
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::lineage::{Known, Lineage};
use crate::record::Record;
use crate::store::StoreError;
use crate::store::fs::{FileStore, Together};

pub(super) fn open_store(directory: PathBuf) -> Result<FileStore, Failure> {
    check_old_place(&directory)?;
    FileStore::open(directory).map_err(Failure::on("store"))
}

/// The store, for reading; `None` if nothing is stored.
pub(super) fn existing_store(directory: PathBuf) -> Result<Option<FileStore>, Failure> {
    check_old_place(&directory)?;
    FileStore::existing(directory).map_err(Failure::on("store"))
}

/// Earlier packages kept the data directory one level below.
fn check_old_place(directory: &Path) -> Result<(), Failure> {
    let (old, shown) = (directory.join("data"), directory.display());
    let is_old = old.join("records").is_dir() && !directory.join("records").is_dir();
    if !is_old {
        return Ok(());
    }
    let old = old.display();
    Err(Failure::usage(
        format!("{shown} has no certificates, but {old} does: an earlier package kept them there"),
        format!("stop certs run and move them: mv {old}/* {shown}/ && rmdir {old}"),
    ))
}

/// All stored certificates, by name.
#[derive(Debug, Default)]
pub(super) struct Inventory(Vec<StoredCertificate>);

/// A stored certificate.
#[derive(Debug)]
pub(super) struct StoredCertificate {
    pub(super) lineage: Lineage,
    pub(super) settings: Result<Remembered, StoreError>,
    pub(super) record: Result<Summary, StoreError>,
}

/// What is kept of a record.
#[derive(Debug)]
pub(super) struct Summary {
    wanted: Box<[Identifier]>,
    /// The names in its certificate, if they are others.
    issued: Option<Box<[Identifier]>>,
    pub(super) is_issued: bool,
    pub(super) is_ordered: bool,
}

impl Inventory {
    /// Reads the store in `data_dir`; nothing is there before the first certificate.
    pub(super) fn read(data_dir: &Path) -> Result<Self, Failure> {
        Self::read_with(data_dir, |_| ())
    }

    /// The same, and shows each record.
    pub(super) fn read_with(
        data_dir: &Path,
        look: impl Fn(&Record) + Sync,
    ) -> Result<Self, Failure> {
        let store = existing_store(data_dir.to_owned())?;
        let read = store.map_or_else(|| Ok(Self::default()), |store| Self::of(&store, look));
        read.map_err(Failure::on("store"))
    }

    fn of(store: &FileStore, look: impl Fn(&Record) + Sync) -> Result<Self, StoreError> {
        let settings = StoredSettings::default();
        let all = store.together(|one| {
            if let Ok((record, _)) = &one.record {
                look(record);
            }
            StoredCertificate::of(one, &settings)
        });
        all.map(Self)
    }

    /// Those that `configured` does not name.
    pub(super) fn unconfigured(self, configured: &Settings) -> Vec<StoredCertificate> {
        let certificates = configured.certificates.iter();
        let named: BTreeSet<&Lineage> = certificates.map(|one| &one.lineage).collect();
        let mut all = self.0;
        all.retain(|one| !named.contains(&one.lineage));
        all
    }

    /// What the names of each say of which one is meant. An unreadable record is reported where
    /// it is used.
    pub(super) fn known(&self) -> Vec<Known> {
        let known = self.0.iter().filter_map(|one| {
            let record = one.record.as_ref().ok()?;
            let set = |names: &[Identifier]| names.iter().cloned().collect();
            let issued = record.issued.as_deref().unwrap_or(&record.wanted);
            let made_with = one.whole();
            let is_second = made_with.is_some_and(|it| it.is_second);
            Some(Known {
                lineage: one.lineage.clone(),
                wanted: set(&record.wanted),
                issued: if record.is_issued {
                    set(issued)
                } else {
                    BTreeSet::new()
                },
                is_second,
                kinds: made_with.map_or_else(Vec::new, |it| it.key.kinds(is_second)),
            })
        });
        known.collect()
    }
}

impl StoredCertificate {
    fn of(stored: Together, settings: &StoredSettings) -> Self {
        let Together {
            lineage,
            record,
            options,
        } = stored;
        let corrupt = |what: &str, detail: String| StoreError::Corrupt {
            subject: format!("the stored {what} of {lineage}"),
            detail,
        };
        let summary = record.as_ref().ok().map(|(record, _)| Summary::of(record));
        let (settings, record) = match (options, record) {
            (Ok(Some(json)), record) => {
                let read = settings.read(&lineage, &json);
                let read = read.map(|settings| Remembered::Whole(Box::new(settings)));
                let read = read.map_err(|error| corrupt("options", error.to_string()));
                (read, record.map(drop))
            }
            (Ok(None), Ok((record, _))) => (Ok(remembered(&lineage, record)), Ok(())),
            // Without settings nothing more is asked of the record.
            (Ok(None), Err(error)) => (Err(error), Err(corrupt("record", String::new()))),
            (Err(error), record) => (Err(error), record.map(drop)),
        };
        let unread = corrupt("record", String::new());
        let record = record.and_then(|()| summary.ok_or(unread));
        Self {
            lineage,
            settings,
            record,
        }
    }

    /// Its settings as they are stored, if they are readable.
    pub(super) fn whole(&self) -> Option<&CertificateSettings> {
        match &self.settings {
            Ok(Remembered::Whole(settings)) => Some(settings),
            _ => None,
        }
    }
}

impl Summary {
    fn of(record: &Record) -> Self {
        let issued = record.issued.as_ref();
        let own = issued.map(|issued| &issued.facts.identifiers);
        let own = own.filter(|own| **own != record.identifiers);
        Self {
            wanted: record.identifiers.iter().cloned().collect(),
            issued: own.map(|own| own.iter().cloned().collect()),
            is_issued: issued.is_some(),
            is_ordered: record.order.is_some(),
        }
    }
}

/// The fields of a record whose options are not stored.
fn remembered(lineage: &Lineage, record: Record) -> Remembered {
    Remembered::Record {
        lineage: lineage.clone(),
        names: record.identifiers.into_iter().collect(),
        directory: record.ca.parse::<DirectoryUrl>().ok(),
        profile: record.profile,
    }
}
