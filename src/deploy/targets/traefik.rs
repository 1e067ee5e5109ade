//! Traefik, which reloads the pair when the file that names it changes.

use crate::deploy::owner::Owner;
use crate::deploy::target_settings::prelude::*;
use crate::deploy::watched::{Watched, quoted};

settings! {
    /// Traefik reloads the pair when the file that names it changes, so that `certs` rewrites that file for each
    /// generation. Put it into the directory of Traefik's file provider, with `watch: true`.
    struct Settings {
        /// The file that Traefik reads; `{name}` is replaced by the certificate's name
        file: PathKey,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "traefik";
    const SHORT: ShortForm = ShortForm::Keys(&["file"]);
    const EXAMPLE: &'static str = r#"file = "/etc/traefik/dynamic/{name}.yaml""#;
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
            content: provider,
            file: self.file.clone(),
        })
    }
}

fn provider(delivery: &Delivery) -> String {
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
