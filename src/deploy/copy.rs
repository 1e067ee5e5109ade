//! The common part of targets that write a pair themselves: they read the live pair,
//! check it as one value, and replace a file in one step. No file is written in place.

use std::fs::File;
use std::io;
use std::path::Path;

use super::owner::Owner;
use super::{Delivery, DeployCause, output};
use crate::certificate::{Bundle, Freshness, Secret};
use crate::files::beneath::{self, Directory};
use crate::files::named::{self, Unread};

/// A file of the live pair of `delivery`.
pub(super) fn read_live(delivery: &Delivery, name: &str) -> Result<Secret, DeployCause> {
    let text = output::read_live(&delivery.live, name);
    text.map_err(|error| unusable_pair(delivery, error))
}

/// The live pair of `delivery`.
pub(super) fn read_pair(delivery: &Delivery) -> Result<Bundle, DeployCause> {
    let read = |name| read_live(delivery, name);
    let key = read("privkey.pem").or_else(|error| read(output::REQUEST).map_err(|_| error));
    let (key, chain) = (key?, read("fullchain.pem")?);
    let (names, now) = (&delivery.names, delivery.not_after);
    let bundle = Bundle::new(key, chain.expose(), names, now, Freshness::Any);
    bundle.map_err(|error| unusable_pair(delivery, error))
}

fn unusable_pair(delivery: &Delivery, detail: impl ToString) -> DeployCause {
    DeployCause::Pair {
        path: delivery.live.display().to_string(),
        detail: detail.to_string(),
    }
}

/// Replaces the file, whose directory may belong to another user.
pub(super) fn replace(path: &Path, mode: u32, owner: Owner, content: &[u8]) -> io::Result<()> {
    let (directory, name) = Directory::of(path)?;
    let give = |file: &File| owner.apply_or_warn(file, path, mode);
    directory.replace(name, 0o600, content, give)
}

pub(super) fn unwritten(path: &Path, error: &io::Error) -> DeployCause {
    failed(path, beneath::is_refusal(error), error)
}

pub(super) fn failed(path: &Path, is_refusal: bool, detail: impl ToString) -> DeployCause {
    let (path, detail) = (path.display().to_string(), detail.to_string());
    match is_refusal {
        true => DeployCause::Foreign { path, detail },
        false => DeployCause::Write { path, detail },
    }
}

/// Checks that `path` is in a directory in which it may be written.
pub(super) fn may_be_written(path: &Path) -> Result<(), DeployCause> {
    match Directory::of(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(unwritten(path, &error)),
    }
}

/// The content of a file with a secret.
pub(super) fn read_secret(file: &Path) -> Result<Secret, DeployCause> {
    named::read_data(file).map_err(|error| match error {
        Unread::Untrusted(error) => DeployCause::Untrusted(error.to_string()),
        Unread::Io(error) => unusable_secret(file, error),
    })
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

    #[test]
    fn root_takes_no_secret_that_another_user_can_change() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(read_secret(&file).unwrap().expose(), "x");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&file, mode).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let refused = read_secret(&file);
        assert_eq!(matches!(refused, Err(DeployCause::Untrusted(_))), is_root);
    }

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
