//! The settings of many stored certificates, each made as [`Sources::remembered`] makes it: what
//! the same stored settings become is found out once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::check;
use super::problem::ConfigProblem;
use super::remembered::Remembered;
use super::resolve::Sources;
use super::{CertificateSettings, SharedSettings};

/// Makes the settings of many stored certificates, as [`Sources::remembered`] does: once for
/// all that share the stored ones, as far as their names permit.
pub(crate) struct Recollection<'s> {
    sources: &'s Sources,
    /// By the address of the stored settings, which are kept, too.
    made: BTreeMap<usize, (Arc<SharedSettings>, Arc<SharedSettings>)>,
}

impl<'s> Recollection<'s> {
    pub(crate) fn new(sources: &'s Sources) -> Self {
        Self {
            sources,
            made: BTreeMap::new(),
        }
    }

    /// The settings of a stored certificate that is not configured.
    ///
    /// # Errors
    /// Every problem of the sources with that certificate.
    pub(crate) fn of(
        &mut self,
        stored: &Remembered,
    ) -> Result<CertificateSettings, Vec<ConfigProblem>> {
        let Remembered::Whole(whole) = stored else {
            return self.sources.remembered(stored);
        };
        let address = Arc::as_ptr(&whole.shared) as usize;
        if let Some((_, shared)) = self.made.get(&address) {
            let same = CertificateSettings {
                shared: shared.clone(),
                ..(**whole).clone()
            };
            if check::names_fit(&same) {
                return Ok(same);
            }
        }
        let made = self.sources.remembered(stored)?;
        if made.cannot_order.is_none() && check::names_fit(whole) {
            let both = (whole.shared.clone(), made.shared.clone());
            self.made.insert(address, both);
        }
        Ok(made)
    }
}
