//! Edits as insertions and replacements of bytes: all other bytes stay as they are,
//! comments and blanks included.

use std::collections::BTreeMap;

use super::syntax::Span;

/// A replacement of bytes; an insertion, if the span is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edit {
    /// The bytes to replace.
    pub span: Span,
    /// The new text.
    pub text: String,
}

/// Edits by file number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edits(BTreeMap<usize, Vec<Edit>>);

impl Edits {
    /// Adds an edit. Edits that start at the same byte keep their order.
    pub(crate) fn add(&mut self, file: usize, span: Span, text: impl Into<String>) {
        let text = text.into();
        self.0.entry(file).or_default().push(Edit { span, text });
    }

    /// Each file with its edits.
    pub(crate) fn files(&self) -> impl Iterator<Item = (usize, &[Edit])> {
        self.0.iter().map(|(file, edits)| (*file, edits.as_slice()))
    }
}

/// `text` with all edits applied; an edit that overlaps an earlier one is skipped.
#[must_use]
pub(crate) fn apply(text: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut sorted: Vec<&Edit> = edits.iter().collect();
    sorted.sort_by_key(|edit| edit.span.start);
    let (mut edited, mut at) = (Vec::with_capacity(text.len()), 0);
    for edit in sorted {
        if edit.span.start < at || edit.span.end > text.len() {
            continue;
        }
        edited.extend_from_slice(&text[at..edit.span.start]);
        edited.extend_from_slice(edit.text.as_bytes());
        at = edit.span.end;
    }
    edited.extend_from_slice(&text[at..]);
    edited
}

/// The indentation of the line of a byte.
#[must_use]
pub(crate) fn indent(text: &[u8], at: usize) -> String {
    let begin = text[..at].iter().rposition(|byte| *byte == b'\n');
    let line = &text[begin.map_or(0, |begin| begin + 1)..at];
    let blanks = line.iter().take_while(|byte| matches!(byte, b' ' | b'\t'));
    blanks.map(|byte| char::from(*byte)).collect()
}

/// The line ending of the file.
#[must_use]
pub(crate) fn line_end(text: &[u8]) -> &'static str {
    if text.windows(2).any(|pair| pair == b"\r\n") {
        "\r\n"
    } else {
        "\n"
    }
}

/// The end of the line, if only blanks and a comment follow `at`, so that the comment
/// stays with its directive; else `at`.
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
