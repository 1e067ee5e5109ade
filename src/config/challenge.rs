//! How challenges are answered, from all sources together.

use std::collections::BTreeMap;

use super::CertificateSettings;
use super::keys::CertificateLayer;
use super::problem::{ConfigProblem, Problems, SettingOrigin};
use super::resolve::Sources;
use crate::certificate::Secret;
use crate::challenge::dns01::{self, Settings};
use crate::challenge::protocol::Protocol;
use crate::challenge::{ChallengeKind, ChallengeSettings};

impl Sources {
    /// How challenges are answered. The strongest source that says something about the
    /// challenge decides on its kind.
    pub(super) fn challenge(&self, layers: &[&CertificateLayer]) -> ChallengeSettings {
        let kind = layers.iter().find_map(|layer| layer.kind());
        let mut set = layers.iter().flat_map(|layer| layer.challenges());
        let set = set.find(|set| kind.is_none_or(|kind| set.kind() == kind));
        match set.unwrap_or_else(|| kind.map(Into::into).unwrap_or_default()) {
            ChallengeSettings::Dns(stored) => ChallengeSettings::Dns(self.dns(layers, &stored)),
            ChallengeSettings::DnsPersist(stored) => {
                let resolver = layers.iter().find_map(|layer| layer.resolver.as_ref());
                ChallengeSettings::DnsPersist(stored.with(resolver.map(|given| given.value)))
            }
            other => other,
        }
    }

    /// Refuses a draft that is not listed as experimental. A stored one was listed once.
    pub(super) fn check_draft(&self, layers: &[&CertificateLayer], problems: &mut Problems) {
        let said = layers.iter().find_map(|layer| layer.challenge.as_ref());
        let Some(said) = said.filter(|said| said.value.is_draft()) else {
            return;
        };
        let listed = layers.iter().find_map(|layer| layer.experimental.as_ref());
        if listed.is_some_and(|listed| listed.value.contains(&said.value)) {
            return;
        }
        let name = said.value.name();
        problems.add(
            &said.origin,
            format!("{name} is experimental: a draft, which CAs may change or drop"),
            format!(
                "add --experimental {name}, CERTS_EXPERIMENTAL={name} or experimental = [\"{name}\"]"
            ),
        );
    }

    /// The provider with its credentials of today; else as it was `stored`.
    fn dns(&self, layers: &[&CertificateLayer], stored: &Settings) -> Settings {
        let given = layers.iter().find_map(|layer| layer.dns.as_ref());
        let mut tables = self.document.dns.keys();
        let only = || tables.next().filter(|_| tables.next().is_none()).cloned();
        let name = given
            .map(|given| given.value.clone())
            .or_else(|| Some(stored.name().to_owned()).filter(|name| !name.is_empty()))
            .or_else(only)
            .unwrap_or_default();
        let resolver = layers.iter().find_map(|layer| layer.resolver.as_ref());
        let listen = layers.iter().find_map(|layer| layer.dns_listen.as_ref());
        let resolver = resolver.map(|given| given.value);
        let listen = listen.map(|given| given.value.clone());
        let today = self.credentials(&name);
        let fresh = match &today {
            Some((provider, credentials)) => {
                Settings::new(provider.clone(), name.clone(), credentials.clone())
            }
            None if stored.name() == name => stored.clone(),
            None => Settings::new(name.clone(), name.clone(), BTreeMap::new()),
        };
        stored.renewed(fresh.with(resolver, listen))
    }

    /// The provider `name` and its configured credentials, if there are some.
    fn credentials(&self, name: &str) -> Option<(String, BTreeMap<String, Secret>)> {
        let table = self.document.dns.get(name);
        let provider = table.map_or(name, |table| &table.value.provider);
        let mut credentials = table
            .map(|table| table.value.credentials.clone())
            .unwrap_or_default();
        for field in dns01::fields(provider)? {
            let variable = self.variables.dns.get(&dns01::variable(name, field.name));
            credentials.extend(variable.map(|value| (field.name.to_owned(), value.clone())));
        }
        let is_configured = table.is_some() || !credentials.is_empty();
        is_configured.then(|| (provider.to_owned(), credentials))
    }
}

