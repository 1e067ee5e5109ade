//! Checks of whole certificates: each key alone is valid, and the CA would still refuse
//! the order, or two settings contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::presets::{External, Preset};
use super::problem::{ConfigProblem, Problems, SettingOrigin};
use super::read::Entry;
use super::{CaSettings, CertificateSettings};
use crate::deploy::target::{DeployTarget, NAME};
use crate::identifier::Identifier;
use crate::lineage::{Lineage, reissue};
use crate::manage::{CannotOrder, is_registered};

/// The most names that public CAs accept in one certificate.
pub(crate) const MOST_NAMES: usize = 100;

/// Which CA is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownCa {
    Yes,
    /// Its staging directory, which has another account.
    Rehearsed,
    /// Another problem hides it.
    No,
}

/// Adds every problem that prevents the issuance of `wanted`, which comes from `origin`.
/// It reads the files that `wanted` names and no others. An account in `data_dir` needs no
/// binding.
pub(super) fn certificate(
    wanted: &CertificateSettings,
    origin: &SettingOrigin,
    known: KnownCa,
    data_dir: &dyn Fn() -> PathBuf,
    problems: &mut Problems,
) {
    let mut check = Check {
        wanted,
        origin,
        known,
        data_dir,
        problems,
    };
    check.names();
    if known != KnownCa::No {
        check.ca(&wanted.ca, wanted.profile.as_deref());
        if let Some(fallback) = &wanted.fallback {
            check.fallback(fallback);
        }
    }
    if wanted.request.is_some() {
        check.without_key();
    }
    if let Err(unfit) = wanted.challenge.check() {
        check.nowhere(unfit.message, unfit.hint);
    }
}

/// Whether the names of `wanted` have no problem: all else is the same for every certificate
/// with these settings.
pub(super) fn names_fit(wanted: &CertificateSettings) -> bool {
    let mut problems = Problems::default();
    let mut check = Check {
        wanted,
        origin: &SettingOrigin::Nowhere,
        known: KnownCa::Yes,
        data_dir: &PathBuf::new,
        problems: &mut problems,
    };
    check.names();
    for ca in [Some(&wanted.ca), wanted.fallback.as_ref()] {
        if let Some(ca) = ca.filter(|ca| ca.directory.is_public()) {
            let profile = wanted.profile.as_deref();
            check.public_names(ca, profile);
        }
    }
    problems.is_empty()
}

/// The `problems` that prevent the order of one certificate, if it has any.
pub(super) fn cannot_order(
    stored: &CertificateSettings,
    problems: Problems,
) -> Option<CannotOrder> {
    let problems = problems.or(()).err()?;
    let all = |part: fn(ConfigProblem) -> String| {
        let parts: Vec<String> = problems.iter().cloned().map(part).collect();
        parts.join("; ")
    };
    // No setting of this version helps.
    let only_when_due =
        { stored.names.iter() }.any(|name| stored.challenge.check_name(name).is_err());
    let lineage = &stored.lineage;
    let hint = match only_when_due {
        true => {
            let again = reissue(lineage, &stored.names);
            let by = match stored.names.iter().any(Identifier::is_wildcard) {
                true => "--dns PROVIDER",
                false => "--challenge http-01",
            };
            format!("{again} {by} keeps it, certs delete {lineage} leaves it to its old client")
        }
        false => all(|problem| problem.hint),
    };
    Some(CannotOrder {
        why: all(|problem| match problem.origin {
            SettingOrigin::Line { .. } => problem.shown().0,
            _ => problem.message,
        }),
        hint,
        only_when_due,
    })
}

/// Two certificates must not be written to one file.
pub(super) fn copies(all: &[CertificateSettings], entries: &[Entry], problems: &mut Problems) {
    let mut written = BTreeMap::new();
    for (certificate, entry) in all.iter().zip(entries) {
        let lineage = &certificate.lineage;
        let specs = certificate.deploy.iter().filter(|spec| spec.is_for_one());
        for path in specs.filter_map(|spec| spec.writes()) {
            let shown = path.display().to_string();
            let first = written.entry(path).or_insert(lineage);
            if *first != lineage {
                let message = format!("{shown}: {first} and {lineage} would both be written there");
                let hint = format!("put {NAME} into the path, or give each its own `deploy`");
                problems.add(&entry.origin, message, hint);
            }
        }
    }
}

