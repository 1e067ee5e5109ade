//! Reads the list of containers as a stream, container by container: the list may be of any
//! length, and each container's part is bounded. One that is too large or invalid is
//! skipped and named, and does not stop the others.

use std::collections::BTreeSet;

use super::labels::{Container, InvalidLabel};

const MOST_CONTAINERS: usize = 10_000;
/// The limit of one container's part, in bytes: a thousand containers of 3 kB make 3 MB.
const LONGEST_PART: usize = 256 * 1024;
/// The skipped containers that are named.
const MOST_NAMED: usize = 100;
/// The name of a container stands at the start of its part.
const NAMES: &[u8] = b"\"Names\":[\"";

/// The containers of a list, and those that were skipped.
pub(crate) type Containers = (Vec<Container>, Vec<InvalidLabel>);

/// A list that is being read.
#[derive(Debug, Default)]
pub(crate) struct ListReader {
    /// Brackets that are open.
    depth: usize,
    in_text: bool,
    is_escaped: bool,
    has_ended: bool,
    part: Vec<u8>,
    is_too_long: bool,
    containers: Vec<Container>,
    skipped: Vec<InvalidLabel>,
    ids: BTreeSet<String>,
}

impl ListReader {
    /// Reads the next bytes.
    ///
    /// # Errors
    /// If this is not a list of containers; no part of it may be used then.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        bytes.iter().try_for_each(|byte| self.take(*byte))
    }

    /// The containers.
    ///
    /// # Errors
    /// If the list has no end.
    pub(crate) fn end(self) -> Result<Containers, String> {
        match self.has_ended {
            true => Ok((self.containers, self.skipped)),
            false => Err("the list of containers has no end".to_owned()),
        }
    }

    fn take(&mut self, byte: u8) -> Result<(), String> {
        if self.depth < 2 {
            return self.between(byte);
        }
        match self.part.len() < LONGEST_PART {
            true => self.part.push(byte),
            false => self.is_too_long = true,
        }
        if self.in_text {
            let ends = byte == b'"' && !self.is_escaped;
            self.is_escaped = byte == b'\\' && !self.is_escaped;
            self.in_text = !ends;
            return Ok(());
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        match self.depth {
            1 => self.finish(),
            _ => Ok(()),
        }
    }

    /// Outside of the containers.
    fn between(&mut self, byte: u8) -> Result<(), String> {
        match (byte, self.depth) {
            (b' ' | b'\n' | b'\r' | b'\t', _) | (b',', 1) => {}
            (b'[', 0) if !self.has_ended => self.depth = 1,
            (b'{', 1) => {
                self.depth = 2;
                self.part.push(byte);
            }
            (b']', 1) => (self.depth, self.has_ended) = (0, true),
            _ => return Err("invalid list of containers".to_owned()),
        }
        Ok(())
    }

    /// At the end of a container's part.
    fn finish(&mut self) -> Result<(), String> {
        if self.containers.len() + self.skipped.len() >= MOST_CONTAINERS {
            return Err(format!(
                "more than {MOST_CONTAINERS} containers in the list"
            ));
        }
        let part = std::mem::take(&mut self.part);
        let read = match std::mem::take(&mut self.is_too_long) {
            true => Err(format!(
                "its description has more than {LONGEST_PART} bytes"
            )),
            false => Container::read(&part),
        };
        match read {
            Ok(one) if self.ids.insert(one.id.clone()) => self.containers.push(one),
            Ok(one) => return Err(format!("two containers have the identifier {}", one.id)),
            Err(message) if self.skipped.len() < MOST_NAMED => {
                self.skipped
                    .push(InvalidLabel::of_container(&name_in(&part), message));
            }
            Err(_) => {}
        }
        Ok(())
    }
}

/// The name in a part that cannot be read.
fn name_in(part: &[u8]) -> String {
    let at = part.windows(NAMES.len()).position(|some| some == NAMES);
    let name = at.map_or(&[][..], |at| &part[at + NAMES.len()..]);
    let name = name.split(|byte| *byte == b'"').next().unwrap_or_default();
    String::from_utf8_lossy(name)
        .trim_start_matches('/')
        .to_owned()
}

/// Reads a whole list.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_list(answer: &[u8]) -> Result<Containers, String> {
    let mut reader = ListReader::default();
    reader.read(answer)?;
    reader.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: &str, label: &str) -> String {
        // In Docker's order.
        let label = serde_json::json!(label);
        format!(r#"{{"Id":"{id}","Names":["/{id}"],"Labels":{{"certs.domains":{label}}}}}"#)
    }

    #[test]
    fn list_that_is_none_is_rejected_whole() {
        let read = |text: &str| read_list(text.as_bytes());
        assert_eq!(read("[]"), Ok(Containers::default()));
        assert_eq!(read(" [ \n] ").unwrap().0.len(), 0);
        let null = read(r#"[{"Id": "4f1e", "Labels": null}]"#).unwrap();
        assert_eq!((null.0.len(), null.1.len()), (1, 0));
        let twice = format!("[{0},{0}]", listed("4f1e", "a.example"));
        for wrong in [
            "",
            "{}",
            "null",
            "[null]",
            "[[]]",
            "[",
            "[]]",
            "[{}",
            "[7]",
            "<html>",
            &twice,
            r#"{"message": "forbidden"}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let many: Vec<_> = (0..=MOST_CONTAINERS)
            .map(|n| format!("{{\"Id\":\"{n:x}\"}}"))
            .collect();
        assert!(read(&format!("[{}]", many.join(","))).is_err());
        assert!(read(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn container_that_is_invalid_or_too_large_is_skipped_and_named() {
        let large = listed("large", &"a".repeat(9 << 20));
        let text = listed("text", "}]\\\"[{ \u{e4} ");
        let invalid = [
            "{}",
            r#"{"Id": "../../etc", "Names":["/path"]}"#,
            r#"{"Id": ""}"#,
            r#"{"Id": "4f1e", "Labels": []}"#,
            r#"{"Id": "4f1e", "Names":["/seven"], "Labels": {"certs.domains": 7}}"#,
        ];
        let parts = [&*large, &*text].into_iter().chain(invalid);
        let parts: Vec<_> = parts
            .map(str::to_owned)
            .chain([listed("last", "b.example")])
            .collect();
        let whole = format!("[{}]", parts.join(","));
        for chunk in [1 << 16, 4093] {
            let mut reader = ListReader::default();
            whole
                .as_bytes()
                .chunks(chunk)
                .for_each(|bytes| reader.read(bytes).unwrap());
            let (containers, skipped) = reader.end().unwrap();
            let names: Vec<_> = containers.iter().map(|one| &*one.name).collect();
            assert_eq!(names, ["text", "last"]);
            let skipped: Vec<_> = skipped.iter().map(|one| &*one.container).collect();
            assert_eq!(skipped, ["large", "", "path", "", "", "seven"]);
        }
    }
}
