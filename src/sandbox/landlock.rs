//! Landlock (landlock(7)): denies files outside the configured paths, and new TCP
//! listeners. Outgoing connections stay allowed: a CA may name any URL, and
//! verification connects to wherever a server listens.

use std::collections::BTreeSet;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, path_beneath_rules,
};

use super::paths::Paths;

/// The newest ABI used; an older kernel enforces the part it supports.
const KNOWN: ABI = ABI::V7;
const DEVICES: [&str; 3] = ["/dev/null", "/dev/urandom", "/dev/random"];

/// Restricts this thread and its children to `paths`; whether the kernel enforces it.
pub(super) fn enter(paths: &Paths) -> bool {
    match restrict(paths) {
        Ok(status) => log(&status, paths),
        Err(error) => {
            tracing::warn!("files and ports are not restricted: Landlock: {error}");
            false
        }
    }
}

fn restrict(paths: &Paths) -> Result<RestrictionStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let devices = AccessFs::ReadFile | AccessFs::WriteFile;
    let scope = Scope::Signal | Scope::AbstractUnixSocket;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::BindTcp)?
        .scope(scope)?
        .create()?
        .add_rules(path_beneath_rules(&paths.read, read))?
        .add_rules(path_beneath_rules(DEVICES, devices))?
        .add_rules(path_beneath_rules(&paths.written, written()))?
        .restrict_self()
}

/// All rights except on programs and devices.
fn written() -> BitFlags<AccessFs> {
    let never = AccessFs::Execute
        | AccessFs::MakeChar
        | AccessFs::MakeBlock
        | AccessFs::MakeFifo
        | AccessFs::IoctlDev;
    AccessFs::from_all(KNOWN) & !never
}

fn log(status: &RestrictionStatus, paths: &Paths) -> bool {
    let version = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi,
        LandlockStatus::NotEnabled => {
            tracing::info!("files and ports are not restricted: Landlock is disabled");
            return false;
        }
        LandlockStatus::NotImplemented => {
            tracing::info!(
                "files and ports are not restricted: no Landlock in this kernel, or the container runtime denies it"
            );
            return false;
        }
    };
    let shown = |paths: &BTreeSet<PathBuf>| {
        let shown = paths.iter().map(|path| path.display().to_string());
        shown.collect::<Vec<_>>().join(", ")
    };
    tracing::debug!(
        "allowed paths: write {}; read {}",
        shown(&paths.written),
        shown(&paths.read)
    );
    let ports = if version >= ABI::V4 {
        "no new TCP listener"
    } else {
        "ports are not restricted"
    };
    let extent = match status.ruleset {
        RulesetStatus::FullyEnforced => "",
        _ => ", in part",
    };
    tracing::info!(
        "files are restricted by Landlock (ABI {}{extent}); {ports}",
        version as i32
    );
    true
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::path::Path;

    use super::*;

    fn paths(root: &Path) -> Paths {
        let [data, output, read] = ["data", "out", "read"].map(|name| root.join(name));
        for directory in [&data, &output, &read] {
            std::fs::create_dir(directory).unwrap();
        }
        Paths {
            written: BTreeSet::from([data.clone(), output.clone()]),
            read: BTreeSet::from([read, "/etc".into()]),
            data,
            output,
            files: BTreeSet::new(),
            sockets: BTreeSet::new(),
        }
    }

    #[test]
    fn landlock_denies_paths_outside_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        let [outside, inside] = ["secret", "read/root.pem"].map(|name| directory.path().join(name));
        std::fs::write(&outside, "secret").unwrap();
        std::fs::write(&inside, "root").unwrap();
        let denied = |done: std::io::Result<()>| {
            assert_eq!(done.unwrap_err().kind(), ErrorKind::PermissionDenied);
        };
        // Landlock restricts one thread.
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let status = restrict(&paths).unwrap();
            let LandlockStatus::Available { effective_abi, .. } = status.landlock else {
                assert!(!enter(&paths));
                eprintln!("SKIPPED: denied files: this kernel has no Landlock");
                return;
            };
            denied(std::fs::read(&outside).map(drop));
            denied(std::fs::write(&outside, "ours"));
            denied(std::fs::write(&inside, "ours"));
            std::fs::write(paths.data.join("key"), "key").unwrap();
            let moved = std::fs::rename(paths.data.join("key"), outside.with_extension("new"));
            // ABI 1 has no right for it and reports EXDEV.
            if effective_abi > ABI::V1 {
                denied(moved);
            } else {
                assert!(moved.is_err());
            }
            denied(std::fs::remove_file(&outside));
            assert_eq!(std::fs::read(&inside).unwrap(), b"root");
            assert!(!std::fs::read("/etc/hosts").unwrap().is_empty());
            for written in [&paths.data, &paths.output] {
                let (file, link) = (written.join("a/file"), written.join("link"));
                crate::files::make_directory(&written.join("a"), 0o700).unwrap();
                crate::files::replace(&file, 0o600, b"content").unwrap();
                std::os::unix::fs::symlink("a", &link).unwrap();
                std::fs::rename(&link, written.join("live")).unwrap();
                std::fs::remove_dir_all(written.join("a")).unwrap();
            }
            if effective_abi >= ABI::V4 {
                denied(TcpListener::bind("127.0.0.1:0").map(drop));
            } else {
                eprintln!("SKIPPED: no new TCP listener: this kernel's Landlock knows no ports");
            }
        });
        thread.join().unwrap();
    }
}
