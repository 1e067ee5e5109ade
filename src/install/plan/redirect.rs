//! The redirect from port 80, in the block itself: for the names that the certificate has,
//! and not for its challenges. Redirects of the user that would lead to themselves.

use super::super::change::{indent, line_end};
use super::super::server::ServerBlock;
use super::super::tree::{Placed, Tree};
use super::Planner;
use super::lines::{listed, shown_port};
use super::listens::existing;

/// In blocks that still wait for their redirect.
pub(super) const LATER: &str = "# certs: no redirect until a CA has issued";
/// Ends the rules of a block for challenges, before any other.
pub(super) const PASS_BY: &str = "if ($uri ~ ^/\\.well-known/acme-challenge/) { break; }";
/// The start of our redirect.
const OURS: &str = "if ($certs_plain ~ \"^http://";
/// nginx reads at most 4096 bytes of a word.
const LONGEST: usize = 2048;

impl Planner<'_> {
    /// Adds the redirect to blocks that wait for it, for the names that the certificate has.
    pub(super) fn redirect(&mut self, found: &[&ServerBlock]) {
        for server in found {
            if !self.listens_on_http(server) {
                continue;
            }
            let text = &self.tree.files[server.at.file].text;
            let span = server.at.directive.span.clone();
            let mut marks = text[span.clone()].windows(LATER.len());
            let mark = marks.position(|at| at == LATER.as_bytes());
            let served = self.served(server);
            if served.is_empty() {
                continue;
            }
            let Some(mark) = mark else {
                let served = self.with_tls(&served);
                if !served.is_empty()
                    && !self.extend(server, &served)
                    && !leads_to_https(self.tree, server)
                {
                    self.add_redirect(server, &served);
                }
                continue;
            };
            let at = span.start + mark;
            // And the blank before it.
            self.edit(server.at.file, at - 1..at + LATER.len(), "");
            self.add_redirect(server, &served);
        }
    }

    fn add_redirect(&mut self, server: &ServerBlock, served: &[&String]) {
        let ours = last_of_ours(self.tree, server);
        let mut lines = self.redirect_lines(served);
        if ours.is_none() {
            lines.insert(0, PASS_BY.to_owned());
        }
        self.insert(server, ours, &lines);
        let (place, port) = (self.tree.place(server.at), self.options.http_port);
        self.redirected(server, served);
        self.done(format!("{place}: port {port} redirects to https"));
    }

    /// The names for which a block has TLS where the redirect leads to.
    fn with_tls<'n>(&self, names: &[&'n String]) -> Vec<&'n String> {
        let has_tls =
            |one: &&ServerBlock| one.has_tls() && !self.on(one, self.options.https_port).is_empty();
        let secured: Vec<_> = self.servers.iter().filter(has_tls).collect();
        let names = names.iter().copied();
        names
            .filter(|name| secured.iter().any(|one| one.is_named(name)))
            .collect()
    }

    fn redirected(&mut self, server: &ServerBlock, served: &[&String]) {
        let listeners = existing(&self.on(server, self.options.http_port));
        let reaches = self.reaches(&listeners, served);
        self.plan.redirected.extend(reaches);
    }

    /// Brings our redirect in a block to the names that the certificate has now; returns
    /// whether there is one.
    fn extend(&mut self, server: &ServerBlock, served: &[&String]) -> bool {
        let file = server.at.file;
        let text = |one: &Placed| {
            let text = &self.tree.files[one.file].text[one.directive.span.clone()];
            String::from_utf8_lossy(text).into_owned()
        };
        let ours = server.of("if").filter(|one| one.file == file);
        let ours: Vec<_> = ours.filter(|one| text(one).starts_with(OURS)).collect();
        let [first, others @ ..] = ours.as_slice() else {
            return false;
        };
        let wanted = self.redirect_lines(served).split_off(1);
        if !ours.iter().map(text).eq(wanted.iter().cloned()) {
            let source = &self.tree.files[file].text;
            let start = first.directive.span.start;
            let between = line_end(source).to_owned() + &indent(source, start);
            let lines = wanted.join(&between);
            self.edit(file, first.directive.span.clone(), lines);
            for other in others {
                self.edit(file, other.directive.span.clone(), "");
            }
            let (place, names) = (self.tree.place(*first), listed(served));
            self.done(format!("{place}: the redirect is for {names}"));
        }
        self.redirected(server, served);
        true
    }

    pub(super) fn redirect_lines(&self, names: &[&String]) -> Vec<String> {
        let port = shown_port(self.options.https_port);
        let pattern = |name: &String| {
            let escaped = name.replace('.', "\\.");
            escaped.replacen("*\\.", "[^.]+\\.", 1)
        };
        let mut groups = vec![String::new()];
        for name in names.iter().map(|name| pattern(name)) {
            match groups.last_mut() {
                Some(group) if group.is_empty() => group.push_str(&name),
                Some(group) if group.len() + name.len() < LONGEST => {
                    group.push('|');
                    group.push_str(&name);
                }
                _ => groups.push(name),
            }
        }
        // A block may also listen on a port for another proxy, which redirects would lead back.
        let set = "set $certs_plain $scheme://$host:$server_port;".to_owned();
        let plain = self.options.http_port;
        let ifs = groups.into_iter().map(|group| {
            format!("{OURS}({group}):{plain}$\") {{ return 308 https://$host{port}$request_uri; }}")
        });
        std::iter::once(set).chain(ifs).collect()
    }
}

