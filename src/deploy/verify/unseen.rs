//! What a look found instead of the wanted certificate. No connection is made here.

use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustls::AlertDescription::{HandshakeFailure, InsufficientSecurity, ProtocolVersion};

use crate::certificate::Facts;
use crate::identifier::Identifier;

/// What was found instead of the wanted certificate.
#[derive(Clone, Debug)]
pub struct Unseen {
    pub(super) found: String,
    pub(super) cause: Cause,
}

/// Why the certificate was not seen, the least certain cause first.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    /// This machine has no route to the address.
    NoRoute,
    /// No connection.
    Unreachable,
    /// A Unix socket to which our user may not connect.
    Denied,
    /// The server and this client have no version or cipher in common.
    Incapable,
    /// The connection was closed before a certificate was sent.
    Closed,
    /// Another failure before a certificate was sent.
    Failed,
    /// The server spoke another protocol than TLS.
    Plain,
    /// Another leaf.
    Leaf(Box<Facts>),
}

impl Unseen {
    /// Another leaf was shown.
    #[must_use]
    pub fn other(found: String, leaf: Facts) -> Self {
        let cause = Cause::Leaf(Box::new(leaf));
        Self { found, cause }
    }

    /// There was no connection.
    pub(crate) fn unreachable(error: &io::Error) -> Self {
        use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
        let cause = match error.kind() {
            AddrNotAvailable | HostUnreachable | NetworkUnreachable => Cause::NoRoute,
            _ => Cause::Unreachable,
        };
        let found = error.to_string();
        Self { found, cause }
    }

    /// There was no connection to the Unix socket at `path`.
    pub(super) fn no_socket(path: &Path, error: &io::Error) -> Self {
        let is_socket = || std::fs::metadata(path).is_ok_and(|it| it.file_type().is_socket());
        let (found, cause) = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                let user = rustix::process::geteuid().as_raw();
                let found = format!("user {user} of this process may not connect to this socket");
                (found, Cause::Denied)
            }
            io::ErrorKind::NotFound => ("no such socket".to_owned(), Cause::Unreachable),
            io::ErrorKind::ConnectionRefused if is_socket() => {
                let found = "no server listens at this socket any more".to_owned();
                (found, Cause::Unreachable)
            }
            io::ErrorKind::ConnectionRefused => {
                ("this file is not a socket".to_owned(), Cause::Unreachable)
            }
            _ => (error.to_string(), Cause::Unreachable),
        };
        Self { found, cause }
    }

    /// A server is there, and not for TCP.
    pub(super) fn quic_alone() -> Self {
        let found = "it speaks HTTP/3 (QUIC) alone, which cannot be proven with this client; let the server listen on TCP, too";
        Self {
            found: found.to_owned(),
            cause: Cause::Incapable,
        }
    }

    /// The handshake failed before a certificate was seen.
    pub(super) fn handshake(error: &io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let cause = match (inner, error.kind()) {
            (
                Some(
                    rustls::Error::AlertReceived(
                        HandshakeFailure | InsufficientSecurity | ProtocolVersion,
                    )
                    | rustls::Error::PeerIncompatible(_),
                ),
                _,
            ) => Cause::Incapable,
            (Some(rustls::Error::InvalidMessage(_)), _) => Cause::Plain,
            (_, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof) => Cause::Closed,
            _ => Cause::Failed,
        };
        let found = match cause {
            Cause::Incapable => format!(
                "it cannot be proven with this client, which has no TLS version or cipher in common with the server (1.2 with ECDHE and AEAD, or 1.3): {error}"
            ),
            Cause::Closed => {
                format!("the server closed the connection before it sent a certificate: {error}")
            }
            Cause::Plain => format!("it speaks another protocol than TLS: {error}"),
            _ => error.to_string(),
        };
        Self { found, cause }
    }

    /// Those of several addresses as one, with the cause that says most.
    pub(super) fn join(all: Vec<Self>, name: &Identifier) -> Option<Self> {
        let found: Vec<&str> = all.iter().map(|one| one.found.as_str()).collect();
        let found = found.join("; ");
        let cause = all.into_iter().max_by_key(|one| one.weight(name))?.cause;
        Some(Self { found, cause })
    }

    fn weight(&self, name: &Identifier) -> u8 {
        match self.cause {
            Cause::NoRoute => 0,
            Cause::Unreachable | Cause::Denied => 1,
            Cause::Incapable => 2,
            Cause::Closed | Cause::Failed | Cause::Plain => 3,
            Cause::Leaf(_) if self.shows(name) => 5,
            Cause::Leaf(_) => 4,
        }
    }

    /// The same, found at `place`.
    pub(super) fn at(mut self, place: impl fmt::Display) -> Self {
        self.found = format!("{place}: {}", self.found);
        self
    }

    /// The leaf that was shown, if there was a handshake.
    #[must_use]
    pub fn leaf(&self) -> Option<&Facts> {
        match &self.cause {
            Cause::Leaf(leaf) => Some(leaf),
            _ => None,
        }
    }

    /// Whether another leaf for `name` was shown. One for other names may belong there.
    #[must_use]
    pub fn shows(&self, name: &Identifier) -> bool {
        self.leaf().is_some_and(|leaf| {
            let mut names = leaf.identifiers.iter();
            names.any(|pattern| name.is_covered_by(pattern))
        })
    }

    /// Whether the server answered for another site than `name`.
    pub(super) fn is_of_another_site(&self, name: &Identifier) -> bool {
        self.leaf().is_some() && !self.shows(name)
    }

    /// Whether nothing of the server could be seen from here: no connection, or no
    /// handshake that this client is capable of.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        matches!(
            self.cause,
            Cause::NoRoute | Cause::Unreachable | Cause::Denied | Cause::Incapable
        )
    }

    /// Whether our user may not connect there.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self.cause, Cause::Denied)
    }

    /// Whether this client has no version or cipher in common with the server.
    pub(super) fn is_incapable(&self) -> bool {
        matches!(self.cause, Cause::Incapable)
    }

    /// Whether the server spoke another protocol than TLS.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.cause, Cause::Plain)
    }
}

impl<T: Into<String>> From<T> for Unseen {
    /// A failure without a certificate.
    fn from(found: T) -> Self {
        let found = found.into();
        let cause = Cause::Failed;
        Self { found, cause }
    }
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_connection_is_said_in_words() {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof};
        let words = "the server closed the connection before it sent a certificate: ";
        for (kind, is_closed) in [
            (BrokenPipe, true),
            (ConnectionReset, true),
            (UnexpectedEof, true),
            (TimedOut, false),
        ] {
            let said = Unseen::handshake(&kind.into()).to_string();
            assert_eq!(said.starts_with(words), is_closed, "{said}");
        }
    }
}
