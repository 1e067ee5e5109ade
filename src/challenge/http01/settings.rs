//! The addresses on which our own listener answers HTTP-01. Its solver is the table of
//! live responses that the listener serves; no address is bound here.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::challenge::responses::Responses;
use crate::challenge::{Solver, SolverSettings, Unfit, check_http01_name};
use crate::identifier::Identifier;

/// The addresses of the listener; an empty list means port 80 of all addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(Vec<SocketAddr>);

impl Settings {
    /// The settings for these addresses.
    #[must_use]
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(addresses)
    }
}

impl SolverSettings for Settings {
    fn solver(&self, responses: &Responses) -> Arc<dyn Solver> {
        Arc::new(responses.clone())
    }

    fn solver_key(&self) -> String {
        // Every listener serves all responses, whatever its address.
        "listen".to_owned()
    }

    fn http_listen(&self) -> Option<&[SocketAddr]> {
        Some(&self.0)
    }

    fn check_name(&self, name: &Identifier) -> Result<(), Unfit> {
        check_http01_name(name)
    }
}
