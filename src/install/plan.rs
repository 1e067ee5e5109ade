//! Plans TLS for a name: a pure function from a configuration to edits, up to a stage. First
//! port 80 answers challenges for each name; then blocks without TLS get it beside port 80;
//! last, port 80 redirects the names that the certificate has, unless a rule of the user does.
//! Each stage continues from what the earlier one wrote. A block that has TLS keeps its policy:
//! only its certificate and the redirect of its port 80 are edited.

mod answers;
mod certificates;
mod lines;
mod listens;
mod redirect;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

pub(crate) use self::lines::{POLICY, challenge_location, shown_port};
use self::lines::{listed, place_of_start};
use super::change::{Edit, Edits};
use super::server::{CHALLENGES, ServerBlock, find, list_names};
use super::syntax::Span;
use super::tree::Tree;
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::net::sockets::ListenAddress;
use crate::text::shell_word;

/// How far a plan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Port 80 answers challenges.
    Challenges,
    /// And blocks have TLS.
    Tls,
    /// And port 80 redirects.
    Redirect,
}

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
    /// The directory to which nginx's relative paths of files belong.
    pub prefix: PathBuf,
    /// Whether existing locations for challenges serve their directory. It is false once a
    /// token laid out there was not answered.
    pub trusts_locations: bool,
    /// Whether names are proven by DNS, which proves wildcards, too.
    pub by_dns: bool,
}

impl PlanOptions {
    /// Whether the certificate can have this name.
    fn can_have(&self, name: &str) -> bool {
        let base = name.strip_prefix("*.").filter(|_| self.by_dns);
        is_name(base.unwrap_or(name))
    }
}

/// The stored pair of a name.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// The directory of `fullchain.pem` and `privkey.pem`.
    pub live: PathBuf,
    /// The names of the certificate that a CA issued; none if it is a placeholder or does
    /// not exist yet.
    pub issued: BTreeSet<Identifier>,
}

impl Pair {
    /// Its certificate, by the name below `live`.
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        Lineage::parse(self.live.file_name()?.to_str()?).ok()
    }

    fn is_issued(&self) -> bool {
        !self.issued.is_empty()
    }

    fn covers(&self, name: &str) -> bool {
        let covers = |name: Identifier| self.issued.iter().any(|one| name.is_covered_by(one));
        Identifier::parse(name).is_ok_and(covers)
    }
}

/// A host of a wildcard, in place of its `*.`.
pub(crate) const PROBED: &str = "certs-probe.";

/// A socket at which a name must be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    pub address: ListenAddress,
    /// The address that nginx binds for it, if it has not yet.
    pub binds: Option<SocketAddr>,
    /// Whether it expects a PROXY header.
    pub is_proxied: bool,
    /// The name, in A-labels.
    pub name: String,
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
    /// The directory for challenge answers.
    pub webroot: PathBuf,
    /// Where challenges must be answered.
    pub plain: Vec<Reach>,
    /// Where the certificate must be served.
    pub tls: Vec<Reach>,
    /// Where plain HTTP redirects from now on.
    pub redirected: Vec<Reach>,
    /// Whether an existing location for challenges is relied on.
    pub relies_on_location: bool,
}

/// The name in `options`, or the only one; it is an error if there is none or more than one.
pub(crate) fn choose(tree: &Tree, options: &PlanOptions) -> Result<String, Failure> {
    let servers = ServerBlock::all(tree);
    if let Some(name) = &options.name {
        let name = Identifier::parse(name).map_or_else(
            |_| name.to_ascii_lowercase(),
            |identifier| identifier.to_string(),
        );
        find(tree, &servers, &name)?;
        return Ok(name);
    }
    let firsts = servers
        .iter()
        .filter_map(|server| server.names.iter().find(|name| options.can_have(name)));
    let mut firsts: Vec<&String> = firsts.collect();
    firsts.dedup();
    match (firsts.as_slice(), list_names(&servers), servers.first()) {
        ([only], ..) => Ok((*only).clone()),
        (_, Some(names), _) => Err(Failure::usage(
            format!("which server block? The names are: {names}"),
            "choose one with --domain NAME",
        )),
        (_, None, Some(server)) => Err(Failure::usage(
            "no server block has a name that a certificate can have",
            format!(
                "write `server_name` with the domain name into its block, such as the one at {}; then run this command again",
                tree.place(server.at)
            ),
        )),
        (_, None, None) => Err(Failure::usage(
            "the configuration has no server block",
            "write the site's server block, or a whole site with --site --domain NAME --root DIR",
        )),
    }
}

/// The names of the blocks of `name` that its certificate can have, that one first.
pub(crate) fn names_beside(
    tree: &Tree,
    name: &str,
    options: &PlanOptions,
) -> Result<Vec<String>, Failure> {
    let servers = ServerBlock::all(tree);
    Ok(names(name, &find(tree, &servers, name)?, options))
}

