//! Untrusted text, made safe to show: it must not be able to steer a terminal, forge a
//! line of a log, or flood either. Also the readers of text that several modules share.

use std::borrow::Cow;
use std::time::Duration;

use strsim::osa_distance;

/// Longest text that is shown, in characters.
const LONGEST: usize = 1000;
/// Longest message of another program, in bytes, with all of its parts.
const LONGEST_MESSAGE: usize = 2048;

/// Joins lines to one, escapes control characters and those that change the direction of
/// writing, leaves out the user and password of a URL, and cuts the text at 1,000 characters
/// and 2 KiB.
pub(crate) fn printable(text: &str) -> String {
    let line = match text.contains('\n') {
        true => Cow::from(in_a_line(text)),
        false => text.into(),
    };
    cut(printable_within(&line, LONGEST))
}

/// The lines of a message as one, so that a reader of lines gets all of it.
pub(crate) fn in_a_line(text: &str) -> String {
    let lines = text
        .split('\n')
        .map(str::trim)
        .filter(|line| !line.is_empty());
    lines.fold(String::new(), |mut all, line| {
        if !all.is_empty() {
            let is_open = all.ends_with([':', ';', ',']);
            all += if is_open { " " } else { "; " };
        }
        all + line
    })
}

/// The same with a limit of `most` characters, for text that is useless when cut, such
/// as a URL.
pub(crate) fn printable_within(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for letter in urls(text, without_user).chars().take(most) {
        if steers(letter) {
            shown.extend(letter.escape_unicode());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Whether a terminal obeys this character, or reads what follows it in another direction.
fn steers(letter: char) -> bool {
    letter.is_control() || ('\u{202a}'..='\u{2069}').contains(&letter)
}

/// The same line by line, and whole, for a message. Its further lines are indented, so that
/// none of them looks like another message.
pub(crate) fn printable_whole(text: &str) -> String {
    let lines = text.split('\n').enumerate().map(|(number, line)| {
        let is_further = number > 0 && !line.is_empty() && !line.starts_with(' ');
        let indent = if is_further { "  " } else { "" };
        format!("{indent}{}", printable_within(line, usize::MAX))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// JSON without characters that a terminal obeys. Outside of its strings it has none but
/// line ends, and all of them are in the basic plane.
pub(crate) fn printable_json(json: &str) -> Cow<'_, str> {
    // The status of thousands of certificates is long, and nearly always plain.
    if json.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')) {
        return json.into();
    }
    let mut shown = String::with_capacity(json.len());
    for letter in json.chars() {
        match steers(letter) {
            true if letter != '\n' => shown += &format!("\\u{:04x}", u32::from(letter)),
            _ => shown.push(letter),
        }
    }
    shown.into()
}

/// Cuts a message at 2 KiB: it goes into logs, records and pages.
pub(crate) fn cut(mut message: String) -> String {
    const END: &str = "…";
    if message.len() > LONGEST_MESSAGE {
        let end = message.floor_char_boundary(LONGEST_MESSAGE - END.len());
        message.truncate(end);
        message.push_str(END);
    }
    message
}

/// The same for the output of a program, line by line, at most 20 lines.
pub(crate) fn printable_lines(text: &str) -> String {
    let lines = text.trim_end().lines().take(20).map(printable);
    lines.collect::<Vec<_>>().join("\n")
}

/// Cuts each URL to its scheme, host and port: the other parts may be secret.
pub(crate) fn origins(text: &str) -> String {
    urls(text, origin).into_owned()
}

/// Replaces what follows `://` in each URL of `text`.
fn urls(text: &str, change: fn(&str) -> String) -> Cow<'_, str> {
    const MARK: &str = "://";
    if !text.contains(MARK) {
        return text.into();
    }
    let (mut made, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(MARK) {
        let ends = |letter: char| letter.is_whitespace() || "`'\"<>".contains(letter);
        let url = &after[..after.find(ends).unwrap_or(after.len())];
        // The punctuation of the sentence.
        let (url, further) = after.split_at(url.trim_end_matches([',', '.', ':', ';', ')']).len());
        made = made + before + MARK + &change(url);
        rest = further;
    }
    (made + rest).into()
}

fn without_user(url: &str) -> String {
    let (authority, rest) = url.split_at(url.find(['/', '?', '#']).unwrap_or(url.len()));
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    format!("{host}{rest}")
}

fn origin(url: &str) -> String {
    let (host, rest) = match url.split_once(['/', '?', '#']) {
        // A password with a slash.
        Some((_, rest)) if rest.contains('@') => ("", rest),
        Some((authority, rest)) => (authority, rest),
        None => (url, ""),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    match rest.is_empty() {
        true => host.to_owned(),
        false => format!("{host}/…"),
    }
}

/// Reads a length of time such as `90s`, `30m`, `12h` or `7d`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(seconds)?;
    Some(Duration::from_secs(seconds))
}

/// Stores a type as its text, and reads it as its `FromStr` does.
macro_rules! stored_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use stored_as_text;

/// The known word that a mistyped one may stand for.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (osa_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance * 3 <= candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// `text` as one word for a shell.
pub(crate) fn shell_word(text: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+:@%,=".contains(letter);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_escapes_controls_and_bounds_length() {
        assert_eq!(printable("a\x1b[31m\nb"), "a\\u{1b}[31m; b");
        assert_eq!(printable("a:\r\n  b\n\nc\n"), "a: b; c");
        assert_eq!(printable("\u{202e}x"), "\\u{202e}x");
        assert_eq!(printable(&"x".repeat(5000)).len(), 1000);
        for message in ["x".repeat(2049), "ä".repeat(1025), "\u{1f512}".repeat(5000)] {
            let cut = cut(message.clone());
            assert!(cut.len() <= 2048 && cut.len() > 2040, "{}", cut.len());
            assert!(message.starts_with(cut.trim_end_matches('…')));
        }
        assert_eq!(cut("x".repeat(2048)).len(), 2048);
    }

    #[test]
    fn secrets_of_urls_are_left_out() {
        let both = |text: &str| (printable(text), origins(text));
        let (shown, cut) = both("at `https://u:pw@h.example:1/a?b`, http://h/@x, tcp://u@h");
        assert_eq!(shown, "at `https://h.example:1/a?b`, http://h/@x, tcp://h");
        assert_eq!(cut, "at `https://h.example:1/…`, http:///…, tcp://h");
        assert_eq!(origins(&cut), cut);
        for plain in ["", "a@b.example", "a:/b@c", "://"] {
            assert_eq!(both(plain), (plain.to_owned(), plain.to_owned()));
        }
    }

    #[test]
    fn whole_texts_keep_their_lines_and_json_its_values() {
        let text = "a\x1b]0;pwn\x07\n\u{9b}2J\u{202e}\n  c\n";
        assert_eq!(
            printable_whole(text),
            "a\\u{1b}]0;pwn\\u{7}\n  \\u{9b}2J\\u{202e}\n  c\n"
        );
        let json = serde_json::to_string_pretty(&[text]).unwrap();
        let shown = printable_json(&json);
        assert!(!shown.replace('\n', "").contains(steers), "{shown}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [text]);
    }

    #[test]
    fn printable_lines_keeps_first_lines() {
        assert_eq!(printable_lines("a\x07\r\nb\n\n"), "a\\u{7}\nb");
        let flood = "x\n".repeat(1_000_000);
        assert_eq!(printable_lines(&flood).lines().count(), 20);
    }

    #[test]
    fn a_mistyped_word_finds_what_it_stands_for() {
        let known = ["email", "ca", "http_listen", "webroot"];
        assert_eq!(nearest("emial", known), Some("email"));
        assert_eq!(nearest("http-listen", known), Some("http_listen"));
        assert_eq!(nearest("web_root", known), Some("webroot"));
        assert_eq!(nearest("cb", known), None);
        assert_eq!(nearest("colour", known), None);
    }
}
