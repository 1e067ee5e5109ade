//! A command that a client runs after a renewal: a plain path can be run as it is,
//! a shell's line cannot, and what many write there has a better word here. What is
//! shown of a command is its first word alone, and only if that is a plain one: passwords
//! stand among the others.

use std::path::{Path, PathBuf};

use super::{Remark, Renewal};
use crate::text::printable_within;

/// What none of a shell's words has that means itself alone.
const PLAIN: &str = "/._-+@%:,";

/// Takes `command` into `renewal`, or says why not and what to do.
pub(super) fn take(setting: &str, command: &str, renewal: &mut Renewal, remarks: &mut Vec<Remark>) {
    let command = command.trim();
    if is_plain(command) && Path::new(command).is_absolute() {
        renewal.programs.push(PathBuf::from(command));
        return;
    }
    let first = command.split_whitespace().next().unwrap_or_default();
    // `PASSWORD=… program` has one in its first word.
    let first = match is_plain(first) {
        true => format!("`{} …`", printable_within(first, 60)),
        false => "a command".to_owned(),
    };
    let instead = better_word(command).map_or_else(
        || "put it into a program of its own and name that with --deploy exec:/PROGRAM".to_owned(),
        |word| format!("import again with --deploy {word}"),
    );
    let why = "no shell is run here, and it is more than the path of a program";
    remarks.push(Remark::not_taken(
        setting,
        format!("{first}: {why}; {instead}"),
    ));
}

/// What is run before or after a try, whether it succeeds or not, has no counterpart.
pub(super) fn leave(setting: &str, remarks: &mut Vec<Remark>) {
    let text = "nothing is run around a renewal here: port 80 is bound for its moments alone, or use \
                --webroot; what shall follow a success is --deploy";
    remarks.push(Remark::not_taken(setting, text));
}

fn is_plain(command: &str) -> bool {
    let fine = |letter: char| letter.is_ascii_alphanumeric() || PLAIN.contains(letter);
    !command.is_empty() && command.chars().all(fine)
}

/// The target that does what a well known command did.
fn better_word(command: &str) -> Option<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let unit = match words.as_slice() {
        ["sudo", rest @ ..] => return better_word(&rest.join(" ")),
        [program, "-s", "reload"] if is_called(program, "nginx") => "nginx",
        [program, _, unit] if is_called(program, "systemctl") => unit,
        [program, unit, _] if is_called(program, "service") => unit,
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

fn is_called(program: &str, name: &str) -> bool {
    Path::new(program)
        .file_name()
        .is_some_and(|file| file == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_and_a_line_of_a_shell_is_explained() {
        let told = |command: &str| {
            let (mut renewal, mut remarks) = (Renewal::default(), Vec::new());
            take("renew_hook", command, &mut renewal, &mut remarks);
            match remarks.pop() {
                None => Ok(renewal.programs.remove(0)),
                Some(remark) => Err(remark.text),
            }
        };
        assert_eq!(
            told(" /usr/local/bin/reload-all "),
            Ok("/usr/local/bin/reload-all".into())
        );
        for (command, word) in [
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
            let text = told(command).unwrap_err();
            assert!(text.contains(word), "{command}: {text}");
        }
        let text = told("TOKEN=hunter2 /usr/bin/hook").unwrap_err();
        assert!(
            text.starts_with("a command: ") && !text.contains("hunter2"),
            "{text}"
        );
        let text = told("curl -H 'X-Token: hunter2' https://hook").unwrap_err();
        assert!(!text.contains("hunter2"), "{text}");
    }
}
