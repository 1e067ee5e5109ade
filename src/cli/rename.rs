//! `certs rename`: gives a certificate another name of its own. Its names in the
//! certificate, its settings and its account stay.

use clap::Args;
use serde_json::json;

use super::Call;
use super::catalog::{confirm, denied_output, existing_store};
use super::factory::Factory;
use super::labels::Labels;
use super::meant;
use super::output::{say, say_json};
use crate::challenge::responses::Responses;
use crate::config::{CertificateSettings, Settings};
use crate::control;
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::record::Renaming;
use crate::store::Store;

#[derive(Debug, Args)]
#[command(
    after_help = "It moves the record with its stored pairs and settings, and publishes the pair as live/NEW. live/NAME \
    and archive/NAME are removed: change what reads them, or keep a link with --keep-link. No server is reloaded, and \
    nothing is ordered. After a crash, the same command finishes the work.\n\n\
    Example: certs rename example.com shop --keep-link"
)]
pub(super) struct Rename {
    /// The certificate, by lineage or by one of its names
    pub name: String,
    /// Its new name
    #[arg(value_name = "NEW")]
    pub new: Lineage,
    /// Keep live/NAME, as a link to live/NEW
    #[arg(long)]
    pub keep_link: bool,
}

/// Renames the certificate, by the running sidecar if there is one.
pub(super) async fn rename(call: &Call, options: &Rename) -> Result<(), Failure> {
    let settings = call.sources.process_settings()?;
    let to = &options.new;
    let (from, is_moved) = from(&settings, options).await?;
    let renaming = Renaming {
        from: from.clone(),
        to: to.clone(),
        keep_link: options.keep_link,
    };
    check(call, &settings, &renaming)?;
    let other = meant::other_key(&settings.data_dir, &from).await?;
    let stored_as = if is_moved { to } else { &from };
    let made_with = made_with(&settings, stored_as).await?;
    if let Some(made_with) = &made_with {
        check_output(call, &settings, &from, made_with)?;
        note_readers(call, &renaming, made_with);
    }
    if control::is_running(&settings.data_dir).await? {
        control::rename(&settings.data_dir, &renaming).await?;
    } else {
        let store = call.store(&settings)?;
        let factory = Factory::new(call, &settings, store, Responses::default())?;
        factory.rename(&renaming, made_with.as_ref()).await?;
    }
    if let Some(made_with) = made_with {
        let renamed = CertificateSettings {
            lineage: to.clone(),
            ..made_with
        };
        // The paths of copies may contain the name.
        confirm(&settings.data_dir, renamed.rights())?;
    }
    let kept = options.keep_link.then_some(&from);
    match call.json {
        true => say_json(json!({ "name": to, "renamed_from": from, "link": kept })),
        false => {
            let link = kept.map(|from| format!("; live/{from} is a link to it"));
            let link = link.unwrap_or_default();
            say(format_args!(
                "{from}: renamed to {to}; its files are in live/{to}{link}"
            ));
        }
    }
    if let Some(other) = other {
        let end = other.as_str().strip_prefix(from.as_str());
        let new = end.map_or("NEW".to_owned(), |end| format!("{to}{end}"));
        let note =
            format!("{other}, for the other key, keeps its name; hint: certs rename {other} {new}");
        call.terminal.print(&call.terminal.hint(&note));
    }
    Ok(())
}

/// The lineage to rename, and whether it is moved already: an interrupted command is
/// finished.
async fn from(settings: &Settings, options: &Rename) -> Result<(Lineage, bool), Failure> {
    if let Some(store) = existing_store(settings.data_dir.clone())? {
        let to = store.load(&options.new).await;
        let moved = to.ok().flatten().and_then(|(record, _)| record.renaming);
        if let Some(moved) = moved.filter(|it| it.from.as_str() == options.name) {
            return Ok((moved.from, true));
        }
    }
    let from = meant::one(&settings.data_dir, &options.name, "renamed").await?;
    match from == options.new {
        true => Err(Failure::usage(
            format!("{from} has that name already; nothing was renamed"),
            "give another name",
        )),
        false => Ok((from, false)),
    }
}

/// Refuses names that the configuration or a container gives.
fn check(call: &Call, settings: &Settings, renaming: &Renaming) -> Result<(), Failure> {
    let (from, to) = (&renaming.from, &renaming.to);
    let refused = |why: String, hint: &str| {
        let message = format!("{from}: nothing was renamed: {why}");
        Err(Failure::usage(message, hint))
    };
    if call.sources.names_itself(from) {
        let hint = "change `name` there after certs delete, or leave `name` out";
        return refused(format!("the configuration names it {from}"), hint);
    }
    if call.sources.names_itself(to) {
        let hint = "choose another name";
        return refused(
            format!("the configuration has another certificate {to}"),
            hint,
        );
    }
    let mut requests = Labels::open(&settings.data_dir)?.requests();
    for name in [from, to] {
        if let Some(by) = requests.remove(name).filter(|by| !by.stopped) {
            let containers: Vec<String> = by.containers.into_iter().collect();
            let why = format!("labels of {} request {name}", containers.join(", "));
            return refused(why, "change the labels; certs run follows them");
        }
    }
    Ok(())
}

fn check_output(
    call: &Call,
    settings: &Settings,
    from: &Lineage,
    made_with: &CertificateSettings,
) -> Result<(), Failure> {
    match denied_output(&call.sources, settings, made_with)? {
        None => Ok(()),
        Some(right) => Err(Failure::output(
            format!(
                "{from}: the right to {right} is stored, but neither configured nor confirmed; nothing was renamed"
            ),
            "as root, repeat certs issue with its options: it confirms them",
        )),
    }
}

/// The settings that it was made with, if they can be read.
async fn made_with(
    settings: &Settings,
    lineage: &Lineage,
) -> Result<Option<CertificateSettings>, Failure> {
    let Some(store) = existing_store(settings.data_dir.clone())? else {
        return Ok(None);
    };
    let json = store.options(lineage).await;
    let json = json.map_err(Failure::on(lineage.as_str()))?;
    Ok(json.and_then(|json| CertificateSettings::stored_as(lineage, &json).ok()))
}

/// Names what reads the old paths.
fn note_readers(call: &Call, renaming: &Renaming, made_with: &CertificateSettings) {
    let (from, to) = (&renaming.from, &renaming.to);
    let specs = made_with.deploy.iter().map(|spec| spec.for_lineage(from));
    let specs: Vec<_> = specs.collect();
    let readers = specs.iter().filter(|spec| spec.writes().is_none());
    let readers: Vec<String> = readers.map(ToString::to_string).collect();
    if !readers.is_empty() {
        let readers = readers.join(", ");
        let advice = match renaming.keep_link {
            true => format!("live/{from} stays a link for them"),
            false => format!(
                "what they read from live/{from} is gone: change it to live/{to}, then certs reload {to}; hint: --keep-link keeps a link"
            ),
        };
        let note = format!("{from}: deployed to {readers}: {advice}");
        call.terminal.print(&call.terminal.hint(&note));
    }
    let moved = specs
        .iter()
        .zip(&made_with.deploy)
        .filter_map(|(spec, own)| {
            let old = spec.writes()?;
            (own.for_lineage(to).writes()? != old).then(|| old.display().to_string())
        });
    let moved: Vec<String> = moved.collect();
    if !moved.is_empty() {
        let note = format!(
            "{from}: these copies stay, and new ones are written by the next certs renew or certs run: {}",
            moved.join(", ")
        );
        call.terminal.print(&call.terminal.hint(&note));
    }
}
