//! What this machine gives us of its network: sockets that listen, and the service
//! manager that opened some of them.

pub(crate) mod sockets;
pub(crate) mod systemd;
