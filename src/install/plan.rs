//! Plans TLS for a name: a pure function from a configuration to edits. A block
//! that listens only on port 80 moves to 443, and a small new block for challenges
//! and the redirect replaces it. A block that has TLS keeps its policy: only its
//! certificate and the challenges are edited.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::InstallError;
use super::change::{Edits, after_comment, indent, line_end};
use super::server::{CHALLENGES, Listen, Server, find, is_own, list_names, place};
use super::syntax::quoted;
use super::tree::{Placed, Tree};

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

/// The options of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// A name of the server block; `None` for the only block.
    pub name: Option<String>,
    /// The port of plain HTTP.
    pub http_port: u16,
    /// The port for TLS.
    pub https_port: u16,
    /// The directory for challenge answers; `None` for that of an existing location or
    /// the default.
    pub webroot: Option<PathBuf>,
    /// The default directory for challenge answers.
    pub default_webroot: PathBuf,
}

/// The stored pair of a name.
pub(crate) struct Pair {
    /// The directory of `fullchain.pem` and `privkey.pem`.
    pub live: PathBuf,
    /// Whether a CA issued it; else it is a placeholder or does not exist yet.
    pub is_issued: bool,
}

/// The edits, and what to report of them.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The name of the certificate.
    pub name: String,
    /// All names of the blocks that the certificate can have, that one first.
    pub names: Vec<String>,
    /// The changes to files.
    pub edits: Edits,
    /// The changes in words for the user, by file and line.
    pub done: Vec<String>,
    /// What is not changed, and why.
    pub notes: Vec<String>,
    /// The directory for challenge answers; `None` if another server answers.
    pub webroot: Option<PathBuf>,
}

/// Chooses the name.
///
/// # Errors
/// [`InstallError::Refused`] if there is no name or more than one.
pub(crate) fn choose(tree: &Tree, wish: &Wish) -> Result<String, InstallError> {
    let servers = Server::all(tree);
    if let Some(name) = &wish.name {
        let name = name.to_ascii_lowercase();
        find(tree, &servers, &name)?;
        return Ok(name);
    }
    let firsts = servers
        .iter()
        .filter_map(|server| server.names.iter().find(|name| is_name(name)));
    let mut firsts: Vec<&String> = firsts.collect();
    firsts.dedup();
    match firsts.as_slice() {
        [only] => Ok((*only).clone()),
        _ => Err(InstallError::refused(
            format!(
                "which server block? The names are: {}",
                list_names(&servers)
            ),
            "choose one with --domain NAME",
        )),
    }
}

/// Whether HTTP-01 can validate this name.
fn is_name(name: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    name.contains('.') && !name.starts_with('.') && name.bytes().all(is_of_name)
}

/// Plans the edits; `pair` is that of the name from [`choose`].
///
/// # Errors
/// [`InstallError::Refused`]: nothing may be written.
pub(crate) fn plan(
    tree: &Tree,
    name: &str,
    wish: &Wish,
    pair: &Pair,
) -> Result<Plan, InstallError> {
    let servers = Server::all(tree);
    let found = find(tree, &servers, name)?;
    let mut planner = Planner {
        tree,
        wish,
        pair,
        servers: &servers,
        webroot: wish.webroot.clone(),
        plan: Plan {
            name: name.to_owned(),
            names: names(name, &found),
            edits: Edits::default(),
            done: Vec::new(),
            notes: Vec::new(),
            webroot: None,
        },
    };
    planner.find_webroot(&found)?;
    let (with, without): (Vec<&Server>, Vec<&Server>) =
        found.iter().copied().partition(|server| server.has_tls());
    let answered = without
        .iter()
        .any(|server| planner.listens_on_http(server) && server.challenges().is_some());
    for server in &with {
        if !answered {
            planner.add_challenges(server);
        }
        planner.keep_tls(server)?;
    }
    if with.is_empty() {
        let mut chosen = without.clone();
        chosen.retain(|server| planner.listens_on_http(server));
        if chosen.is_empty() {
            chosen.extend(without.first());
        }
        for server in chosen {
            planner.add_tls(server)?;
        }
    } else {
        for server in &without {
            planner.answer_in_plain(server);
        }
    }
    planner.note_excluded(&found);
    Ok(planner.plan)
}

fn names(name: &str, found: &[&Server]) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    for other in found.iter().flat_map(|server| &server.names) {
        if is_name(other) && !names.contains(other) {
            names.push(other.clone());
        }
    }
    names
}

