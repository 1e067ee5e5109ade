//! Capabilities: all are dropped except those for files of other users. Sockets are
//! already bound, and the helper process reloads servers. Which of the four file
//! capabilities are needed is tried out, not guessed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::{self, Errno};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::paths::{Paths, specs};
use crate::config::Settings;
use crate::deploy::owner;

/// Keeps only the capabilities that `settings` and `paths` need, and logs why.
pub(super) fn drop_all_but_needed(settings: &Settings, paths: &Paths) {
    let dropped = capabilities(None).and_then(|own| {
        let needed = needed(own, settings, paths)?;
        keep(needed & own.permitted)
    });
    if let Err(error) = dropped {
        tracing::warn!("cannot drop capabilities: {error}");
    }
}

/// Keeps none, after this process has become another user; only where that user cannot reach
/// `paths` through the directories above them, the one to search these.
pub(super) fn drop_all_but_search(paths: &Paths) -> io::Result<()> {
    let is_out_of_reach = |path: &&PathBuf| is_denied(path, WRITE);
    let unreachable = [&paths.data, &paths.output]
        .into_iter()
        .find(is_out_of_reach);
    let needed = match unreachable {
        None => CapabilitySet::empty(),
        Some(path) => {
            tracing::warn!(
                "kept: CAP_DAC_READ_SEARCH: only root can reach {}; hint: chmod o+x the directories above it",
                path.display()
            );
            CapabilitySet::DAC_READ_SEARCH
        }
    };
    keep(needed)
}

/// Denies all capabilities to the programs of this process and to later users of it.
pub(super) fn drop_bounds() -> io::Result<()> {
    bound_to(CapabilitySet::empty())
}

fn needed(own: CapabilitySets, settings: &Settings, paths: &Paths) -> io::Result<CapabilitySet> {
    let mut needed = CapabilitySet::empty();
    let mut need = |more: CapabilitySet, why: &str| {
        needed |= more;
        let names: Vec<_> = (more & own.permitted).iter_names().collect();
        if !names.is_empty() {
            let names: Vec<_> = names.into_iter().map(|(name, _)| name).collect();
            tracing::debug!("kept: CAP_{}: {why}", names.join(", CAP_"));
        }
    };
    if needs_chown(settings, paths) {
        let mut give = CapabilitySet::CHOWN | CapabilitySet::FSETID;
        if is_other_user(settings.output.owner.as_deref()) || any_copy_needs_chown(settings) {
            // A file that already belongs to another user needs both to be changed.
            give |= CapabilitySet::FOWNER | CapabilitySet::DAC_OVERRIDE;
        }
        need(give, "files for the proxy belong to another user or group");
    }
    let beyond = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    if own.effective.intersects(beyond) {
        let mut without = own;
        without.effective -= beyond;
        set_capabilities(None, without)?;
        if let Some(path) = first_unwritable(paths) {
            need(CapabilitySet::DAC_OVERRIDE, &path);
        } else if let Some(path) = first_denied(&paths.files, Access::READ_OK) {
            need(CapabilitySet::DAC_READ_SEARCH, &path);
        }
        set_capabilities(None, own)?;
    }
    Ok(needed)
}

/// Drops all but `needed`; the bounding set first, since that needs CAP_SETPCAP.
fn keep(needed: CapabilitySet) -> io::Result<()> {
    bound_to(needed)?;
    clear_ambient_capability_set()?;
    let sets = CapabilitySets {
        effective: needed,
        permitted: needed,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)
}

/// Limits the bounding set.
fn bound_to(needed: CapabilitySet) -> io::Result<()> {
    let bounds = |capability| matches!(capability_is_in_bounding_set(capability), Ok(true));
    let others = CapabilitySet::all() - needed;
    for capability in others.iter().filter(|one| bounds(*one)) {
        match remove_capability_from_bounding_set(capability) {
            // Harmless: no_new_privs is set, so the bounding set grants nothing.
            Err(Errno::PERM) => break,
            removed => removed?,
        }
    }
    Ok(())
}

fn needs_chown(settings: &Settings, paths: &Paths) -> bool {
    let (owner, group) = (&settings.output.owner, &settings.output.group);
    // A setgid directory keeps its bit only if its owner is in the group.
    let foreign = std::fs::metadata(&paths.output)
        .is_ok_and(|output| output.gid() != rustix::process::getegid().as_raw());
    is_other_user(owner.as_deref()) || group.is_some() || foreign || any_copy_needs_chown(settings)
}

/// Whether a copy must get, or an existing one keeps, another owner.
fn any_copy_needs_chown(settings: &Settings) -> bool {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let foreign = |file: &Path| {
        let found = std::fs::metadata(file);
        found.is_ok_and(|found| (found.uid(), found.gid()) != (user.as_raw(), group.as_raw()))
    };
    specs(settings).any(|spec| spec.needs_chown(foreign))
}

fn is_other_user(user: Option<&str>) -> bool {
    let number = user.and_then(|user| owner::user(user).ok());
    number.is_some_and(|number| number != rustix::process::geteuid().as_raw())
}

/// The first path, or socket, that its owner or mode makes unwritable.
fn first_unwritable(paths: &Paths) -> Option<String> {
    let both = Access::READ_OK | Access::WRITE_OK;
    let written = paths.written.iter();
    let webroots = written.filter(|path| **path != paths.output && **path != paths.data);
    let parts = ["", ".well-known", ".well-known/acme-challenge"];
    let answers = webroots.flat_map(|webroot| parts.map(|part| webroot.join(part)));
    first_denied(answers, WRITE)
        .or_else(|| unwritable_below(&paths.output, &paths.output, Access::READ_OK))
        .or_else(|| unwritable_below(&paths.data, &paths.output, both))
        .or_else(|| first_denied(&paths.sockets, Access::WRITE_OK))
}

