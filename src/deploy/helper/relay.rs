//! Docker's API for a sidecar that has given up root: its socket is open to root alone, and
//! the discovery of containers reads it. The helper process relays connections to it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::net::unix;

/// More than the sidecar opens at once.
const MOST: usize = 16;

/// Relays each connection of `listener` to `socket`, until the process ends.
pub(super) async fn relay(
    listener: std::os::unix::net::UnixListener,
    socket: PathBuf,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MOST));
    loop {
        let (mut near, _) = listener.accept().await?;
        let (permits, socket) = (permits.clone(), socket.clone());
        tokio::spawn(async move {
            let _permit = permits.acquire().await;
            match unix::connect(&socket).await {
                Ok(mut distant) => drop(copy_bidirectional(&mut near, &mut distant).await),
                // The sidecar sees a closed connection, and reports the API as unreachable.
                Err(error) => tracing::warn!("{}: {error}", socket.display()),
            }
        });
    }
}
