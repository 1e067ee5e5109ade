//! `certs` keeps TLS working: it proves control of names to an ACME CA, gets and
//! renews certificates, deploys them to the servers that terminate TLS, and verifies
//! by a handshake that the new certificate is served. Issued is not deployed, deployed
//! is not verified; the record keeps all three apart.
//!
//! # Invariants
//! - One pure function decides what a certificate needs next; loops obey it.
//! - A key and its chain are one value, checked before any other code sees them.
//! - A published generation never changes; the `live` link moves last.
//! - Intent is stored before every irreversible step.
//! - Correctness rests on compare-and-swap, never on the timing of a lease.
//! - No text from a CA reaches a path, a shell or a log line unparsed.
//!
//! # The modules
//! - [`identifier`], [`lineage`], [`fingerprint`], [`certificate`], [`record`],
//!   [`ca_state`], [`failure`], [`time`], [`random`], [`files`], [`text`],
//!   [`program`], and [`net`] (the HTTP client, proxies, roots, DNS, the roles of AWS, listeners):
//!   the vocabulary. It imports no other module.
//! - [`renew`]: pure decisions: the next step, its instant, the backoff, and what the
//!   rate limits of a CA still allow.
//! - [`store`]: the durable truth: records, pairs, accounts, leases, and the state of
//!   each CA; in files, and shared by the machines of a fleet ([`store::node`]).
//! - [`challenge`]: proving control of a name: solvers and the listeners on ports 80, 443 and 53.
//! - [`acme`]: talking to a CA (RFC 8555, RFC 9773).
//! - [`deploy`]: files for consumers, the reload of servers, verification by handshake.
//! - [`install`]: an existing nginx: its configuration is read, edited and restored.
//! - [`import`]: reads the certificates and settings of other ACME clients.
//! - [`tls`]: the pairs that the TLS front of [`demo`] serves, and the client that verifies it.
//! - [`ca`]: the embedded CA, itself an ACME server.
//! - [`observe`]: the operator's view: status, metrics, read-only endpoints.
//! - [`manage`]: flows that join the services: a pass, an order, a deployment, a
//!   rollback.
//! - [`supervise`]: the sidecar's loop: which pass runs when.
//! - [`discovery`]: the certificates that containers request by their labels.
//! - [`sandbox`]: the rights that a process gives up.
//! - [`control`]: the Unix socket by which a command sends its work to the sidecar.
//! - [`simulate`]: a fleet's year in virtual time, over the real flows and the fleet's own store.
//! - [`demo`]: the whole story on loopback, with the embedded CA.
//! - [`config`]: the file, the environment and the command line, combined and checked.
//! - [`cli`]: the only composition root; arguments, output and one file for each verb.
//! - `fuzzing`: for tests only: the functions that the fuzz targets call.
//!
//! `tests/house.rs` has a table of the imports that each module may have, and checks the
//! code against it.
//!
//! # The words
//! One word for one thing, in code, messages and documentation.
//!
//! | word | meaning here |
//! |---|---|
//! | identifier | a DNS name or an IP address to certify ([`identifier::Identifier`]) |
//! | lineage | one certificate through all its renewals, and its name ([`lineage::Lineage`]); texts for users say "name" |
//! | record | the stored state of a lineage: order, generation, failures ([`record::Record`]) |
//! | revision | the version of a record that compare-and-swap compares ([`record::Revision`]) |
//! | generation | the number of an issued pair in its lineage; it never changes ([`record::Generation`]) |
//! | bundle, pair | a private key and its certificate chain, checked to match ([`certificate::Bundle`]) |
//! | CA state | the stored state of a remote CA: tokens, outage ([`ca_state::CaState`]) |
//! | embedded CA | our own ACME server and its root ([`ca`]) |
//! | fallback CA | the CA that issues when the configured one cannot |
//! | order | one request to a CA for one certificate; pending until it is valid or invalid |
//! | solver | answers challenges of one kind: a listener or a webroot ([`challenge::Solver`]) |
//! | provider | adds and removes the records of DNS-01 ([`challenge::dns01`]) |
//! | rate limit, tokens | a limit of a CA, kept here as a bucket; an order takes a token |
//! | reserve | the tokens that scheduled renewals leave for urgent and forced orders |
//! | backoff | the growing delay before the next attempt after a failure ([`renew::backoff`]) |
//! | unreachable | a CA that does not answer, or answers with its own errors |
//! | outage | the time for which a CA is unreachable |
//! | probe | the one attempt that tests, for all certificates, whether the outage is over |
//! | excluded names | names that fail validation, left out so that the others can be issued |
//! | due | the chosen instant of a renewal has passed |
//! | overdue | due for so long that an operator should look |
//! | urgent | the renewal window has passed, or little lifetime is left: the order cannot wait |
//! | pending | started and not yet ended |
//! | trigger | why a pass runs: scheduled, requested, forced, redeploy, rollback ([`manage::Trigger`]) |
//! | pass | one look at a certificate, and all the steps it needs now |
//! | settle | take in the result of a pass and plan the next one; for an order, wait until the CA has changed its status |
//! | session | a record, locked by its lease, during a pass |
//! | lease | a time-limited lock on a record; it saves work, and is never needed for correctness |
//! | services | the injected parts: store, output, verifier, keys, clock ([`manage::Services`]) |
//! | preflight | the check, before a challenge port is opened, that a pass may order at all |
//! | permit | the right to run one of a bounded number of passes at once |
//! | output | the directory with the live pairs for consumers ([`deploy::output`]) |
//! | publish | make a generation the live one in the output |
//! | target | a server or a copy to deploy to ([`deploy::target::DeployTarget`]); a variable `spec` holds one as it was configured |
//! | stage | when a target is deployed, and whether certificates share its reload ([`deploy::target_settings::DeployStage`]) |
//! | rights | what a target may read, write, connect to and control ([`deploy::target_settings::Rights`]) |
//! | delivery | a published pair, as a target gets it ([`deploy::Delivery`]) |
//! | front | our own TLS listener as a target ([`demo`]) |
//! | deploy | publish a pair, reload the targets, and verify ([`deploy`]) |
//! | endpoint | the host, port and protocol at which a server is verified ([`deploy::endpoint`]) |
//! | verify | see by TLS handshakes that an endpoint serves the new leaf ([`deploy::verify`]) |
//! | proof | whether the last handshakes saw the certificate: proven, not proven, not checked ([`manage::proof`]) |
//! | look | one handshake with an endpoint that was verified, between deployments ([`renew::look`]) |
//! | drift | a verified endpoint went back to another certificate for our names |
//! | fleet, machine (node) | hosts that share one store; each has a copy of it, and its own deployments ([`store::node`]) |
//! | issuer | the machine that does the scheduled work of a fleet ([`store::node`]) |
//! | seal | encrypt a document under its name and its fleet before the store gets it |
//! | orphaned | stored, and kept by no command, configuration or label |
//! | roll back | make an earlier generation live again, and deploy it |
//! | coalesce | serve several requests for a reload with one ([`deploy::coalesce`]) |
//! | trusted | of a path: only root and our own user can change where it leads ([`files::trust`]) |
//! | helper process | runs and signals servers for the sandboxed sidecar ([`deploy::helper`]) |
//! | sandbox | the rights that a process gives up: its user, capabilities, Landlock, seccomp ([`sandbox`]) |
//! | right, confirmed | what a stored certificate may use beyond its own files; denied until the administrator confirms it ([`deploy::confirmed`]) |
//! | sidecar | the long-running process, `certs run` |
//! | discovery | finds the certificates that containers request ([`discovery`]) |
//!
//! # The path of one issuance: `example.com`
//! [`cli::args`] reads the arguments. [`config`] parses the name to an
//! [`identifier::Identifier`] and resolves the settings; no later code sees a string.
//! The verb's factory builds the [`manage::Services`]. [`manage::pass::pass`] takes the lease, loads the record under
//! it and asks [`renew::decide::next`]. [`acme::Client`] completes the order; its solver
//! presents the answer in [`challenge::responses`], where [`challenge::http01`] finds it.
//! [`certificate::Bundle::new`] checks key, names, chain and dates, and
//! [`store::Store::save`] keeps it as generation n + 1. The pass checks the targets,
//! publishes the pair through [`deploy::output`], reloads the targets, and
//! [`deploy::verify`] sees the new leaf on several connections. The record has
//! served = n + 1, and the exit code is 0. If the last steps fail, generation n goes live
//! again, and the next pass gets [`renew::decide::Next::Deploy`], never a second order.
//!
//! # Decisions that surprise
//! - [`record::Revision`] is what compare-and-swap compares;
//!   [`record::Generation`] counts certificates only.
//! - The flows of ACME are ours, in instant-acme's vocabulary. Its flows keep neither a
//!   reply's `Retry-After` nor an order's URL, and answer the authorizations of an order
//!   one after the other.
//! - When no endpoint is configured, /proc shows where nginx listens, so that
//!   verification needs no configuration.
//! - Hosts are looked up by the configured resolver, else by the system's; DNS-01 asks the
//!   servers of a zone themselves ([`net::dns`]).
//! - Files, verification and keys are services behind traits, so that [`simulate`] runs
//!   the real flows.
//! - `certs run` started by root becomes another user once its ports are bound
//!   ([`sandbox`]). The helper process ([`deploy::helper`]) keeps root's rights: it reloads
//!   the servers that need a signal or a program, writes copies, and connects to sockets.
//! - A record grants no right: what a stored certificate names must be configured, or
//!   confirmed in a file that the sidecar cannot write ([`deploy::confirmed`]).
//! - A further copy of a pair is a target like a server ([`deploy::targets::file`]): it is
//!   written before the servers reload, and rolled back with them.
//! - A failed deployment rolls back only while the previous certificate has a tenth of
//!   its lifetime left: a server that never recovers must not let it expire.
//! - A pass has one clock: this machine's, corrected by the date of the last reply of its
//!   first CA ([`manage::pass::pass`]). All that a fleet shares is dated by it.
//! - A clock sleeps for a length, never until an instant ([`time::Clock`]): a clock that
//!   is set back between two readings must delay no pass.
//! - Caddy does not watch certificate files; its admin API reloads them.
//! - One handshake does not verify a server whose old workers still accept connections:
//!   half a second of connections must all see the new leaf ([`deploy::verify`]).
//! - Passes that wait for the tokens of a CA's rate limit queue in the supervisor's
//!   agenda: each token starts one pass, not all of them.

// The map links to private modules: this documentation is built with private items.
#![allow(rustdoc::private_intra_doc_links)]
// A test may be one long sequence of steps.
#![cfg_attr(any(test, feature = "fuzzing"), allow(clippy::too_many_lines))]

pub mod acme;
pub mod ca;
pub mod ca_state;
pub mod certificate;
pub mod challenge;
pub mod cli;
mod config;
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
mod observe;
pub(crate) mod program;
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
