//! Plans TLS for a name: a pure function from a configuration to edits. A block
//! that listens only on port 80 moves to 443, and a small new block for challenges
//! and the redirect replaces it. A block that has TLS keeps its policy: only its
//! certificate and the challenges are edited.

mod lines;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use self::lines::STEP;
pub(crate) use self::lines::{POLICY, challenge_location, shown_port};
use super::change::{Edit, Edits, after_comment, indent, line_end};
use super::server::{ServerBlock, find, is_own, list_names};
use super::syntax::{Directive, Span};
use super::tree::{Placed, Tree};
use crate::failure::Failure;

/// The options of a plan.
#[derive(Clone, Debug)]
pub(crate) struct PlanOptions {
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
pub(crate) struct InstallPlan {
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

/// The name in `options`, or the only one; it is an error if there is none or more than one.
pub(crate) fn choose(tree: &Tree, options: &PlanOptions) -> Result<String, Failure> {
    let servers = ServerBlock::all(tree);
    if let Some(name) = &options.name {
        let name = name.to_ascii_lowercase();
        find(tree, &servers, &name)?;
        return Ok(name);
    }
    let firsts = servers
        .iter()
        .filter_map(|server| server.names.iter().find(|name| is_name(name)));
    let mut firsts: Vec<&String> = firsts.collect();
    firsts.dedup();
    if let [only] = firsts.as_slice() {
        return Ok((*only).clone());
    }
    let names = list_names(&servers);
    Err(Failure::usage(
        format!("which server block? The names are: {names}"),
        "choose one with --domain NAME",
    ))
}

/// Whether HTTP-01 can validate this name.
fn is_name(name: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    name.contains('.') && !name.starts_with('.') && name.bytes().all(is_of_name)
}

/// Plans the edits; `pair` is that of the name from [`choose`].
pub(crate) fn plan(
    tree: &Tree,
    name: &str,
    options: &PlanOptions,
    pair: &Pair,
) -> Result<InstallPlan, Failure> {
    let servers = ServerBlock::all(tree);
    let found = find(tree, &servers, name)?;
    let mut planner = Planner {
        tree,
        options,
        pair,
        servers: &servers,
        plan: InstallPlan {
            name: name.to_owned(),
            names: names(name, &found),
            edits: Edits::default(),
            done: Vec::new(),
            notes: Vec::new(),
            webroot: None,
        },
    };
    planner.find_webroot(&found)?;
    let (with, without): (Vec<&ServerBlock>, Vec<&ServerBlock>) =
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

fn names(name: &str, found: &[&ServerBlock]) -> Vec<String> {
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
    options: &'a PlanOptions,
    pair: &'a Pair,
    servers: &'a [ServerBlock<'a>],
    plan: InstallPlan,
}

impl Planner<'_> {
    fn edit(&mut self, file: usize, span: Span, text: impl Into<String>) {
        let text = text.into();
        let edits = self.plan.edits.entry(file).or_default();
        edits.push(Edit { span, text });
    }

    fn done(&mut self, change: String) {
        self.plan.done.push(change);
    }

    fn note(&mut self, note: String) {
        self.plan.notes.push(note);
    }

    /// Takes the directory for challenge answers from an existing location.
    fn find_webroot(&mut self, found: &[&ServerBlock]) -> Result<(), Failure> {
        let mut webroot = self.options.webroot.clone();
        for server in found {
            let Some(location) = server.challenges() else {
                continue;
            };
            let place = self.tree.place(location);
            let inside = self.tree.inside(location);
            let has_own_answer = inside.iter().any(|one| {
                let name = one.directive.name();
                name == "alias" || name == "return" || name.ends_with("_pass")
            });
            let mut directives = inside.iter().chain(&server.directives);
            let root = directives.find(|one| one.directive.name() == "root");
            let root = root.and_then(|one| one.directive.arguments().next());
            let Some(root) = root.filter(|_| !has_own_answer).map(PathBuf::from) else {
                self.note(format!(
                    "{place}: this location answers challenges already; not changed"
                ));
                return Ok(());
            };
            if webroot.as_ref().is_some_and(|wanted| *wanted != root) {
                let root = root.display();
                return Err(Failure::usage(
                    format!("{place}: this location answers challenges from {root} already"),
                    "omit --webroot to use that directory, or remove the location",
                ));
            }
            webroot = Some(root);
        }
        self.plan.webroot = webroot.or_else(|| Some(self.options.default_webroot.clone()));
        Ok(())
    }

    fn listens_on_http(&self, server: &ServerBlock) -> bool {
        let mut listens = server.listens.iter();
        listens.any(|listen| listen.port == Some(self.options.http_port))
    }

