//! `certs` keeps TLS working: it proves control of names to an ACME CA, gets
//! and renews certificates, hands them to whatever terminates TLS, and proves
//! by a handshake that the new one is served. Issued is not deployed, deployed
//! is not proven; the record keeps all three apart.
//!
//! # Invariants
//! - One pure function decides what a certificate needs next; loops obey it.
//! - A key and its chain are one value, checked before anything sees them.
//! - A published generation never changes; the `live` link moves last.
//! - Intent is stored before every step that cannot be taken back.

pub mod acme;
pub mod certificate;
pub mod challenge;
pub mod cli;
pub mod config;
pub mod deploy;
pub mod files;
pub mod identifier;
pub mod manage;
pub mod observe;
pub mod random;
pub mod record;
pub mod renew;
pub mod sockets;
pub mod store;
pub mod time;
pub mod tls;
