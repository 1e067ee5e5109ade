//! The common part of targets that write a pair themselves: they read the live pair,
//! check it as one value, and replace a file in one step. No file is written in place.

use std::io;
use std::path::Path;

use super::owner::Owner;
use super::{Delivery, DeployCause};
use crate::certificate::{Bundle, Freshness, Secret};
use crate::files;

/// The live pair of `delivery`.
pub(super) fn read_pair(delivery: &Delivery) -> Result<Bundle, DeployCause> {
    let pair = |detail: String| DeployCause::Pair {
        path: delivery.live.display().to_string(),
        detail,
    };
    let read = |name: &str| {
        let text = std::fs::read_to_string(delivery.live.join(name));
        text.map_err(|error| pair(error.to_string()))
    };
    let (key, chain) = (Secret::new(read("privkey.pem")?), read("fullchain.pem")?);
    let (names, now) = (&delivery.names, delivery.not_after);
    let bundle = Bundle::new(key, &chain, names, now, Freshness::Any);
    bundle.map_err(|error| pair(error.to_string()))
}

pub(super) fn replace(path: &Path, mode: u32, owner: Owner, content: &[u8]) -> io::Result<()> {
    let give = |aside: &Path| owner.apply_or_warn(aside, mode);
    files::replace_once_given(path, 0o600, content, give)
}

pub(super) fn unwritten(path: &Path, detail: impl ToString) -> DeployCause {
    DeployCause::Write {
        path: path.display().to_string(),
        detail: detail.to_string(),
    }
}

/// Checks that `path` is in a directory.
pub(super) fn may_be_written(path: &Path) -> Result<(), DeployCause> {
    match path.parent().unwrap_or(Path::new("/")).is_dir() {
        true => Ok(()),
        false => Err(unwritten(path, "no such directory")),
    }
}

/// The content of a file with a secret.
pub(super) fn read_secret(file: &Path) -> Result<Secret, DeployCause> {
    let text = std::fs::read_to_string(file).map(Secret::new);
    text.map_err(|error| unusable_secret(file, error))
}

pub(super) fn unusable_secret(file: &Path, detail: impl ToString) -> DeployCause {
    DeployCause::Secret {
        path: file.display().to_string(),
        detail: detail.to_string(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::output::Output;
    use super::super::{Outlet, sample};
    use super::*;
    use crate::time::Timestamp;

    /// A published pair, and the delivery of it.
    pub(in crate::deploy) fn published(root: &Path) -> Delivery {
        let mut delivery = sample();
        let output = Output::new(root.join("out"));
        let now = Timestamp::from_seconds(1_800_000_000);
        output
            .placeholder(&delivery.lineage, &delivery.names, now)
            .unwrap();
        delivery.live = output.live_path(&delivery.lineage);
        delivery
    }
}
