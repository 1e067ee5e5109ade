//! Edits as insertions and replacements of bytes: whatever is not named by one
//! stays as it was, comments and blanks included.

use std::collections::BTreeMap;

use super::syntax::Span;

/// Text in the place of some bytes; of none, an insertion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edit {
    /// What goes.
    pub span: Span,
    /// What comes.
    pub text: String,
}

/// Edits by the number of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edits(BTreeMap<usize, Vec<Edit>>);

impl Edits {
    /// Adds one. Those that start at the same byte keep their order.
    pub(crate) fn add(&mut self, file: usize, span: Span, text: impl Into<String>) {
        let text = text.into();
        self.0.entry(file).or_default().push(Edit { span, text });
    }

    /// Each file with its edits.
    pub(crate) fn files(&self) -> impl Iterator<Item = (usize, &[Edit])> {
        self.0.iter().map(|(file, edits)| (*file, edits.as_slice()))
    }
}

/// `text` with all edits made; one that overlaps an earlier one is left out.
#[must_use]
pub(crate) fn apply(text: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut sorted: Vec<&Edit> = edits.iter().collect();
    sorted.sort_by_key(|edit| edit.span.start);
    let (mut made, mut at) = (Vec::with_capacity(text.len()), 0);
    for edit in sorted {
        if edit.span.start < at || edit.span.end > text.len() {
            continue;
        }
        made.extend_from_slice(&text[at..edit.span.start]);
        made.extend_from_slice(edit.text.as_bytes());
        at = edit.span.end;
    }
    made.extend_from_slice(&text[at..]);
    made
}

/// The blanks that the line of a byte begins with.
#[must_use]
pub(crate) fn indent(text: &[u8], at: usize) -> String {
    let begin = text[..at].iter().rposition(|byte| *byte == b'\n');
    let line = &text[begin.map_or(0, |begin| begin + 1)..at];
    let blanks = line.iter().take_while(|byte| matches!(byte, b' ' | b'\t'));
    blanks.map(|byte| char::from(*byte)).collect()
}

/// How the file ends its lines.
#[must_use]
pub(crate) fn line_end(text: &[u8]) -> &'static str {
    if text.windows(2).any(|pair| pair == b"\r\n") {
        "\r\n"
    } else {
        "\n"
    }
}

/// The end of the line, when nothing but blanks and a comment is left of it;
/// else where it begins: a comment stays with what it is about.
#[must_use]
pub(crate) fn after_comment(text: &[u8], at: usize) -> usize {
    let rest = &text[at..];
    let end = rest
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(rest.len());
    let line = &rest[..end];
    let first = line
        .iter()
        .find(|byte| !matches!(byte, b' ' | b'\t' | b'\r'));
    match first {
        None | Some(b'#') => at + end - usize::from(line.ends_with(b"\r")),
        Some(_) => at,
    }
}
