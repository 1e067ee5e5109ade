//! `certs config check` and `certs config schema`.

use super::Call;
use super::args::Config;
use super::output::say;
use crate::config::Purpose;
use crate::failure::Failure;

/// Checks, or prints the schema; sends and writes nothing.
pub(super) fn config(call: &Call, verb: &Config) -> Result<(), Failure> {
    if matches!(verb, Config::Schema) {
        say(crate::config::schema());
        return Ok(());
    }
    let settings = call.sources.settings(&Purpose::All)?;
    if call.json {
        say(serde_json::to_string_pretty(&settings)?);
        return Ok(());
    }
    let count = settings.certificates.len();
    let plural = if count == 1 { "" } else { "s" };
    let file = settings.file.map(|file| file.display().to_string());
    let from = file.unwrap_or_else(|| "no file".to_owned());
    say(format_args!("ok: {count} certificate{plural} ({from})"));
    Ok(())
}
