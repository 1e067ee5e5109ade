//! What `fuzz/` checks of a configuration: it is accepted whole, and another process then
//! reads the same settings; or every error has an origin, a message and a hint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use super::keys::keys;
use super::layer::Value;
use super::problem::SettingOrigin;
use super::{CommandVariables, ConfigProblem, Options, Purpose, Settings, Sources};

/// The prefix of a variable of the environment in a seed.
const VARIABLE: &str = "#env ";
/// Files that never end, or differ at each reading.
const ELSEWHERE: [&str; 3] = ["/dev", "/proc", "/sys"];

impl Options {
    /// `--key TEXT`.
    pub(crate) fn text(&mut self, name: &str, text: Option<&str>) {
        if let (Some(text), Some(key)) = (text, keys().find(|key| key.name == name)) {
            let value = Value::text(text, &SettingOrigin::option(key));
            self.values.push((key, value));
        }
    }
}

/// Checks the text of a configuration.
pub(crate) fn file(source: &[u8]) {
    let text = String::from_utf8_lossy(source);
    // A TOML text may spell a path with escapes as well.
    if ELSEWHERE.iter().any(|place| text.contains(place)) || text.contains("\\u") {
        return;
    }
    let environment = environment(&text);
    let _ = CommandVariables::read(&environment);
    let Ok(sources) = sources(source, &environment) else {
        return;
    };
    let lines: Vec<&str> = text.split('\n').collect();
    for purpose in [Purpose::All, Purpose::Named] {
        match sources.settings(&purpose) {
            Ok(settings) => sound(&settings),
            Err(problems) => check_problems(&problems, &lines),
        }
    }
    if let Err(problems) = sources.process_settings() {
        check_problems(&problems, &lines);
    }
}

fn sources(source: &[u8], environment: &BTreeMap<String, String>) -> std::io::Result<Sources> {
    let file = in_memory(source)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut options = Options::default();
    options.config(Some(&path));
    options.text("data_dir", Some("/data"));
    Ok(Sources::read(&options, environment))
}

fn environment(text: &str) -> BTreeMap<String, String> {
    let variables = text.lines().filter_map(|line| line.strip_prefix(VARIABLE));
    let variables = variables.filter_map(|line| line.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    // The fuzzer chooses the file itself.
    variables
        .filter(|(name, _)| !name.ends_with("_FILE") && name != "CERTS_CONFIG")
        .collect()
}

fn in_memory(source: &[u8]) -> std::io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("certs.toml", flags)?);
    file.write_all(source)?;
    Ok(file)
}

/// Checks that another process reads the same settings from their JSON.
fn sound(settings: &Settings) {
    let json = serde_json::to_string(settings);
    let json = json.unwrap_or_else(|error| panic!("it cannot be written: {error}"));
    match serde_json::from_str::<Settings>(&json) {
        Ok(read) => assert_eq!(&read, settings),
        Err(error) => panic!("what was written is not read: {error}: {json}"),
    }
    let mut lineages: Vec<_> = settings
        .certificates
        .iter()
        .map(|one| &one.lineage)
        .collect();
    lineages.sort();
    lineages.dedup();
    assert_eq!(lineages.len(), settings.certificates.len());
    for certificate in &settings.certificates {
        assert!(!certificate.names.is_empty());
    }
    assert!(settings.data_dir.is_absolute() && settings.output.directory.is_absolute());
}

fn check_problems(problems: &[ConfigProblem], lines: &[&str]) {
    assert!(!problems.is_empty());
    for problem in problems {
        assert!(!problem.message.is_empty() && !problem.hint.is_empty());
        if let SettingOrigin::Line { line, .. } = &problem.origin {
            let text_of_line = line.checked_sub(1).and_then(|index| lines.get(index));
            let Some(text_of_line) = text_of_line else {
                panic!("line {line} of {}", lines.len());
            };
            let key = unknown_key(&problem.message);
            assert!(
                key.is_none_or(|key| text_of_line.contains(key)),
                "{problem:?}: {text_of_line}"
            );
        }
        let (message, hint) = problem.shown();
        let steers = |letter: char| letter.is_control() && letter != '\n';
        let (found, advised) = (message.contains(steers), hint.contains(steers));
        assert!(!found && !advised, "{message:?}: {hint:?}");
    }
}

/// The key of an "unknown key" problem, if the source has it as the message shows it.
fn unknown_key(message: &str) -> Option<&str> {
    let key = message.strip_prefix("unknown key `")?.strip_suffix('`')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    key.bytes().all(plain).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzzing_seeds_reach_file_and_environment() {
        let certificates = |seed: &str| {
            let sources = sources(seed.as_bytes(), &environment(seed)).unwrap();
            sources.settings(&Purpose::All).unwrap().certificates.len()
        };
        let everything = include_str!("../../fuzz/seeds/config/everything.toml");
        assert_eq!(certificates(everything), 2);
        let environment =
            "#env CERTS_DOMAINS=example.com; www.example.com\n#env CERTS_AGREE_TOS=true\n";
        assert_eq!(certificates(environment), 2);
    }
}
