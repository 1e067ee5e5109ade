//! `certs config check`, `certs config schema` and `certs config serve-key`.

use serde_json::Value;

use super::Call;
use super::args::Config;
use super::fleet;
use super::output::{say, say_json};
use crate::failure::Failure;
use crate::text::origins;

/// Checks, or prints the schema or a key; sends and writes nothing.
pub(super) async fn config(call: &Call, verb: &Config) -> Result<(), Failure> {
    match verb {
        Config::Schema => {
            say_json(crate::config::schema());
            return Ok(());
        }
        Config::ServeKey => return fleet::print_serve_key(call).await,
        Config::Check { .. } => {}
    }
    let settings = call.sources.checked_settings()?;
    let refused = settings.certificates.iter().filter_map(|one| {
        let cause = one.cannot_order.clone()?;
        Some((format!("{}: {}", one.lineage, cause.why), cause.hint))
    });
    let refused: Vec<_> = refused.collect();
    if !refused.is_empty() {
        return Err(Failure::new(2, refused));
    }
    if call.json {
        let mut shown = serde_json::to_value(&settings)?;
        hide_secrets(&mut shown, false);
        say_json(format_args!("{shown:#}"));
        return Ok(());
    }
    let count = settings.certificates.len();
    let plural = if count == 1 { "" } else { "s" };
    let file = settings.file.map(|file| file.display().to_string());
    let from = file.unwrap_or_else(|| "no file".to_owned());
    say(format_args!("ok: {count} certificate{plural} ({from})"));
    Ok(())
}

/// Cuts the URLs of deploy targets, whose paths may be tokens, and of proxies, and hides the
/// credentials of DNS providers.
fn hide_secrets(value: &mut Value, is_target: bool) {
    match value {
        Value::String(text) if is_target => *text = origins(text),
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| hide_secrets(item, is_target)),
        Value::Object(keys) => keys.iter_mut().for_each(|(key, item)| match key.as_str() {
            "credentials" => *item = "(…)".into(),
            "deploy" | "proxies" => hide_secrets(item, true),
            _ => hide_secrets(item, is_target),
        }),
        _ => {}
    }
}
