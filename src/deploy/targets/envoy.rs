//! Envoy, which reloads the pair by itself when the `live` directory changes (file-based
//! SDS).

use std::path::Path;

use crate::deploy::owner::Owner;
use crate::deploy::target_settings::prelude::*;
use crate::deploy::watched::{Watched, quoted};

settings! {
    /// Envoy loads each generation by itself: `certs` writes the file for file-based SDS (`path_config_source`), with the
    /// `live` directory as the watched directory, and a secret with the certificate's name.
    struct Settings {
        /// The file that Envoy reads; `{name}` is replaced by the certificate's name
        file: PathKey,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "envoy";
    const SHORT: ShortForm = ShortForm::Keys(&["file"]);
    const EXAMPLE: &'static str = r#"file = "/etc/envoy/sds/{name}.yaml""#;
    const STAGE: DeployStage = DeployStage::EachCertificate;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        None
    }

    fn rights(&self) -> Rights {
        Rights::to_write(Writes::File(self.file.to_path_buf(), Owner::default()))
    }

    fn needs_key(&self) -> bool {
        true
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(Watched {
            name: self.short_form(),
            content: secret,
            file: self.file.clone(),
        })
    }
}

fn secret(delivery: &Delivery) -> String {
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
