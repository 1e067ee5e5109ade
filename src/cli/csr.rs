//! `certs csr`: a certificate for the key of a signing request that a user brings. It is kept
//! and renewed like any other, always with that request; only its private key is elsewhere.

use std::path::PathBuf;

use clap::Args;

use super::Call;
use super::catalog::existing_store;
use super::issue::ordered;
use super::meant;
use crate::config::{CertificateSettings, ISSUE, KeyOptions, Settings};
use crate::control::Task;
use crate::failure::Failure;
use crate::store::Store;

#[derive(Debug, Args)]
#[command(
    after_help = "The names are those of the request. fullchain.pem, cert.pem, chain.pem and request.pem are written, and no \
    privkey.pem: the server reads the key where it is. certs run and certs renew renew the certificate with the stored \
    request, so that FILE is not needed again; for another key, run this again with --force and its request.\n\n\
    Example: certs csr mail.csr --agree-tos --deploy postfix --verify smtp://mail.example.com:25"
)]
pub(super) struct Csr {
    // First, as for `issue`.
    #[command(flatten)]
    pub keys: KeyOptions<ISSUE>,
    /// The signing request, in PEM or DER
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The names to expect: with others in the request, nothing is ordered
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub once: Once,
}

/// The options of the verbs that order one certificate.
#[derive(Debug, Args)]
pub(super) struct Once {
    /// The certificate's own name (default: that of the stored certificate with these names, else the first NAME)
    #[arg(long, value_name = "LINEAGE")]
    pub name: Option<String>,
    /// Order now, even if not due
    #[arg(long)]
    pub force: bool,
    /// Order from the CA's staging directory; nothing is stored or deployed
    #[arg(long)]
    pub dry_run: bool,
}

impl Once {
    pub(super) fn task(&self) -> Task {
        Task::requested(self.dry_run, self.force)
    }
}

/// Obtains the certificate, or reports that the stored one is not due.
pub(super) async fn csr(call: &Call, options: &Csr) -> Result<(), Failure> {
    let mut sources = call.sources.clone();
    let task = options.once.task();
    sources.rehearses = task == Task::Rehearsal;
    let settings = meant::named(&sources).await?;
    for certificate in &settings.certificates {
        refuse_other_key(call, &settings, certificate).await?;
    }
    ordered(call, settings, task).await
}

/// Refuses a certificate that has its key here: its server would lose the key at a renewal.
async fn refuse_other_key(
    call: &Call,
    settings: &Settings,
    certificate: &CertificateSettings,
) -> Result<(), Failure> {
    let lineage = &certificate.lineage;
    let mut is_own = call.sources.configures(lineage);
    if let Some(store) = existing_store(settings.data_dir.clone())? {
        let stored = store.options(lineage).await;
        let stored = stored.map_err(Failure::on(lineage.as_str()))?;
        // Damaged settings may be those of a certificate with a key.
        let has_request = |json: String| {
            let stored = CertificateSettings::stored_as(lineage, &json);
            stored.is_ok_and(|stored| stored.request.is_some())
        };
        is_own |= stored.is_some_and(|json| !has_request(json));
    }
    match is_own {
        false => Ok(()),
        true => Err(Failure::usage(
            format!("the certificate {lineage} has its own key here; nothing was ordered"),
            format!(
                "for a second certificate: certs csr FILE --name {lineage}_csr; to end the first one: certs delete {lineage}"
            ),
        )),
    }
}
