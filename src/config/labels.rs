//! The certificates that containers request by their labels. A label replaces a
//! `[[certificate]]` table, and is stronger than the defaults for all certificates. A
//! user that may start a container gets no other rights here: a label deploys only to
//! nginx or to a `[deploy.NAME]` of the file, and its names can be restricted to a list.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::CertificateLayer;
use super::layer::{Value, split};
use super::origin::Origin;
use super::problem::{ConfigProblem, Problems, SettingOrigin};
use super::read::{Entry, Strength};
use super::resolve::Sources;
use super::{CertificateSettings, DockerSettings, Settings, check};
use crate::deploy::target::NAME;
use crate::discovery::labels::{InvalidLabel, Request};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::text::origins;

/// The target that a label may name without a table of the file.
const NGINX: &str = "nginx";

/// The answer to the requests of all containers.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    /// The granted certificates.
    pub certificates: Vec<CertificateSettings>,
    /// Why the other requests are refused.
    pub refused: Vec<ConfigProblem>,
    /// What granted requests do not get.
    pub remarks: Vec<ConfigProblem>,
}

impl From<&InvalidLabel> for ConfigProblem {
    fn from(complaint: &InvalidLabel) -> Self {
        Self {
            origin: SettingOrigin::Label {
                container: complaint.container.clone(),
                label: complaint.label.clone(),
            },
            message: complaint.message.clone(),
            hint: complaint.hint.clone(),
        }
    }
}

impl Sources {
    /// The certificates that `requests` request, beside those of `configured`, which win. Of
    /// several requests that exclude each other, the first is granted.
    pub(crate) fn granted(&self, requests: &[&Request], configured: &Settings) -> Granted {
        let mut granted = Granted::default();
        let Some(docker) = &configured.docker else {
            return granted;
        };
        if requests.is_empty() {
            return granted;
        }
        let tables = Tables::of(configured);
        let mut asked = Vec::new();
        for request in requests {
            let (others, all) = (&granted.certificates, &configured.certificates);
            let request = &with_a_free_name(request, others, all);
            let Some(lineage) = request.lineage() else {
                continue;
            };
            let origin = origin_of(request, &request.label);
            let mut problems = Problems::default();
            if is_taken(request, &lineage, &tables, &granted, &mut problems) {
                granted.refused.extend(problems.sorted());
                continue;
            }
            let certificate = self.requested(request, lineage, docker, &mut problems);
            let before = configured.certificates.iter();
            let before = before.chain(&granted.certificates);
            if problems.is_empty()
                && let Some((path, whose)) = check::shared_file(&certificate, before)
            {
                let message = format!("{}: {whose} is written there", path.display());
                let hint = format!("put {NAME} into the path, or let certs.deploy name others");
                problems.add(&origin, message, hint);
            }
            if problems.is_empty() && granted.certificates.len() >= docker.limit {
                let message = format!("containers request more than {} certificates", docker.limit);
                let hint = "raise [docker] limit, if the containers need them";
                problems.add(&origin, message, hint);
            }
            match problems.or(certificate) {
                Ok(certificate) => {
                    asked.push((
                        request.created,
                        certificate.lineage.clone(),
                        request.clone(),
                    ));
                    granted.certificates.push(certificate);
                }
                Err(mut refused) => {
                    // A problem without an origin belongs to the container.
                    for one in refused
                        .iter_mut()
                        .filter(|one| one.origin == SettingOrigin::Nowhere)
                    {
                        one.origin = origin.clone();
                    }
                    granted.refused.extend(refused);
                }
            }
        }
        share_addresses(&mut granted, configured, asked);
        granted
    }

    fn requested(
        &self,
        request: &Request,
        lineage: Lineage,
        docker: &DockerSettings,
        problems: &mut Problems,
    ) -> CertificateSettings {
        let origin = origin_of(request, &request.label);
        for name in &request.names {
            if !docker.allow.is_empty() && !docker.allow.iter().any(|one| one.allows(name)) {
                let message = format!("a label may not request {name}");
                problems.add(&origin, message, "add it to [docker] allow to permit it");
            }
        }
        let mut layer = CertificateLayer::default();
        for (key, text) in &request.keys {
            let origin = origin_of(request, &request.label_of(key));
            let value = match key.as_str() {
                "deploy" => {
                    self.may_be_named(text, &origin, problems);
                    Value::list(split(text), &origin)
                }
                _ => Value::text(text, &origin),
            };
            layer.put(key, &value, problems);
        }
        let wants_dns = layer.challenge.as_ref();
        if wants_dns.is_some_and(|kind| kind.value.proves_by_zone())
            && docker.allow.is_empty()
            && !self
                .challenge(&self.shared_layers())
                .kind()
                .proves_by_zone()
        {
            // Unlike HTTP-01 it proves names that lead to another machine.
            let kind = wants_dns.map_or("", |kind| kind.value.name());
            let message =
                format!("a label may not choose {kind}: it proves every name of the zone");
            let hint = "list the names that labels may request in [docker] allow";
            problems.add(
                &origin_of(request, &request.label_of("challenge")),
                message,
                hint,
            );
        }
        let entry = Entry {
            origin,
            names: request.names.clone(),
            lineage,
            is_named: false,
            layer,
            strength: Strength::Label,
            is_second: false,
        };
        let mut certificate = self.checked(&entry, problems);
        certificate.origin = Some(Origin::Label);
        // Discovery keeps one certificate for a request.
        certificate.key = certificate.key_type().into();
        if let Some(output) = &mut certificate.output {
            // A proxy for all containers looks for the name that a client sends.
            output.links.get_or_insert(true);
        }
        certificate
    }

