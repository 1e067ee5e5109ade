//! The servers that a certificate can be deployed to, one file each.

pub mod exec;
pub mod haproxy;
pub mod nginx;
pub mod systemd;
pub mod webhook;
