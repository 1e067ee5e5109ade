//! A CA whose replies attack shells, terminals and paths. Whatever the order's result, the program runs only
//! the configured hook, word for word, writes nothing elsewhere, and prints no control characters.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Chain, Endpoint, Fault, Which};
use crate::support::strace::{Strace, is_about};
use crate::support::text;
use crate::targets::{NAME, script};

/// The file that the CA's words would create if a shell ran them.
const MARKER: &str = "owned";
/// The start of a forged log line.
const FORGED: &str = "ERROR forged";

/// A text that only a JSON value may hold.
fn words(marker: &Path) -> String {
    let marker = marker.display();
    format!(
        "$(touch {marker})`touch {marker}`; touch {marker} | sh\n\r{FORGED}\n\
         \x1b[2J\x1b]0;owned\x07\u{9b}31m\u{202e} ../../../{MARKER} \0%s %n {{}}"
    )
}

/// Characters that a URL's query may hold; the CA ignores the query.
fn query(marker: &Path) -> String {
    let marker = marker.display();
    format!("{{}}?$(touch$IFS{marker});touch$IFS{marker};|sh;'../../../{MARKER}")
}

/// The same in a path, which the CA does not know.
fn path(marker: &Path) -> String {
    let marker = marker.display();
    format!("{{}}/../../..$(touch$IFS{marker});touch$IFS{marker}/../../../{MARKER}")
}

const ENDPOINTS: [Endpoint; 9] = [
    Endpoint::Directory,
    Endpoint::NewAccount,
    Endpoint::NewOrder,
    Endpoint::Authorization,
    Endpoint::Challenge,
    Endpoint::Order,
    Endpoint::Finalize,
    Endpoint::Certificate,
    Endpoint::RenewalInfo,
];

/// Each field of a reply that holds a URL.
const URLS: [(Endpoint, &str); 11] = [
    (Endpoint::Directory, "/newNonce"),
    (Endpoint::Directory, "/newAccount"),
    (Endpoint::Directory, "/newOrder"),
    (Endpoint::Directory, "/renewalInfo"),
    (Endpoint::NewOrder, "/authorizations/0"),
    (Endpoint::NewOrder, "/finalize"),
    (Endpoint::Authorization, "/challenges/0/url"),
    (Endpoint::Order, "/finalize"),
    (Endpoint::Order, "/certificate"),
    (Endpoint::Finalize, "/finalize"),
    (Endpoint::Finalize, "/certificate"),
];

/// Each field of a reply that holds text.
const WORDS: [(Endpoint, &str); 13] = [
    (Endpoint::Directory, "/meta/termsOfService"),
    (Endpoint::Directory, "/meta/website"),
    (Endpoint::Directory, "/newOrder"),
    (Endpoint::NewAccount, "/status"),
    (Endpoint::NewOrder, "/status"),
    (Endpoint::NewOrder, "/identifiers/0/value"),
    (Endpoint::NewOrder, "/authorizations/0"),
    (Endpoint::Authorization, "/identifier/value"),
    (Endpoint::Authorization, "/challenges/0/token"),
    (Endpoint::Authorization, "/challenges/0/url"),
    (Endpoint::Order, "/certificate"),
    (Endpoint::RenewalInfo, "/explanationURL"),
    (Endpoint::RenewalInfo, "/suggestedWindow/start"),
];

/// A directory to issue in, with its permitted hook.
struct Issuance<'a> {
    ca: &'a EmbeddedCa,
    directory: PathBuf,
    hook: Vec<String>,
}

