//! The replies of S3 in XML: an error, and a page of a listing. Elements are found by their
//! names and nothing else is read, so that no declaration can expand or include anything.

use percent_encoding::percent_decode_str;

/// An object in a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: String,
    pub(super) tag: String,
    pub(super) size: u64,
}

/// A page of a listing, and where the next one begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) objects: Vec<Listed>,
    pub(super) next: Option<String>,
}

/// The code and the message of an error, empty in a reply that is none of S3.
pub(super) fn error(body: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(body);
    let error = element(&text, "Error").unwrap_or_default();
    let part = |name| element(error, name).map(unescaped).unwrap_or_default();
    (part("Code"), part("Message"))
}

/// A page, or why the reply is none.
pub(super) fn page(body: &[u8]) -> Result<Page, &'static str> {
    const INVALID: &str = "its reply is not a listing";
    let text = std::str::from_utf8(body).map_err(|_| INVALID)?;
    let (_, mut rest) = text.split_once("<ListBucketResult").ok_or(INVALID)?;
    let is_last = element(rest, "IsTruncated").ok_or(INVALID)?.trim() == "false";
    let next = element(rest, "NextContinuationToken").map(unescaped);
    let mut objects = Vec::new();
    while let Some((_, entry)) = rest.split_once("<Contents>") {
        let (entry, after) = entry.split_once("</Contents>").ok_or(INVALID)?;
        rest = after;
        let key = unescaped(element(entry, "Key").ok_or(INVALID)?);
        let tag = unescaped(element(entry, "ETag").ok_or(INVALID)?);
        let size = element(entry, "Size").and_then(|size| size.trim().parse().ok());
        objects.push(Listed {
            key: percent_decode_str(&key).decode_utf8_lossy().into_owned(),
            tag: tag.trim_matches('"').to_owned(),
            size: size.ok_or(INVALID)?,
        });
    }
    match (is_last, next) {
        (true, _) => Ok(Page {
            objects,
            next: None,
        }),
        (false, None) => Err("its reply does not tell where the next page begins"),
        (false, next) => Ok(Page { objects, next }),
    }
}

/// The content of the first element of that name.
fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, content) = text.split_once(&format!("<{name}>"))?;
    Some(content.split_once(&format!("</{name}>"))?.0)
}

/// Replaces XML's own references to characters; any other stays as it is.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('&');
    let mut made = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let found = part
            .split_once(';')
            .and_then(|(name, rest)| Some((character(name)?, rest)));
        match found {
            Some((character, rest)) => {
                made.push(character);
                made += rest;
            }
            None => {
                made.push('&');
                made += part;
            }
        }
    }
    made
}

fn character(name: &str) -> Option<char> {
    let number = |digits: &str, base| u32::from_str_radix(digits, base).ok();
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let digits = name.strip_prefix('#')?;
            let number = match digits.strip_prefix('x') {
                Some(digits) => number(digits, 16),
                None => number(digits, 10),
            };
            char::from_u32(number?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_decoded_keys_and_the_next_token() {
        let xml = "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\"><IsTruncated>true</IsTruncated>\
            <NextContinuationToken>a+/=&amp;</NextContinuationToken>\
            <Contents><Key>p/%2A.b</Key><ETag>&quot;1&quot;</ETag><Size>50</Size></Contents>\
            <Contents><Size>0</Size><ETag>\"&#50;&#x33;\"</ETag><Key>p/c</Key></Contents></ListBucketResult>";
        let page = page(xml.as_bytes()).unwrap();
        let listed = |key: &str, tag: &str, size| Listed {
            key: key.to_owned(),
            tag: tag.to_owned(),
            size,
        };
        assert_eq!(
            page.objects,
            [listed("p/*.b", "1", 50), listed("p/c", "23", 0)]
        );
        assert_eq!(page.next.as_deref(), Some("a+/=&"));
    }

    #[test]
    fn reply_that_is_no_listing_is_not_an_empty_one() {
        for text in [
            "",
            "<html><body>Welcome</body></html>",
            "<ListBucketResult></ListBucketResult>",
            "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
            "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key>",
            "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents>",
        ] {
            assert!(page(text.as_bytes()).is_err(), "{text}");
        }
        let empty =
            "<ListBucketResult xmlns='x'><IsTruncated>false</IsTruncated></ListBucketResult>";
        assert!(page(empty.as_bytes()).unwrap().objects.is_empty());
    }

    #[test]
    fn entities_are_not_expanded() {
        let xml = "<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY f SYSTEM \"file:///etc/passwd\">]>\
            <Error><Code>AccessDenied</Code><Message>no &a; &f; &lt;&unknown &#xffffffff;</Message></Error>";
        let (code, message) = error(xml.as_bytes());
        assert_eq!(code, "AccessDenied");
        assert_eq!(message, "no &a; &f; <&unknown &#xffffffff;");
        assert_eq!(error(b"<html>no"), (String::new(), String::new()));
    }
}
