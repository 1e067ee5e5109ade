//! The common part of targets that write a pair themselves: they read the live pair,
//! check it as one value, and replace a file in one step. No file is written in place.

use std::io;
use std::path::Path;

use super::owner::Owner;
use super::{Delivery, DeployError};
use crate::certificate::{Bundle, Freshness, Secret};
use crate::files;

/// The live pair of `delivery`.
pub(super) fn read_pair(target: &str, delivery: &Delivery) -> Result<Bundle, DeployError> {
    let pair = |detail: String| DeployError::Pair {
        target: target.to_owned(),
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

pub(super) fn unwritten(target: &str, path: &Path, detail: impl ToString) -> DeployError {
    DeployError::Write {
        target: target.to_owned(),
        path: path.display().to_string(),
        detail: detail.to_string(),
    }
}

pub(super) async fn is_missing(path: &Path) -> bool {
    let found = tokio::fs::metadata(path).await;
    found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
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