impl<'a> Issuance<'a> {
    fn new(ca: &'a EmbeddedCa, case: usize) -> Self {
        let directory = ca.path(&format!("case{case}"));
        std::fs::create_dir(&directory).unwrap();
        let program = directory.join("hook");
        // The script uses only builtins of the shell, so it starts no other program.
        script(&program, "echo \"$@\" >\"$0.seen\"");
        let more = ["--renewed", "$(touch owned)", "a b"];
        let hook = [&[program.to_str().unwrap()], &more[..]].concat();
        let hook: Vec<_> = hook.into_iter().map(str::to_owned).collect();
        let config = format!("[deploy.hook]\nkind = 'exec'\ncommand = {hook:?}\n");
        std::fs::write(directory.join("certs.toml"), config).unwrap();
        Self {
            ca,
            directory,
            hook,
        }
    }

    fn issue(&self, with_hook: bool) -> Command {
        let mut issue = self.ca.issue_below(&self.directory, &[NAME, "-v", "-v"]);
        if with_hook {
            issue.env("CERTS_CONFIG", self.directory.join("certs.toml"));
        }
        issue
    }

    /// The hook's exact arguments and environment.
    fn call(&self) -> String {
        let quoted = |text: &String| format!("\"{text}\"");
        let words: Vec<_> = self.hook.iter().map(quoted).collect();
        let live = self.directory.join("out/live").join(NAME);
        format!(
            "{}, [{}], [\"RENEWED_DOMAINS={NAME}\", \"RENEWED_LINEAGE={}\"]",
            words[0],
            words.join(", "),
            live.display()
        )
    }
}

/// Asserts that the output holds no control characters and no forged log line.
fn assert_harmless(case: &str, output: &Output) {
    let printed = text(output);
    let steers = |letter: char| {
        letter.is_control() && letter != '\n' || ('\u{202a}'..='\u{2069}').contains(&letter)
    };
    assert!(!printed.contains(steers), "{case}: {printed:?}");
    let forged = printed.lines().any(|line| line.starts_with(FORGED));
    assert!(!forged, "{case}: {printed}");
}

/// Issues with those faults under strace. Asserts that only the hook ran, and only after an issuance
/// `with_hook`. Returns the exit code.
fn issue_with_faults(
    issuance: &Issuance<'_>,
    strace: &Strace,
    faults: &[(Endpoint, Fault)],
    with_hook: bool,
) -> i32 {
    let case: String = format!("{faults:?}").chars().take(200).collect();
    for (endpoint, fault) in faults {
        issuance
            .ca
            .script
            .add(*endpoint, Which::Every, fault.clone());
    }
    let command = issuance.issue(with_hook);
    let (output, calls, made) = strace.programs(&command);
    issuance.ca.script.clear();
    let printed = text(&output);
    let code = output.status.code().unwrap();
    let issued = code == 0;
    assert!([0, 3, 4, 5, 6].contains(&code), "{case}: {code}: {printed}");
    assert_harmless(&case, &output);
    let itself = format!("\"{}\", [", command.get_program().display());
    assert!(calls[0].arguments.starts_with(&itself), "{case}: {calls:?}");
    let more: Vec<_> = calls[1..].iter().map(|call| &call.arguments).collect();
    let wanted = Vec::from_iter((issued && with_hook).then(|| issuance.call()));
    assert_eq!(more, wanted.iter().collect::<Vec<_>>(), "{case}: {printed}");
    // A missing directory is made under a temporary name first.
    let own = [
        "data",
        "out",
        ".out.new-",
        "data.confirmed",
        ".data.confirmed.new-",
    ];
    let mut allowed: Vec<_> = own.map(|name| issuance.directory.join(name)).into();
    if issued && with_hook {
        allowed.push(issuance.directory.join("hook.seen"));
    }
    let allowed: Vec<_> = allowed.iter().map(PathBuf::as_path).collect();
    assert!(!made.is_empty(), "{case}: no call was seen");
    for call in made {
        // The target of the `live` link is the only path with `..`.
        let rest = call
            .arguments
            .replacen("../archive/example.com/0001", "", 1);
        let inside = is_about(&call, &allowed) && !rest.contains("..");
        assert!(inside, "{case}: {call:?}");
    }
    assert!(!issuance.ca.path(MARKER).exists(), "{case}: {printed}");
    code
}