/// Whether HTTP-01 can validate this name.
fn is_name(name: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    name.contains('.')
        && !name.ends_with('.')
        && name.bytes().all(is_of_name)
        && matches!(Identifier::parse(name), Ok(Identifier::Dns(_)))
}

/// Plans the edits up to `stage`; `pair` is that of the name from [`choose`].
pub(crate) fn plan(
    tree: &Tree,
    name: &str,
    options: &PlanOptions,
    pair: &Pair,
    stage: Stage,
) -> Result<InstallPlan, Failure> {
    let servers = ServerBlock::all(tree);
    let mut found = find(tree, &servers, name)?;
    // One certificate over several blocks is installed in all of them.
    let issued: Vec<String> = pair.issued.iter().map(ToString::to_string).collect();
    let shares = |server: &ServerBlock| issued.iter().any(|name| server.is_named(name));
    let is_found = |server: &ServerBlock| found.iter().any(|one| std::ptr::eq(*one, server));
    let further: Vec<_> = servers
        .iter()
        .filter(|one| shares(one) && !is_found(one))
        .collect();
    found.extend(further);
    let (found, hidden) = within_reach(tree, found, name, options)?;
    check_answers(tree, &found, name, options, pair)?;
    let mut planner = Planner {
        tree,
        options,
        pair,
        servers: &servers,
        plan: InstallPlan {
            name: name.to_owned(),
            names: names(name, &found, options),
            edits: Edits::default(),
            done: Vec::new(),
            notes: Vec::new(),
            webroot: options.default_webroot.clone(),
            plain: Vec::new(),
            tls: Vec::new(),
            redirected: Vec::new(),
            relies_on_location: false,
        },
    };
    planner.plan.notes.extend(hidden);
    planner.answer(&found)?;
    if stage > Stage::Challenges {
        for server in &found {
            match server.has_tls() {
                true => planner.keep_tls(server)?,
                false => planner.add_tls(server, &found)?,
            }
        }
        if stage == Stage::Redirect {
            planner.redirect(&found);
        }
        planner.note_excluded(&found);
    }
    Ok(planner.plan)
}

/// The blocks that listen on a port or have TLS, and a note about the others: those have the
/// TLS of the server in front of them.
fn within_reach<'s, 't>(
    tree: &Tree,
    found: Vec<&'s ServerBlock<'t>>,
    name: &str,
    options: &PlanOptions,
) -> Result<(Vec<&'s ServerBlock<'t>>, Option<String>), Failure> {
    let is_meant = |one: &&ServerBlock| one.is_on_a_port() || one.has_tls();
    let (found, hidden): (Vec<_>, Vec<_>) = found.into_iter().partition(is_meant);
    let places: Vec<String> = hidden.iter().map(|one| tree.place(one.at)).collect();
    let places = places.join(", ");
    if !found.is_empty() {
        let note = (!hidden.is_empty()).then(|| {
            format!(
                "{places}: not changed, since it listens on a Unix socket alone: the server in front of it has its TLS"
            )
        });
        return Ok((found, note));
    }
    Err(Failure::usage(
        format!(
            "{places}: the block listens on a Unix socket alone: the server in front of it has its clients and their TLS; nothing was changed"
        ),
        format!(
            "add `listen {};` to the block, or obtain a certificate for the server in front: certs issue {} --webroot DIR, which that server serves at {CHALLENGES}",
            options.http_port,
            shell_word(name)
        ),
    ))
}

/// Refuses blocks on Unix sockets alone whose certificate is not issued yet: the server in
/// front of them has port 80.
fn check_answers(
    tree: &Tree,
    found: &[&ServerBlock],
    name: &str,
    options: &PlanOptions,
    pair: &Pair,
) -> Result<(), Failure> {
    if pair.is_issued() || options.by_dns || found.iter().any(|one| one.is_on_a_port()) {
        return Ok(());
    }
    let places: Vec<String> = found.iter().map(|one| tree.place(one.at)).collect();
    let (places, name) = (places.join(", "), shell_word(name));
    Err(Failure::usage(
        format!(
            "{places}: the block has TLS on a Unix socket alone, and port {} belongs to the server in front of it: challenges cannot be answered here; nothing was changed",
            options.http_port
        ),
        format!(
            "issue the certificate first, then run this command again: certs issue {name} --webroot DIR, which the server in front serves at {CHALLENGES}, or certs issue {name} --dns PROVIDER"
        ),
    ))
}

