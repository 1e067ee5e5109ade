//! Rules for the parser of configurations with any input.

use super::syntax::{Directive, parse};

/// Spans are in the text, in order and inside their blocks; the text of a span parses
/// to the same word.
pub(crate) fn file(text: &[u8]) {
    if let Ok(directives) = parse(text) {
        check(text, &directives, 0, text.len());
    }
}

fn check(text: &[u8], directives: &[Directive], start: usize, end: usize) {
    let mut at = start;
    for directive in directives {
        assert!(at <= directive.span.start && directive.span.end <= end);
        at = directive.span.end;
        for word in &directive.words {
            assert!(directive.span.start <= word.span.start && word.span.end < directive.span.end);
            let alone = [&text[word.span.clone()], b";"].concat();
            let read = parse(&alone);
            assert!(read.is_ok_and(|read| read[0].name() == word.text));
        }
        let last = text.get(directive.span.end - 1);
        match &directive.block {
            Some(block) => {
                assert_eq!(last, Some(&b'}'));
                check(text, &block.directives, block.inner.start, block.inner.end);
            }
            None => assert_eq!(last, Some(&b';')),
        }
    }
}
