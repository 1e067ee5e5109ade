//! `certs renew`: one pass over every configured or stored certificate; `certs reload`
//! and `certs rollback`, which deploy again. A failure does not stop the others.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use super::Call;
use super::catalog::{none_in, recall};
use super::issue::{at_staging, print_failure, work};
use super::kept::skip_orphans;
use super::meant;
use super::output::say;
use crate::config::{CertificateSettings, Purpose, Settings};
use crate::control::Task;
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::manage::Trigger;
use crate::record::Generation;
use crate::sandbox;

/// Renews what is due.
pub(super) async fn renew(call: &Call, names: &[String], task: Task) -> Result<(), Failure> {
    pass(call, names, task).await
}

/// Deploys the latest generation again.
pub(super) async fn reload(call: &Call, names: &[String]) -> Result<(), Failure> {
    pass(call, names, Task::Pass(Trigger::Redeploy)).await
}

/// Deploys an earlier generation of one certificate: generations are counted for each alone.
pub(super) async fn rollback(call: &Call, name: &str, to: Option<u64>) -> Result<(), Failure> {
    let data_dir = call.sources.process_settings()?.data_dir;
    let lineage = meant::one(&data_dir, name, "rolled back").await?;
    alone(call, &lineage, Trigger::Rollback(to.map(Generation))).await?;
    if let Some(other) = meant::other_key(&data_dir, &lineage).await? {
        let note = format!(
            "{other}, for the other key, stays at its generation; hint: certs rollback {other} rolls it back, too"
        );
        call.terminal.print(&call.terminal.hint(&note));
    }
    Ok(())
}

/// A pass over one certificate, and none that shares a name with it.
pub(super) async fn alone(call: &Call, lineage: &Lineage, trigger: Trigger) -> Result<(), Failure> {
    selected(call, &Selection::Only(lineage), Task::Pass(trigger)).await
}

/// `task` for the certificates that `names` select, or for all.
pub(super) async fn pass(call: &Call, names: &[String], task: Task) -> Result<(), Failure> {
    selected(call, &Selection::Names(names), task).await
}

/// The certificates of a command.
enum Selection<'s> {
    /// By lineage or by one of their names; all without any.
    Names(&'s [String]),
    /// By lineage alone.
    Only(&'s Lineage),
}

async fn selected(call: &Call, selection: &Selection<'_>, task: Task) -> Result<(), Failure> {
    let is_all = matches!(selection, Selection::Names([]));
    let never_orders = matches!(task, Task::Pass(trigger) if trigger.never_orders());
    let mut settings = meant::settings(&call.sources, &Purpose::All).await?;
    let mut unusable = Vec::new();
    for (lineage, recalled) in recall(&call.sources, &settings)? {
        match recalled {
            Ok(certificate) => settings.certificates.push(certificate),
            Err(failure) => unusable.push((lineage, failure)),
        }
    }
    match selection {
        Selection::Names(names) => select(&mut settings.certificates, &mut unusable, names)?,
        Selection::Only(lineage) => {
            settings.certificates.retain(|one| one.lineage == **lineage);
            unusable.retain(|(one, _)| one == *lineage);
        }
    }
    if is_all && !never_orders {
        skip_orphans(&call.sources, &mut settings).await?;
    }
    if settings.certificates.is_empty() && unusable.is_empty() {
        if !call.json {
            say(format_args!(
                "{}, and none is configured",
                none_in(&settings.data_dir)
            ));
        }
        return Ok(());
    }
    match task {
        Task::Pass(trigger) if trigger.never_orders() => {}
        Task::Pass(_) => warn_of_unrenewable(&settings),
        Task::Rehearsal => at_staging(&mut settings.certificates),
    }
    settings.gives_up_root = !never_orders && gives_up_root(&settings);
    // Those that fail whatever the others do come first.
    let certificates = &mut settings.certificates;
    certificates.sort_by_key(|one| one.cannot_order.is_none());
    let mut ended = Ok(());
    for (lineage, failure) in unusable {
        failure.show(&call.terminal);
        print_failure(call, lineage.as_str(), task, &failure);
        ended = ended.and(Err(failure.code_only()));
    }
    if !settings.certificates.is_empty() {
        ended = ended.and(work(call, &settings, task, BTreeSet::new()).await);
    }
    ended
}

/// Names the certificates that no pass renews.
fn warn_of_unrenewable(settings: &Settings) {
    let stuck = settings.certificates.iter();
    let stuck = stuck.filter_map(|one| Some((&one.lineage, one.cannot_order.as_ref()?)));
    for (lineage, cause) in stuck.filter(|(_, cause)| cause.only_when_due) {
        tracing::warn!(%lineage, "{}", cause.warning());
    }
}

/// Whether this process is root and becomes another user, as `certs run` does. Where the data
/// directory is root's, no other user has to read it: one renewal does not give it away.
fn gives_up_root(settings: &Settings) -> bool {
    let data = std::fs::metadata(&settings.data_dir);
    data.is_ok_and(|data| data.uid() != 0) && sandbox::gives_up_root(settings)
}

/// Keeps the certificates that `names` select, by lineage or by one of their names; those
/// with unusable settings by lineage only.
fn select(
    certificates: &mut Vec<CertificateSettings>,
    unusable: &mut Vec<(Lineage, Failure)>,
    names: &[String],
) -> Result<(), Failure> {
    if names.is_empty() {
        return Ok(());
    }
    let mut found = BTreeSet::<&String>::new();
    let mut selects = |lineage: &Lineage, identifiers: &[Identifier]| {
        let named = names.iter().filter(|name| {
            lineage.as_str() == *name
                || Identifier::parse(name).is_ok_and(|name| identifiers.contains(&name))
        });
        let named: Vec<&String> = named.collect();
        found.extend(named.iter().copied());
        !named.is_empty()
    };
    certificates.retain(|certificate| selects(&certificate.lineage, &certificate.names));
    unusable.retain(|(lineage, _)| selects(lineage, &[]));
    match names.iter().find(|name| !found.contains(name)) {
        None => Ok(()),
        Some(unknown) => Err(Failure::usage(
            format!("unknown certificate {}", unknown.escape_debug()),
            "certs status lists the stored ones; certs issue obtains a new one",
        )),
    }
}
