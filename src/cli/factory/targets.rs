//! The targets of a certificate: those of one server are shared, and those that only the
//! store names are refused.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;

use super::Factory;
use crate::config::CertificateSettings;
use crate::deploy::coalesce::{Coalesced, Gate};
use crate::deploy::confirmed::Right;
use crate::deploy::target::DeployTarget;
use crate::deploy::{Delivery, DeployCause, Target};

impl Factory {
    /// The targets, copies first: a server may read one of them.
    pub(super) fn targets(&self, settings: &CertificateSettings) -> Vec<Arc<dyn Target>> {
        let specs = settings.deploy.iter();
        let (copies, servers): (Vec<_>, Vec<_>) = specs.partition(|spec| spec.is_copy());
        let all = copies.into_iter().chain(servers);
        let all = all.map(|spec| spec.for_lineage(&settings.lineage));
        let target = |spec: &DeployTarget| match Right::to_deploy(spec) {
            Some(right) if settings.unconfirmed.contains(&right) => {
                let denied = UnconfirmedTarget(spec.target(), right);
                Coalesced::new(Arc::new(denied), spec.stage(), Gate::default())
            }
            _ => self.target(spec),
        };
        let all: Vec<_> = all.map(|spec| (target(&spec), spec)).collect();
        let named = all.iter().map(|(target, spec)| -> Arc<dyn Target> {
            let same = |(other, _): &&(Coalesced, DeployTarget)| other.name() == target.name();
            Arc::new(match all.iter().filter(same).count() {
                1 => target.clone(),
                // Two nginx are distinguished by their pid files.
                _ => target.named(spec.to_string()),
            })
        });
        let is_owned = self.process.output_of(settings).owner.is_some();
        let file_owner = self.sandbox.file_owner().filter(|_| is_owned);
        file_owner.into_iter().chain(named).collect()
    }

    /// The target of one server, shared by certificates to coalesce its reloads.
    fn target(&self, spec: &DeployTarget) -> Coalesced {
        let mut targets = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let target = self.sandbox.target(spec);
        let shared = targets.entry(spec.server());
        let gate = &self.services.gate;
        let shared =
            shared.or_insert_with(|| Coalesced::new(target.clone(), spec.stage(), gate.clone()));
        shared.of(target)
    }
}

/// A target that only the store names.
struct UnconfirmedTarget(Arc<dyn Target>, Right);

#[async_trait]
impl Target for UnconfirmedTarget {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        Err(DeployCause::Unconfirmed(self.1.to_string()))
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        self.check(delivery).await
    }
}
