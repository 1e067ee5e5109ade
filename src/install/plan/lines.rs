//! The lines that a plan writes, and their place in a block.

use std::path::Path;

use super::super::change::{after_comment, indent, line_end};
use super::super::server::{CHALLENGES, ServerBlock, is_own};
use super::super::syntax::{Directive, quoted};
use super::super::tree::Placed;
use super::Planner;

pub(super) const STEP: &str = "    ";

/// Mozilla's intermediate policy, as of 2026. No stapling, since CAs no longer offer
/// OCSP. No `ssl_dhparam`, since no cipher suite of the list needs one.
pub(crate) const POLICY: [(&str, &str); 6] = [
    ("ssl_protocols", "TLSv1.2 TLSv1.3"),
    (
        "ssl_ciphers",
        "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:\
         ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305",
    ),
    ("ssl_prefer_server_ciphers", "off"),
    ("ssl_session_timeout", "1d"),
    ("ssl_session_cache", "shared:certs_tls:10m"),
    ("ssl_session_tickets", "off"),
];

impl Planner<'_> {
    /// Inserts lines after a directive, or at the start of the block.
    pub(super) fn insert(&mut self, server: &ServerBlock, after: Option<Placed>, lines: &[String]) {
        let text = &self.tree.files[server.at.file].text;
        let (at, blanks) = if let Some(after) = after {
            let Directive { span, .. } = after.directive;
            (span.end, indent(text, span.start))
        } else {
            let Directive { block, span, .. } = server.at.directive;
            let inner = block.as_ref().map_or(0, |block| block.inner.start);
            (inner, indent(text, span.start) + STEP)
        };
        let (at, end) = (after_comment(text, at), line_end(text));
        let lines = lines.iter().map(|line| format!("{end}{blanks}{line}"));
        let mut inserted: String = lines.collect();
        // Other text on this line continues on a new line.
        if !matches!(text.get(at), None | Some(b'\n' | b'\r')) {
            inserted.push_str(&format!("{end}{blanks}"));
        }
        self.edit(server.at.file, at..at, inserted);
    }

    pub(super) fn certificate_lines(&self) -> [String; 2] {
        let file = |name: &str| quoted(&self.pair.live.join(name).to_string_lossy());
        [
            format!("ssl_certificate {};", file("fullchain.pem")),
            format!("ssl_certificate_key {};", file("privkey.pem")),
        ]
    }

    pub(super) fn tls_lines(&self, server: &ServerBlock) -> Vec<String> {
        let lines = self.certificate_lines().into_iter();
        let missing = POLICY
            .iter()
            .filter(|(name, _)| server.of(name).next().is_none());
        let missing = missing.map(|(name, value)| format!("{name} {value};"));
        lines.chain(missing).collect()
    }
}

/// The last directive of this name in the block's own file, to insert lines after it.
pub(super) fn place_of_start<'a>(server: &ServerBlock<'a>, name: &str) -> Option<Placed<'a>> {
    server.of(name).filter(|one| is_own(server, *one)).last()
}

/// The names for a message.
pub(super) fn listed(names: &[&String]) -> String {
    let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    names.join(", ")
}

/// The port in a URL, unless it is the default of https.
#[must_use]
pub(crate) fn shown_port(port: u16) -> String {
    match port {
        443 => String::new(),
        port => format!(":{port}"),
    }
}

/// A location for the challenge answers below `webroot`, with priority over the others and
/// open to everybody.
#[must_use]
pub(crate) fn challenge_location(webroot: &Path) -> Vec<String> {
    let root = quoted(&webroot.to_string_lossy());
    location(CHALLENGES, &format!("root {root};"))
}

pub(super) fn location(path: &str, files: &str) -> Vec<String> {
    vec![
        format!("location ^~ {path} {{"),
        format!("{STEP}{files}"),
        format!("{STEP}default_type text/plain;"),
        format!("{STEP}auth_basic off;"),
        format!("{STEP}allow all;"),
        "}".to_owned(),
    ]
}
