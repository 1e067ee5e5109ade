//! `certs renew`: one pass over every configured or stored certificate; `certs reload`
//! and `certs rollback`, which deploy again. A failure does not stop the others.

use super::Call;
use super::args::Renew;
use super::catalog::{Recalled, recall, settings};
use super::issue::{print_failure, work};
use super::output::say;
use crate::config::{Purpose, Settings};
use crate::control::Task;
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::manage::Trigger;
use crate::record::Generation;

/// Renews what is due.
pub(super) async fn renew(call: &Call, options: &Renew) -> Result<(), Failure> {
    let trigger = if options.force {
        Trigger::Forced
    } else {
        Trigger::Scheduled
    };
    pass(call, &options.names, trigger).await
}

/// Deploys the latest generation again.
pub(super) async fn reload(call: &Call, names: &[String]) -> Result<(), Failure> {
    pass(call, names, Trigger::Redeploy).await
}

/// Deploys an earlier generation.
pub(super) async fn rollback(call: &Call, name: String, to: Option<u64>) -> Result<(), Failure> {
    pass(call, &[name], Trigger::Rollback(to.map(Generation))).await
}

async fn pass(call: &Call, names: &[String], trigger: Trigger) -> Result<(), Failure> {
    let mut settings = settings(call, &Purpose::All)?;
    let recalled = recall(&call.sources, &settings).await?;
    let unusable = select(&mut settings, recalled, names)?;
    if settings.certificates.is_empty() && unusable.is_empty() {
        if !call.json {
            say("no certificate is stored or configured");
        }
        return Ok(());
    }
    let task = Task::Pass(trigger);
    let mut ended = Ok(());
    for (lineage, failure) in unusable {
        failure.show(&call.terminal);
        print_failure(call, lineage.as_str(), task, &failure);
        ended = ended.and(Err(failure.code_only()));
    }
    if !settings.certificates.is_empty() {
        ended = ended.and(work(call, &settings, task).await);
    }
    ended
}

/// Adds the recalled certificates to the configured ones and keeps those that `names`
/// select, by lineage or by one of their names. Returns those with unusable settings.
fn select(
    settings: &mut Settings,
    recalled: Vec<Recalled>,
    names: &[String],
) -> Result<Vec<(Lineage, Failure)>, Failure> {
    let mut unusable = Vec::new();
    for (lineage, recalled) in recalled {
        match recalled {
            Ok(certificate) => settings.certificates.push(certificate),
            Err(failure) => unusable.push((lineage, failure)),
        }
    }
    if names.is_empty() {
        return Ok(unusable);
    }
    let selects = |name: &str, lineage: &Lineage, identifiers: &[Identifier]| {
        lineage.as_str() == name
            || Identifier::parse(name).is_ok_and(|name| identifiers.contains(&name))
    };
    let unknown = names.iter().find(|name| {
        let mut all = settings.certificates.iter();
        let found = all.any(|certificate| selects(name, &certificate.lineage, &certificate.names));
        !found
            && !unusable
                .iter()
                .any(|(lineage, _)| selects(name, lineage, &[]))
    });
    if let Some(name) = unknown {
        return Err(Failure::usage(
            format!("unknown certificate {}", name.escape_debug()),
            "certs status lists the stored ones; certs issue obtains a new one",
        ));
    }
    let chosen = |lineage: &Lineage, identifiers: &[Identifier]| {
        names.iter().any(|name| selects(name, lineage, identifiers))
    };
    let certificates = &mut settings.certificates;
    certificates.retain(|certificate| chosen(&certificate.lineage, &certificate.names));
    unusable.retain(|(lineage, _)| chosen(lineage, &[]));
    Ok(unusable)
}
