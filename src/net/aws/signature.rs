//! Signs a request to S3, or to a server that speaks its language (AWS Signature Version 4).
//! It is here, in a page, because a crate for it brings its own dates, hashes and URLs.

use std::collections::BTreeMap;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, Tag, sign};
use http::header::{AUTHORIZATION, HeaderValue, InvalidHeaderValue};
use http::request::Parts;

use super::Keys;
use crate::certificate::SecretBytes;
use crate::fingerprint::Fingerprint;
use crate::time::Timestamp;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "s3";

/// Signs `head` with all its headers, among them `host`, for a body with this hash. Its path
/// and query are percent-encoded.
pub(crate) fn sign_request(
    head: &mut Parts,
    body: &Fingerprint,
    keys: &Keys,
    region: &str,
    now: Timestamp,
) -> Result<(), InvalidHeaderValue> {
    let stamp = now.to_string().replace(['-', ':'], "");
    let day = stamp.split('T').next().unwrap_or_default();
    let headers = &mut head.headers;
    headers.insert("x-amz-date", HeaderValue::from_str(&stamp)?);
    let hash = body.to_string();
    headers.insert("x-amz-content-sha256", HeaderValue::from_str(&hash)?);
    if let Some(token) = &keys.token {
        let mut token = HeaderValue::from_str(token.expose())?;
        token.set_sensitive(true);
        headers.insert("x-amz-security-token", token);
    }
    let (names, canonical) = canonical(head, &hash);
    let scope = format!("{day}/{region}/{SERVICE}/aws4_request");
    let canonical = Fingerprint::of(canonical.as_bytes());
    let text = format!("{ALGORITHM}\n{stamp}\n{scope}\n{canonical}");
    let secret = SecretBytes::new(format!("AWS4{}", keys.secret.expose()).into_bytes());
    let mut tag = code(secret.expose(), day);
    for part in [region, SERVICE, "aws4_request", &text] {
        tag = code(tag.as_ref(), part);
    }
    let digits = tag.as_ref().iter().map(|byte| format!("{byte:02x}"));
    let signature: String = digits.collect();
    let id = &keys.id;
    let value = format!(
        "{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
    );
    let mut value = HeaderValue::from_str(&value)?;
    value.set_sensitive(true);
    head.headers.insert(AUTHORIZATION, value);
    Ok(())
}

fn code(key: &[u8], text: &str) -> Tag {
    sign(&Key::new(HMAC_SHA256, key), text.as_bytes())
}

/// The names of the headers, and the request in the form that both sides sign.
fn canonical(head: &Parts, hash: &str) -> (String, String) {
    let headers: BTreeMap<&str, &str> = { head.headers.iter() }
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default().trim()))
        .collect();
    let names = headers.keys().copied().collect::<Vec<_>>().join(";");
    let lines: String = { headers.iter() }
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let query = head.uri.query().unwrap_or_default();
    let parts = query.split('&').filter(|part| !part.is_empty());
    let mut parts: Vec<(&str, &str)> = parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .collect();
    parts.sort_unstable();
    let parts: Vec<String> = { parts.iter() }
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let (method, path, query) = (&head.method, head.uri.path(), parts.join("&"));
    let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{hash}");
    (names, canonical)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::certificate::Secret;

    /// The examples of AWS's own documentation ("Signature Calculations for the Authorization
    /// Header").
    #[test]
    fn signatures_are_those_of_the_documented_examples() {
        let keys = Keys {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
            token: None,
            expires: None,
        };
        let now = Timestamp::from_seconds(1_369_353_600);
        let range = Some(("range", "bytes=0-9"));
        for (method, path, header, body, wanted) in [
            (
                "GET",
                "/test.txt",
                range,
                "",
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "GET",
                "/?lifecycle",
                None,
                "",
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "GET",
                "/?prefix=J&max-keys=2",
                None,
                "",
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let host = "examplebucket.s3.amazonaws.com";
            let request = Request::builder().method(method);
            let request = request
                .uri(format!("https://{host}{path}"))
                .header("host", host);
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            if let Some((name, value)) = header {
                head.headers.insert(name, value.parse().unwrap());
            }
            let body = Fingerprint::of(body.as_bytes());
            sign_request(&mut head, &body, &keys, "us-east-1", now).unwrap();
            let shown = head.headers[AUTHORIZATION].to_str().unwrap();
            assert!(
                shown.ends_with(&format!("Signature={wanted}")),
                "{path}: {shown}"
            );
            let scope = "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, ";
            assert!(shown.contains(scope), "{shown}");
            let hidden = format!("{:?}", head.headers);
            assert!(!hidden.contains(wanted), "{hidden}");
        }
    }
}