    /// Moves a block from plain HTTP to TLS, and adds a block for port 80.
    fn add_tls(&mut self, server: &ServerBlock) -> Result<(), Failure> {
        self.require_own(server)?;
        let place = self.tree.place(server.at);
        let port = self.options.http_port;
        let (moved, others): (Vec<_>, Vec<_>) = server
            .listens
            .iter()
            .partition(|listen| listen.port == Some(port));
        let mut new: Vec<String> = moved.iter().map(|listen| self.tls_listen(listen)).collect();
        if new.is_empty() {
            new.push(format!("listen {} ssl;", self.options.https_port));
        }
        let moved_at: Vec<_> = moved.iter().filter_map(|listen| listen.at).collect();
        for (at, text) in moved_at.iter().zip(&new) {
            self.edit(at.file, at.directive.span.clone(), text);
        }
        let mut lines = new[moved_at.len()..].to_vec();
        lines.extend(self.tls_lines(server));
        self.insert(server, server.of("listen").last(), &lines);
        let mut done = format!("{place}: {}", new.join(" ").replace(';', ""));
        if moved.is_empty() {
            let ports = others.iter().filter_map(|one| one.port);
            let ports: Vec<_> = ports.map(|port| port.to_string()).collect();
            self.note(format!(
                "{place}: it listens on {} and not on port {port}, so no redirect was added; the CA validates on port 80",
                ports.join(", ")
            ));
            self.add_challenges(server);
        } else {
            let start = server.at.directive.span.start;
            let block = self.redirect_block(server, &moved_at);
            self.edit(server.at.file, start..start, block);
            done.push_str(&format!("; port {port} answers challenges and redirects"));
        }
        self.done(done);
        Ok(())
    }

    /// Refuses directives in files that other blocks may include.
    fn require_own(&self, server: &ServerBlock) -> Result<(), Failure> {
        let directives = ["listen", "server_name"]
            .iter()
            .flat_map(|name| server.of(name));
        let mut shared = directives.filter(|one| !is_own(server, *one));
        shared.next().map_or(Ok(()), |one| {
            Err(Failure::usage(
                format!(
                    "{}: `{}` of the block at {} is in a file that other blocks may include",
                    self.tree.place(one),
                    one.directive.name(),
                    self.tree.place(server.at)
                ),
                "move it into the server block itself",
            ))
        })
    }

    /// Inserts lines after a directive, or at the start of the block.
    fn insert(&mut self, server: &ServerBlock, after: Option<Placed>, lines: &[String]) {
        let text = &self.tree.files[server.at.file].text;
        let (at, blanks) = if let Some(after) = after {
            let end = after.directive.span.end;
            (end, indent(text, end - 1))
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

    /// Sets the certificate of a block that has TLS.
    fn keep_tls(&mut self, server: &ServerBlock) -> Result<(), Failure> {
        let place = self.tree.place(server.at);
        let certificates: Vec<_> = server.of("ssl_certificate").collect();
        let keys: Vec<_> = server.of("ssl_certificate_key").collect();
        let lines = self.certificate_lines();
        let [certificate, key] = match (certificates.as_slice(), keys.as_slice()) {
            ([], []) => {
                let after = server.of("listen").last();
                let after = after.filter(|last| is_own(server, *last));
                self.insert(server, after, &lines);
                self.done(format!("{place}: certificate paths added"));
                return Ok(());
            }
            ([one], [other]) => [*one, *other],
            (several, others) => {
                let (several, others) = (several.len(), others.len());
                return Err(Failure::usage(
                    format!("{place}: the block has {several} certificates and {others} keys"),
                    "keep only one ssl_certificate and one ssl_certificate_key in that block",
                ));
            }
        };
        let is_ours = |one: Placed, name: &str| {
            one.directive.argument() == self.pair.live.join(name).to_string_lossy()
        };
        let was = certificate.directive.argument();
        if is_ours(certificate, "fullchain.pem") && is_ours(key, "privkey.pem") {
            return Ok(());
        }
        if !self.pair.is_issued {
            self.note(format!(
                "{place}: it keeps its certificate {was} until certs has issued one; then run this command again"
            ));
            return Ok(());
        }
        for (one, line) in [certificate, key].into_iter().zip(lines) {
            if !is_own(server, one) {
                return Err(Failure::usage(
                    format!(
                        "{}: the certificate of the block at {place} is in a file that other blocks may include",
                        self.tree.place(one)
                    ),
                    "move ssl_certificate and ssl_certificate_key into the server block itself",
                ));
            }
            self.edit(one.file, one.directive.span.clone(), line);
        }
        self.done(format!("{place}: certificate paths replaced, before {was}"));
        if was.contains("/letsencrypt/") {
            self.note(format!(
                "{place}: certbot still renews {was}; certbot delete stops that"
            ));
        }
        Ok(())
    }

    /// Adds challenges to a plain block beside one with TLS, but keeps a redirect of the user.
    fn answer_in_plain(&mut self, server: &ServerBlock) {
        if !self.listens_on_http(server) {
            return;
        }
        let mut returns = server.of("return").chain(server.of("rewrite"));
        match returns.next() {
            // A CA follows redirects to the block with TLS, which answers.
            Some(first) => self.note(format!(
                "{}: redirect not changed; the CA follows it",
                self.tree.place(first)
            )),
            None => self.add_challenges(server),
        }
    }

    fn add_challenges(&mut self, server: &ServerBlock) {
        let lines = self.challenge_lines();
        if server.challenges().is_some() || lines.is_empty() {
            return;
        }
        let own = |name| server.of(name).filter(|one| is_own(server, *one)).last();
        let after = own("server_name").or_else(|| own("listen"));
        self.insert(server, after, &lines);
        self.done(format!(
            "{}: answers challenges",
            self.tree.place(server.at)
        ));
    }

    fn note_excluded(&mut self, found: &[&ServerBlock]) {
        let names = found.iter().flat_map(|server| &server.names);
        let excluded = names.filter(|name| !self.plan.names.contains(name));
        let excluded: Vec<&str> = excluded
            .map(String::as_str)
            .filter(|name| !name.is_empty() && *name != "_")
            .collect();
        if !excluded.is_empty() {
            self.note(format!(
                "the certificate excludes {}: HTTP-01 cannot validate a pattern",
                excluded.join(", ")
            ));
        }
    }
}