/// The files to which this certificate alone is written.
pub(crate) fn written(one: &CertificateSettings) -> impl Iterator<Item = PathBuf> {
    let specs = one.deploy.iter().map(|spec| spec.for_lineage(&one.lineage));
    let specs = specs.filter(DeployTarget::is_for_one);
    specs.filter_map(|spec| spec.writes())
}

/// A file that both `certificate` and one of `others` are written to, and that other
/// certificate.
pub(super) fn shared_file<'a>(
    certificate: &CertificateSettings,
    mut others: impl Iterator<Item = &'a CertificateSettings>,
) -> Option<(PathBuf, Lineage)> {
    let ours: BTreeSet<PathBuf> = written(certificate).collect();
    if ours.is_empty() {
        return None;
    }
    others.find_map(|other| {
        let is_other = other.lineage != certificate.lineage;
        let both = written(other).find(|path| is_other && ours.contains(path))?;
        Some((both, other.lineage.clone()))
    })
}

struct Check<'a> {
    wanted: &'a CertificateSettings,
    origin: &'a SettingOrigin,
    known: KnownCa,
    problems: &'a mut Problems,
    data_dir: &'a dyn Fn() -> PathBuf,
}

impl Check<'_> {
    fn add(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.add(self.origin, message, hint);
    }

    /// A problem of a default, which is reported once for all certificates.
    fn nowhere(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.add(&SettingOrigin::Nowhere, message, hint);
    }

    /// A problem of the names, which a signing request has by itself.
    fn add_of_names(&mut self, message: impl Into<String>, hint: &str) {
        let hint = match self.wanted.request {
            Some(_) => format!("make a new signing request for other names, or: {hint}"),
            None => hint.to_owned(),
        };
        self.add(message, hint);
    }

    fn names(&mut self) {
        let mut seen = BTreeSet::new();
        for name in &self.wanted.names {
            if !seen.insert(name) {
                self.add(format!("{name} is given twice"), "give each name once");
            }
            if let Err(unfit) = self.wanted.challenge.check_name(name) {
                self.add_of_names(unfit.message, &unfit.hint);
            }
        }
    }

    /// The key of a signing request is with its user.
    fn without_key(&mut self) {
        for spec in self.wanted.deploy.iter().filter(|spec| spec.needs_key()) {
            let message = format!("{spec} needs the private key, which `certs csr` does not have");
            let hint = "--deploy nginx, a file of the format fullchain, or exec:PROGRAM do without it; --deploy none deploys to nothing";
            self.problems.add(self.origin, message, hint);
        }
    }

    /// A fallback CA issues the same names without a profile: each CA has profiles of its
    /// own.
    fn fallback(&mut self, fallback: &CaSettings) {
        let directory = &fallback.directory;
        if directory.is_staging() {
            let message = format!("the fallback CA {directory} is a staging directory");
            let hint = "name a CA whose certificates are trusted, such as zerossl";
            return self.add(message, hint);
        }
        if directory.identity() == self.wanted.ca.directory.identity() {
            let message = format!("the fallback CA {directory} is the same as the CA");
            return self.add(message, "name another CA, or leave fallback_ca out");
        }
        self.ca(fallback, None);
    }

    /// Checks a CA, with the names and the profile that it would sign.
    fn ca(&mut self, ca: &CaSettings, profile: Option<&str>) {
        let directory = &ca.directory;
        if directory.is_public() {
            self.public_names(ca, profile);
        }
        if directory.is_public() && !ca.agree_tos {
            let message = format!("the terms of service of {directory} are not agreed to");
            let hint = match self.origin {
                // Commands for stored certificates have no such option.
                SettingOrigin::Stored(_) => {
                    "read them, then repeat the command with CERTS_AGREE_TOS=true in its environment"
                }
                _ => "read them, then add --agree-tos, CERTS_AGREE_TOS=true or agree_tos = true",
            };
            self.nowhere(message, hint);
        }
        if directory.is_embedded() {
            let useless = [
                ("ca_root", ca.root.is_some()),
                ("eab_kid", ca.eab_kid.is_some()),
                ("eab_hmac_file", ca.eab_hmac_file.is_some()),
            ];
            for (key, _) in useless.iter().filter(|(_, given)| *given) {
                let message = format!("the embedded CA does not use {key}");
                self.add(message, "leave it out, or name another CA");
            }
            return;
        }
        if let Err(error) = ca.read_root() {
            let hint = "name a PEM file with --ca-root";
            self.nowhere(error.message, error.hint.unwrap_or(hint.to_owned()));
        }
        if let (Some(preset), KnownCa::Yes) = (directory.known(), self.known) {
            self.wants(preset, ca);
        }
        let unreadable = match ca.read_binding() {
            Ok(Some((_, Err(error)))) => {
                let is_needed = !is_registered((self.data_dir)(), directory.identity());
                is_needed.then_some(error)
            }
            binding => binding.err(),
        };
        if let Some(error) = unreadable {
            let hint = "the CA gives both: a key identifier, and an HMAC key to put into a file";
            self.nowhere(error.message, error.hint.unwrap_or(hint.to_owned()));
        }
    }

    /// What a public CA wants for a registration: known before anything is sent.
    fn wants(&mut self, preset: &Preset, ca: &CaSettings) {
        let name = preset.name;
        let lacks_email = ca.email.is_none();
        let lacks_binding = ca.eab_kid.is_none() && ca.eab_hmac_file.is_none();
        let lacks_binding = match preset.external {
            External::NotNeeded => None,
            External::From(site) => Some((site, "")),
            External::ByEmail(_, site) => {
                lacks_email.then_some((site, "add --email, for which the CA gives them, or "))
            }
        }
        .filter(|_| lacks_binding);
        if !(lacks_email && preset.needs_email || lacks_binding.is_some())
            || is_registered((self.data_dir)(), preset.url)
        {
            return;
        }
        if lacks_email && preset.needs_email {
            let message = format!("{name} signs nothing for an account without an e-mail address");
            self.nowhere(message, "add --email, CERTS_EMAIL or email");
        }
        if let Some((site, first)) = lacks_binding {
            let message = format!("{name} wants an external account binding");
            let is_first = preset.url == self.wanted.ca.directory.identity();
            let (kid, file) = match is_first {
                true => ("--eab-kid", "--eab-hmac-file"),
                false => ("--fallback-eab-kid", "--fallback-eab-hmac-file"),
            };
            let hint = format!(
                "{first}get a key identifier and an HMAC key from {site}, and give them with {kid} and {file}"
            );
            self.nowhere(message, hint);
        }
    }

    fn public_names(&mut self, ca: &CaSettings, profile: Option<&str>) {
        let names = &self.wanted.names;
        for error in names.iter().filter_map(|name| name.require_public().err()) {
            self.add_of_names(error.to_string(), error.hint());
        }
        if names.len() > MOST_NAMES {
            let message = format!("{} names in one certificate", names.len());
            let hint = format!("public CAs take {MOST_NAMES} at most: make two certificates");
            self.add_of_names(message, &hint);
        }
        let Some(preset) = ca.directory.known() else {
            return;
        };
        if let Some(address) = names.iter().find(|name| matches!(name, Identifier::Ip(_)))
            && let Some(only) = preset.address_profile
            && profile != Some(only)
        {
            let message = format!(
                "{address}: {} signs addresses in one profile only",
                preset.name
            );
            self.add(
                message,
                format!("add profile = \"{only}\" (--profile {only})"),
            );
        }
        if let Some(wildcard) = names.iter().find(|name| name.is_wildcard())
            && !preset.signs_wildcards
        {
            let message = format!("{wildcard}: {} signs no wildcards over ACME", preset.name);
            self.add_of_names(message, "name each host, or use another CA");
        }
    }
}
