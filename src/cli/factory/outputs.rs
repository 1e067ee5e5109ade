//! The outputs of settings, with the owners of their files.

use std::sync::Arc;

use crate::config::{CertificateSettings, OutputSettings, Settings};
use crate::deploy::output::Output;
use crate::deploy::outputs::{Outputs, Owned};
use crate::deploy::owner::{self, Owner};
use crate::deploy::removal::Emptied;
use crate::failure::Failure;
use crate::files::DirectoryOwner;

/// The directories shared with consumers.
pub(in super::super) fn outputs_for(settings: &Settings) -> Result<Outputs, Failure> {
    let output = &settings.output;
    let owner = owner_of(output, settings);
    Ok(Outputs::new(output_for(output, settings)?, owner))
}

/// Publishes a certificate in `outputs` where its settings say, from now on.
pub(in super::super) fn publish_by(
    outputs: &Outputs,
    process: &Settings,
    settings: &CertificateSettings,
) -> Result<(), Failure> {
    if let Some(own) = own(process, settings)? {
        outputs.set(settings.lineage.clone(), own);
    }
    Ok(())
}

/// The output of these settings; `None` if it is the usual one.
pub(super) fn own(
    process: &Settings,
    settings: &CertificateSettings,
) -> Result<Option<Owned>, Failure> {
    let own = process.output_of(settings);
    if own == process.output {
        return Ok(None);
    }
    let owner = owner_of(&own, process);
    Ok(Some((Arc::new(output_for(&own, process)?), owner)))
}

/// The output of a certificate that was made with these settings, for its deletion.
pub(in super::super) fn emptied(
    made_with: Option<&CertificateSettings>,
    process: &Settings,
) -> Emptied {
    let own = made_with.map(|settings| process.output_of(settings));
    let output = own.unwrap_or(process.output.clone());
    let owner = owner_of(&output, process);
    Emptied::new(output.directory, owner)
}

/// In a directory of the user that owns the data directory, files belong to that user, unless
/// the configuration gives them to another.
fn owner_of(output: &OutputSettings, process: &Settings) -> DirectoryOwner {
    let is_given = output.owner.is_some() || output.group.is_some();
    let (own, data) = (&output.directory, &process.data_dir);
    let (own, data) = (DirectoryOwner::of(own), DirectoryOwner::of(data));
    match own.is_same(&data) && !is_given {
        true => own,
        false => DirectoryOwner::default(),
    }
}

fn output_for(output: &OutputSettings, process: &Settings) -> Result<Output, Failure> {
    let refused = |message: String| {
        let hint = "set [output] owner and group to existing names or to numbers";
        Failure::usage(message, hint)
    };
    let (user, group) = (output.owner.as_deref(), output.group.as_deref());
    let owner = Owner {
        user: user.map(owner::user).transpose().map_err(refused)?,
        group: group.map(owner::group).transpose().map_err(refused)?,
    };
    let owner = match process.gives_up_root {
        true => owner.group_alone(),
        false => owner,
    };
    let links = output.links == Some(true);
    let output = Output::new(output.directory.clone());
    Ok(output.owned_by(owner).linked(links))
}
