//! Usage errors: a clear message, exit code 2, and nothing sent or written. Also every text that a user reads
//! before the first action.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::{certs, text};

/// Runs in an empty directory, and returns whether files were left there.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Output, bool) {
    let directory = tempfile::tempdir().unwrap();
    let output = certs(directory.path())
        .current_dir(directory.path())
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    (output, left > 0)
}

fn refused_in(environment: &[(&str, &str)], arguments: &[&str], words: &[&str]) {
    let (output, wrote) = run(arguments, environment);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {printed}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {printed}");
    for word in words {
        assert!(
            printed.contains(word),
            "{arguments:?}: no `{word}` in: {printed}"
        );
    }
    assert!(!wrote, "{arguments:?} wrote something");
}

fn refused(arguments: &[&str], words: &[&str]) {
    refused_in(&[], arguments, words);
}

#[test]
fn mistakes_are_reported_with_hints() {
    refused(&["issue"], &["no name is given", "hint:"]);
    refused(&["issue", "a..b"], &["not a valid DNS name"]);
    refused(&["issue", "https://example.com/"], &["is a URL"]);
    refused(
        &["issue", "localhost", "--agree-tos"],
        &["public CA", "hint:"],
    );
    refused(&["issue", "10.0.0.1", "--agree-tos"], &["private address"]);
    refused(
        &["issue", "example.com"],
        &["terms of service", "--agree-tos"],
    );
    refused(&["issue", "*.example.com", "--agree-tos"], &["wildcard"]);
    refused(
        &["issue", "example.com", "example.com", "--agree-tos"],
        &["given twice"],
    );
    refused(
        &["issue", "example.com", "--ca", "http://ca.example/dir"],
        &["unknown CA", "https://"],
    );
    refused(
        &["issue", "example.com", "--agree-tos", "--deploy", "apache"],
        &["unknown deploy target `apache`"],
    );
    refused(
        &[
            "issue",
            "example.com",
            "--agree-tos",
            "--verify",
            "example.com",
        ],
        &["HOST:PORT"],
    );
    refused(&["issue", "example.com", "--key", "dsa"], &["ecdsa-p256"]);
    refused(
        &["issue", "example.com", "--name", "../x"],
        &["not a valid"],
    );
    refused(
        &["issue", "example.com", "--config", "absent.toml"],
        &["--config: absent.toml"],
    );
    refused(
        &[
            "issue",
            "example.com",
            "--agree-tos",
            "--ca",
            "zerossl",
            "--dry-run",
        ],
        &["no staging directory", "hint:"],
    );
    refused(&["renew", "absent.example"], &["unknown certificate"]);
    refused(&["issue", "--frobnicate"], &["--frobnicate"]);
    refused(&["isue"], &["issue"]);
    refused_in(
        &[("CERTS_EMIAL", "a@example.com")],
        &["run"],
        &["CERTS_EMIAL", "did you mean CERTS_EMAIL?"],
    );
}

