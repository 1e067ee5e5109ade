//! The CA's rate limits, counted on our side so that the CA need not refuse:
//! token buckets that refill one token at a time (the generic cell rate
//! algorithm, as Let's Encrypt counts). Scheduled renewals leave a reserve for
//! urgent and forced orders. It stores nothing itself.

mod rules;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use self::rules::{LETS_ENCRYPT, Rule, rules};
use crate::ca_state::{CaState, Counted, Limit};
use crate::identifier::Identifier;
use crate::record::Record;
use crate::time::Timestamp;

/// How `ca` counts an order of `record` for `names` that replaces `replaces`.
#[must_use]
pub fn counts_as(
    record: &Record,
    ca: &str,
    names: &BTreeSet<Identifier>,
    replaces: Option<&str>,
    now: Timestamp,
) -> Counted {
    let Some(issued) = &record.issued else {
        return Counted::New;
    };
    if issued.ca != ca || issued.facts.identifiers != *names {
        return Counted::New;
    }
    let window = issued
        .renewal
        .as_ref()
        .and_then(|renewal| renewal.window.as_ref());
    let inside = window.is_some_and(|window| (window.start..window.end).contains(&now));
    if replaces.is_some() && inside {
        Counted::Exempt
    } else {
        Counted::Again
    }
}

/// The priority of an order: how much of the reserve it may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A renewal that is due: no reserved token.
    Routine,
    /// An overdue renewal: half of the reserve.
    Urgent,
    /// An order that the operator forces: all of the reserve.
    Forced,
}

/// A rate limit has no token left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The limit.
    pub limit: Limit,
    /// The subject of the bucket: a registered domain, a set of names, a name.
    pub subject: String,
    /// When the next token is there.
    pub until: Timestamp,
    /// The time between two tokens, when each order needs one; `None` when one
    /// token lets all orders through.
    pub every: Option<Duration>,
}

/// The bucket that several orders wait for, each for one token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The directory URL of the CA.
    pub ca: String,
    /// The limit.
    pub limit: Limit,
    /// The subject of the bucket.
    pub subject: String,
    /// The priority of the orders: urgent ones wait apart, since they may spend
    /// reserved tokens.
    pub priority: Priority,
    /// The time between two tokens.
    pub every: Duration,
}

/// Spends the tokens of an order for `identifiers`.
///
/// # Errors
/// The limit without a token, of several the one that refills last; nothing is
/// spent then.
pub fn spend(
    state: &mut CaState,
    rules: &[Rule],
    identifiers: &BTreeSet<Identifier>,
    counted: Counted,
    priority: Priority,
    now: Timestamp,
) -> Result<(), Refusal> {
    clamp_refills(state, rules, now);
    let charges = charges(rules, identifiers, counted);
    // A failed validation is counted after it failed; here it is only checked
    // that one more is allowed.
    let checked = validations(rules, identifiers);
    let charged = charges.iter().cloned().map(|charge| (charge, true));
    let refusals = charged
        .chain(checked.into_iter().map(|checked| (checked, false)))
        .filter_map(|((rule, subject), charged)| {
            let reserve = match priority {
                Priority::Routine => rule.reserve,
                Priority::Urgent => rule.reserve / 2,
                Priority::Forced => 0,
            };
            let until = rule.free_at(full_at(state, rule, &subject, now)?, reserve);
            (until > now).then_some(Refusal {
                limit: rule.limit,
                subject,
                until,
                every: charged.then(|| rule.interval()),
            })
        });
    if let Some(refusal) = refusals.max_by_key(|refusal| refusal.until) {
        return Err(refusal);
    }
    forget_full(state, now);
    for (rule, subject) in charges {
        take(state, rule, subject, now);
    }
    Ok(())
}

/// Spends the token of a new account. It clamps no other limit, since `now` is
/// by our uncorrected clock.
///
/// # Errors
/// The limit, when it has no token.
pub fn register(state: &mut CaState, rules: &[Rule], now: Timestamp) -> Result<(), Refusal> {
    let mut rules = rules.iter();
    let Some(rule) = rules.find(|rule| rule.limit == Limit::NewAccounts) else {
        return Ok(());
    };
    clamp_refills(state, std::slice::from_ref(rule), now);
    let subject = String::new();
    let full_at = full_at(state, rule, &subject, now);
    let until = full_at.map(|full_at| rule.free_at(full_at, rule.reserve));
    if let Some(until) = until.filter(|until| *until > now) {
        return Err(Refusal {
            limit: rule.limit,
            subject,
            until,
            every: None,
        });
    }
    take(state, rule, subject, now);
    Ok(())
}

/// Refunds the tokens that [`spend`] took for an order without a certificate;
/// the order itself stays counted.
pub fn refund(
    state: &mut CaState,
    rules: &[Rule],
    identifiers: &BTreeSet<Identifier>,
    counted: Counted,
) {
    for (rule, subject) in charges(rules, identifiers, counted) {
        if rule.limit != Limit::NewOrders
            && let Some(subjects) = Arc::make_mut(&mut state.spent).get_mut(&rule.limit)
            && let Some(full_at) = subjects.get_mut(&subject)
        {
            *full_at = *full_at - rule.interval();
        }
    }
}

/// Counts a failed validation of each of `identifiers`.
pub fn failed(
    state: &mut CaState,
    rules: &[Rule],
    identifiers: &BTreeSet<Identifier>,
    now: Timestamp,
) {
    for (rule, subject) in validations(rules, identifiers) {
        take(state, rule, subject, now);
    }
}