fn names(name: &str, found: &[&ServerBlock], options: &PlanOptions) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    for other in found.iter().flat_map(|server| &server.names) {
        if options.can_have(other) && !names.contains(other) {
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

    fn listens_on_http(&self, server: &ServerBlock) -> bool {
        let mut listens = server.listens.iter();
        listens.any(|listen| listen.port == Some(self.options.http_port))
    }

    /// The names of a block that its certificate is for.
    fn served<'s>(&self, server: &'s ServerBlock) -> Vec<&'s String> {
        let wanted = |name: &&String| match self.pair.is_issued() {
            true => self.pair.covers(name),
            false => self.plan.names.contains(name),
        };
        server.names.iter().filter(wanted).collect()
    }

    /// Adds TLS beside the plain listeners of a block, unless another block has it.
    fn add_tls(&mut self, server: &ServerBlock, found: &[&ServerBlock]) -> Result<(), Failure> {
        let place = self.tree.place(server.at);
        let secured = self.servers.iter().filter(|one| one.has_tls());
        let secured: Vec<&String> = secured.flat_map(|one| &one.names).collect();
        let own = server
            .names
            .iter()
            .filter(|name| self.options.can_have(name));
        let (with, without): (Vec<_>, Vec<_>) = own.partition(|name| secured.contains(name));
        if !with.is_empty() {
            if !without.is_empty() {
                let without = listed(&without);
                self.note(format!(
                    "{place}: {without} has no block with TLS, unlike the other names of this block: add it to the server_name of that block"
                ));
            }
            return Ok(());
        }
        let is_plain = self.listens_on_http(server);
        let is_wanted = |one: &ServerBlock| self.listens_on_http(one) && self.has_content(one);
        if !self.has_content(server) || !is_plain && found.iter().any(|one| is_wanted(one)) {
            return Ok(());
        }
        if let Some(at) = redirect::to_itself(self.tree, server) {
            let (name, at) = (&self.plan.name, self.tree.place(at));
            return Err(Failure::usage(
                format!(
                    "{at}: this redirect to https is in the block that would get TLS, and would lead to itself"
                ),
                format!(
                    "remove it, or give {name} a server block with its content; then run this command again"
                ),
            ));
        }
        let from: Vec<_> = match is_plain {
            true => self.on(server, self.options.http_port),
            false => server.listens.iter().collect(),
        };
        let added = self.listeners(server, &from, self.options.https_port, true)?;
        let mut lines: Vec<String> = added.iter().map(ToString::to_string).collect();
        let done = format!("{place}: {}", lines.join(" ").replace(';', ""));
        if is_plain && let Some(first) = lines.first_mut() {
            *first += &format!(" {}", redirect::LATER);
        }
        if server.listens.iter().all(|listen| listen.at.is_none()) {
            lines.insert(0, format!("listen {};", self.options.http_port));
        }
        lines.extend(self.tls_lines(server));
        let after =
            place_of_start(server, "listen").or_else(|| place_of_start(server, "server_name"));
        self.insert(server, after, &lines);
        self.done(done);
        self.reach_tls(server, &added);
        Ok(())
    }

    fn note_excluded(&mut self, found: &[&ServerBlock]) {
        let names = found.iter().flat_map(|server| &server.names);
        let names = names.filter(|name| !name.is_empty() && *name != "_");
        let (outside, names): (Vec<&String>, Vec<_>) =
            names.partition(|name| !self.plan.names.contains(name));
        let outside = outside.into_iter().filter(|name| !self.pair.covers(name));
        let (patterns, others): (Vec<&String>, Vec<_>) =
            outside.partition(|name| name.starts_with('~') || name.contains('*'));
        if !others.is_empty() {
            let others = listed(&others);
            self.note(format!(
                "the certificate excludes {others}: not a public DNS name"
            ));
        }
        if !patterns.is_empty() {
            self.note_patterns(&patterns);
        }
        let lacking = names
            .into_iter()
            .filter(|name| self.pair.is_issued() && !self.pair.covers(name));
        let lacking: BTreeSet<&String> = lacking.collect();
        if !lacking.is_empty() {
            let all = self.pair.issued.iter().map(ToString::to_string);
            let all = words(all.chain(lacking.iter().map(|name| (*name).clone())));
            let lacking = listed(&lacking.into_iter().collect::<Vec<_>>());
            self.note(format!(
                "the certificate lacks {lacking}: no redirect was added for it, and clients of https get an error; for it: certs issue {all}, and then this command again"
            ));
        }
    }

    fn note_patterns(&mut self, patterns: &[&String]) {
        let wild = patterns.iter().copied();
        let wild = wild.filter(|name| Identifier::parse(name).is_ok()).cloned();
        let wild = words(wild);
        let remedy = match wild.is_empty() {
            true => "; for a host that it matches, add its name to server_name".to_owned(),
            false => format!(
                "; for {wild}: certs issue {} {wild} --dns PROVIDER, and then this command again",
                words(self.plan.names.iter().cloned())
            ),
        };
        let patterns = listed(patterns);
        self.note(format!(
            "the certificate excludes {patterns}: HTTP-01 cannot validate a pattern{remedy}"
        ));
    }
}

/// The names as the words of a command.
fn words(names: impl Iterator<Item = String>) -> String {
    let words = names.map(|name| shell_word(&name));
    words.collect::<Vec<_>>().join(" ")
}
