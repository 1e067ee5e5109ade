//! A target under another name, for several targets of a kind with the same name.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Delivery, DeployError, Target};
use crate::lineage::Lineage;

/// A target with another name.
pub(crate) struct Named {
    name: String,
    target: Arc<dyn Target>,
}

impl Named {
    /// `target`, known as `name`.
    #[must_use]
    pub(crate) fn new(name: String, target: Arc<dyn Target>) -> Self {
        Self { name, target }
    }
}

#[async_trait]
impl Target for Named {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployError> {
        let checked = self.target.check(delivery).await;
        checked.map_err(|error| error.of(&self.name))
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployError> {
        let applied = self.target.apply(delivery).await;
        applied.map_err(|error| error.of(&self.name))
    }

    async fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        self.target.listens_on().await
    }

    fn has_copies(&self) -> bool {
        self.target.has_copies()
    }

    async fn is_gone(&self, lineage: &Lineage) -> bool {
        self.target.is_gone(lineage).await
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        self.target.obstacle(delivery).await
    }
}
