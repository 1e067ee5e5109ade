//! `certs config check` and `certs config schema`.

use super::Call;
use super::args::Config;
use super::catalog::settings;
use super::output::say;
use crate::config::Purpose;
use crate::failure::Failure;

/// Checks, or prints the schema; sends and writes nothing.
pub(super) fn config(call: &Call, verb: &Config) -> Result<(), Failure> {
    if matches!(verb, Config::Schema) {
        say(crate::config::schema());
        return Ok(());
    }
    let settings = settings(call, &Purpose::All)?;
    if call.json {
        let json = serde_json::to_string_pretty(&settings)
            .map_err(|error| Failure::unexpected(error.to_string()))?;
        say(json);
        return Ok(());
    }
    let count = settings.certificates.len();
    let certificates = if count == 1 {
        "certificate"
    } else {
        "certificates"
    };
    let from = settings
        .file
        .map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
    say(format_args!("ok: {count} {certificates} ({from})"));
    Ok(())
}
