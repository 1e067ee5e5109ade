//! Detects a data directory that does not outlive its container: each new container would
//! order all certificates again, until the CA's rate limits stop it.

use std::path::{Path, PathBuf};

const MOUNTS: &str = "/proc/self/mountinfo";
/// File systems of a container's own layer.
const LAYERS: [&str; 3] = ["overlay", "fuse.fuse-overlayfs", "aufs"];
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// Files that Docker, Podman and Kubernetes create in a container. Outside a container an
/// overlay may be persistent.
const SIGNS: [&str; 3] = [
    "/.dockerenv",
    "/run/.containerenv",
    "/var/run/secrets/kubernetes.io",
];

/// A warning if `directory` is not on persistent storage; `None` if it is, or if that is
/// unknown.
pub(super) fn warning(directory: &Path) -> Option<String> {
    let mounts = std::fs::read(MOUNTS).ok()?;
    let contained = SIGNS.iter().any(|sign| Path::new(sign).exists());
    let place = std::fs::canonicalize(directory).ok()?;
    let why = judge(&String::from_utf8_lossy(&mounts), contained, &place)?;
    let directory = directory.display();
    Some(format!(
        "{directory} is {why}: without its data a new container orders all certificates again; hint: mount a named volume at {directory}"
    ))
}

/// Why the mount of `path` is not persistent; `mounts` as in proc(5).
fn judge(mounts: &str, contained: bool, path: &Path) -> Option<&'static str> {
    let mounts = mounts.lines().filter_map(Mount::parse);
    // Of several mounts at one directory, the last one hides the others.
    let mount = mounts
        .filter(|mount| path.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.components().count())?;
    let is_one_of = |kinds: &[&str]| kinds.contains(&mount.kind);
    if contained && is_one_of(&LAYERS) && mount.at == Path::new("/") {
        Some("on the container's own layer")
    } else if is_one_of(&IN_MEMORY) {
        Some("in memory")
    } else if is_anonymous(mount.root) {
        Some("on a volume without a name")
    } else if mount.root.contains("/kubernetes.io~empty-dir/") {
        Some("on a volume that lives as long as its pod")
    } else {
        None
    }
}

/// Docker and containerd name an anonymous volume by 64 hexadecimal digits, and create
/// another one for each new container.
fn is_anonymous(root: &str) -> bool {
    let volume = root.strip_suffix("/_data").unwrap_or(root);
    // A container's own file system has such a name, too, but not below /volumes/.
    let Some((_, name)) = volume.rsplit_once("/volumes/") else {
        return false;
    };
    name.len() == 64 && name.bytes().all(|digit| digit.is_ascii_hexdigit())
}

struct Mount<'m> {
    /// The mounted directory of the file system.
    root: &'m str,
    at: PathBuf,
    kind: &'m str,
}

impl<'m> Mount<'m> {
    fn parse(line: &'m str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        Some(Self {
            root,
            at: at.replace("\\040", " ").into(),
            kind: file_system.split(' ').next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = "/var/lib/certs";

    fn judged(mount: &str) -> Option<&'static str> {
        let mounts = format!(
            "1 0 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/a\n2 1 0:51 / /proc rw - proc proc rw\n{mount}"
        );
        judge(&mounts, true, Path::new(DATA))
    }

    #[test]
    fn volume_warning_names_storage_that_is_not_persistent() {
        assert_eq!(judged(""), Some("on the container's own layer"));
        let tmpfs = "3 1 0:52 / /var/lib/certs rw - tmpfs tmpfs rw,mode=700";
        assert_eq!(judged(tmpfs), Some("in memory"));
        let name = "0123456789abcdef".repeat(4);
        let anonymous = format!(
            "3 1 8:1 /var/lib/docker/volumes/{name}/_data {DATA} rw,relatime master:1 - ext4 /dev/sda1 rw"
        );
        assert_eq!(judged(&anonymous), Some("on a volume without a name"));
        let images =
            format!("3 1 8:1 /containerd/containers/c/volumes/{name} {DATA} rw - xfs /dev/sda1 rw");
        assert_eq!(judged(&images), Some("on a volume without a name"));
        let pods = "3 1 8:1 /kubelet/pods/p/volumes/kubernetes.io~empty-dir/data /var/lib/certs rw - ext4 /dev/sda1 rw";
        assert!(judged(pods).unwrap().ends_with("its pod"));
    }

    #[test]
    fn volume_warning_is_absent_for_persistent_storage() {
        for mount in [
            "3 1 8:1 /var/lib/docker/volumes/certs/_data /var/lib/certs rw - ext4 /dev/sda1 rw",
            "3 1 8:1 /srv /var/lib rw - xfs /dev/sda1 rw",
            "3 1 0:52 / /var/lib/certs rw - nfs4 storage:/certs rw",
            "3 1 0:52 / /var rw - tmpfs tmpfs rw\n4 3 8:1 /certs /var/lib/certs rw - ext4 /dev/sda1 rw",
        ] {
            assert_eq!(judged(mount), None, "{mount}");
        }
        let machine = "1 0 8:1 / / rw - ext4 /dev/sda1 rw";
        assert_eq!(judge(machine, true, Path::new(DATA)), None);
        let subvolume = format!(
            "1 0 0:60 /docker/btrfs/subvolumes/{} / rw - btrfs /dev/sda1 rw",
            "ab".repeat(32)
        );
        assert_eq!(judge(&subvolume, true, Path::new(DATA)), None);
        let router = "1 0 0:50 / / rw - overlay overlayfs:/overlay rw,upperdir=/overlay/upper";
        assert_eq!(judge(router, false, Path::new(DATA)), None);
        assert_eq!(judge("what is this", true, Path::new(DATA)), None);
    }
}
