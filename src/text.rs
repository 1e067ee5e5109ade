//! Untrusted text, made safe to show: it must not be able to
//! steer a terminal, forge a line of a log, or flood either. Also what a mistyped word
//! may stand for.

/// Longest text that is shown, in characters.
const LONGEST: usize = 1000;

/// Escapes control characters and those that change the direction of writing, and cuts
/// the text at 1,000 characters.
#[must_use]
pub(crate) fn printable(text: &str) -> String {
    printable_within(text, LONGEST)
}

/// The same with a limit of `most` characters, for text that is useless when cut, such
/// as a URL.
#[must_use]
pub(crate) fn printable_within(text: &str, most: usize) -> String {
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
pub(crate) fn printable_lines(text: &str) -> String {
    let lines = text.trim_end().lines().take(20).map(printable);
    lines.collect::<Vec<_>>().join("\n")
}

/// The known word that a mistyped one may stand for.
#[must_use]
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance * 3 <= candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many characters to insert, remove, replace or swap with their neighbour.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![(0..=other.len()).collect::<Vec<_>>()];
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let changed = usize::from(one[i - 1] != other[j - 1]);
            let mut least = (rows[i - 1][j - 1] + changed)
                .min(rows[i - 1][j] + 1)
                .min(row[j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
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
