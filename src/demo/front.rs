//! Our own TLS listener as a deploy target: it reads the live pair as nginx would, and
//! its reload publishes the pair. So it is checked, reloaded and verified in the same
//! steps as any other target.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::certificate::{Bundle, Freshness, Secret};
use crate::deploy::{Delivery, DeployCause, Outlet, Target};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::time::Clock;
use crate::tls::credentials::Publisher;

const NAME: &str = "front";

/// The deploy target for one certificate of our own listener.
pub(crate) struct Front {
    lineage: Lineage,
    identifiers: BTreeSet<Identifier>,
    live: PathBuf,
    publisher: Arc<Publisher>,
    clock: Arc<dyn Clock>,
}

impl Front {
    /// A target that gives the live pair of `lineage` to `publisher`.
    #[must_use]
    pub(crate) fn new(
        lineage: Lineage,
        identifiers: BTreeSet<Identifier>,
        output: &dyn Outlet,
        publisher: Arc<Publisher>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            live: output.live_path(&lineage),
            lineage,
            identifiers,
            publisher,
            clock,
        }
    }

    fn read(&self) -> Result<Bundle, DeployCause> {
        // Resolved once, since the link may change between two reads.
        let place = std::fs::canonicalize(&self.live).map_err(|error| self.error(&error))?;
        let text = |name: &str| {
            std::fs::read_to_string(place.join(name)).map_err(|error| self.error(&error))
        };
        let key = Secret::new(text("privkey.pem")?);
        let (chain, now) = (text("fullchain.pem")?, self.clock.now());
        Bundle::new(key, &chain, &self.identifiers, now, Freshness::Stored)
            .map_err(|error| self.error(&error))
    }

    fn error(&self, detail: &dyn std::error::Error) -> DeployCause {
        DeployCause::Pair {
            path: self.live.display().to_string(),
            detail: detail.to_string(),
        }
    }
}

#[async_trait]
impl Target for Front {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        self.read().map(drop)
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployCause> {
        let bundle = self.read()?;
        let published = self.publisher.publish(&self.lineage, &bundle);
        published.map_err(|error| self.error(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::deploy::output::Output;
    use crate::deploy::sample;
    use crate::record::Generation;
    use crate::time::{SystemClock, VirtualClock};

    #[tokio::test]
    async fn front_refuses_damaged_or_expired_live_pair_in_check_and_apply() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path().to_owned());
        let names = BTreeSet::from([Identifier::parse("example.com").unwrap()]);
        let lineage = Lineage::parse("example.com").unwrap();
        let clock = Arc::new(VirtualClock::new(SystemClock.now()));
        let served = vec![(lineage.clone(), names.clone())];
        let (publisher, _credentials) = Publisher::new(served, clock.clone());
        let front = Front::new(
            lineage.clone(),
            names.clone(),
            &output,
            Arc::new(publisher),
            clock.clone(),
        );
        let missing = front.check(&sample()).await.unwrap_err();
        assert!(
            missing.to_string().contains("live/example.com"),
            "{missing}"
        );
        output.placeholder(&lineage, &names, clock.now()).unwrap();
        front.check(&sample()).await.unwrap();
        front.apply(&sample()).await.unwrap();

        let live = output.live_path(&lineage);
        let (key, chain) = (live.join("privkey.pem"), live.join("fullchain.pem"));
        let sound = std::fs::read_to_string(&key).unwrap();
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for damaged in [other.as_str(), ""] {
            std::fs::write(&key, damaged).unwrap();
            assert!(front.check(&sample()).await.is_err());
            assert!(matches!(
                front.apply(&sample()).await,
                Err(DeployCause::Pair { .. })
            ));
        }
        std::fs::write(&key, sound).unwrap();
        front.apply(&sample()).await.unwrap();

        let leaf = std::fs::read_to_string(chain).unwrap();
        let key = Secret::new(std::fs::read_to_string(&key).unwrap());
        let bundle = Bundle::new(key, &leaf, &names, clock.now(), Freshness::Any).unwrap();
        clock.set(bundle.facts().not_after + Duration::from_secs(1));
        let expired = front.check(&sample()).await.unwrap_err();
        assert!(expired.to_string().contains("expired"), "{expired}");
        assert_eq!(output.live(&lineage).unwrap(), Some(Generation(0)));
    }
}
