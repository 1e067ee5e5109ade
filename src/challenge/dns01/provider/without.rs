//! In place of `upstream`, in a program that was built without the feature `dns-providers`:
//! no provider.

use std::sync::Arc;

use super::{Credentials, Field, Provider, Resolver};

const MISSING: &str = "this program was built without it";

/// The names of the providers.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    std::iter::empty()
}

/// The fields of a provider's credentials.
pub(super) fn fields(_provider: &str) -> Option<Vec<Field>> {
    None
}

/// Checks the values of complete credentials.
pub(super) fn check(_provider: &str, _credentials: &Credentials) -> Result<(), String> {
    Err(MISSING.to_owned())
}

/// The provider with these credentials.
pub(super) fn build(
    _provider: &str,
    _credentials: &Credentials,
    _resolver: &Resolver,
) -> Result<Arc<dyn Provider>, String> {
    Err(MISSING.to_owned())
}
