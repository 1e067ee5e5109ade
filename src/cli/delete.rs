//! `certs delete`: forgets one certificate, after it has shown what will be removed and
//! which servers were deployed to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use super::Call;
use super::busy::when_free;
use super::catalog::{as_stored, denied_output, existing_store, is_permitted, recall};
use super::factory::{emptied, outputs_for, publish_by};
use super::labels::Labels;
use super::meant;
use super::output::{say, say_json};
use crate::acme::{left_record, remove_left};
use crate::challenge::responses::Responses;
use crate::config::{CertificateSettings, Purpose, Settings};
use crate::control;
use crate::deploy::confirmed::{Confirmed, Right};
use crate::deploy::outputs::Outputs;
use crate::deploy::removal::Emptied;
use crate::failure::Failure;
use crate::install::journal::{Journals, Subject};
use crate::install::tree::{Overlay, Tree};
use crate::lineage::{Known, Lineage};
use crate::manage::delete::delete as delete_stored;
use crate::record::Record;
use crate::store::{Store, StoreError};
use crate::text::shell_word;

#[derive(Debug, Args)]
#[command(
    after_help = "It removes the record and all stored pairs, live/NAME and archive/NAME. It revokes nothing, reloads no \
    server, and leaves copies elsewhere. After a crash, the same command finishes the work.\n\n\
    Example: certs delete old.example.com"
)]
pub(super) struct Delete {
    /// The certificate, by lineage or by one of its names
    pub name: String,
    /// Delete without a question
    #[arg(long)]
    pub yes: bool,
    /// Keep live/NAME and archive/NAME for the servers that read them
    #[arg(long)]
    pub keep_files: bool,
}

/// Deletes the certificate, by the running sidecar if there is one.
pub(super) async fn delete(call: &Call, options: &Delete) -> Result<(), Failure> {
    let settings = call.sources.process_settings()?;
    let lineage = &only(&settings, &options.name).await?;
    let Some(store) = existing_store(settings.data_dir.clone())? else {
        return Err(unknown(lineage));
    };
    let failed = Failure::on::<crate::store::StoreError>(lineage.as_str());
    let mut damaged = Vec::new();
    let record = readable(store.load(lineage).await, &mut damaged).map_err(&failed)?;
    let record = record.map(|(record, _)| record);
    let made_with = readable(store.options(lineage).await, &mut damaged).map_err(&failed)?;
    let is_remembered = made_with.is_some() || !damaged.is_empty();
    let made_with: Option<CertificateSettings> =
        made_with.and_then(|json| CertificateSettings::stored_as(lineage, &json).ok());
    if !options.keep_files {
        check_installed(&settings, lineage, made_with.as_ref())?;
    }
    let output = emptied(made_with.as_ref(), &settings);
    let of = (lineage, made_with.as_ref());
    let files = files(call, options, &settings, of, &output)?;
    let is_known = record.is_some() || is_remembered || !files.is_empty();
    let rights = made_with.as_ref().map(CertificateSettings::rights);
    if is_known {
        let stored = (record.as_ref(), made_with.clone());
        let mut notes = notes(call, &settings, lineage, stored)?;
        notes.extend(other_key_note(&settings, lineage).await?);
        if !damaged.is_empty() {
            // What cannot be read is not said to be absent.
            notes.splice(..1, damaged);
        }
        confirm(call, options, lineage, (&files, &notes))?;
        if let (Some(record), Some(made_with)) = (&record, &made_with) {
            remove_answers(call, &settings, &store, (record, made_with)).await?;
        }
    }
    let output = (!options.keep_files).then_some(&output);
    let was_there = match control::is_running(&settings.data_dir).await? {
        true => control::delete(&settings.data_dir, lineage, options.keep_files).await?,
        false => {
            let others = others(call, &settings).await?;
            let store = call.store(&settings)?;
            let deleted =
                when_free(|| delete_stored(store.as_ref(), lineage, output, &others)).await;
            deleted.map_err(Failure::on(lineage.as_str()))?.0
        }
    };
    if !is_known && !was_there {
        return Err(unknown(lineage));
    }
    withdraw(call, &settings, lineage, rights.unwrap_or_default()).await;
    let kept: &[PathBuf] = if options.keep_files { &files } else { &[] };
    match call.json {
        true => say_json(json!({ "name": lineage, "deleted": true, "kept": kept })),
        false => say(format_args!(
            "{lineage}: deleted{}",
            listed("; kept: ", kept)
        )),
    }
    Ok(())
}

