//! This machine's listening sockets, and those that the service manager opened.

pub(crate) mod sockets;
pub(crate) mod systemd;
