//! Connections to Unix sockets. Root believes the other end's "success", and sends it private
//! keys: so the peer must be root, or the user of the socket's directory, as of HAProxy's
//! `/run/haproxy`, and only they may be able to put a socket there. Other users than root
//! connect without this check: in containers, servers run as users of their own in a volume
//! that is open to all of them.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tokio::net::UnixStream;

use crate::files::trust;

/// Connects to the socket at `path`; a zero byte before it is an abstract name.
///
/// # Errors
/// Those of the connection, and a peer that root may not trust.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    connect_by(path, trust::resolve_socket).await
}

/// The same for a socket in our data directory, whose owner root has accepted, also where it
/// is in a directory that is open to others, such as `/tmp`.
///
/// # Errors
/// As for [`connect`].
pub(crate) async fn connect_in_data(path: &Path) -> io::Result<UnixStream> {
    let by = |path: &Path, holder| {
        let directory = trust::resolve_for(path.parent().unwrap_or(path), Some(holder))?;
        Ok(directory.join(path.file_name().unwrap_or_default()))
    };
    connect_by(path, by).await
}

type Resolved = Result<PathBuf, trust::Untrusted>;

async fn connect_by(path: &Path, by: fn(&Path, u32) -> Resolved) -> io::Result<UnixStream> {
    if !geteuid().is_root() {
        return UnixStream::connect(path).await;
    }
    let (real, holder) = resolve(path, by)?;
    let stream = UnixStream::connect(real).await?;
    let peer = stream.peer_cred()?.uid();
    match is_trusted(peer, holder) {
        true => Ok(stream),
        false => Err(io::Error::other(format!(
            "{}: the process that listens there is of user {peer}, and neither root's nor of the user of that directory; stop it, or give the server's user a directory of its own",
            path.display()
        ))),
    }
}

fn is_trusted(peer: u32, holder: u32) -> bool {
    trust::is_ours(peer) || peer == holder
}

/// The socket that `path` leads to, and the user of its directory.
fn resolve(path: &Path, by: fn(&Path, u32) -> Resolved) -> io::Result<(PathBuf, u32)> {
    if path.as_os_str().as_bytes().starts_with(b"\0") {
        return Ok((path.to_owned(), 0));
    }
    let real = std::fs::canonicalize(path)?;
    let directory = real.parent().map(std::fs::metadata);
    let holder = directory
        .and_then(Result::ok)
        .map_or(0, |found| found.uid());
    let resolved = by(path, holder).map_err(|error| {
        let (shown, hint) = (path.display(), error.hint());
        io::Error::other(format!("{shown} is not trusted: {error}: {hint}"))
    });
    match resolved? {
        resolved if resolved == real => Ok((real, holder)),
        _ => Err(io::Error::other(format!("{}: a link", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use tokio::net::UnixListener;

    use super::*;

    const SERVER: u32 = 4321;

    #[tokio::test]
    async fn peer_is_root_or_has_the_directory() {
        if !geteuid().is_root() {
            return println!("SKIPPED: owners need root");
        }
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("haproxy");
        std::fs::create_dir(&own).unwrap();
        let socket = own.join("admin.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(connect(&socket).await.is_ok());
        let is_accepted = |path: &Path, peer| {
            let resolved = resolve(path, trust::resolve_socket);
            resolved.is_ok_and(|(_, holder)| is_trusted(peer, holder))
        };
        assert!(!is_accepted(&socket, SERVER));
        // As Debian has HAProxy's directory.
        chown(&own, Some(SERVER), Some(SERVER)).unwrap();
        let mode = PermissionsExt::from_mode(0o2775);
        std::fs::set_permissions(&own, mode).unwrap();
        assert!(is_accepted(&socket, SERVER) && is_accepted(&socket, 0));
        assert!(!is_accepted(&socket, SERVER + 1));
        let bus = Path::new("\0bus");
        assert!(is_accepted(bus, 0) && !is_accepted(bus, SERVER));
        // A link of that user leads to no socket of root's, not even for a moment.
        let roots = directory.path().join("roots.sock");
        let listener = UnixListener::bind(&roots).unwrap();
        let link = own.join("link");
        symlink(&roots, &link).unwrap();
        assert!(connect(&link).await.is_err());
        let accepted = tokio::time::timeout(std::time::Duration::ZERO, listener.accept());
        assert!(accepted.await.is_err());
    }
}