/// The last rule at the start of a block that leads challenges past its other rules.
pub(super) fn last_of_ours<'a>(tree: &Tree, server: &ServerBlock<'a>) -> Option<Placed<'a>> {
    let is_ours = |one: &Placed| {
        let text = &tree.files[one.file].text[one.directive.span.clone()];
        let text = String::from_utf8_lossy(text);
        text == PASS_BY
            || (text.starts_with("if (-f ") && text.contains("/.certs-answers$1 break;"))
    };
    server.of("if").filter(is_ours).last()
}

/// Whether a rule of the user leads clients away, usually to https.
fn leads_to_https(tree: &Tree, server: &ServerBlock) -> bool {
    let is_elsewhere = |target: &str| target.starts_with("https://") || target.starts_with('$');
    let leads = |rule: &Placed| {
        let arguments: Vec<&str> = rule.directive.arguments().collect();
        match (rule.directive.name(), arguments.as_slice()) {
            ("return", [target]) => is_elsewhere(target),
            ("return", [code, target]) => code.starts_with("30") && is_elsewhere(target),
            ("rewrite", [_, target, ..]) => target.starts_with("https://"),
            _ => false,
        }
    };
    rules(tree, server).iter().any(|(rule, _)| leads(rule))
}

/// The rules for all requests of a block, each with the condition of its `if`.
fn rules<'a>(tree: &'a Tree, server: &ServerBlock<'a>) -> Vec<(Placed<'a>, Option<String>)> {
    let mut rules: Vec<(Placed, Option<String>)> = Vec::new();
    for one in &server.directives {
        let arguments: Vec<&str> = one.directive.arguments().collect();
        let condition = match (one.directive.name(), arguments.as_slice()) {
            ("return" | "rewrite", _) => {
                rules.push((*one, None));
                continue;
            }
            ("if", arguments) => Some(arguments.join(" ")),
            ("location", ["/"] | ["^~", "/"]) => None,
            _ => continue,
        };
        let inside = tree.inside(*one).into_iter();
        rules.extend(inside.map(|rule| (rule, condition.clone())));
    }
    rules
}

/// A redirect to https that leads to itself, once its block has TLS.
pub(super) fn to_itself<'a>(tree: &'a Tree, server: &ServerBlock<'a>) -> Option<Placed<'a>> {
    let leads = |(rule, condition): &(Placed, Option<String>)| {
        let arguments: Vec<&str> = rule.directive.arguments().collect();
        let target = match (rule.directive.name(), arguments.as_slice()) {
            ("return", [target] | [_, target]) => target,
            ("rewrite", [pattern, target, ..])
                if pattern
                    .trim_matches(['^', '$', '(', ')', '/', '.', '*', '?'])
                    .is_empty() =>
            {
                target
            }
            _ => return false,
        };
        target
            .strip_prefix("https://")
            .is_some_and(|target| is_same_host(server, target, condition.as_deref()))
    };
    let rules = rules(tree, server);
    rules.iter().find(|rule| leads(rule)).map(|(rule, _)| *rule)
}

const HOSTS: [&str; 3] = ["$host", "$http_host", "$server_name"];

/// Whether the host of `target` is the one that was asked for, under the condition of an
/// `if`.
fn is_same_host(server: &ServerBlock, target: &str, condition: Option<&str>) -> bool {
    let target = target.replace(['{', '}'], "");
    let is_host = HOSTS.iter().any(|host| {
        let rest = target.strip_prefix(host);
        rest.is_some_and(|rest| {
            !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || ".:_".contains(next))
        })
    });
    let literal = target
        .split(['/', '$', ':'])
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let Some(condition) = condition else {
        return is_host || server.is_named(&literal);
    };
    let condition = condition.trim_matches(['(', ')', ' ']);
    let mut words = condition.split_whitespace();
    let is_about_host = words.next().is_some_and(|first| HOSTS.contains(&first));
    let asked = words.last().unwrap_or_default().trim_matches('"');
    is_about_host && (is_host || asked == literal)
}
