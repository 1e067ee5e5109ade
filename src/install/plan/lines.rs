//! The lines that a plan writes: listeners and policy of a block with TLS, the block that
//! redirects to it, and the location of challenge answers.

use std::path::Path;

use super::super::change::{indent, line_end};
use super::super::server::{CHALLENGES, Listen, ServerBlock};
use super::super::syntax::quoted;
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
    /// The same address on the port for TLS. It keeps the options that do not
    /// contradict another listener at that address.
    pub(super) fn tls_listen(&self, listen: &Listen) -> String {
        let port = self.options.https_port;
        let all = self.servers.iter().flat_map(|server| &server.listens);
        let others: Vec<&Listen> = all
            .filter(|other| other.port == Some(port) && other.is_at(&listen.address))
            .collect();
        let mut all = others.iter();
        let has_default = all.any(|other| other.is("default_server") || other.is("default"));
        let address = match listen.address.as_str() {
            "" => port.to_string(),
            address => quoted(&format!("{address}:{port}")),
        };
        let mut line = format!("listen {address} ssl");
        for option in &listen.options {
            let option = match option.as_str() {
                "default_server" | "default" if !has_default => "default_server",
                "proxy_protocol" => option,
                _ if option.starts_with("ipv6only=") && others.is_empty() => option,
                _ => continue,
            };
            line.push(' ');
            line.push_str(option);
        }
        line + ";"
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

    pub(super) fn redirect_block(&self, server: &ServerBlock, moved: &[Placed]) -> String {
        let text = &self.tree.files[server.at.file].text;
        let end = line_end(text);
        let outer = indent(text, server.at.directive.span.start);
        let raw = |placed: Placed| {
            String::from_utf8_lossy(&text[placed.directive.span.clone()]).into_owned()
        };
        let mut lines: Vec<String> = moved.iter().copied().map(raw).collect();
        if lines.is_empty() {
            lines.push(format!("listen {};", self.options.http_port));
        }
        lines.extend(server.of("server_name").map(raw));
        lines.extend(self.challenge_lines());
        let port = shown_port(self.options.https_port);
        lines.push("location / {".to_owned());
        lines.push(format!("{STEP}return 308 https://$host{port}$request_uri;"));
        lines.push("}".to_owned());
        let lines = lines.iter().map(|line| format!("{outer}{STEP}{line}{end}"));
        let lines: String = lines.collect();
        format!(
            "server {{ # by certs install: challenges and the redirect{end}{lines}{outer}}}{end}{end}{outer}"
        )
    }

    pub(super) fn challenge_lines(&self) -> Vec<String> {
        let webroot = self.plan.webroot.as_deref();
        webroot.map_or_else(Vec::new, challenge_location)
    }
}

/// The port in a URL, unless it is the default of https.
#[must_use]
pub(crate) fn shown_port(port: u16) -> String {
    match port {
        443 => String::new(),
        port => format!(":{port}"),
    }
}

/// A location for the challenge answers below `webroot`, with priority over the others.
#[must_use]
pub(crate) fn challenge_location(webroot: &Path) -> Vec<String> {
    let root = quoted(&webroot.to_string_lossy());
    vec![
        format!("location ^~ {CHALLENGES} {{"),
        format!("{STEP}root {root};"),
        format!("{STEP}default_type text/plain;"),
        format!("{STEP}auth_basic off;"),
        "}".to_owned(),
    ]
}