#[test]
fn status_of_unstored_certificate_is_an_error() {
    let (output, _) = run(&["status", "absent.example"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("unknown certificate"));
}

#[test]
fn read_only_commands_write_nothing() {
    for (arguments, said) in [
        (vec!["status"], "NAME"),
        (vec!["status", "--json"], "[]"),
        (vec!["renew"], "no certificate is stored in "),
        (vec!["renew", "--json"], ""),
    ] {
        let (output, wrote) = run(&arguments, &[]);
        assert!(output.status.success(), "{}", text(&output));
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.trim().starts_with(said), "{arguments:?}: {printed}");
        assert_eq!(
            printed.is_empty(),
            said.is_empty(),
            "{arguments:?}: {printed}"
        );
        assert!(!wrote, "{arguments:?} wrote something");
    }
    // A data directory that cannot be created is not an error either.
    let (output, _) = run(&["status", "--data-dir", "/proc/none"], &[]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn options_of_each_command_have_variables() {
    let (output, _) = run(&["status"], &[("CERTS_JSON", "true")]);
    assert_eq!(text(&output).trim(), "[]");
    refused_in(
        &[("CERTS_FORCE", "often"), ("CERTS_NAME", "../x")],
        &["issue", "example.com"],
        &["CERTS_FORCE: ", "neither true nor false"],
    );
    refused_in(
        &[("CERTS_NAME", "../x")],
        &["issue", "example.com", "--agree-tos"],
        &["CERTS_NAME: ", "not a valid"],
    );
    refused_in(
        &[("CERTS_DRY_RUN", "true")],
        &["renew", "--force"],
        &["CERTS_DRY_RUN: ", "has no dry run"],
    );
    refused_in(
        &[("CERTS_DRY_RUN", "true")],
        &["issue", "example.com", "--agree-tos", "--ca", "zerossl"],
        &["no staging directory"],
    );
}

#[test]
fn mistakes_of_all_sources_are_reported_together() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("certs.toml");
    std::fs::write(&file, "agree_tos = maybe\nprofle = 'shortlived'\n").unwrap();
    let output = certs(directory.path())
        .current_dir(directory.path())
        .args(["issue", "a..b", "--key", "dsa"])
        .env("CERTS_HTTP_LISTEN", "nowhere")
        .output()
        .unwrap();
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    for place in [
        "certs.toml:1: ",
        "certs.toml:2: ",
        "CERTS_HTTP_LISTEN: ",
        "--key: ",
        "NAME: ",
    ] {
        assert_eq!(printed.matches(place).count(), 1, "{place}: {printed}");
    }
    assert!(!directory.path().join("data").exists());
}

#[test]
fn port_in_use_is_reported_with_its_process() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let pid = format!("(pid {})", std::process::id());
    let arguments = [
        "issue",
        "example.com",
        "--agree-tos",
        "--http-listen",
        &address,
    ];
    refused(&arguments, &["cannot listen", &pid, "--webroot"]);
}

#[test]
fn help_and_completions_go_to_stdout() {
    for (arguments, word) in [
        (vec!["--help"], "issue"),
        (vec!["completions", "bash"], "_certs"),
        (vec!["man"], ".TH"),
        (vec!["config", "schema"], "\"properties\""),
    ] {
        let (output, _) = run(&arguments, &[]);
        assert!(output.status.success());
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(word),
            "{arguments:?}"
        );
    }
}

#[test]
fn closed_stdout_is_not_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = certs(directory.path());
    command.args(["config", "schema"]).stdout(closed_pipe());
    let output = command
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// A pipe without a reader.
fn closed_pipe() -> std::io::PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}

#[test]
fn help_pages_match_snapshots() {
    for verb in [
        "",
        "issue",
        "run",
        "demo",
        "renew",
        "status",
        "config",
        "ca serve",
        "ca trust",
        "simulate",
        "install nginx",
        "import",
        "revoke",
        "account",
        "account update",
        "rename",
    ] {
        let arguments: Vec<&str> = verb.split_whitespace().chain(["--help"]).collect();
        let (output, _) = run(&arguments, &[]);
        assert!(output.status.success());
        let verb = verb.replace(' ', "-");
        let name = format!("help-{}", if verb.is_empty() { "certs" } else { &verb });
        let help = String::from_utf8_lossy(&output.stdout);
        insta::assert_snapshot!(name, without_targets(&help));
    }
}

/// Leaves out the list of deploy targets, which comes from their table and grows with it.
fn without_targets(help: &str) -> String {
    let (Some(start), Some(end)) = (help.find("nginx[:PID_FILE]"), help.find("($CERTS_DEPLOY)"))
    else {
        return help.to_owned();
    };
    format!("{}TARGETS {}", &help[..start], &help[end..])
}

const BAD: &str = "\
emial = 'admin@example.com'
agree_tos = 'yes'
key = 'dsa'
webroot = '/srv/www'
http_listen = ['0.0.0.0:80', 'nowhere']
ca = 'letsencript'
log_format = 'xml'
name = 'example.com'

[admin]
listen = 9180

[renew]
schedule = 'every night'
deploy = 'later'

[deploy.web]
kind = 'haproxy'

[[certificate]]
names = ['a..b', 'example.com', 'http://example.com/']
deploy = ['apache:web']
verify = 7

[[certificate]]
name = 'empty'

[[certificate]]
names = ['example.com', 'example.com', '*.example.com', 'db.internal']
challenge = 'dns-1'
output_dir = '/certs'

[[certificate]]
names = ['example.com']
";