/// Ends the row of consecutive failures of each of `identifiers`: its validation
/// succeeded.
pub fn validated(state: &mut CaState, identifiers: &BTreeSet<Identifier>) {
    if let Some(failures) = Arc::make_mut(&mut state.spent).get_mut(&Limit::ConsecutiveFailures) {
        for name in identifiers {
            failures.remove(&name.to_string());
        }
    }
}

/// The remaining tokens of one bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The limit.
    pub limit: Limit,
    /// The subject of the bucket.
    pub subject: String,
    /// Remaining tokens.
    pub tokens: u32,
    /// Tokens of a full bucket.
    pub capacity: u32,
    /// When the bucket is full again; `None` when it is full.
    pub full_at: Option<Timestamp>,
}

/// The remaining tokens of each bucket that a new certificate for `identifiers`
/// needs.
#[must_use]
pub fn left(
    state: &CaState,
    rules: &[Rule],
    identifiers: &BTreeSet<Identifier>,
    now: Timestamp,
) -> Vec<Left> {
    let charges = charges(rules, identifiers, Counted::New).into_iter();
    let charges = charges.chain(validations(rules, identifiers));
    charges
        .map(|(rule, subject)| {
            let full_at = full_at(state, rule, &subject, now);
            rule.remaining(subject, full_at, now)
        })
        .collect()
}

/// The remaining tokens of each bucket that is not full.
#[must_use]
pub fn standing(state: &CaState, rules: &[Rule], now: Timestamp) -> Vec<Left> {
    let spent = rules.iter().flat_map(|rule| {
        let subjects = state.spent.get(&rule.limit).into_iter().flatten();
        subjects.map(move |(subject, full_at)| rule.remaining(subject.clone(), Some(*full_at), now))
    });
    spent.collect()
}

fn charges<'r>(
    rules: &'r [Rule],
    identifiers: &BTreeSet<Identifier>,
    counted: Counted,
) -> Vec<(&'r Rule, String)> {
    let mut charges = Vec::new();
    for rule in rules {
        match (rule.limit, counted) {
            (Limit::FailedValidations | Limit::ConsecutiveFailures | Limit::NewAccounts, _)
            | (_, Counted::Exempt) => {}
            (Limit::NewOrders, Counted::New) => charges.push((rule, String::new())),
            (Limit::CertificatesPerDomain, Counted::New) => {
                let domains: BTreeSet<String> = identifiers.iter().map(registered).collect();
                charges.extend(domains.into_iter().map(|domain| (rule, domain)));
            }
            (Limit::DuplicateCertificates, _) => charges.push((rule, set(identifiers))),
            (Limit::NewOrders | Limit::CertificatesPerDomain, Counted::Again) => {}
        }
    }
    charges
}

fn validations<'r>(
    rules: &'r [Rule],
    identifiers: &BTreeSet<Identifier>,
) -> Vec<(&'r Rule, String)> {
    let rules = rules.iter();
    let counting = [Limit::FailedValidations, Limit::ConsecutiveFailures];
    let rules = rules.filter(|rule| counting.contains(&rule.limit));
    rules
        .flat_map(|rule| identifiers.iter().map(move |name| (rule, name.to_string())))
        .collect()
}

fn set(identifiers: &BTreeSet<Identifier>) -> String {
    let names: Vec<String> = identifiers.iter().map(ToString::to_string).collect();
    names.join(" ")
}

/// The subject by which Let's Encrypt counts certificates: the registered domain
/// below a public suffix, an IPv4 address, the /64 of an IPv6 address.
fn registered(identifier: &Identifier) -> String {
    match identifier {
        Identifier::Dns(name) => {
            let name = name.as_str().trim_start_matches("*.");
            psl::domain_str(name).unwrap_or(name).to_owned()
        }
        Identifier::Ip(IpAddr::V4(address)) => address.to_string(),
        Identifier::Ip(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

/// When the bucket is full, no later than after one refill: a later instant was
/// stored by a wrong clock.
fn full_at(state: &CaState, rule: &Rule, subject: &str, now: Timestamp) -> Option<Timestamp> {
    let full_at = state.spent.get(&rule.limit)?.get(subject)?;
    Some((*full_at).min(now + rule.refill))
}

fn take(state: &mut CaState, rule: &Rule, subject: String, now: Timestamp) {
    let subjects = Arc::make_mut(&mut state.spent)
        .entry(rule.limit)
        .or_default();
    let full_at = subjects.entry(subject).or_insert(now);
    // An empty bucket stays empty: it never takes longer than one refill.
    let emptied = now + rule.refill;
    *full_at = ((*full_at).max(now) + rule.interval()).min(emptied);
}

/// Makes buckets that a wrong clock dated refill from now on. Without this such
/// a bucket would look empty at each later instant.
fn clamp_refills(state: &mut CaState, rules: &[Rule], now: Timestamp) {
    for rule in rules {
        let subjects = Arc::make_mut(&mut state.spent).get_mut(&rule.limit);
        for full_at in subjects
            .into_iter()
            .flat_map(|subjects| subjects.values_mut())
        {
            *full_at = (*full_at).min(now + rule.refill);
        }
    }
}

fn forget_full(state: &mut CaState, now: Timestamp) {
    for subjects in Arc::make_mut(&mut state.spent).values_mut() {
        subjects.retain(|_, full_at| *full_at > now);
    }
    Arc::make_mut(&mut state.spent).retain(|_, subjects| !subjects.is_empty());
}

#[cfg(test)]
mod tests;
