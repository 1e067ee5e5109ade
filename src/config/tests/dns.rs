//! The choice of a challenge, and the credentials of DNS providers.

use super::*;
use crate::challenge::ChallengeKind;
use crate::challenge::dns01;
use crate::config::read;

#[test]
fn example_of_providers_has_complete_credentials() {
    let mut problems = Problems::default();
    let example = include_str!("../../../config/dns.toml");
    let document = read::read("dns.toml", example, &mut problems);
    assert_eq!(messages(&problems.sorted()), Vec::<String>::new());
    assert!(document.dns.len() > 15, "{}", document.dns.len());
    for (name, table) in &document.dns {
        let fields = dns01::fields(&table.value.provider).unwrap();
        let required = fields.iter().filter(|field| field.is_required);
        for field in required {
            let given = table.value.credentials.contains_key(field.name);
            assert!(given, "{name}: {}", field.name);
        }
    }
}

#[test]
fn nearest_source_chooses_the_challenge() {
    let file = "agree_tos = true\nca = 'https://ca.internal/dir'\nwebroot = '/'\n\
                [[certificate]]\nnames = ['a.internal']\n\
                [[certificate]]\nnames = ['*.b.internal']\ndns = 'self'\n\
                [[certificate]]\nnames = ['*.c.internal']\nchallenge = 'dns-01'\n\
                [dns.mine]\nprovider = 'hetzner'\napi_token = 'of-the-file'\n";
    let settings = Case::new(file).settings(&Purpose::All);
    let kinds = settings.certificates.iter().map(|one| one.challenge.kind());
    let dns = ChallengeKind::Dns01;
    assert_eq!(Vec::from_iter(kinds), [ChallengeKind::Http01, dns, dns]);
    let shown = format!("{:?}", settings.certificates[2].challenge);
    assert!(
        shown.contains("hetzner") && !shown.contains("of-the-file"),
        "{shown}"
    );
    // The environment is stronger, for all of them, but an address of a listener chooses nothing.
    let listens = Case::new(file).set("CERTS_HTTP_LISTEN", "127.0.0.1:8080");
    let of_second = listens.settings(&Purpose::All).certificates[1]
        .challenge
        .clone();
    assert_eq!(of_second.kind(), dns);
    let all = Case::new(file)
        .set("CERTS_DNS", "self")
        .settings(&Purpose::All);
    assert!(
        all.certificates
            .iter()
            .all(|one| !one.challenge.listens().is_empty())
    );
}

#[test]
fn stored_credentials_give_way_to_those_of_today() {
    let token = "CERTS_DNS_HETZNER_API_TOKEN";
    let made = Case::new("").set("CERTS_DOMAINS", "*.a.internal");
    let made = made
        .set("CERTS_CA", "https://ca.internal/dir")
        .set("CERTS_DNS", "hetzner");
    let made = made.set(token, "first").set("CERTS_RESOLVER", "192.0.2.53");
    let made = made.settings(&Purpose::All).certificates.remove(0);
    let stored = Remembered::Whole(Box::new(made.clone()));
    let of = |case: Case| {
        let kept = case.sources().remembered(&stored).unwrap();
        serde_json::to_string(&kept.challenge).unwrap()
    };
    assert_eq!(
        of(Case::new("")),
        serde_json::to_string(&made.challenge).unwrap()
    );
    let today = of(Case::new("").set(token, "second"));
    assert!(
        today.contains("second") && !today.contains("first"),
        "{today}"
    );
    assert!(today.contains("192.0.2.53:53"), "{today}");
}
