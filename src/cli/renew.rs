//! `certs renew`: one pass over everything that is configured or stored, and
//! `certs reload` and `certs rollback`, which hand over again. One certificate
//! that fails stops no other.

use super::Call;
use super::args::Renew;
use super::catalog::{Recalled, recall, settings};
use super::issue::{tell_failure, work};
use super::output::say;
use crate::config::{Purpose, Settings};
use crate::control::Task;
use crate::failure::Failure;
use crate::identifier::{Identifier, Lineage};
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

/// Hands over what there is once more.
pub(super) async fn reload(call: &Call, names: &[String]) -> Result<(), Failure> {
    pass(call, names, Trigger::Redeploy).await
}

/// Hands over an earlier generation.
pub(super) async fn rollback(call: &Call, name: String, to: Option<u64>) -> Result<(), Failure> {
    pass(call, &[name], Trigger::Rollback(to.map(Generation))).await
}

async fn pass(call: &Call, names: &[String], trigger: Trigger) -> Result<(), Failure> {
    let mut settings = settings(call, &Purpose::All)?;
    let recalled = recall(&call.sources, &settings).await?;
    let lost = select(&mut settings, recalled, names)?;
    if settings.certificates.is_empty() && lost.is_empty() {
        if !call.json {
            say("nothing is stored or configured");
        }
        return Ok(());
    }
    let task = Task::Pass(trigger);
    let mut ended = Ok(());
    for (lineage, failure) in lost {
        failure.tell(&call.terminal);
        tell_failure(call, lineage.as_str(), task, &failure);
        ended = ended.and(Err(failure.code_only()));
    }
    if !settings.certificates.is_empty() {
        ended = ended.and(work(call, &settings, task).await);
    }
    ended
}

/// Adds what was recalled to what is configured, and keeps the certificates
/// that `names` mean: by their own name, or by one that they are for. Returns
/// those whose settings are lost.
fn select(
    settings: &mut Settings,
    recalled: Vec<Recalled>,
    names: &[String],
) -> Result<Vec<(Lineage, Failure)>, Failure> {
    let mut lost = Vec::new();
    for (lineage, recalled) in recalled {
        match recalled {
            Ok(certificate) => settings.certificates.push(certificate),
            Err(failure) => lost.push((lineage, failure)),
        }
    }
    if names.is_empty() {
        return Ok(lost);
    }
    let means = |name: &str, lineage: &Lineage, identifiers: &[Identifier]| {
        lineage.as_str() == name
            || Identifier::parse(name).is_ok_and(|name| identifiers.contains(&name))
    };
    let unknown = names.iter().find(|name| {
        let mut all = settings.certificates.iter();
        let found = all.any(|certificate| means(name, &certificate.lineage, &certificate.names));
        !found && !lost.iter().any(|(lineage, _)| means(name, lineage, &[]))
    });
    if let Some(name) = unknown {
        return Err(Failure::usage(
            format!("{}: there is no such certificate", name.escape_debug()),
            "certs status lists what is stored; a new one is made by certs issue",
        ));
    }
    let chosen = |lineage: &Lineage, identifiers: &[Identifier]| {
        names.iter().any(|name| means(name, lineage, identifiers))
    };
    let certificates = &mut settings.certificates;
    certificates.retain(|certificate| chosen(&certificate.lineage, &certificate.names));
    lost.retain(|(lineage, _)| chosen(lineage, &[]));
    Ok(lost)
}