const WRITE: Access = Access::READ_OK
    .union(Access::WRITE_OK)
    .union(Access::EXEC_OK);

/// The first directory from `root` downward that is not writable, or file that
/// does not grant `file`. Skips everything below `excluded`.
fn unwritable_below(root: &Path, excluded: &Path, file: Access) -> Option<String> {
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        if is_denied(&directory, WRITE) {
            return Some(directory.display().to_string());
        }
        let entries = std::fs::read_dir(&directory).into_iter().flatten();
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && path != excluded => open.push(path),
                Ok(kind) if kind.is_file() && is_denied(&path, file) => {
                    return Some(path.display().to_string());
                }
                _ => {}
            }
        }
    }
    None
}

fn first_denied(
    paths: impl IntoIterator<Item = impl AsRef<Path>>,
    access: Access,
) -> Option<String> {
    let mut paths = paths.into_iter();
    let found = paths.find(|path| is_denied(path.as_ref(), access));
    found.map(|path| path.as_ref().display().to_string())
}

fn is_denied(path: &Path, access: Access) -> bool {
    accessat(CWD, path, access, AtFlags::EACCESS) == Err(Errno::ACCESS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;
    use crate::config::{Options, Purpose, Sources};

    const NOBODY: u32 = 65_534;

    fn settings(directory: &Path, more: &str) -> Settings {
        let file = directory.join("certs.toml");
        let data = directory.join("data").display().to_string();
        std::fs::write(&file, format!("data_dir = '{data}'\n{more}")).unwrap();
        let mut options = Options::default();
        options.config(file.to_str());
        Sources::read(&options, &[].into())
            .settings(&Purpose::All)
            .unwrap()
    }

    /// The capabilities left in a thread of its own, after `prepare` has changed the
    /// data directory.
    fn left(
        more: &str,
        prepare: impl FnOnce(&Path) -> Vec<std::path::PathBuf>,
    ) -> Option<CapabilitySet> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: capabilities: only root has them to drop");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let (data, output) = (
            directory.path().join("data"),
            directory.path().join("data/public"),
        );
        std::fs::create_dir_all(&output).unwrap();
        let named = prepare(directory.path()).into_iter();
        let (sockets, files) = named.partition(|path| path.extension().is_some());
        let settings = settings(directory.path(), more);
        let paths = Paths {
            written: BTreeSet::from([data.clone(), output.clone()]),
            read: BTreeSet::new(),
            data,
            output,
            files,
            sockets,
        };
        let thread = std::thread::spawn(move || {
            assert!(!capabilities(None).unwrap().effective.is_empty());
            drop_all_but_needed(&settings, &paths);
            let left = capabilities(None).unwrap();
            assert_eq!(left.effective, left.permitted);
            assert!(left.inheritable.is_empty());
            for capability in CapabilitySet::all() - left.permitted {
                assert_ne!(capability_is_in_bounding_set(capability), Ok(true));
            }
            left.permitted
        });
        Some(thread.join().unwrap())
    }

    #[test]
    fn capabilities_are_all_dropped_if_files_belong_to_root() {
        if let Some(left) = left("", |_| Vec::new()) {
            assert_eq!(left, CapabilitySet::empty());
        }
    }

    #[test]
    fn capabilities_are_kept_for_files_of_another_user() {
        let owned_by_nobody = |path: &Path, mode| {
            std::fs::create_dir_all(path).unwrap();
            chown(path, Some(NOBODY), None).unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let records = left("", |directory| {
            owned_by_nobody(&directory.join("data/records"), 0o700);
            Vec::new()
        });
        let open = left("", |directory| {
            owned_by_nobody(&directory.join("data/records"), 0o777);
            Vec::new()
        });
        let secret = left("", |directory| {
            owned_by_nobody(&directory.join("secrets"), 0o700);
            let file = directory.join("secrets/hmac");
            std::fs::write(&file, "").unwrap();
            vec![file]
        });
        let socket = left("", |directory| {
            let socket = directory.join("secrets/haproxy.sock");
            std::fs::create_dir_all(directory.join("secrets")).unwrap();
            std::os::unix::net::UnixListener::bind(&socket).unwrap();
            chown(&socket, Some(NOBODY), None).unwrap();
            std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o600)).unwrap();
            vec![socket]
        });
        let given = left("[output]\nowner = '65534'\n", |_| Vec::new());
        let shared = left("[output]\ngroup = '65534'\n", |_| Vec::new());
        let give = CapabilitySet::CHOWN | CapabilitySet::FSETID;
        let touch = CapabilitySet::FOWNER | CapabilitySet::DAC_OVERRIDE;
        for (left, wanted) in [
            (records, CapabilitySet::DAC_OVERRIDE),
            (open, CapabilitySet::empty()),
            (secret, CapabilitySet::DAC_READ_SEARCH),
            (socket, CapabilitySet::DAC_OVERRIDE),
            (given, give | touch),
            (shared, give),
        ] {
            assert!(
                left.is_none_or(|left| left == wanted),
                "{left:?} {wanted:?}"
            );
        }
    }
}
