//! The shared credentials file of AWS: `AWS_SHARED_CREDENTIALS_FILE`, or `~/.aws/credentials`,
//! and in it the section `AWS_PROFILE`, or `default`. It is read and never written.

use std::path::PathBuf;

use super::{Keys, PROFILE, Role, RoleError, SHARED_FILE, SHARED_IN_HOME};
use crate::certificate::Secret;
use crate::files::named;

impl Role {
    /// The keys of the shared credentials file; `None` where it has none and the environment
    /// does not ask for them.
    pub(super) fn of_profile(&self) -> Result<Option<Keys>, RoleError> {
        let (own, profile) = (self.variable(SHARED_FILE), self.variable(PROFILE));
        let is_named = own.is_some() || profile.is_some();
        let home = || Some(PathBuf::from(self.variable("HOME")?).join(SHARED_IN_HOME));
        let Some(file) = own.map(PathBuf::from).or_else(home) else {
            return Ok(None);
        };
        // A file that cannot be looked at may exist.
        if !is_named && file.try_exists().is_ok_and(|exists| !exists) {
            return Ok(None);
        }
        let source = file.display().to_string();
        let read = named::read_data(&file);
        let text = read.map_err(|error| RoleError::new(&source, error))?;
        let profile = profile.unwrap_or_else(|| "default".to_owned());
        match of_section(text.expose(), &profile) {
            None if is_named => {
                let why = format!("it has no access key in a section [{profile}]");
                Err(RoleError::new(&source, why))
            }
            keys => Ok(keys),
        }
    }
}

/// The keys in the section of that name of a credentials file.
fn of_section(text: &str, profile: &str) -> Option<Keys> {
    let is_head = |line: &&str| line.trim().starts_with('[');
    let is_ours = |line: &str| {
        let name = line.trim().trim_start_matches('[').split(']').next();
        name.is_some_and(|name| name.trim() == profile)
    };
    let mut lines = text.lines();
    lines.find(|line| is_head(line) && is_ours(line))?;
    let section: Vec<_> = lines
        .take_while(|line| !is_head(line))
        .filter_map(|line| line.split_once('='))
        .collect();
    let value = |name: &str| {
        let mut found = section.iter().filter(|(key, _)| key.trim() == name);
        let (_, value) = found.next()?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    Some(Keys {
        id: value("aws_access_key_id")?,
        secret: Secret::new(value("aws_secret_access_key")?),
        token: value("aws_session_token").map(Secret::new),
        expires: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# ours\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key=a=b\n\n\
        [ other ]\naws_access_key_id=AKIA2\naws_secret_access_key=c\naws_session_token=d\n[half]\n\
        aws_access_key_id=AKIA3\n";

    #[test]
    fn keys_are_those_of_their_section() {
        let keys = of_section(FILE, "default").unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.expose()), ("AKIA1", "a=b"));
        assert!(keys.token.is_none());
        let keys = of_section(FILE, "other").unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.expose()), ("AKIA2", "c"));
        assert_eq!(keys.token.unwrap().expose(), "d");
        for absent in ["half", "aws_access_key_id", ""] {
            assert!(of_section(FILE, absent).is_none(), "{absent}");
        }
    }
}