    /// Checks the targets of a label against those it may name.
    fn may_be_named(&self, text: &str, origin: &SettingOrigin, problems: &mut Problems) {
        let tables = &self.document.targets;
        for word in split(text) {
            if word != NGINX && !tables.contains_key(word) {
                let shown = origins(&word.escape_debug().to_string());
                let message = format!("a label cannot deploy to `{shown}`");
                let hint = "write nginx, or the NAME of a [deploy.NAME] of the configuration";
                problems.add(origin, message, hint);
            }
        }
    }
}

/// The configured certificates, found by name and by the names in them.
struct Tables<'c> {
    by_lineage: BTreeMap<&'c Lineage, &'c CertificateSettings>,
    names: BTreeSet<BTreeSet<&'c Identifier>>,
}

impl<'c> Tables<'c> {
    fn of(configured: &'c Settings) -> Self {
        let all = configured.certificates.iter();
        Self {
            by_lineage: all.clone().map(|one| (&one.lineage, one)).collect(),
            names: all.map(|one| one.names.iter().collect()).collect(),
        }
    }
}

/// Whether a certificate with that name or for the same names exists already. If it
/// has the name and other names in it, that is a problem.
fn is_taken(
    request: &Request,
    lineage: &Lineage,
    tables: &Tables<'_>,
    granted: &Granted,
    problems: &mut Problems,
) -> bool {
    let set = request.set();
    let mut others = granted.certificates.iter();
    let same = |one: &CertificateSettings| one.names.iter().collect::<BTreeSet<_>>() == set;
    if tables.names.contains(&set) || others.clone().any(same) {
        return true;
    }
    let table = tables.by_lineage.get(lineage).copied();
    let other = others.find(|one| one.lineage == *lineage);
    let (other, whose) = match (table, other) {
        (Some(table), _) => (table, "the configuration"),
        (None, Some(other)) => (other, "another container"),
        (None, None) => return false,
    };
    let names: Vec<String> = other.names.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    let message = format!("{whose} has a certificate {lineage}, for {names}");
    let hint = "put another name first, or request the same names";
    problems.add(&origin_of(request, &request.label), message, hint);
    true
}

/// The request, under the first of its names that no other certificate has, if its own first
/// name is that of a container's certificate with other names.
fn with_a_free_name(
    request: &Request,
    granted: &[CertificateSettings],
    configured: &[CertificateSettings],
) -> Request {
    let mut request = request.clone();
    let first = request.lineage();
    let mut borne = granted
        .iter()
        .filter(|one| Some(&one.lineage) == first.as_ref());
    let is_same =
        |one: &CertificateSettings| one.names.iter().collect::<BTreeSet<_>>() == request.set();
    if borne.next().is_some_and(|one| !is_same(one)) {
        let is_free = |name: &Identifier| {
            let lineage = Lineage::of(name);
            let mut others = granted.iter().chain(configured);
            others.all(|one| one.lineage != lineage && !one.names.contains(name))
        };
        if let Some(at) = request.names.iter().position(is_free) {
            let first = request.names.remove(at);
            request.names.insert(0, first);
        }
    }
    request
}

/// The account at a CA has one address: that of the configuration's certificates, else that of
/// the oldest container. Another one would be sent, and sent back, with every order. It is not
/// used, and that is said.
fn share_addresses(
    granted: &mut Granted,
    configured: &Settings,
    mut asked: Vec<(i64, Lineage, Request)>,
) {
    let mut used = BTreeMap::new();
    for one in &configured.certificates {
        if let Some(email) = &one.ca.email {
            let first = (one.lineage.clone(), email.clone());
            used.entry(one.ca.directory.clone()).or_insert(first);
        }
    }
    asked.sort_by(|(age, lineage, _), other| (age, lineage).cmp(&(&other.0, &other.1)));
    for (_, lineage, request) in asked {
        let mut certificates = granted.certificates.iter_mut();
        let found = certificates.find(|one| one.lineage == lineage);
        let Some((own, ca)) = found.and_then(|one| {
            let ca = &mut one.ca;
            Some((ca.email.as_mut()?, &ca.directory))
        }) else {
            continue;
        };
        let first = (lineage, own.clone());
        let (first, email) = used.entry(ca.clone()).or_insert(first);
        if own != email && request.keys.contains_key("email") {
            let message = format!(
                "{own} is not used: all certificates share one account at the CA, and {first} has {email}"
            );
            granted.remarks.push(ConfigProblem {
                origin: origin_of(&request, &request.label_of("email")),
                message,
                hint: "use one address for all containers".to_owned(),
            });
        }
        own.clone_from(email);
    }
}

fn origin_of(request: &Request, label: &str) -> SettingOrigin {
    SettingOrigin::Label {
        container: request.container.clone(),
        label: label.to_owned(),
    }
}

#[cfg(test)]
mod tests;
