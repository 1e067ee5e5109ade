//! The rights that the settings of a certificate need.

use std::collections::BTreeSet;
use std::path::Component;

use super::{CertificateSettings, OutputSettings, SharedSettings};
use crate::challenge::ChallengeSettings;
use crate::deploy::confirmed::Right;

impl OutputSettings {
    /// Its rights. A directory below the data directory is the certificate's own.
    pub(crate) fn rights(&self) -> impl Iterator<Item = Right> {
        let parts = self.directory.components();
        let leads_out = parts.into_iter().any(|part| part == Component::ParentDir);
        let is_outside = self.directory.is_absolute() || leads_out;
        let write = is_outside.then(|| Right::Write(self.directory.clone()));
        let (owner, group) = (self.owner.clone(), self.group.clone());
        let is_given = owner.is_some() || group.is_some();
        let give = is_given.then_some(Right::Give { owner, group });
        write.into_iter().chain(give)
    }
}

impl CertificateSettings {
    /// Its rights beyond its own files.
    pub(crate) fn rights(&self) -> BTreeSet<Right> {
        let targets = self
            .deploy
            .iter()
            .map(|spec| spec.for_lineage(&self.lineage));
        let targets = targets.filter_map(|spec| Right::to_deploy(&spec));
        let answers = self.challenge.writes_in().into_iter();
        let answers = answers.map(|path| Right::Write(path.to_owned()));
        let program = self.challenge.program();
        let program = program.map(|path| Right::Run(path.to_owned()));
        let files = self.ca_files().cloned().map(Right::Read);
        let output = self.output.iter().flat_map(OutputSettings::rights);
        targets
            .chain(answers)
            .chain(program)
            .chain(files)
            .chain(output)
            .collect()
    }

    /// Without what needs an unconfirmed right.
    pub(crate) fn stripped(mut self) -> Self {
        if self.unconfirmed.is_empty() {
            return self;
        }
        let denied = std::mem::take(&mut self.unconfirmed);
        let lineage = self.lineage.clone();
        self.deploy.retain(|spec| {
            let right = Right::to_deploy(&spec.for_lineage(&lineage));
            right.is_none_or(|right| !denied.contains(&right))
        });
        self.output
            .take_if(|output| output.rights().any(|right| denied.contains(&right)));
        let answers = self.challenge.writes_in().into_iter();
        let answers = answers.map(|path| Right::Write(path.to_owned()));
        let program = self.challenge.program();
        let program = program.map(|path| Right::Run(path.to_owned()));
        if answers.chain(program).any(|right| denied.contains(&right)) {
            self.challenge = ChallengeSettings::default();
        }
        let own: &mut SharedSettings = &mut self;
        let cas = [Some(&mut own.ca), own.fallback.as_mut()];
        for ca in cas.into_iter().flatten() {
            for file in [&mut ca.root, &mut ca.eab_hmac_file] {
                *file = file
                    .take()
                    .filter(|path| !denied.contains(&Right::Read(path.clone())));
            }
        }
        self
    }
}
