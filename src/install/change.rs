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
pub(crate) type Edits = BTreeMap<usize, Vec<Edit>>;

/// `text` with all edits applied. Edits that start at the same byte keep their order; an
/// edit that overlaps an earlier one is skipped.
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
    let line = text[..at].rsplit(|byte| *byte == b'\n').next();
    let bytes = line.unwrap_or_default().iter();
    let blanks = bytes.take_while(|byte| matches!(byte, b' ' | b'\t'));
    blanks.map(|byte| char::from(*byte)).collect()
}

/// The line ending of the file.
#[must_use]
pub(crate) fn line_end(text: &[u8]) -> &'static str {
    let is_dos = text.windows(2).any(|pair| pair == b"\r\n");
    if is_dos { "\r\n" } else { "\n" }
}

/// The end of the line, if only blanks and a comment follow `at`, so that the comment
/// stays with its directive; else `at`.
#[must_use]
pub(crate) fn after_comment(text: &[u8], at: usize) -> usize {
    let mut lines = text[at..].split(|byte| *byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let mut bytes = line.iter();
    match bytes.find(|byte| !matches!(byte, b' ' | b'\t' | b'\r')) {
        None | Some(b'#') => at + line.len() - usize::from(line.ends_with(b"\r")),
        Some(_) => at,
    }
}
