//! A command that a client runs after a renewal. A plain path is imported, a shell
//! command is not, and common commands have a matching deploy target. Messages show
//! only the first word of a command, and only a plain one: the others may have passwords.

use std::path::{Path, PathBuf};

use super::{Remark, RenewalSettings};
use crate::text::printable_within;

/// Punctuation that has no meaning to a shell.
const PLAIN: &str = "/._-+@%:,";

/// Adds `command` to `renewal`, or reports why not and what to do.
pub(super) fn add(
    setting: &str,
    command: &str,
    renewal: &mut RenewalSettings,
    remarks: &mut Vec<Remark>,
) {
    let command = command.trim();
    if is_plain(command) && Path::new(command).is_absolute() {
        renewal.programs.push(PathBuf::from(command));
        return;
    }
    let first = command.split_whitespace().next().unwrap_or_default();
    // `PASSWORD=… program` has a password in its first word.
    let first = match is_plain(first) {
        true => format!("`{} …`", printable_within(first, 60)),
        false => "a command".to_owned(),
    };
    let target = matching_target(command);
    let instead = target.map_or_else(
        || "put it into a program and import again with --deploy exec:/PROGRAM".to_owned(),
        |target| format!("import again with --deploy {target}"),
    );
    let why = "certs runs no shell, and this is more than the path of a program";
    let text = format!("{first}: {why}; {instead}");
    remarks.push(Remark::unsupported(setting, text));
}

/// The remark on a hook that runs before or after each attempt, whether it succeeds or
/// not.
pub(super) fn around(setting: &str) -> Remark {
    let text = "certs runs no program around a renewal: it binds port 80 only during the validation, or use \
                --webroot; for a program after a success use --deploy";
    Remark::unsupported(setting, text)
}

fn is_plain(command: &str) -> bool {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || PLAIN.contains(letter);
    !command.is_empty() && command.chars().all(is_plain)
}

/// The deploy target with the effect of a well known command.
fn matching_target(command: &str) -> Option<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let unit = match words.as_slice() {
        ["sudo", rest @ ..] => return matching_target(&rest.join(" ")),
        [program, "-s", "reload"] if has_name(program, "nginx") => "nginx",
        [program, _, unit] if has_name(program, "systemctl") => unit,
        [program, unit, _] if has_name(program, "service") => unit,
        _ => return None,
    };
    let name = unit.strip_suffix(".service").unwrap_or(unit);
    if !is_plain(name) || name.starts_with('-') {
        return None;
    }
    Some(match name {
        "nginx" | "postfix" | "dovecot" | "coturn" | "caddy" => name.to_owned(),
        _ => format!("systemd:{name}.service"),
    })
}

fn has_name(program: &str, name: &str) -> bool {
    Path::new(program)
        .file_name()
        .is_some_and(|file| file == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hook_adds_path_and_reports_shell_command() {
        let add = |command: &str| {
            let (mut renewal, mut remarks) = (RenewalSettings::default(), Vec::new());
            super::add("renew_hook", command, &mut renewal, &mut remarks);
            match remarks.pop() {
                None => Ok(renewal.programs.remove(0)),
                Some(remark) => Err(remark.text),
            }
        };
        assert_eq!(
            add(" /usr/local/bin/reload-all "),
            Ok("/usr/local/bin/reload-all".into())
        );
        for (command, hint) in [
            ("systemctl reload nginx", "--deploy nginx"),
            (
                "/bin/systemctl restart apache2.service",
                "--deploy systemd:apache2.service",
            ),
            ("sudo service postfix reload", "--deploy postfix"),
            ("nginx -s reload", "--deploy nginx"),
            ("reload.sh", "--deploy exec:/PROGRAM"),
            ("/bin/a && /bin/b", "--deploy exec:/PROGRAM"),
            ("systemctl reload $(id)", "--deploy exec:/PROGRAM"),
            ("systemctl reload --now", "--deploy exec:/PROGRAM"),
            ("/bin/a;/bin/b", "--deploy exec:/PROGRAM"),
            ("", "--deploy exec:/PROGRAM"),
        ] {
            let text = add(command).unwrap_err();
            assert!(text.contains(hint), "{command}: {text}");
        }
        let text = add("TOKEN=hunter2 /usr/bin/hook").unwrap_err();
        assert!(
            text.starts_with("a command: ") && !text.contains("hunter2"),
            "{text}"
        );
        let text = add("curl -H 'X-Token: hunter2' https://hook").unwrap_err();
        assert!(!text.contains("hunter2"), "{text}");
    }
}
