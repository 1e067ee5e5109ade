//! Words, directives and blocks of an nginx configuration, each with its span of
//! bytes. Splits words exactly as nginx does, but does not know what a directive
//! means. Accepts any bytes, UTF-8 or not.

use std::ops::Range;

/// The deepest nesting of blocks; more than real configurations have.
const DEEPEST: usize = 64;
const RAW_BLOCK: &str = "_by_lua_block";

/// A range of bytes in a file.
pub(crate) type Span = Range<usize>;

/// One word of a directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// The text without quotes, escapes resolved.
    pub text: String,
    /// The bytes with the quotes.
    pub span: Span,
}

/// `name words… ;` or `name words… { … }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directive {
    /// The words, the name first.
    pub words: Vec<Word>,
    /// From the first word to the semicolon or the closing brace, included.
    pub span: Span,
    /// The content of its braces.
    pub block: Option<Block>,
}

/// The inside of braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The bytes without the braces.
    pub inner: Span,
    pub directives: Vec<Directive>,
}

impl Directive {
    /// Its first word.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        self.words.first().map_or("", |word| &word.text)
    }

    /// Its first argument, or nothing.
    #[must_use]
    pub(crate) fn argument(&self) -> &str {
        self.arguments().next().unwrap_or_default()
    }

    /// Every word but the name.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = &str> {
        self.words.iter().skip(1).map(|word| word.text.as_str())
    }
}

/// Reads a whole file.
///
/// # Errors
/// The line and the reason, for text that nginx would refuse, too, or for blocks that
/// are nested too deep.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Directive>, String> {
    let mut reader = Reader { text, at: 0 };
    let directives = reader.directives(0)?;
    if reader.at < text.len() {
        return Err(reader.error("unexpected `}`"));
    }
    Ok(directives)
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// Reads up to the end of the file or before a closing brace.
    fn directives(&mut self, depth: usize) -> Result<Vec<Directive>, String> {
        if depth > DEEPEST {
            return Err(self.error("blocks are nested too deep"));
        }
        let mut directives = Vec::new();
        loop {
            self.skip_blanks();
            match self.peek() {
                None | Some(b'}') => return Ok(directives),
                Some(b';' | b'{') => return Err(self.error("missing name of a directive")),
                Some(_) => directives.push(self.directive(depth)?),
            }
        }
    }

    fn directive(&mut self, depth: usize) -> Result<Directive, String> {
        let (start, mut words) = (self.at, Vec::new());
        loop {
            self.skip_blanks();
            let block = match self.peek() {
                None => return Err(self.error("unexpected end of file: missing `;`")),
                Some(b'}') => return Err(self.error("unexpected `}`: missing `;`")),
                Some(b';') => {
                    self.at += 1;
                    None
                }
                Some(b'{') => Some(self.block(&words, depth)?),
                Some(_) => {
                    words.push(self.word()?);
                    continue;
                }
            };
            return Ok(Directive {
                words,
                span: start..self.at,
                block,
            });
        }
    }

    fn block(&mut self, words: &[Word], depth: usize) -> Result<Block, String> {
        self.at += 1;
        let start = self.at;
        let directives = match words.first() {
            Some(name) if name.text.ends_with(RAW_BLOCK) => self.skip_lua(),
            _ => self.directives(depth + 1)?,
        };
        if self.peek() != Some(b'}') {
            return Err(self.error("missing `}`"));
        }
        let inner = start..self.at;
        self.at += 1;
        Ok(Block { inner, directives })
    }

    /// Skips to the brace that closes a block of Lua, which has no directives.
    fn skip_lua(&mut self) -> Vec<Directive> {
        let mut open = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'{' => open += 1,
                b'}' if open == 0 => break,
                b'}' => open -= 1,
                b'"' | b'\'' => {
                    self.at += 1;
                    while self
                        .peek()
                        .is_some_and(|next| next != byte && next != b'\n')
                    {
                        self.skip_one();
                    }
                }
                b'-' if self.text[self.at..].starts_with(b"--") => {
                    self.skip_line();
                    continue;
                }
                _ => {}
            }
            self.at = (self.at + 1).min(self.text.len());
        }
        Vec::new()
    }

    /// Skips a byte, or a backslash and the byte after it.
    fn skip_one(&mut self) {
        self.at += if self.peek() == Some(b'\\') { 2 } else { 1 };
    }

    fn skip_line(&mut self) {
        while self.peek().is_some_and(|byte| byte != b'\n') {
            self.at += 1;
        }
    }

    fn word(&mut self) -> Result<Word, String> {
        let start = self.at;
        let quote = self.peek().filter(|byte| matches!(byte, b'"' | b'\''));
        self.at += usize::from(quote.is_some());
        let content = self.at;
        let mut after_dollar = false;
        while let Some(byte) = self.peek() {
            let is_end = match quote {
                Some(quote) => byte == quote,
                None => is_blank(byte) || byte == b';' || (byte == b'{' && !after_dollar),
            };
            if is_end {
                break;
            }
            after_dollar = byte == b'$';
            // A byte after a backslash never ends a word.
            self.skip_one();
        }
        if self.at > self.text.len() || (quote.is_some() && self.peek().is_none()) {
            self.at = self.text.len();
            return Err(self.error("unexpected end of file in a word"));
        }
        let text = unescaped(&self.text[content..self.at]);
        if quote.is_some() {
            self.at += 1;
            let next = self.peek();
            if next.is_some_and(|byte| !is_blank(byte) && !matches!(byte, b';' | b'{' | b')')) {
                return Err(self.error("unexpected text after a closing quote"));
            }
        }
        Ok(Word {
            text,
            span: start..self.at,
        })
    }

    /// Skips blanks and comments.
    fn skip_blanks(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b'#' => self.skip_line(),
                _ if is_blank(byte) => self.at += 1,
                _ => return,
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn error(&self, what: &str) -> String {
        format!("line {}: {what}", line_of(self.text, self.at))
    }
}

