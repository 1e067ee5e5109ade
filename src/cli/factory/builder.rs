//! Builds many certificates: what those with the same settings share is built once, and
//! exists once in memory. An output is looked up once, however many are published there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Factory, outputs};
use crate::config::{CertificateSettings, SharedSettings};
use crate::deploy::outputs::Owned;
use crate::failure::Failure;
use crate::manage::{Certificate, Keeper, OrderSettings, SharedServices, Wanted};

/// Builds certificates from the settings of one moment.
pub(in super::super) struct Builder<'f> {
    factory: &'f Factory,
    /// By the address of the settings, which are kept, too.
    made: BTreeMap<usize, Mold>,
}

/// What certificates with the same settings share.
struct Mold {
    /// Keeps the address.
    _settings: Arc<SharedSettings>,
    /// Where they are published; `None`: in the usual output.
    output: Option<Owned>,
    built: Option<(Arc<OrderSettings>, Arc<SharedServices>, Keeper)>,
}

impl<'f> Builder<'f> {
    pub(in super::super) fn new(factory: &'f Factory) -> Self {
        Self {
            factory,
            made: BTreeMap::new(),
        }
    }

    /// The certificate, which is published in the output of its settings.
    pub(in super::super) fn published(
        &mut self,
        settings: &CertificateSettings,
    ) -> Result<Certificate, Failure> {
        let known = self.mold(settings)?.built.clone();
        // A path may have the name of a certificate in it.
        let known = known.filter(|_| settings.deploy.is_empty());
        let certificate = match known {
            Some((order, shared, keeper)) => Certificate {
                wanted: Wanted {
                    lineage: settings.lineage.clone(),
                    identifiers: settings.names.iter().cloned().collect(),
                    order,
                },
                targets: self.factory.targets(settings),
                keeper,
                shared,
            },
            None => self.share(settings)?,
        };
        self.publish(settings)?;
        Ok(certificate)
    }

    fn share(&mut self, settings: &CertificateSettings) -> Result<Certificate, Failure> {
        let mut certificate = self.factory.certificate(settings)?;
        let mold = self.mold(settings)?;
        match &mold.built {
            Some((order, shared, _)) => {
                certificate.wanted.order = order.clone();
                certificate.shared = shared.clone();
            }
            None => {
                let (order, shared) = (&certificate.wanted.order, &certificate.shared);
                mold.built = Some((order.clone(), shared.clone(), certificate.keeper));
            }
        }
        Ok(certificate)
    }

    /// Publishes the certificate where its settings say, and gives its published files to their
    /// readers, which may have changed.
    pub(in super::super) fn open_published(
        &mut self,
        settings: &CertificateSettings,
    ) -> Result<(), Failure> {
        self.publish(settings)?;
        self.factory.open_files_of(settings);
        Ok(())
    }

    fn publish(&mut self, settings: &CertificateSettings) -> Result<(), Failure> {
        if let Some(output) = self.mold(settings)?.output.clone() {
            self.factory.outputs.set(settings.lineage.clone(), output);
        }
        Ok(())
    }

    fn mold(&mut self, settings: &CertificateSettings) -> Result<&mut Mold, Failure> {
        let address = Arc::as_ptr(&settings.shared) as usize;
        if !self.made.contains_key(&address) {
            let mold = Mold {
                _settings: settings.shared.clone(),
                output: outputs::own(&self.factory.process, settings)?,
                built: None,
            };
            self.made.insert(address, mold);
        }
        let made = self.made.get_mut(&address);
        made.ok_or_else(|| Failure::unexpected("the settings have no output"))
    }
}
