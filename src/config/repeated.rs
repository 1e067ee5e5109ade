//! A command that names a stored certificate again: what no source sets stays as it is
//! stored. No right follows from that.

use super::keys::CertificateLayer;
use super::problem::{Given, Problems};
use super::read::{Entry, Strength};
use super::remembered::Remembered;
use super::resolve::Sources;
use super::{CertificateSettings, DirectoryUrl};
use crate::identifier::Identifier;
use crate::lineage::Lineage;

impl Sources {
    /// The certificate that the command line names: its name, and the names in it.
    pub(crate) fn named(&self) -> Option<(&Lineage, &[Identifier])> {
        let named = self.named.as_ref()?;
        Some((&named.lineage, &named.names))
    }

    /// The same with what is stored of the certificate that the command line names: a
    /// repeated command keeps what it does not set. What the file or the environment
    /// configures follows these alone.
    pub(crate) fn with_stored(mut self, stored: &Remembered) -> Self {
        let mut layer = Entry::remembered(stored).layer;
        let own = self.shared_layers();
        let is_replaced =
            |layer: &CertificateLayer,
             of: fn(&CertificateLayer) -> &Option<Given<DirectoryUrl>>| {
                let given = own.iter().find_map(|layer| of(layer).as_ref());
                given.is_some_and(|given| {
                    of(layer).as_ref().map(|it| &it.value) != Some(&given.value)
                })
            };
        // These belong to the stored CA.
        if is_replaced(&layer, |layer| &layer.ca) {
            (layer.root, layer.agree_tos, layer.profile) = (None, None, None);
            (layer.eab_kid, layer.eab_hmac_file) = (None, None);
            (layer.preferred_chain, layer.lifetime) = (None, None);
        }
        if is_replaced(&layer, |layer| &layer.fallback) {
            (layer.fallback_eab_kid, layer.fallback_eab_hmac_file) = (None, None);
        }
        if let Some(named) = &mut self.named {
            (named.layer, named.strength) = (layer, Strength::Stored);
        }
        self
    }

    /// What the sources alone make of the certificate, whatever is stored.
    pub(crate) fn own_settings(&self, of: &CertificateSettings) -> CertificateSettings {
        let bare = Remembered::Record {
            lineage: of.lineage.clone(),
            names: of.names.clone(),
            directory: Some(of.ca.directory.clone()),
            profile: None,
        };
        let entry = self.with_own(&Entry::remembered(&bare));
        // Their problems are reported with the certificate.
        self.certificate(&entry, &mut Problems::default())
    }

    /// The option of the command line that chooses the key, if one does.
    pub(crate) fn key_option(&self) -> Option<&'static str> {
        let given = &self.options.shared;
        let key = given.key.as_ref().map(|_| "--key");
        key.or(given.reuse_key.as_ref().map(|_| "--reuse-key"))
    }

    /// The settings of a command by which it reaches servers, and a running sidecar does not.
    pub(crate) fn own_ways(&self) -> Vec<String> {
        let layers = [&self.options, &self.variables.layer];
        let proxy = layers.iter().find_map(|layer| layer.proxy.as_ref());
        let resolver = self.options.shared.resolver.as_ref();
        let given = [
            proxy.map(|given| &given.origin),
            resolver.map(|given| &given.origin),
        ];
        let given = given.into_iter().flatten();
        given
            .map(|origin| format!("{origin}not used: the running `certs run` reaches servers by its own settings; hint: set it in its configuration and send it SIGHUP, or stop it for this command"))
            .collect()
    }

    /// Whether a source says where certificates are published.
    pub(crate) fn names_an_output(&self) -> bool {
        let mut layers = self.layers().into_iter();
        layers.any(|layer| layer.output_dir.is_some())
    }
}
