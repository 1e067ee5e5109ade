//! Challenges on port 80: each name is answered by a block that listens there, whatever its
//! other rules are. A location of the user for challenges stays, and serves what it did.

use std::path::PathBuf;

use super::super::change::{indent, line_end};
use super::super::server::{CHALLENGES, ServerBlock, is_own};
use super::super::syntax::quoted;
use super::super::tree::Placed;
use super::lines::{STEP, challenge_location, listed, location, place_of_start};
use super::{Planner, redirect};
use crate::failure::Failure;
use crate::identifier::Identifier;

/// Where our answers are beside a location of the user.
const ASIDE: &str = "/.certs-answers/";
/// The start of a block that is for challenges alone.
const OURS: &str = "server { # by certs install: port 80";
/// Directives that decide before a location is chosen.
const EARLY: [&str; 3] = ["return", "rewrite", "if"];

impl Planner<'_> {
    pub(super) fn answer(&mut self, found: &[&ServerBlock]) -> Result<(), Failure> {
        let plain: Vec<_> = found
            .iter()
            .copied()
            .filter(|one| self.listens_on_http(one))
            .collect();
        let existing = plain.iter().find_map(|server| self.served_from(server));
        let webroot = self.options.webroot.clone().or(existing);
        self.plan.webroot = webroot.unwrap_or_else(|| self.options.default_webroot.clone());
        for server in found {
            self.add_a_labels(server);
        }
        for server in &plain {
            self.answer_in(server);
            let names = server
                .names
                .iter()
                .filter(|name| self.plan.names.contains(name));
            let own = super::listens::existing(&self.on(server, self.options.http_port));
            let reaches = self.reaches(&own, &names.collect::<Vec<_>>());
            self.plan.plain.extend(reaches);
        }
        let answered = self.servers.iter().filter(|one| self.listens_on_http(one));
        let answered: Vec<&String> = answered.flat_map(|one| &one.names).collect();
        for server in found {
            // The server in front of a Unix socket has port 80.
            if self.listens_on_http(server) || !server.is_on_a_port() {
                continue;
            }
            let names = server
                .names
                .iter()
                .filter(|name| self.options.can_have(name) && !answered.contains(name));
            let names: Vec<&String> = names.collect();
            if !names.is_empty() {
                self.add_plain_block(server, &names)?;
            }
        }
        Ok(())
    }

    /// The directory from which a block answers challenges, if it is the same for all names.
    fn served_from(&self, server: &ServerBlock) -> Option<PathBuf> {
        let argument = |one: Placed| one.directive.argument().to_owned();
        if let Some(aside) = self.aside(server) {
            let mut inside = self.tree.inside(aside).into_iter();
            let root = inside.find(|one| one.directive.name() == "root");
            return root.map(|root| PathBuf::from(argument(root)));
        }
        let location = server
            .challenges()
            .filter(|_| self.options.trusts_locations)?;
        let inside = self.tree.inside(location);
        let own = |name: &str| {
            inside
                .iter()
                .copied()
                .find(|one| one.directive.name() == name)
        };
        let answers = |one: &Placed| {
            let name = one.directive.name();
            name == "return" || name == "rewrite" || name.ends_with("_pass")
        };
        if inside.iter().any(answers) {
            return None;
        }
        let root = match own("alias") {
            // Answers are below .well-known/acme-challenge in a webroot.
            Some(alias) => {
                let alias = argument(alias);
                let root = alias
                    .strip_suffix(CHALLENGES)
                    .or(alias.strip_suffix(CHALLENGES.trim_end_matches('/')));
                root?.to_owned()
            }
            None => {
                let outer = || server.of("root").chain(server.inherited("root")).next();
                own("root")
                    .or_else(outer)
                    .map_or("html".to_owned(), argument)
            }
        };
        (!root.contains('$')).then(|| self.options.prefix.join(root))
    }

    fn aside<'b>(&self, server: &ServerBlock<'b>) -> Option<Placed<'b>> {
        let mut locations = server.of("location");
        locations.find(|one| one.directive.arguments().any(|path| path == ASIDE))
    }

    /// Makes a block answer challenges from the webroot.
    fn answer_in(&mut self, server: &ServerBlock) {
        let webroot = self.plan.webroot.clone();
        if let (Some(_), true) = (
            server.challenges(),
            self.served_from(server) == Some(webroot.clone()),
        ) {
            self.plan.relies_on_location |= self.aside(server).is_none();
            self.pass_by(server);
            return;
        }
        let mut lines = match server.challenges() {
            None => challenge_location(&webroot),
            Some(existing) => {
                let place = self.tree.place(existing);
                self.note(format!(
                    "{place}: this location answers other challenges, as before"
                ));
                let file = quoted(&format!("{}$uri", webroot.display()));
                let first = format!(
                    "if (-f {file}) {{ rewrite ^(/\\.well-known/acme-challenge/.*)$ {}$1 break; }}",
                    ASIDE.trim_end_matches('/')
                );
                self.insert(server, None, &[first]);
                let files = quoted(&webroot.to_string_lossy());
                location(
                    ASIDE,
                    &format!(
                        "root {files}; rewrite ^{}(/.*)$ $1 break;",
                        ASIDE.trim_end_matches('/').replace('.', "\\.")
                    ),
                )
            }
        };
        let is_early = |name: &str| {
            server
                .of(name)
                .chain(server.inherited(name))
                .next()
                .is_some()
        };
        if is_early("auth_request") {
            lines.insert(lines.len() - 1, format!("{STEP}auth_request off;"));
        }
        let after =
            place_of_start(server, "server_name").or_else(|| place_of_start(server, "listen"));
        if server.challenges().is_none() {
            self.pass_by(server);
        }
        self.insert(server, after, &lines);
        let place = self.tree.place(server.at);
        self.done(format!("{place}: answers challenges"));
    }

    /// Leads challenges past the rules of a block that decide before a location is chosen.
    fn pass_by(&mut self, server: &ServerBlock) {
        let is_early = EARLY.iter().any(|name| server.of(name).next().is_some());
        if is_early && redirect::last_of_ours(self.tree, server).is_none() {
            self.insert(server, None, &[redirect::PASS_BY.to_owned()]);
        }
    }

    /// A block for port 80 alone, before `server`, which has TLS alone.
    fn add_plain_block(&mut self, server: &ServerBlock, names: &[&String]) -> Result<(), Failure> {
        let (port, https) = (self.options.http_port, self.options.https_port);
        let from = match self.on(server, https) {
            none if none.is_empty() => server
                .listens
                .iter()
                .filter(|one| one.port.is_some())
                .collect(),
            from => from,
        };
        let listeners = self.listeners(server, &from, port, false)?;
        let text = &self.tree.files[server.at.file].text;
        let start = server.at.directive.span.start;
        let (outer, end) = (indent(text, start), line_end(text));
        let mut lines: Vec<String> = listeners.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "server_name {};",
            names
                .iter()
                .map(|name| name.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        ));
        lines.extend(challenge_location(&self.plan.webroot));
        if let Some(first) = lines.first_mut() {
            *first += &format!(" {}", redirect::LATER);
        }
        lines.push("location / {".to_owned());
        lines.push(format!("{STEP}return 404;"));
        lines.push("}".to_owned());
        let lines = lines.iter().map(|line| format!("{outer}{STEP}{line}{end}"));
        let lines: String = lines.collect();
        let block = format!("{OURS}{end}{lines}{outer}}}{end}{end}{outer}");
        self.edit(server.at.file, start..start, block);
        let place = self.tree.place(server.at);
        let shown = listed(names);
        self.done(format!(
            "{place}: a block before it answers challenges for {shown} on port {port}"
        ));
        let reaches = self.reaches(&listeners, names);
        self.plan.plain.extend(reaches);
        Ok(())
    }

    /// Whether a block has content of the user, and not only our answers.
    pub(super) fn has_content(&self, server: &ServerBlock) -> bool {
        let text = &self.tree.files[server.at.file].text;
        !text[server.at.directive.span.clone()].starts_with(OURS.as_bytes())
    }

    /// Clients ask for the A-labels of a name that is written in Unicode.
    fn add_a_labels(&mut self, server: &ServerBlock) {
        for names in server.of("server_name") {
            let written: Vec<&str> = names.directive.arguments().collect();
            let label = |name: &&&str| !name.is_ascii() && !name.starts_with('~');
            let labels = written.iter().filter(label).filter_map(|name| {
                let base = name.strip_prefix('.');
                let parsed = Identifier::parse(base.unwrap_or(name)).ok()?;
                Some(format!("{}{parsed}", if base.is_some() { "." } else { "" }))
            });
            let all = server
                .of("server_name")
                .flat_map(|one| one.directive.arguments());
            let all: Vec<&str> = all.collect();
            let labels: Vec<String> = labels
                .filter(|name| !all.contains(&name.as_str()))
                .collect();
            if labels.is_empty() {
                continue;
            }
            let (place, shown) = (self.tree.place(names), labels.join(" "));
            if is_own(server, names) {
                let end = names.directive.span.end - 1;
                self.edit(names.file, end..end, format!(" {shown}"));
                self.done(format!(
                    "{place}: {shown} added, the name that clients send"
                ));
            } else {
                self.note(format!("{place}: add {shown}, the name that clients send"));
            }
        }
    }
}