/// Refuses to remove files that an nginx reads since an install: it would not start again.
fn check_installed(
    settings: &Settings,
    lineage: &Lineage,
    made_with: Option<&CertificateSettings>,
) -> Result<(), Failure> {
    let output = made_with.map_or_else(|| settings.output.clone(), |one| settings.output_of(one));
    let live = std::path::absolute(settings.data_dir.join(&output.directory)).unwrap_or_default();
    let live = live.join("live").join(lineage.as_str());
    let reads = |install: &Subject| {
        let mut names = made_with.iter().flat_map(|one| &one.names);
        let is_other = install.name != lineage.as_str()
            && !names.any(|name| install.names.contains(&name.to_string()));
        if is_other {
            return false;
        }
        let tree = Tree::load(&install.main, &Overlay::new());
        tree.is_ok_and(|tree| tree.names(&live))
    };
    let mut installs = Journals::new(&settings.data_dir).subjects().into_iter();
    let Some(install) = installs.find(reads) else {
        return Ok(());
    };
    Err(Failure::usage(
        format!(
            "{lineage}: {} names {}, and nginx would not start without it; nothing was deleted",
            install.main.display(),
            live.display()
        ),
        format!(
            "restore that configuration first: certs install nginx --undo --domain {}; or keep the files: certs delete {lineage} --keep-files",
            shell_word(&install.name)
        ),
    ))
}

/// The certificate for the other key, which stays.
async fn other_key_note(settings: &Settings, lineage: &Lineage) -> Result<Option<String>, Failure> {
    let other = meant::other_key(&settings.data_dir, lineage).await?;
    Ok(other.map(|other| format!("{other}, for the other key, stays: certs delete {other}")))
}

/// The outputs of all certificates, stored or configured.
async fn others(call: &Call, settings: &Settings) -> Result<Outputs, Failure> {
    let mut all = as_stored(&call.sources, settings);
    let configured = call.sources.settings(&Purpose::All);
    // What is invalid is reported by the commands that use it.
    all.extend(configured.into_iter().flat_map(|read| read.certificates));
    let outputs = outputs_for(settings)?;
    for one in &all {
        publish_by(&outputs, settings, one)?;
    }
    Ok(outputs)
}

/// The time for all answers, beyond which a provider that does not answer is not waited for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(90);

/// Removes the answers to challenges that an interrupted order has left, and names the records
/// that stay. What only the store names is not used for it.
async fn remove_answers(
    call: &Call,
    settings: &Settings,
    store: &dyn Store,
    (record, made_with): (&Record, &CertificateSettings),
) -> Result<(), Failure> {
    if record.answers.is_empty() {
        return Ok(());
    }
    let lineage = &record.lineage;
    // An order in progress needs its answers.
    let lease = when_free(|| async { Ok(store.lease(lineage).await?) }).await;
    let _lease = lease.map_err(Failure::on(lineage.as_str()))?;
    let is_permitted = is_permitted(&call.sources, settings, made_with)?;
    let solver = made_with.challenge.solver(&Responses::default());
    let removals = record.answers.iter().map(async |answer| {
        let removal = timeout(ANSWERS_WITHIN, remove_left(solver.as_ref(), answer));
        is_permitted && removal.await.unwrap_or_default()
    });
    let removed = join_all(removals).await;
    for (answer, is_removed) in record.answers.iter().zip(removed) {
        let Some(left) = left_record(answer) else {
            continue;
        };
        call.terminal.print(&match is_removed {
            true => format!("{lineage}: removed the record {left}"),
            false => format!("{lineage}: remove the record {left} from its zone by hand"),
        });
    }
    Ok(())
}

/// The one certificate that `name` selects. Files may be left of one that is not stored.
async fn only(settings: &Settings, name: &str) -> Result<Lineage, Failure> {
    match meant::selected(&settings.data_dir, name).await.as_deref() {
        Ok([only]) => Ok(only.clone()),
        Ok(several) => {
            let several: Vec<_> = several.iter().map(ToString::to_string).collect();
            let several = several.join(", ");
            Err(Failure::usage(
                format!("several certificates have {name}: {several}; nothing was deleted"),
                "delete one of them by its own name",
            ))
        }
        Err(_) => {
            Lineage::parse(name).map_err(|error| Failure::usage(error.to_string(), error.hint()))
        }
    }
}

/// The existing files of the certificate in `output`: none if only the store names that place.
fn files(
    call: &Call,
    options: &Delete,
    settings: &Settings,
    made_with: (&Lineage, Option<&CertificateSettings>),
    output: &Emptied,
) -> Result<Vec<PathBuf>, Failure> {
    let (lineage, made_with) = made_with;
    let denied = made_with.map(|one| denied_output(&call.sources, settings, one));
    match denied.transpose()?.flatten() {
        None => output
            .present(lineage)
            .map_err(Failure::on(lineage.as_str())),
        Some(_) if options.keep_files => Ok(Vec::new()),
        Some(right) => Err(Failure::output(
            format!(
                "{lineage}: the right to {right} is stored, but neither configured nor confirmed; nothing was deleted"
            ),
            &format!("to delete it without those files: certs delete {lineage} --yes --keep-files"),
        )),
    }
}

/// What is stored, or nothing if it is damaged: that must not keep it for ever.
fn readable<T>(
    stored: Result<Option<T>, StoreError>,
    damaged: &mut Vec<String>,
) -> Result<Option<T>, StoreError> {
    match stored {
        Err(error @ StoreError::Corrupt { .. }) => {
            damaged.push(error.to_string());
            Ok(None)
        }
        stored => stored,
    }
}

