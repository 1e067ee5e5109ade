//! Traefik, which reloads the pair when the file that names it changes.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::deploy::keys::values::PathKey;
use crate::deploy::owner::Owner;
use crate::deploy::target_settings::{
    self, DeployStage, InvalidTarget, Paths, Processes, Rights, ShortForm, TargetSettings, Writes,
};
use crate::deploy::watched::{Watched, quoted};
use crate::deploy::{Delivery, Target};

/// Traefik reloads the pair when the file that names it changes, so that `certs` rewrites that file for each
/// generation. Put it into the directory of Traefik's file provider, with `watch: true`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The file that Traefik reads; `{name}` is replaced by the certificate's name
    file: PathKey,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "traefik";
    const SHORT: ShortForm = ShortForm::Where("file");
    const EXAMPLE: &'static str = r#"kind = "traefik"
file = "/etc/traefik/dynamic/{name}.yaml""#;

    fn check(&self) -> Result<(), InvalidTarget> {
        Ok(())
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: None,
            reads: None,
            writes: Writes::File(self.file.to_path_buf(), Owner::default()),
        }
    }

    fn stage(&self) -> DeployStage {
        DeployStage::Server
    }

    fn coalesces(&self) -> bool {
        false
    }

    fn deadline(&self) -> Duration {
        target_settings::DEADLINE
    }

    fn paths(&mut self) -> Paths<'_> {
        Paths {
            read: Vec::new(),
            written: Some(&mut self.file),
        }
    }

    fn target(&self, name: String) -> Arc<dyn Target> {
        Arc::new(Watched::new(name, provider, self.file.to_path_buf()))
    }
}

pub(in crate::deploy) fn provider(delivery: &Delivery) -> String {
    let live = &delivery.live;
    format!(
        "# Generation {generation} of {lineage}, written by certs: Traefik reads the pair when this file changes.\n\
         tls:\n  \
           certificates:\n  \
           - certFile: {chain}\n    \
             keyFile: {key}\n",
        generation = delivery.generation,
        lineage = delivery.lineage,
        chain = quoted(&live.join("fullchain.pem")),
        key = quoted(&live.join("privkey.pem")),
    )
}
