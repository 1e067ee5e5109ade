//! The two formats of clients' settings: INI with nested sections as ConfigObj
//! writes it, and assignments of a shell. Nothing is expanded, and an invalid line
//! is an error with its number.

/// More lines than any client writes for one certificate.
const MOST_LINES: usize = 5_000;

/// `name = value` below `[section]` or `[[section]]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ini(Vec<(String, String, String)>);

impl Ini {
    /// Reads a file's text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (mut section, mut entries) = (String::new(), Vec::new());
        for (number, line) in numbered(text)? {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with('[') && line.ends_with(']') {
                section = line.trim_matches(['[', ']']).trim().to_owned();
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                return Err(format!("line {number} is neither a section nor a setting"));
            };
            let (name, value) = (unquoted(name.trim()), unquoted(value.trim()));
            entries.push((section.clone(), name.to_owned(), value.to_owned()));
        }
        Ok(Self(entries))
    }

    /// The value of a setting; `None` also for Python's word `None`.
    pub(super) fn value(&self, section: &str, name: &str) -> Option<&str> {
        let mut entries = self.section(section);
        let (_, value) = entries.find(|(known, _)| *known == name)?;
        Some(value).filter(|value| !value.is_empty() && *value != "None")
    }

    /// All settings of a section.
    pub(super) fn section(&self, section: &str) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.0.iter().filter(move |(at, ..)| at == section);
        entries.map(|(_, name, value)| (name.as_str(), value.as_str()))
    }
}

/// The elements of a list of ConfigObj: `a, b` or `a,`.
pub(super) fn list(value: &str) -> Vec<&str> {
    let parts = value.split(',').map(|part| unquoted(part.trim()));
    parts.filter(|part| !part.is_empty()).collect()
}

/// Lines of `NAME='value'`.
#[derive(Debug, Default)]
pub(super) struct Assignments(Vec<(String, String)>);

impl Assignments {
    /// Reads a file's text; ignores lines without an assignment.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let lines = numbered(text)?.filter_map(|(_, line)| {
            let (name, value) = line.trim().split_once('=')?;
            let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            is_name.then(|| (name.to_owned(), unquoted(value.trim()).to_owned()))
        });
        Ok(Self(lines.collect()))
    }

    /// The value of a name by its last assignment; `None` if that is empty.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().rev().find(|(known, _)| known == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

fn numbered(text: &str) -> Result<impl Iterator<Item = (usize, &str)>, String> {
    if text.contains('\0') {
        return Err("it has null bytes".to_owned());
    }
    if text.lines().count() > MOST_LINES {
        return Err(format!("it has more than {MOST_LINES} lines"));
    }
    Ok((1..).zip(text.lines()))
}

fn unquoted(text: &str) -> &str {
    let mut quotes = ['\'', '"'].into_iter();
    let inner = quotes.find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote));
    inner.unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ini_reads_sections_settings_and_lists() {
        let text = "version = 5\n# no\n[renewalparams]\nserver = \"https://ca/dir\"\npre_hook = None\n\
                    webroot_path = /a, '/b c',\n[[webroot_map]]\nexample.com = /a\n";
        let ini = Ini::parse(text).unwrap();
        assert_eq!(ini.value("renewalparams", "server"), Some("https://ca/dir"));
        assert_eq!(ini.value("renewalparams", "pre_hook"), None);
        assert_eq!(ini.value("", "version"), Some("5"));
        let webroots = ini.value("renewalparams", "webroot_path").unwrap();
        assert_eq!(list(webroots), ["/a", "/b c"]);
        let map: Vec<_> = ini.section("webroot_map").collect();
        assert_eq!(map, [("example.com", "/a")]);
        let error = Ini::parse("a = b\nwhat is this\n").unwrap_err();
        assert_eq!(error, "line 2 is neither a section nor a setting");
        assert!(Ini::parse("a = \0").is_err());
        assert!(Ini::parse(&"a = b\n".repeat(MOST_LINES + 1)).is_err());
    }

    #[test]
    fn assignments_are_read_without_expansion() {
        let text =
            "Le_Domain='example.com'\nLe_Alt=\"no\"\nLe_Empty=''\necho $(id)\nLe_X='$(id)'\n=\n";
        let read = Assignments::parse(text).unwrap();
        assert_eq!(read.value("Le_Domain"), Some("example.com"));
        assert_eq!(read.value("Le_Alt"), Some("no"));
        assert_eq!(read.value("Le_Empty"), None);
        assert_eq!(read.value("Le_X"), Some("$(id)"));
    }
}