/// Withdraws the confirmed rights that no other certificate uses.
async fn withdraw(
    call: &Call,
    settings: &Settings,
    lineage: &Lineage,
    mut rights: BTreeSet<Right>,
) {
    if rights.is_empty() {
        return;
    }
    let file = Confirmed::file_for(&settings.data_dir);
    let withdrawn = async {
        let configured = call.sources.settings(&Purpose::All)?;
        let stored = recall(&call.sources, settings)?;
        let mut others = configured.certificates;
        for (_, stored) in stored.into_iter().filter(|(name, _)| name != lineage) {
            others.push(stored?);
        }
        for one in &others {
            let theirs = one.rights();
            rights.retain(|right| !theirs.contains(right));
        }
        let withdrawn = Confirmed::withdraw(&file, &rights);
        withdrawn.map_err(|error| Failure::store(error.to_string()))
    };
    match withdrawn.await {
        Ok(withdrawn) => {
            for right in withdrawn {
                let line = format!("{lineage}: no longer confirmed: {right}");
                call.terminal.print(&line);
            }
        }
        Err(failure) => tracing::warn!(
            "the confirmed rights of {lineage} stay: {}; hint: remove from {} what nothing else uses",
            failure.summary(),
            file.display()
        ),
    }
}

fn unknown(lineage: &Lineage) -> Failure {
    let message = format!("unknown certificate {lineage}");
    Failure::usage(message, "certs status lists the stored ones")
}

/// What the user should know before.
fn notes(
    call: &Call,
    settings: &Settings,
    lineage: &Lineage,
    (record, made_with): (Option<&Record>, Option<CertificateSettings>),
) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    match record.and_then(|record| record.issued.as_ref()) {
        None => notes.push("no certificate exists yet".to_owned()),
        Some(issued) => notes.push(format!(
            "generation {}, valid to {}",
            issued.generation, issued.facts.not_after
        )),
    }
    let left = record.iter().flat_map(|record| &record.answers);
    let left = left.filter_map(left_record).map(|left| {
        format!("an interrupted order may have left the record {left}, which is removed, too")
    });
    notes.extend(left);
    let is_second = made_with.as_ref().is_some_and(|it| it.is_second);
    if let Some(made_with) = made_with {
        let specs = made_with
            .deploy
            .iter()
            .map(|spec| spec.for_lineage(lineage));
        let specs: Vec<_> = specs.collect();
        let readers: Vec<String> = specs.iter().map(ToString::to_string).collect();
        if !readers.is_empty() {
            let readers = readers.join(", ");
            notes.push(format!("deployed to {readers}: change what reads it first"));
        }
        let copies: Vec<PathBuf> = specs.iter().filter_map(|spec| spec.writes()).collect();
        if !copies.is_empty() {
            notes.push(listed("these copies stay: ", &copies));
        }
    }
    let names = record.map(|record| &record.identifiers);
    let mut configured = call.sources.known().into_iter();
    let same = |one: &Known| one.is_second == is_second && names == Some(&one.wanted);
    if configured.any(|one| one.lineage == *lineage || same(&one)) {
        notes.push("the configuration still has it: certs run and certs renew would issue it again; remove it there, too".to_owned());
    }
    let mut requests = Labels::open(&settings.data_dir)?.requests();
    if let Some(by) = requests.remove(lineage)
        && !by.stopped
    {
        let containers: Vec<String> = by.containers.into_iter().collect();
        let containers = containers.join(", ");
        notes.push(format!(
            "labels of {containers} request it: certs run would issue it again"
        ));
    }
    Ok(notes)
}

/// Shows what will be removed and asks, unless the answer was given with `--yes`.
fn confirm(
    call: &Call,
    options: &Delete,
    lineage: &Lineage,
    (files, notes): (&[PathBuf], &[String]),
) -> Result<(), Failure> {
    let removed = if options.keep_files { &[] } else { files };
    let removed = listed("; removes ", removed);
    let first = notes.first().map_or("", String::as_str);
    call.terminal.print(&format!("{lineage}: {first}{removed}"));
    for note in notes.iter().skip(1) {
        let note = call.terminal.hint(note);
        call.terminal.print(&format!("{lineage}: {note}"));
    }
    if options.yes {
        return Ok(());
    }
    let refused = |why: &str| {
        let keep = if options.keep_files {
            " --keep-files"
        } else {
            ""
        };
        Failure::usage(
            format!("{lineage}: nothing was deleted: {why}"),
            format!("to delete it: certs delete {lineage} --yes{keep}"),
        )
    };
    let question = format!("Delete {lineage}? [y/N] ");
    call.terminal.confirmed(&question).map_err(refused)
}

fn listed(before: &str, paths: &[impl AsRef<Path>]) -> String {
    let paths = paths.iter().map(|path| path.as_ref().display().to_string());
    let paths = paths.collect::<Vec<_>>().join(", ");
    match paths.is_empty() {
        true => String::new(),
        false => format!("{before}{paths}"),
    }
}
