//! The loop of `certs run`: it launches a pass over each certificate at its due instant,
//! within the limits of concurrency, and obeys commands from its [`Handle`]. It decides
//! nothing: each pass asks [`crate::renew`] and returns its next due instant.

mod agenda;
mod clock;
pub(crate) mod cron;
mod files;
mod handle;
mod pass;
mod report;
mod supervisor;

pub(crate) use handle::Handle;
pub(crate) use supervisor::Supervisor;

#[cfg(test)]
mod tests;
