//! HAProxy's replies, which are text for people: names of certificates, the files of one,
//! and why a command was refused.

use std::collections::BTreeSet;

use crate::identifier::Identifier;

/// A certificate as `show ssl cert NAME` describes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// The file with the certificate; older versions use it as the name.
    pub(super) file: String,
    /// The file with the key, if that is another.
    pub(super) key: Option<String>,
    /// The serial number in hexadecimal digits.
    pub(super) serial: Option<String>,
    /// Whether a bind uses it.
    pub(super) is_used: bool,
    /// The names in it, if it has any.
    pub(super) names: Option<BTreeSet<Identifier>>,
}

impl Shown {
    /// Reads the reply for `name`.
    pub(super) fn of(name: &str, reply: &str) -> Self {
        let field = |field: &str| {
            let mut lines = reply.lines();
            let value = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
            value.map(str::trim)
        };
        let file = field("Crt filename").unwrap_or(name).to_owned();
        let key = field("Key filename").filter(|key| *key != file);
        Self {
            key: key.map(str::to_owned),
            file,
            serial: field("Serial").map(str::to_owned),
            // Older versions have no status.
            is_used: field("Status").is_none_or(|status| status == "Used"),
            names: field("Subject Alternative Name").map(|names| {
                let names = names.split(", ").filter_map(|name| {
                    let (_, value) = name.split_once(':')?;
                    Identifier::parse(value.trim()).ok()
                });
                names.collect()
            }),
        }
    }
}

/// A payload ends at the first empty line.
pub(super) fn without_empty_lines(pem: &str) -> String {
    let lines = pem.lines().map(str::trim_end);
    let lines = lines.filter(|line| !line.is_empty());
    lines.fold(String::new(), |all, line| all + line + "\n")
}

/// The names in `show ssl cert`, without pending transactions and without names that are
/// more than one word of a command.
pub(super) fn listed(reply: &str) -> Vec<String> {
    let lines = reply.lines().map(str::trim);
    let names = lines.filter(|line| !line.starts_with(['#', '*']) && is_a_name(line));
    names.map(str::to_owned).collect()
}

/// Whether `text` is exactly one word of a command: `;` begins the next command, `<<` a
/// payload, and `\` escapes the next character.
pub(super) fn is_a_name(text: &str) -> bool {
    let plain =
        |letter: char| !letter.is_whitespace() && !letter.is_control() && !";\\<".contains(letter);
    !text.is_empty() && text.chars().all(plain)
}

/// Whether the socket does not know the command: the master's knows few.
pub(super) fn is_unknown(reply: &str) -> bool {
    reply.starts_with("Unknown command")
}

/// Whether HAProxy is busy with another command on certificates.
pub(super) fn is_locked(reply: &str) -> bool {
    reply.contains("on certificates are currently locked")
}

/// Whether a command failed since another client began a transaction, or ended ours.
pub(super) fn is_taken(reply: &str) -> bool {
    let mut causes = [
        "No ongoing transaction",
        "The ongoing transaction is about ",
    ]
    .into_iter();
    causes.any(|cause| reply.starts_with(cause))
}

/// The certificate of the open transaction in `show ssl cert`.
pub(super) fn pending(reply: &str) -> Option<&str> {
    let mut open = reply
        .lines()
        .filter_map(|line| line.trim().strip_prefix('*'));
    open.find(|name| is_a_name(name))
}

/// The checks of `fuzz/` on HAProxy's replies.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::{Shown, is_a_name, listed, pending, without_empty_lines};

    /// No listed name is more than one word of the next command, and no payload has an
    /// empty line.
    pub(crate) fn answer(bytes: &[u8]) {
        let reply = String::from_utf8_lossy(bytes);
        for name in { listed(&reply) }
            .iter()
            .map(String::as_str)
            .chain(pending(&reply))
        {
            assert!(is_a_name(name), "{name:?}");
            let command = format!("show ssl cert {name}");
            assert_eq!(command.lines().count(), 1);
            assert_eq!(command.split_whitespace().count(), 4);
        }
        let _ = Shown::of("", &reply);
        let payload = without_empty_lines(&reply);
        assert!(payload.lines().all(|line| !line.is_empty()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_names_are_parsed() {
        let known = listed("# transaction\n*/etc/a.pem\n# filename\n/etc/a.pem\n@web/site\n\n\n");
        assert_eq!(known, ["/etc/a.pem", "@web/site"]);
        let reply =
            "Filename: x\nSubject Alternative Name: DNS:b.example, IP Address:::1, DNS:a.example\n";
        let names = Shown::of("x", reply).names.unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a.example", "b.example", "::1"]);
        assert_eq!(Shown::of("x", "Filename: x\nStatus: Empty\n").names, None);
    }

    #[test]
    fn files_of_a_certificate_are_known_by_any_name() {
        let files = |name: &str, reply: &str| {
            let shown = Shown::of(name, reply);
            (shown.file, shown.key)
        };
        let old = "Filename: /a.pem\nStatus: Used\n";
        assert_eq!(files("/a.pem", old), ("/a.pem".to_owned(), None));
        let one = "Filename: @w/a\nCrt filename: /a.pem\nKey filename: /a.pem\n";
        assert_eq!(files("@w/a", one), ("/a.pem".to_owned(), None));
        let two = "Filename: @w/a\nCrt filename: a.crt\nKey filename: a.key\n";
        assert_eq!(
            files("@w/a", two),
            ("a.crt".to_owned(), Some("a.key".to_owned()))
        );
    }

    #[test]
    fn unused_certificate_is_recognised() {
        let is_used = |reply: &str| Shown::of("/a.pem", reply).is_used;
        assert!(is_used("Filename: /a.pem\nStatus: Used\n"));
        assert!(!is_used("Filename: /a.pem\nStatus: Unused\n"));
        assert!(!is_used("Filename: /a.pem\nStatus: Empty\n"));
        assert!(is_used("Filename: /a.pem\n"));
    }

    #[test]
    fn name_is_one_word_of_a_command() {
        let hostile = "/a.pem; shutdown\n/b.pem <<\n/c\\ d.pem\n/e f\n/good.pem\n";
        assert_eq!(listed(hostile), ["/good.pem"]);
    }

    #[test]
    fn transactions_of_others_are_seen() {
        let of = pending;
        assert_eq!(
            of("# transaction\n*/a.pem\n# filename\n/a.pem\n"),
            Some("/a.pem")
        );
        assert_eq!(of("# transaction\n*/a.pem; x\n"), None);
        assert_eq!(of("# filename\n/a.pem\n"), None);
        let other =
            "The ongoing transaction is about '/a.pem' but you are trying to set '/b.pem'\n";
        assert!(is_taken(other) && is_taken("No ongoing transaction! !\nCan't commit /a!\n"));
        assert!(!is_taken("unable to load certificate from file\n"));
        assert!(is_locked(
            "Operations on certificates are currently locked!"
        ));
    }

    #[test]
    fn no_empty_line_cuts_a_payload_short() {
        assert_eq!(without_empty_lines("a\n\n  \r\nb\r\n"), "a\nb\n");
    }
}