impl Sources {
    /// The options of a command for listeners that the challenge of `certificate` does not
    /// use. Every challenge may use the resolver: it also finds CAA records.
    pub(crate) fn unused_options(&self, certificate: &CertificateSettings) -> Vec<String> {
        let (options, challenge) = (&self.options.shared, &certificate.challenge);
        let kind = challenge.kind();
        let is_listener = challenge
            .listens()
            .iter()
            .any(|at| at.protocol == Protocol::Http);
        let is_own = challenge
            .listens()
            .iter()
            .any(|at| at.protocol == Protocol::Dns);
        let origin = |given: Option<&SettingOrigin>| given.cloned();
        let given = [
            (
                origin(options.http_listen.as_ref().map(|it| &it.origin)),
                is_listener,
                "choose --challenge http-01 without a webroot",
            ),
            (
                origin(options.tls_listen.as_ref().map(|it| &it.origin)),
                kind == ChallengeKind::TlsAlpn01,
                "choose --challenge tls-alpn-01",
            ),
            (
                origin(options.dns_listen.as_ref().map(|it| &it.origin)),
                is_own,
                "choose --dns self",
            ),
        ];
        let unused = given.into_iter().filter(|(_, is_used, _)| !is_used);
        let unused = unused.filter_map(|(origin, _, needs)| Some((origin?, needs)));
        let how = match challenge.writes_in().first() {
            Some(root) => format!("{} through {}", kind.name(), root.display()),
            None => kind.name().to_owned(),
        };
        let lineage = &certificate.lineage;
        unused
            .map(|(origin, needs)| {
                format!(
                    "{origin}not used: {lineage} is proven by {how}; hint: leave it out, or {needs}"
                )
            })
            .collect()
    }
}

impl CertificateLayer {
    /// What the environment or the top of the file says about another challenge than the one
    /// that it chooses, in words: other keys there may be for some of the certificates.
    pub(super) fn ignored(&self) -> Vec<String> {
        let mut found = Problems::default();
        self.contradictions(&mut found);
        if let (Some(_), Some(listen)) = (&self.webroot, &self.http_listen) {
            let hint = "leave one of the two out";
            found.add(
                &listen.origin,
                "http_listen is not used beside webroot",
                hint,
            );
        }
        let found = found.or(()).err().unwrap_or_default();
        let said = found.iter().map(ConfigProblem::shown);
        said.map(|(message, hint)| format!("ignored: {message}; hint: {hint}"))
            .collect()
    }

    /// Adds what one source says about another challenge than the one that it chooses.
    pub(super) fn contradictions(&self, problems: &mut Problems) {
        let (Some(kind), None) = (self.kind(), &self.stored_challenge) else {
            return;
        };
        let webroot = self.webroot.as_ref().map(|given| &given.origin);
        let dns = self.dns.as_ref().map(|given| &given.origin);
        let of_provider = matches!(kind, ChallengeKind::Dns01 | ChallengeKind::DnsAccount01);
        let of_webroot = kind == ChallengeKind::Http01;
        for (origin, key, is_used, own) in [
            (webroot, "webroot", of_webroot, ChallengeKind::Http01),
            (dns, "dns", of_provider, ChallengeKind::Dns01),
        ] {
            if let (Some(origin), false) = (origin, is_used) {
                let (own, chosen) = (own.name(), kind.name());
                problems.add(
                    origin,
                    format!("{key} is for {own}, and the challenge beside it is {chosen}"),
                    format!("leave {key} out, or make the challenge {own}"),
                );
            }
        }
    }

    /// The kind of challenge that this source says or implies.
    fn kind(&self) -> Option<ChallengeKind> {
        let said = self.challenge.as_ref().map(|kind| kind.value);
        let stored = self.stored_challenge.as_ref();
        stored
            .map(|stored| stored.value.kind())
            .or(said)
            .or(self.dns.as_ref().map(|_| ChallengeKind::Dns01))
            .or(self.webroot.as_ref().map(|_| ChallengeKind::Http01))
    }
}