/// The line of a byte, counted from 1.
#[must_use]
pub(crate) fn line_of(text: &[u8], at: usize) -> usize {
    let before = &text[..at.min(text.len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn unescaped(raw: &[u8]) -> String {
    let (mut text, mut rest) = (Vec::with_capacity(raw.len()), raw);
    while let [byte, after @ ..] = rest {
        let (length, value) = match (byte, after.first()) {
            (b'\\', Some(quoted @ (b'"' | b'\'' | b'\\'))) => (2, *quoted),
            (b'\\', Some(b't')) => (2, b'\t'),
            (b'\\', Some(b'r')) => (2, b'\r'),
            (b'\\', Some(b'n')) => (2, b'\n'),
            _ => (1, *byte),
        };
        text.push(value);
        rest = &rest[length..];
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// `text` as one word of nginx, quoted if necessary.
#[must_use]
pub(crate) fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:+@%,=~*[]".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<Vec<String>> {
        let directives = parse(text.as_bytes()).unwrap();
        let texts = |one: &Directive| one.words.iter().map(|word| word.text.clone()).collect();
        directives.iter().map(texts).collect()
    }

    #[test]
    fn words_end_where_nginx_ends_them() {
        for (text, expected) in [
            ("set $a b}c;", vec!["set", "$a", "b}c"]),
            ("set $a b\"c;", vec!["set", "$a", "b\"c"]),
            ("set $a b#c;", vec!["set", "$a", "b#c"]),
            ("set $a \\;x;", vec!["set", "$a", "\\;x"]),
            ("set $a x\\ y;", vec!["set", "$a", "x\\ y"]),
            ("set $a ${b}c;", vec!["set", "$a", "${b}c"]),
            ("set $a 'it\\'s; {';", vec!["set", "$a", "it's; {"]),
            ("set $a \"\";", vec!["set", "$a", ""]),
            ("set $a # b;\n c;", vec!["set", "$a", "c"]),
            ("location /{}", vec!["location", "/"]),
        ] {
            assert_eq!(words(text), [expected], "{text}");
        }
        assert_eq!(words("a;b{}c;").len(), 3);
        for text in [
            "a", "a;}", "a{", ";", "{}", "a 'b'c;", "a 'b", "a \\", "a{b}", "a;b\\",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(&b"a{".repeat(10_000)).is_err());
    }

    #[test]
    fn lua_blocks_are_skipped() {
        let text = "content_by_lua_block { if x then return { '}' } end -- }\n } a;";
        assert_eq!(words(text), [vec!["content_by_lua_block"], vec!["a"]]);
    }

    #[test]
    fn spans_match_their_bytes() {
        let text = b"a b; # c\nd 'e f' { g; }\n";
        let read = parse(text).unwrap();
        assert_eq!(&text[read[0].span.clone()], b"a b;");
        assert_eq!(&text[read[1].span.clone()], b"d 'e f' { g; }");
        assert_eq!(&text[read[1].words[1].span.clone()], b"'e f'");
        let block = read[1].block.as_ref().unwrap();
        assert_eq!(&text[block.inner.clone()], b" g; ");
    }

    proptest! {
        #[test]
        fn parser_never_panics(text in "[ab${}; \n#'\"\\\\]{0,60}") {
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn quoted_text_reads_back_unchanged(text in "[a-z ;{}\"'#/.-]{0,20}") {
            let line = format!("x {};", quoted(&text));
            prop_assert_eq!(words(&line), vec![vec!["x".to_owned(), text]]);
        }
    }
}
