//! Text that strangers wrote, made fit to be shown: it must not be able to
//! steer a terminal, forge a line of a log, or flood either.

/// Longest text that is shown, in characters.
const LONGEST: usize = 1000;

/// Escapes control characters and those that change the direction of writing, and cuts
/// the text at 1,000 characters.
#[must_use]
pub fn printable(text: &str) -> String {
    printable_within(text, LONGEST)
}

/// The same with a limit of `most` characters, for text that is useless when cut, such
/// as a URL.
#[must_use]
pub fn printable_within(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for letter in text.chars().take(most) {
        if letter.is_control() || ('\u{202a}'..='\u{2069}').contains(&letter) {
            shown.extend(letter.escape_unicode());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// The same for the output of a program, line by line, at most 20 lines.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    let lines = text.trim_end().lines().take(20).map(printable);
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_escapes_controls_and_bounds_length() {
        assert_eq!(printable("a\x1b[31m\nb"), "a\\u{1b}[31m\\u{a}b");
        assert_eq!(printable("\u{202e}x"), "\\u{202e}x");
        assert_eq!(printable(&"x".repeat(5000)).len(), 1000);
    }

    #[test]
    fn printable_lines_keeps_first_lines() {
        assert_eq!(printable_lines("a\x07\r\nb\n\n"), "a\\u{7}\nb");
        let flood = "x\n".repeat(1_000_000);
        assert_eq!(printable_lines(&flood).lines().count(), 20);
    }
}
