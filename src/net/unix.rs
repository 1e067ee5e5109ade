//! Connections to Unix sockets. Root believes the other end's "success", and sends it private
//! keys: so the peer must be root, or the user of the socket's directory, as of HAProxy's
//! `/run/haproxy`, and only they may be able to put a socket there. Other users than root
//! connect without this check: in containers, servers run as users of their own in a volume
//! that is open to all of them.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;
use tokio::net::UnixStream;

use crate::files::trust;

/// Connects to the socket at `path`; a zero byte before it is an abstract name.
///
/// # Errors
/// Those of the connection, and a peer that root may not trust.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path).await?;
    if geteuid().is_root() {
        check(path, stream.peer_cred()?.uid()).map_err(io::Error::other)?;
    }
    Ok(stream)
}

fn check(path: &Path, peer: u32) -> Result<(), String> {
    let shown = path.display();
    let untrusted = || {
        format!(
            "{shown}: the process that listens there is of user {peer}, and neither root's nor of the user of that directory; stop it, or give the server's user a directory of its own"
        )
    };
    if path.as_os_str().as_bytes().starts_with(b"\0") {
        return trust::is_ours(peer).then_some(()).ok_or_else(untrusted);
    }
    let real = std::fs::canonicalize(path).map_err(|error| format!("{shown}: {error}"))?;
    let directory = real.parent().map(std::fs::metadata);
    let holder = directory
        .and_then(Result::ok)
        .map_or(0, |found| found.uid());
    if !trust::is_ours(peer) && peer != holder {
        return Err(untrusted());
    }
    let resolved = trust::resolve_socket(path, holder);
    resolved.map(drop).map_err(|error| {
        let hint = error.hint();
        format!("{shown} is not trusted: {error}: {hint}")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

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
        assert!(check(&socket, SERVER).unwrap_err().contains("user 4321"));
        // As Debian has HAProxy's directory.
        chown(&own, Some(SERVER), Some(SERVER)).unwrap();
        let mode = PermissionsExt::from_mode(0o2775);
        std::fs::set_permissions(&own, mode).unwrap();
        assert_eq!(check(&socket, SERVER), Ok(()));
        assert_eq!(check(&socket, 0), Ok(()));
        assert!(check(&socket, SERVER + 1).is_err());
        assert_eq!(check(Path::new("\0bus"), 0), Ok(()));
        assert!(check(Path::new("\0bus"), SERVER).is_err());
    }
}
