//! Whether what is stored outlives the container: if it does not, each new one orders all
//! certificates anew, until the CA's limits stop it.

use std::path::{Path, PathBuf};

const MOUNTS: &str = "/proc/self/mountinfo";
/// File systems that a container's own layer is made of.
const LAYERS: [&str; 3] = ["overlay", "fuse.fuse-overlayfs", "aufs"];
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// What Docker, Podman and Kubernetes put into a container. A machine's own root may be
/// an overlay that lasts.
const SIGNS: [&str; 3] = [
    "/.dockerenv",
    "/run/.containerenv",
    "/var/run/secrets/kubernetes.io",
];

/// What is wrong with the place where `directory` lies, for its owner; `None` where
/// nothing is, or nothing is to be seen.
pub(super) fn is_lost(directory: &Path) -> Option<String> {
    let mounts = std::fs::read(MOUNTS).ok()?;
    let contained = SIGNS.iter().any(|sign| Path::new(sign).exists());
    let place = std::fs::canonicalize(directory).ok()?;
    let why = judge(&String::from_utf8_lossy(&mounts), contained, &place)?;
    let directory = directory.display();
    Some(format!(
        "{directory} is {why}: once what is stored there is gone, all certificates are ordered anew; hint: mount a volume that has a name at {directory}"
    ))
}

/// Of the mounts as proc(5) shows them, the one that `path` lies on.
fn judge(mounts: &str, contained: bool, path: &Path) -> Option<&'static str> {
    let mounts = mounts.lines().filter_map(Mount::parse);
    // The last of those at one place covers the others.
    let mount = mounts
        .filter(|mount| path.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.components().count())?;
    let is_one_of = |kinds: &[&str]| kinds.contains(&mount.kind);
    if contained && is_one_of(&LAYERS) && mount.at == Path::new("/") {
        Some("on the container's own layer")
    } else if is_one_of(&IN_MEMORY) {
        Some("in memory")
    } else if is_nameless(mount.root) {
        Some("on a volume without a name")
    } else if mount.root.contains("/kubernetes.io~empty-dir/") {
        Some("on a volume that lives as long as its pod")
    } else {
        None
    }
}

/// Docker and containerd name a volume that nobody has named by 64 digits, and give each
/// new container another one.
fn is_nameless(root: &str) -> bool {
    let volume = root.strip_suffix("/_data").unwrap_or(root);
    // A container's own file system has such a name, too.
    let Some((_, name)) = volume.rsplit_once("/volumes/") else {
        return false;
    };
    name.len() == 64 && name.bytes().all(|digit| digit.is_ascii_hexdigit())
}

struct Mount<'m> {
    /// What of the file system is mounted.
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
    fn what_goes_with_the_container_is_told() {
        assert_eq!(judged(""), Some("on the container's own layer"));
        let tmpfs = "3 1 0:52 / /var/lib/certs rw - tmpfs tmpfs rw,mode=700";
        assert_eq!(judged(tmpfs), Some("in memory"));
        let name = "0123456789abcdef".repeat(4);
        let nameless = format!(
            "3 1 8:1 /var/lib/docker/volumes/{name}/_data {DATA} rw,relatime master:1 - ext4 /dev/sda1 rw"
        );
        assert_eq!(judged(&nameless), Some("on a volume without a name"));
        let images =
            format!("3 1 8:1 /containerd/containers/c/volumes/{name} {DATA} rw - xfs /dev/sda1 rw");
        assert_eq!(judged(&images), Some("on a volume without a name"));
        let pods = "3 1 8:1 /kubelet/pods/p/volumes/kubernetes.io~empty-dir/data /var/lib/certs rw - ext4 /dev/sda1 rw";
        assert!(judged(pods).unwrap().ends_with("its pod"));
    }

    #[test]
    fn what_stays_is_no_reason_for_a_word() {
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
