//! Problem documents (RFC 8555 section 6.7): read leniently, and described in the
//! CA's own words. Nothing here decides what follows from a problem.

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_TYPE;
use instant_acme::{Problem, Subproblem};
use serde::Deserialize;
use serde_json::Value;

use crate::text::{cut, printable, printable_within};

/// The longest identifier, type or detail that is kept: the portal that ends a pause has a
/// long URL.
const LONGEST: usize = 8192;
/// A problem may list one subproblem per name, and a certificate has a hundred names.
const MOST_SUBPROBLEMS: usize = 100;
const ACME_ERROR: &str = "urn:ietf:params:acme:error:";

/// The last part of an ACME problem's type; any other type whole.
pub(super) fn kind(problem: &Problem) -> &str {
    short(problem.r#type.as_deref())
}

fn short(kind: Option<&str>) -> &str {
    let kind = kind.unwrap_or("");
    kind.strip_prefix(ACME_ERROR).unwrap_or(kind)
}

/// Whether CAA records may be the cause: CAs report them as `caa` or `unauthorized`.
pub(super) fn may_be_caa(problem: &Problem) -> bool {
    let subproblems = problem.subproblems.iter();
    let kinds = subproblems.map(|sub| short(sub.r#type.as_deref()));
    kinds
        .chain([kind(problem)])
        .any(|kind| matches!(kind, "caa" | "unauthorized"))
}

/// Whether the CA paused names. Boulder pauses a name after 1,152 failures in a row
/// and reports it as a rate limit, but it ends only when a person opens the URL.
pub(super) fn is_pause(problem: &Problem) -> bool {
    let detail = problem.detail.as_deref().unwrap_or("");
    is_rate_limit(problem) && detail.contains("/unpause?")
}

pub(super) fn is_rate_limit(problem: &Problem) -> bool {
    kind(problem) == "rateLimited"
}

/// Adds the terms of service to which the user must agree (RFC 8555 section 7.3.3).
pub(super) fn add_terms(problem: &mut Problem, url: &str) {
    if kind(problem) == "userActionRequired" {
        let detail = problem.detail.get_or_insert_default();
        detail.push_str(&format!("; the terms of service are at {url}"));
    }
}

/// Whether the CA rejects only the nonce, whatever the HTTP status.
pub(super) fn is_bad_nonce(reply: &Response<Bytes>) -> bool {
    let content_type = reply.headers().get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    !reply.status().is_success()
        && parse(content_type.unwrap_or(""), reply.body())
            .is_some_and(|problem| kind(&problem) == "badNonce")
}

/// The problem document in `body`, if any.
pub(super) fn parse(content_type: &str, body: &[u8]) -> Option<Problem> {
    if !content_type.contains("json") {
        return None;
    }
    let value: Value = serde_json::from_slice(body).ok()?;
    value.is_object().then(|| from_value(&value))
}

/// Reads the members of the expected type and ignores the others.
pub(super) fn from_value(value: &Value) -> Problem {
    let text = |value: &Value, name: &str| {
        let text = value[name].as_str()?;
        Some(text[..text.floor_char_boundary(LONGEST)].to_owned())
    };
    let subproblems = value["subproblems"].as_array().into_iter().flatten();
    let subproblems = subproblems.take(MOST_SUBPROBLEMS).map(|sub| Subproblem {
        identifier: Deserialize::deserialize(&sub["identifier"]).ok(),
        r#type: text(sub, "type"),
        detail: text(sub, "detail"),
    });
    let detail = match (text(value, "detail"), text(value, "instance")) {
        // The page where the user can act.
        (detail, Some(page)) if value["type"] == format!("{ACME_ERROR}userActionRequired") => {
            Some(format!("{}; open {page}", detail.unwrap_or_default()))
        }
        (detail, _) => detail,
    };
    Problem {
        r#type: text(value, "type"),
        detail,
        status: None,
        subproblems: subproblems.collect(),
    }
}

/// A `type` and a `detail`, safe to show.
pub(super) fn type_and_detail(kind: Option<&str>, detail: Option<&str>) -> String {
    format!(
        "{}: {}",
        printable(kind.unwrap_or("no type")),
        printable(detail.unwrap_or("no detail"))
    )
}

/// The CA's `type` and `detail`, and those of its subproblems by identifier, at most 2 KiB
/// but for the URL that ends a pause.
pub(super) fn describe(problem: &Problem) -> String {
    let mut text = type_and_detail(problem.r#type.as_deref(), problem.detail.as_deref());
    if is_pause(problem) {
        // The URL at the end lists every paused name, so it may be long.
        text = printable_within(problem.detail.as_deref().unwrap_or_default(), LONGEST);
        text.insert_str(0, "rateLimited: ");
        return text;
    }
    for sub in problem.subproblems.iter().take(MOST_SUBPROBLEMS) {
        let name = match &sub.identifier {
            Some(identifier) => printable(&identifier.clone().authorized(false).to_string()),
            None => "the order".to_owned(),
        };
        text.push_str(&format!(
            "\n  {name}: {}",
            type_and_detail(sub.r#type.as_deref(), sub.detail.as_deref())
        ));
    }
    cut(text)
}