/// A problem document with those words in every field.
fn problem(kind: &str, words: &str) -> Fault {
    let body = json!({
        "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": words, "title": words,
        "instance": words, "status": 403,
        "subproblems": [{"type": words, "detail": words, "identifier": {"type": "dns", "value": words}}],
    });
    Fault::Reply(403, "application/problem+json", body.to_string(), None)
}

/// Every case, each with one fault.
fn cases(marker: &Path) -> Vec<(Endpoint, Fault)> {
    let (words, query, path) = (words(marker), query(marker), path(marker));
    let problems = ENDPOINTS.iter().flat_map(|endpoint| {
        let kinds = ["unauthorized", &words].map(|kind| problem(kind, &words));
        kinds.map(|problem| (*endpoint, problem))
    });
    let urls = URLS.iter().flat_map(|(endpoint, field)| {
        [&query, &path].map(|url| (*endpoint, Fault::Field(field, url.clone())))
    });
    let said = WORDS.iter();
    let said = said.map(|(endpoint, field)| (*endpoint, Fault::Field(field, words.clone())));
    let headers = [
        (Endpoint::NewAccount, "location", &query),
        (Endpoint::NewAccount, "location", &path),
        (Endpoint::NewOrder, "location", &query),
        (Endpoint::NewOrder, "location", &path),
        (Endpoint::NewNonce, "replay-nonce", &path),
        (Endpoint::Order, "retry-after", &path),
        (Endpoint::Directory, "date", &path),
        (Endpoint::Certificate, "content-type", &path),
    ];
    let headers = headers.map(|(of, name, value)| (of, Fault::Header(name, value.clone())));
    let chain = (Endpoint::Certificate, Fault::Chain(Chain::AfterWords));
    let all = problems.chain(urls).chain(said).chain(headers);
    all.chain([chain]).collect()
}

#[test]
fn hostile_ca_runs_only_the_hook_and_writes_only_known_paths() {
    let Some(strace) = Strace::find_with_arguments("the programs that a hostile CA starts") else {
        return;
    };
    let ca = EmbeddedCa::start();
    let mut ends = Vec::new();
    for (number, (endpoint, fault)) in cases(&ca.path(MARKER)).into_iter().enumerate() {
        let issuance = Issuance::new(&ca, number);
        let code = issue_with_faults(&issuance, &strace, &[(endpoint, fault.clone())], true);
        ends.push((endpoint, fault, code));
        std::fs::remove_dir_all(&issuance.directory).unwrap();
    }
    let issued = ends.iter().filter(|(_, _, code)| *code == 0).count();
    eprintln!("{} cases, {issued} certificates", ends.len());
}

#[test]
fn hostile_ca_runs_hook_once_after_issuance_and_none_when_unconfigured() {
    let Some(strace) = Strace::find_with_arguments("the hook after a hostile CA's order") else {
        return;
    };
    let ca = EmbeddedCa::start();
    let (words, query) = (words(&ca.path(MARKER)), query(&ca.path(MARKER)));
    let url = |field| Fault::Field(field, query.clone());
    let header = |name| Fault::Header(name, query.clone());
    let faults = [
        (Endpoint::Directory, url("/newOrder")),
        (Endpoint::NewOrder, header("location")),
        (Endpoint::Authorization, url("/challenges/0/url")),
        (Endpoint::Challenge, header("retry-after")),
        (Endpoint::Order, url("/finalize")),
        (Endpoint::Finalize, url("/certificate")),
        (Endpoint::Certificate, Fault::Chain(Chain::AfterWords)),
        (
            Endpoint::RenewalInfo,
            Fault::Field("/explanationURL", words),
        ),
    ];
    for (number, with_hook) in [true, false].into_iter().enumerate() {
        let issuance = Issuance::new(&ca, number);
        assert_eq!(issue_with_faults(&issuance, &strace, &faults, with_hook), 0);
    }
}