#[test]
fn invalid_configuration_is_reported_whole() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("certs.toml"), BAD).unwrap();
    let output = certs(directory.path())
        .current_dir(directory.path())
        .args(["config", "check"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    insta::assert_snapshot!("bad-configuration", String::from_utf8_lossy(&output.stderr));
    assert!(!directory.path().join("data").exists());
}

#[test]
fn usage_errors_match_snapshot() {
    let mut printed = String::new();
    for arguments in [
        vec!["issue"],
        vec!["issue", "example.com"],
        vec![
            "issue",
            "localhost",
            "*.example.com",
            "8.8.8.8",
            "a.com:443",
            "--key",
            "dsa",
        ],
        vec![
            "issue",
            "example.com",
            "--ca",
            "embedded",
            "--ca-root",
            "root.pem",
        ],
        vec![
            "issue",
            "example.com",
            "--webroot",
            "/srv",
            "--http-listen",
            "127.0.0.1:0",
        ],
        vec!["issue", "example.com", "--frobnicate"],
        vec!["issu"],
        vec!["renew", "absent.example"],
    ] {
        let (output, _) = run(&arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        printed.push_str(&format!("$ certs {}\n{error}\n", arguments.join(" ")));
    }
    insta::assert_snapshot!("usage", printed);
}

fn resolved(command: &mut Command) -> serde_json::Value {
    let output = command
        .args(["config", "check", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn in_directory(directory: &Path) -> Command {
    let mut command = certs(directory);
    command.current_dir(directory).env_remove("CERTS_DATA_DIR");
    command
}

#[test]
fn command_line_overrides_environment_and_environment_overrides_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let file = "data_dir = 'of-the-file'\nca = 'https://ca.internal/file'\n[[certificate]]\nnames = 'a.internal'\n";
    std::fs::write(path.join("certs.toml"), file).unwrap();
    let settings = resolved(&mut in_directory(path));
    assert_eq!(settings["file"], "certs.toml");
    assert_eq!(
        settings["data_dir"],
        path.join("of-the-file").to_str().unwrap()
    );
    let ca = |settings: &serde_json::Value| settings["certificates"][0]["ca"]["directory"].clone();
    assert_eq!(ca(&settings), "https://ca.internal/file");
    let environment = |command: &mut Command| {
        command.env("CERTS_CA", "https://ca.internal/environment");
        command.env("CERTS_DATA_DIR", "/of/the/environment");
    };
    let mut command = in_directory(path);
    environment(&mut command);
    let settings = resolved(&mut command);
    assert_eq!(ca(&settings), "https://ca.internal/environment");
    assert_eq!(settings["data_dir"], "/of/the/environment");
    let mut command = in_directory(path);
    environment(&mut command);
    command.args(["--data-dir", "/of/the/command/line"]);
    assert_eq!(resolved(&mut command)["data_dir"], "/of/the/command/line");
}

#[test]
fn configuration_file_is_read_from_given_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    for name in [
        "certs.toml",
        "variable.toml",
        "option.toml",
        "argument.toml",
    ] {
        std::fs::write(path.join(name), "agree_tos = true\n").unwrap();
    }
    let check = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = in_directory(path);
        command
            .args(["config", "check"])
            .args(arguments)
            .envs(environment.iter().copied());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let variable = [("CERTS_CONFIG", "variable.toml")];
    assert!(check(&[], &[]).contains("(certs.toml)"));
    assert!(check(&[], &variable).contains("(variable.toml)"));
    assert!(check(&["--config", "option.toml"], &variable).contains("(option.toml)"));
    let named = ["argument.toml", "--config", "option.toml"];
    assert!(check(&named, &variable).contains("(argument.toml)"));
    assert!(check(&[], &[]).starts_with("ok: 0 certificates"));
}

#[test]
fn secrets_are_never_printed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::fs::write(path.join("hmac"), "c2VjcmV0LXNlY3JldA").unwrap();
    let file = "ca = 'https://ca.internal/dir'\neab_kid = 'kid'\neab_hmac_file = 'hmac'\n[[certificate]]\nnames = 'a.internal'\n";
    std::fs::write(path.join("certs.toml"), file).unwrap();
    let settings = resolved(&mut in_directory(path));
    let ca = &settings["certificates"][0]["ca"];
    assert_eq!(ca["eab_hmac_file"], path.join("hmac").to_str().unwrap());
    assert!(!settings.to_string().contains("c2VjcmV0"));
    std::fs::write(path.join("hmac"), "not*base64*secret").unwrap();
    let output = in_directory(path)
        .args(["config", "check"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!text(&output).contains("secret"), "{}", text(&output));
}