struct Planner<'a> {
    tree: &'a Tree,
    wish: &'a Wish,
    pair: &'a Pair,
    servers: &'a [Server<'a>],
    webroot: Option<PathBuf>,
    plan: Plan,
}

impl Planner<'_> {
    /// Takes the directory for challenge answers from an existing location.
    fn find_webroot(&mut self, found: &[&Server]) -> Result<(), InstallError> {
        for server in found {
            let Some(location) = server.challenges() else {
                continue;
            };
            let inside = self.tree.inside(location);
            let mut directives = inside.iter().chain(&server.directives);
            let has_own_answer = inside.iter().any(|one| {
                let name = one.directive.name();
                name == "alias" || name == "return" || name.ends_with("_pass")
            });
            let root = directives.find(|one| one.directive.name() == "root");
            let root = root
                .filter(|_| !has_own_answer)
                .and_then(|one| one.directive.arguments().next());
            let Some(root) = root.map(PathBuf::from) else {
                let place = place(self.tree, location);
                self.plan.notes.push(format!(
                    "{place}: this location answers challenges already; not changed"
                ));
                return Ok(());
            };
            if self.webroot.as_ref().is_some_and(|wanted| *wanted != root) {
                return Err(InstallError::refused(
                    format!(
                        "{}: this location answers challenges from {} already",
                        place(self.tree, location),
                        root.display()
                    ),
                    "omit --webroot to use that directory, or remove the location",
                ));
            }
            self.webroot = Some(root);
        }
        let webroot = self
            .webroot
            .get_or_insert_with(|| self.wish.default_webroot.clone());
        self.plan.webroot = Some(webroot.clone());
        Ok(())
    }

    fn listens_on_http(&self, server: &Server) -> bool {
        server
            .listens
            .iter()
            .any(|listen| listen.port == Some(self.wish.http_port))
    }

    /// Moves a block from plain HTTP to TLS, and adds a block for port 80.
    fn add_tls(&mut self, server: &Server) -> Result<(), InstallError> {
        self.require_own(server)?;
        let place = server.place(self.tree);
        let source = &self.tree.files[server.at.file];
        let (end, port) = (line_end(&source.text), self.wish.http_port);
        let (moved, kept): (Vec<_>, Vec<_>) = server
            .listens
            .iter()
            .partition(|listen| listen.port == Some(port));
        let mut new: Vec<String> = moved.iter().map(|listen| self.tls_listen(listen)).collect();
        if new.is_empty() {
            new.push(format!("listen {} ssl;", self.wish.https_port));
        }
        let written: Vec<_> = server.of("listen").collect();
        let moved_at: Vec<_> = moved.iter().filter_map(|listen| listen.at).collect();
        for (at, text) in moved_at.iter().zip(&new) {
            self.plan
                .edits
                .add(at.file, at.directive.span.clone(), text.clone());
        }
        let unwritten = new.iter().skip(moved_at.len()).cloned();
        let mut lines: Vec<String> = unwritten.collect();
        lines.extend(self.tls_lines(server));
        let after = written.last().map(|last| last.directive.span.end);
        self.insert(server, after, &lines);
        let mut done = format!("{place}: {}", new.join(" ").replace(';', ""));
        if moved.is_empty() {
            let others: Vec<_> = kept
                .iter()
                .filter_map(|one| one.port)
                .map(|port| port.to_string())
                .collect();
            self.plan.notes.push(format!(
                "{place}: it listens on {} and not on port {port}, so no redirect was added; the CA validates on port 80",
                others.join(", ")
            ));
            self.add_challenges(server);
        } else {
            let block = self.redirect_block(server, &moved, end);
            self.plan.edits.add(
                server.at.file,
                server.at.directive.span.start..server.at.directive.span.start,
                block,
            );
            done.push_str(&format!("; port {port} answers challenges and redirects"));
        }
        self.plan.done.push(done);
        Ok(())
    }

    /// Refuses directives in files that other blocks may include.
    fn require_own(&self, server: &Server) -> Result<(), InstallError> {
        let directives = ["listen", "server_name"]
            .iter()
            .flat_map(|name| server.of(name));
        let mut shared = directives.filter(|one| !is_own(server, *one));
        if let Some(one) = shared.next() {
            return Err(InstallError::refused(
                format!(
                    "{}: `{}` of the block at {} is in a file that other blocks may include",
                    place(self.tree, one),
                    one.directive.name(),
                    server.place(self.tree)
                ),
                "move it into the server block itself",
            ));
        }
        Ok(())
    }

    /// The same address on the port for TLS. It keeps the options that do not
    /// contradict another listener at that address.
    fn tls_listen(&self, listen: &Listen) -> String {
        let port = self.wish.https_port;
        let others: Vec<&Listen> = self
            .servers
            .iter()
            .flat_map(|server| &server.listens)
            .filter(|other| other.port == Some(port) && other.is_at(&listen.address))
            .collect();
        let address = match listen.address.as_str() {
            "" => port.to_string(),
            address => quoted(&format!("{address}:{port}")),
        };
        let mut line = format!("listen {address} ssl");
        for option in &listen.options {
            let is_default = option == "default_server" || option == "default";
            let stays = if is_default {
                !others
                    .iter()
                    .any(|other| other.is("default_server") || other.is("default"))
            } else {
                option == "proxy_protocol" || (option.starts_with("ipv6only=") && others.is_empty())
            };
            if stays {
                line.push(' ');
                line.push_str(if is_default { "default_server" } else { option });
            }
        }
        line + ";"
    }

    fn certificate_lines(&self) -> [String; 2] {
        let file = |name: &str| quoted(&self.pair.live.join(name).to_string_lossy());
        [
            format!("ssl_certificate {};", file("fullchain.pem")),
            format!("ssl_certificate_key {};", file("privkey.pem")),
        ]
    }

    fn tls_lines(&self, server: &Server) -> Vec<String> {
        let mut lines: Vec<String> = self.certificate_lines().into();
        for (name, value) in POLICY {
            if server.of(name).next().is_none() {
                lines.push(format!("{name} {value};"));
            }
        }
        lines
    }

    /// Inserts lines after the directive that ends at `after`, or at the start of the block.
    fn insert(&mut self, server: &Server, after: Option<usize>, lines: &[String]) {
        let text = &self.tree.files[server.at.file].text;
        let inner = server
            .at
            .directive
            .block
            .as_ref()
            .map_or(0, |block| block.inner.start);
        let (at, blanks) = match after {
            Some(after) => (after_comment(text, after), indent(text, after - 1)),
            None => {
                let outer = indent(text, server.at.directive.span.start);
                (after_comment(text, inner), format!("{outer}    "))
            }
        };
        let end = line_end(text);
        let mut inserted = String::new();
        for line in lines {
            inserted.push_str(&format!("{end}{blanks}{line}"));
        }
        // Other text on this line continues on a new line.
        let ends_here = text
            .get(at)
            .is_none_or(|byte| matches!(byte, b'\n' | b'\r'));
        if !ends_here {
            inserted.push_str(&format!("{end}{blanks}"));
        }
        self.plan.edits.add(server.at.file, at..at, inserted);
    }

    fn redirect_block(&self, server: &Server, moved: &[&Listen], end: &str) -> String {
        let source = &self.tree.files[server.at.file];
        let outer = indent(&source.text, server.at.directive.span.start);
        let step = "    ";
        let raw = |placed: &Placed| {
            let bytes = &source.text[placed.directive.span.clone()];
            String::from_utf8_lossy(bytes).into_owned()
        };
        let mut lines: Vec<String> = moved
            .iter()
            .filter_map(|listen| listen.at)
            .map(|at| raw(&at))
            .collect();
        if lines.is_empty() {
            lines.push(format!("listen {};", self.wish.http_port));
        }
        let names: Vec<_> = server.of("server_name").collect();
        lines.extend(names.iter().map(raw));
        lines.extend(self.challenge_lines(step));
        let port = match self.wish.https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        lines.push("location / {".to_owned());
        lines.push(format!("{step}return 308 https://$host{port}$request_uri;"));
        lines.push("}".to_owned());
        let mut block = format!("server {{ # by certs install: challenges and the redirect{end}");
        for line in lines {
            block.push_str(&format!("{outer}{step}{line}{end}"));
        }
        format!("{block}{outer}}}{end}{end}{outer}")
    }

    fn challenge_lines(&self, step: &str) -> Vec<String> {
        let Some(webroot) = self.plan.webroot.as_deref() else {
            return Vec::new();
        };
        challenge_location(webroot, step)
    }

    /// Sets the certificate of a block that has TLS.
    fn keep_tls(&mut self, server: &Server) -> Result<(), InstallError> {
        let place = server.place(self.tree);
        let certificates: Vec<_> = server.of("ssl_certificate").collect();
        let keys: Vec<_> = server.of("ssl_certificate_key").collect();
        let [certificate, key] = self.certificate_lines();
        let (certificate, key) = match (certificates.as_slice(), keys.as_slice()) {
            ([], []) => {
                let after = server
                    .of("listen")
                    .last()
                    .filter(|last| is_own(server, *last));
                let after = after.map(|last| last.directive.span.end);
                self.insert(server, after, &[certificate, key]);
                self.plan
                    .done
                    .push(format!("{place}: certificate paths added"));
                return Ok(());
            }
            ([one], [other]) => ((*one, certificate), (*other, key)),
            _ => {
                return Err(InstallError::refused(
                    format!(
                        "{place}: the block has {} certificates and {} keys",
                        certificates.len(),
                        keys.len()
                    ),
                    "keep only one ssl_certificate and one ssl_certificate_key in that block",
                ));
            }
        };
        let path = |one: Placed| {
            one.directive
                .arguments()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let ours = |name: &str| self.pair.live.join(name).to_string_lossy().into_owned();
        let was = path(certificate.0);
        if was == ours("fullchain.pem") && path(key.0) == ours("privkey.pem") {
            return Ok(());
        }
        if !self.pair.is_issued {
            self.plan.notes.push(format!(
                "{place}: it keeps its certificate {was} until certs has issued one; then run this command again"
            ));
            return Ok(());
        }
        self.replace_pair(server, &place, &was, [certificate, key])
    }

    /// Puts our paths where others stood.
    fn replace_pair(
        &mut self,
        server: &Server,
        place: &str,
        was: &str,
        lines: [(Placed, String); 2],
    ) -> Result<(), InstallError> {
        for (one, line) in lines {
            if !is_own(server, one) {
                return Err(InstallError::refused(
                    format!(
                        "{}: the certificate of the block at {place} is in a file that other blocks may include",
                        super::server::place(self.tree, one)
                    ),
                    "move ssl_certificate and ssl_certificate_key into the server block itself",
                ));
            }
            self.plan
                .edits
                .add(one.file, one.directive.span.clone(), line);
        }
        self.plan
            .done
            .push(format!("{place}: certificate paths replaced, before {was}"));
        if was.contains("/letsencrypt/") {
            self.plan.notes.push(format!(
                "{place}: certbot still renews {was}; certbot delete stops that"
            ));
        }
        Ok(())
    }

    /// Adds challenges to a plain block beside one with TLS, but keeps a redirect of the user.
    fn answer_in_plain(&mut self, server: &Server) {
        let returns = server.of("return").chain(server.of("rewrite")).next();
        if !self.listens_on_http(server) {
            return;
        }
        if let Some(first) = returns {
            let place = place(self.tree, first);
            // A CA follows redirects to the block with TLS, which answers.
            self.plan
                .notes
                .push(format!("{place}: redirect not changed; the CA follows it"));
        } else {
            self.add_challenges(server);
        }
    }

    fn add_challenges(&mut self, server: &Server) {
        let lines = self.challenge_lines("    ");
        if server.challenges().is_some() || lines.is_empty() {
            return;
        }
        let own = |name| server.of(name).filter(|one| is_own(server, *one)).last();
        let after = own("server_name").or_else(|| own("listen"));
        self.insert(server, after.map(|one| one.directive.span.end), &lines);
        self.plan
            .done
            .push(format!("{}: answers challenges", server.place(self.tree)));
    }

    fn note_excluded(&mut self, found: &[&Server]) {
        let names = found.iter().flat_map(|server| &server.names);
        let left: Vec<_> = names
            .filter(|name| !self.plan.names.contains(name))
            .collect();
        let left: Vec<_> = left
            .iter()
            .filter(|name| !name.is_empty() && **name != "_")
            .map(|name| name.as_str())
            .collect();
        if !left.is_empty() {
            let left = left.join(", ");
            self.plan.notes.push(format!(
                "the certificate excludes {left}: HTTP-01 cannot validate a pattern"
            ));
        }
    }
}

/// A location for the challenge answers below `webroot`, with priority over the others.
#[must_use]
pub(crate) fn challenge_location(webroot: &Path, step: &str) -> Vec<String> {
    let root = quoted(&webroot.to_string_lossy());
    vec![
        format!("location ^~ {CHALLENGES} {{"),
        format!("{step}root {root};"),
        format!("{step}default_type text/plain;"),
        format!("{step}auth_basic off;"),
        "}".to_owned(),
    ]
}
