//! Envoy, which reloads the pair by itself when the `live` directory changes (file-based
//! SDS).

use std::path::Path;
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

/// Envoy loads each generation by itself: `certs` writes the file for file-based SDS (`path_config_source`), with the
/// `live` directory as the watched directory, and a secret with the certificate's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The file that Envoy reads; `{name}` is replaced by the certificate's name
    file: PathKey,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "envoy";
    const SHORT: ShortForm = ShortForm::Where("file");
    const EXAMPLE: &'static str = r#"kind = "envoy"
file = "/etc/envoy/sds/{name}.yaml""#;

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
        Arc::new(Watched::new(name, secret, self.file.to_path_buf()))
    }
}

pub(in crate::deploy) fn secret(delivery: &Delivery) -> String {
    let live = &delivery.live;
    format!(
        "resources:\n\
         - \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  \
           name: {name}\n  \
           tls_certificate:\n    \
             certificate_chain: {{filename: {chain}}}\n    \
             private_key: {{filename: {key}}}\n    \
             watched_directory: {{path: {watched}}}\n",
        name = quoted(Path::new(delivery.lineage.as_str())),
        chain = quoted(&live.join("fullchain.pem")),
        key = quoted(&live.join("privkey.pem")),
        watched = quoted(live.parent().unwrap_or(live)),
    )
}
