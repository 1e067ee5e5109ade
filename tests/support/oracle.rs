//! The pair oracle: the files below `live/NAME` are one whole generation, and the store is readable and
//! agrees. It returns errors instead of failing, so that a test can count what it catches.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use certs::certificate::{Bundle, Facts, Freshness, Secret};
use certs::identifier::Identifier;
use certs::lineage::Lineage;
use certs::record::{Generation, Record};
use certs::store::Store;
use certs::store::fs::FileStore;
use certs::time::{Clock, SystemClock};

use super::{certs, text};

/// The files that consumers and the next run of one certificate find on the disk.
pub(crate) struct Oracle {
    output: PathBuf,
    data: PathBuf,
    lineage: Lineage,
    identifiers: BTreeSet<Identifier>,
}

/// A published generation with all its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) generation: Generation,
    pub(crate) facts: Facts,
    files: [Vec<u8>; 5],
}

const FILES: [(&str, u32); 5] = [
    ("privkey.pem", 0o640),
    ("fullchain.pem", 0o644),
    ("cert.pem", 0o644),
    ("chain.pem", 0o644),
    ("combined.pem", 0o640),
];

impl Pair {
    /// Each file, with its name.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let names = FILES.iter().map(|(name, _)| *name);
        names.zip(self.files.iter().map(Vec::as_slice))
    }

    /// `combined.pem`.
    pub(crate) fn combined(&self) -> &[u8] {
        &self.files[4]
    }
}

impl Oracle {
    /// The oracle of the certificate for `names`, with files below `directory` as [`super::certs`] lays them
    /// out.
    pub(crate) fn new(directory: &Path, names: &[&str]) -> Self {
        let identifiers = names.iter().map(|name| Identifier::parse(name).unwrap());
        Self {
            output: directory.join("out"),
            data: directory.join("data"),
            lineage: Lineage::parse(names[0]).unwrap(),
            identifiers: identifiers.collect(),
        }
    }

    /// The live pair, whole; `None` without a link. Any mixture is an error.
    pub(crate) fn live(&self) -> Result<Option<Pair>, String> {
        let link = self.output.join("live").join(self.lineage.as_str());
        let target = match std::fs::read_link(&link) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(at_path(&link))?,
        };
        let number = target.file_name().and_then(|name| name.to_str());
        let number = number.and_then(|name| name.parse().ok());
        let generation = Generation(number.ok_or("the link names no generation")?);
        let archive = Path::new("../archive").join(self.lineage.as_str());
        if target != archive.join(generation.to_string()) {
            return Err(format!("the link leads to {}", target.display()));
        }
        for above in ["", "archive", "live"] {
            mode(&self.output.join(above), 0o2750)?;
        }
        mode(
            &self.output.join("archive").join(self.lineage.as_str()),
            0o2750,
        )?;
        // Reads by the link's target, since the link may change between two reads.
        self.pair(&link.with_file_name(target), generation)
            .map(Some)
    }

    fn pair(&self, place: &Path, generation: Generation) -> Result<Pair, String> {
        mode(place, 0o2750)?;
        let mut files: [Vec<u8>; 5] = Default::default();
        for (file, (name, wanted)) in files.iter_mut().zip(FILES) {
            let path = place.join(name);
            *file = std::fs::read(&path).map_err(at_path(&path))?;
            mode(&path, wanted)?;
        }
        let names = std::fs::read_dir(place).map_err(at_path(place))?;
        if names.count() != FILES.len() {
            return Err(format!("{} holds something else, too", place.display()));
        }
        let [key, full, leaf, issuers, combined] = &files;
        if *full != [&leaf[..], issuers].concat() {
            return Err("fullchain.pem is not cert.pem and chain.pem".into());
        }
        if *combined != [&full[..], key].concat() {
            return Err("combined.pem is not fullchain.pem and privkey.pem".into());
        }
        let facts = self.check(utf8(key)?, &utf8(full)?)?;
        Ok(Pair {
            generation,
            facts,
            files,
        })
    }

    /// Checks the key against the leaf, the names, the links and the dates.
    fn check(&self, key: String, chain: &str) -> Result<Facts, String> {
        let (key, now) = (Secret::new(key), SystemClock.now());
        let checked = Bundle::new(key, chain, &self.identifiers, now, Freshness::Stored);
        let bundle = checked.map_err(|error| error.to_string())?;
        Ok(bundle.facts().clone())
    }

    /// The stored record with its pair; `None` without a record.
    pub(crate) fn record(&self) -> Result<Option<Record>, String> {
        let Some(store) = FileStore::existing(self.data.clone()).unwrap() else {
            return Ok(None);
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let stored = store.load(&self.lineage).await;
            let Some((record, _)) = stored.map_err(|error| error.to_string())? else {
                return Ok(None);
            };
            if let Some(issued) = &record.issued {
                let pair = store.bundle(&self.lineage, issued.generation).await;
                let pair = pair.map_err(|error| error.to_string())?;
                let (key, chain) = pair.ok_or("the record's pair is missing in the store")?;
                if self.check(key.expose().to_owned(), &chain)? != issued.facts {
                    return Err("the stored pair is not the record's".into());
                }
            }
            Ok(Some(record))
        })
    }

    /// Checks that the real binary can read the store, and that everything agrees after a successful run: the
    /// live pair is the stored one, and no order is pending. Returns the live pair.
    pub(crate) fn settled(&self) -> Result<Pair, String> {
        let pair = self.live()?.ok_or("nothing is live")?;
        let record = self.record()?.ok_or("nothing is stored")?;
        let issued = record
            .issued
            .ok_or("the record says that nothing is issued")?;
        if (issued.generation, &issued.facts) != (pair.generation, &pair.facts) {
            return Err(format!(
                "{} is stored and {} is live",
                issued.generation, pair.generation
            ));
        }
        if record.order.is_some() {
            return Err("an order is still pending".into());
        }
        let directory = self.data.parent().unwrap();
        let output = certs(directory)
            .args(["status", "--json"])
            .output()
            .unwrap();
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("certs status: {error}: {}", text(&output)))?;
        let shown = rows.as_array().into_iter().flatten();
        let mut shown = shown.filter(|row| row["name"] == self.lineage.as_str());
        let row = shown.next().ok_or("certs status does not show it")?;
        if !output.status.success() || row["generation_issued"] != pair.generation.0 {
            return Err(format!("certs status: {}", text(&output)));
        }
        Ok(pair)
    }
}

fn mode(path: &Path, wanted: u32) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(at_path(path))?.mode() & 0o7777;
    if found == wanted {
        return Ok(());
    }
    Err(format!("{}: mode {found:o}", path.display()))
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string())
}

fn at_path(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}
