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
//! - Correctness rests on compare-and-swap, never on the timing of a lease.
//! - Nothing a CA says reaches a path, a shell or a log line unparsed.
//!
//! # The rooms
//! - [`identifier`], [`certificate`], [`record`], [`ca_state`], [`failure`], [`time`],
//!   [`random`], [`files`], [`net`], [`text`]: the vocabulary. It imports nothing of
//!   ours.
//! - [`renew`]: pure decisions: what next, when, how long to back off, and what
//!   a CA's limits still allow.
//! - [`store`]: the durable truth: records, pairs, accounts, leases, and what is
//!   known of each CA.
//! - [`challenge`]: proving control of a name: solvers and the port 80 listener.
//! - [`acme`]: talking to a CA (RFC 8555, RFC 9773).
//! - [`deploy`]: files for consumers, servers to reload, the proof by handshake.
//! - [`install`]: an existing nginx: its configuration read, edited and given back.
//! - [`import`]: what another ACME client keeps on disk, read as it lies there.
//! - [`tls`]: our own TLS listener, and the pairs it serves.
//! - [`ca`]: the embedded CA, itself an ACME server.
//! - [`observe`]: what an operator sees: status, metrics, read-only endpoints.
//! - [`manage`]: flows that join the services, a ladder: a pass, an order, a
//!   deployment, a rollback.
//! - [`supervise`]: the sidecar's loop: which pass runs when.
//! - [`discovery`]: the certificates that containers ask for by their labels.
//! - [`sandbox`]: what a process gives up.
//! - [`control`]: the Unix socket over which a command gives its work to the sidecar.
//! - [`simulate`]: a fleet's year in virtual time, over the real flows.
//! - [`demo`]: the whole story on loopback, with the embedded CA.
//! - [`config`]: what the file, the environment and the command line ask for.
//! - [`cli`]: the only composition root; arguments, output and one file a verb.
//!
//! Who may import whom is a table in `tests/house.rs`, which holds the code
//! against it.
//!
//! # The walk of `example.com`
//! [`cli::args`] parses it to an [`identifier::Identifier`]; no later code sees
//! a string. [`config`] resolves what was asked, and the command line's verb
//! builds the [`manage::Services`]. [`manage::pass::pass`] takes the lease, loads
//! the record under it and asks [`renew::decide::next`]. [`acme::Client`] takes
//! the order to its end; its solver lays the answer into
//! [`challenge::responses`], where [`challenge::http01`] finds it.
//! [`certificate::Bundle::new`] proves key, names, chain and dates, and
//! [`store::Store::save`] keeps it as generation n + 1. The pass checks
//! the targets, publishes it through [`deploy::output`], reloads them, and
//! [`deploy::verify`] sees the new leaf, and goes on seeing it. The record says served = n + 1, exit 0.
//! If the last steps fail, generation n goes live again, and the next pass says
//! `Deploy`, never a second order.
//!
//! # Where this differs from its plan
//! - [`record::Revision`] is what compare-and-swap compares;
//!   [`record::Generation`] counts certificates only.
//! - The flows of ACME are ours, in instant-acme's vocabulary: its own keep
//!   neither a reply's `Retry-After` nor an order's URL, and answer the
//!   authorizations of an order one after the other.
//! - Where no endpoint is named, nginx is asked by way of /proc where it
//!   listens, so that the proof needs no configuration.
//! - Look-ups use the system's resolver.
//! - Files, proof and keys are services behind traits, so that [`simulate`] runs the
//!   flows as they are.
//! - Servers that take a signal or a program are reloaded by the helper process
//!   ([`deploy::helper`]), which keeps the rights that the sidecar gives up.
//! - A further output is a target among others ([`deploy::targets::file`]): it is written
//!   before the servers reload, and rolled back with them.
//! - A hand-over that fails goes back only while what was served before has a
//!   tenth of its life left: a server that never recovers must not let it run out.
//! - A pass has one clock: this machine's, corrected by what the CA's last reply has
//!   shown ([`manage::pass::pass`]). Whatever a fleet shares is dated by it.
//! - A clock is given a length to sleep for, never an instant ([`time::Clock`]): one that
//!   is set back between two readings must hold nobody up.
//! - Caddy watches no certificate files; it is told by its admin API.
//! - One handshake is no proof where old workers serve on beside the new: it has to
//!   hold for half a second of connections ([`deploy::verify`]).
//! - Who waits for the tokens of a CA's limit has a place in a line
//!   (the supervisor's agenda), or all would come for each of them.

// The map leads to private rooms, too: this documentation is made with them.
#![allow(rustdoc::private_intra_doc_links)]
// A test may tell one long story.
#![cfg_attr(any(test, feature = "fuzzing"), allow(clippy::too_many_lines))]

pub mod acme;
pub mod ca;
pub mod ca_state;
pub mod certificate;
pub mod challenge;
pub mod cli;
pub mod config;
pub(crate) mod control;
pub(crate) mod demo;
pub mod deploy;
pub(crate) mod discovery;
pub(crate) mod failure;
pub(crate) mod files;
pub mod fingerprint;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod identifier;
pub(crate) mod import;
pub(crate) mod install;
pub mod lineage;
pub(crate) mod manage;
pub(crate) mod net;
pub mod observe;
pub mod random;
pub mod record;
pub mod renew;
pub(crate) mod sandbox;
pub(crate) mod simulate;
pub mod store;
pub(crate) mod supervise;
pub(crate) mod text;
pub mod time;
pub mod tls;
