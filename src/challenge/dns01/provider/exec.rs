//! A program of the user's own: it is called with `present` or `cleanup`, the name with a
//! dot at its end, and the value, as lego's exec provider does.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::super::super::responses::Responses;
use super::super::Failed;
use super::{Field, Kind, Provider, Txt};
use crate::program::{Call, DEADLINE};

pub(super) const PROGRAM: &str = "program";

pub(super) const KIND: Kind = Kind {
    name: "exec",
    fields: &[Field::required(PROGRAM)],
    build: |credentials, _, responses| {
        let (program, responses) = (PathBuf::from(credentials.text(PROGRAM)?), responses.clone());
        match program.is_absolute() {
            true => Ok(Arc::new(Exec { program, responses })),
            false => Err("write the absolute path of the program".to_owned()),
        }
    },
};

struct Exec {
    program: PathBuf,
    /// Starts programs through the helper, if this process may not.
    responses: Responses,
}

impl Exec {
    async fn call(&self, verb: &str, txt: &Txt) -> Result<(), Failed> {
        let call = Call {
            program: self.program.clone(),
            arguments: vec![verb.to_owned(), format!("{}.", txt.fqdn), txt.value.clone()],
        };
        let shown = call.to_string();
        let ended = match self.responses.runner() {
            Some(runner) => runner.run(call).await,
            None => call.run(&[], DEADLINE).await.map(drop),
        };
        ended.map_err(|error| Failed::new(format!("{shown}: {error}"), error.hint().to_owned()))
    }
}

#[async_trait]
impl Provider for Exec {
    fn name(&self) -> &str {
        KIND.name
    }

    fn needs_zone(&self) -> bool {
        false
    }

    fn has_deadline(&self) -> bool {
        true
    }

    async fn add(&self, txt: &Txt) -> Result<(), Failed> {
        self.call("present", txt).await
    }

    async fn remove(&self, txt: &Txt) -> Result<(), Failed> {
        self.call("cleanup", txt).await
    }
}
