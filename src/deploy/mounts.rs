//! How a server's container gets the output. A mount keeps the file or directory that it was
//! made from, so that one of a single file, or of one certificate's directory, stays at an old
//! generation. Nothing is mounted here.

use std::path::{Path, PathBuf};

/// A mount in a server's file system.
#[derive(Debug)]
pub(super) struct Mount {
    /// What is mounted, by its path in its own file system.
    pub(super) source: PathBuf,
    /// Where it is mounted.
    pub(super) place: PathBuf,
}

/// The mounts that process `pid` sees; none if /proc does not show them.
pub(super) fn of_process(pid: u32) -> Vec<Mount> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"));
    let table = table.unwrap_or_default();
    table.lines().filter_map(mount).collect()
}

/// Reads a line of proc_pid_mountinfo(5).
fn mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ').skip(3);
    let mut path = || {
        let path = fields.next()?.replace("\\040", " ");
        // The generation was removed meanwhile.
        Some(PathBuf::from(path.trim_end_matches("//deleted")))
    };
    Some(Mount {
        source: path()?,
        place: path()?,
    })
}

/// Why a server that sees `mounts` does not load the next pair below `live`.
pub(super) fn obstacle(mounts: &[Mount], program: &str, live: &Path) -> Option<String> {
    let lineage = live.file_name()?.to_str()?;
    mounts.iter().find_map(|Mount { source, place }| {
        let (source, place) = (source.as_path(), place.display());
        let shown = source.display();
        if is_one_generation(source, lineage) {
            return Some(format!(
                "{program} reads {place}, a mount of {shown} alone, which stays at that generation; mount the whole output directory"
            ));
        }
        let output = source.parent().filter(|_| source.ends_with("live"))?;
        let archive = output.join("archive");
        let is_beside = |one: &Mount| one.source == archive || one.source == output;
        (!mounts.iter().any(is_beside)).then(|| {
            format!(
                "{program} reads {place}, a mount of {shown} without the archive beside it, into which its links lead; mount the whole output directory"
            )
        })
    })
}

/// Whether it is the directory of one certificate or a file in it.
fn is_one_generation(source: &Path, lineage: &str) -> bool {
    let file = source.extension().is_some_and(|end| end == "pem");
    let directory = match file {
        true => source.parent(),
        false => Some(source),
    };
    let is_of = |path: &Path| path.ends_with(Path::new("live").join(lineage));
    let is_generation = |path: &Path| {
        let number = path.file_name().and_then(|name| name.to_str());
        let archive = Path::new("archive").join(lineage);
        number.is_some_and(|number| number.parse::<u64>().is_ok())
            && path.parent().is_some_and(|above| above.ends_with(archive))
    };
    directory.is_some_and(|path| is_of(path) || is_generation(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server sees with mounts of these sources.
    fn found(sources: &[&str]) -> Option<String> {
        let mounts = sources.iter().map(|source| Mount {
            source: source.into(),
            place: "/etc/web".into(),
        });
        let mounts: Vec<Mount> = mounts.collect();
        obstacle(&mounts, "nginx", Path::new("/certs/live/a.example"))
    }

    #[test]
    fn mount_of_one_generation_or_without_archive_is_named() {
        for source in [
            "/data/archive/a.example/0007/fullchain.pem",
            "/data/archive/a.example/0007",
            "/data/live/a.example/privkey.pem",
            "/data/live/a.example",
        ] {
            let found = found(&["/", source]).unwrap();
            assert!(found.contains(&format!("{source} alone")), "{found}");
        }
        let alone = found(&["/", "/data/live"]).unwrap();
        assert!(alone.contains("without the archive beside it"), "{alone}");
        for sources in [
            &["/", "/data", "/data/archive/b.example/0007"][..],
            &["/data/live", "/data/archive"],
            &["/data/archive", "/data/archive/a.example"],
            &["/etc/ssl/certs", "/data/key.pem"],
        ] {
            assert_eq!(found(sources), None, "{sources:?}");
        }
    }

    #[test]
    fn mounts_of_a_process_are_read() {
        let line =
            "36 35 98:0 /my\\040data/key.pem//deleted /etc/key.pem rw,noatime - ext4 /dev/root rw";
        let read = mount(line).unwrap();
        assert_eq!(read.source, Path::new("/my data/key.pem"));
        assert_eq!(read.place, Path::new("/etc/key.pem"));
        let root = |one: &Mount| one.place == Path::new("/");
        assert!(of_process(std::process::id()).iter().any(root));
        assert!(mount("36 35").is_none() && of_process(0).is_empty());
    }
}
