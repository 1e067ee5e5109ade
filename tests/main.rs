//! The black-box tests, by topic; real servers where a user has real servers.

// Support functions may fail a test.
#![allow(clippy::unwrap_used)]
// A test may cover one long scenario.
#![allow(clippy::too_many_lines)]

mod account;
mod admin;
mod attacks;
mod ca;
mod clocks;
mod confirmed;
mod copies;
mod crash;
mod data_owner;
mod delete;
mod demo;
mod denied;
mod deployment;
mod descriptors;
mod dns01;
mod docs;
mod endpoints;
mod environment;
mod errno;
mod fallback;
mod faults;
mod followed;
mod haproxy;
mod harden;
mod hints;
mod hostile;
mod house;
mod import;
mod imported;
mod install;
mod interop;
mod jumps;
mod keys;
mod kill;
mod labels;
mod language;
mod links;
mod manners;
mod oddities;
mod orphans;
mod partial;
mod pebble;
mod port80;
mod power;
mod proofs;
mod protocols;
mod races;
mod rename;
mod renew;
mod repeated;
mod revoke;
mod secrets;
mod served;
mod sidecar;
mod simulate;
mod slow;
mod status;
mod support;
mod swaps;
mod systemd;
mod takeover;
mod targets;
mod tls_alpn01;
mod tokens;
mod trust;
mod usage;
mod volumes;
mod webrtc;
