//! What this machine's network shows us. Nothing is sent from here.

pub mod sockets;
