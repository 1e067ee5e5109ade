//! The sidecar's loop: it launches a pass over each certificate at its instant,
//! a few at a time and more that deploy, and obeys what comes through its [`Handle`]. It decides
//! nothing: each pass asks [`crate::renew`], and says when to come back.

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
