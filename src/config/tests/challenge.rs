//! Where challenges are answered: the listeners of all certificates, and webroots.

use clap::{Args, FromArgMatches};

use super::*;
use crate::challenge::ChallengeKind;
use crate::challenge::protocol::Protocol;
use crate::challenge::tls_alpn01;

#[test]
fn strongest_source_chooses_challenge() {
    let mut case = Case::new(
        "http_listen = '127.0.0.1:8080'\nagree_tos = true\n[[certificate]]\nnames = 'example.com'\n",
    );
    let listen = ChallengeSettings::Listen(http01::Settings::new(vec![
        "127.0.0.1:8080".parse().unwrap(),
    ]));
    let challenge = |case: &Case| {
        case.settings(&Purpose::All).certificates[0]
            .challenge
            .clone()
    };
    assert_eq!(challenge(&case), listen);
    let webroot = case.directory.path().to_owned();
    case = case.set("CERTS_WEBROOT", webroot.to_str().unwrap());
    assert_eq!(
        challenge(&case),
        ChallengeSettings::Webroot(webroot::Settings::new(webroot))
    );
    assert_eq!(case.settings(&Purpose::All).listens(), []);
    case.options.list("http_listen", &["127.0.0.1:8080"]);
    assert_eq!(challenge(&case), listen);
}

#[test]
fn default_port_80_stays_beside_other_listeners() {
    let file = "agree_tos = true\n[[certificate]]\nnames = 'a.example.com'\n\
                [[certificate]]\nnames = 'b.example.com'\n[[certificate]]\nnames = 'c.example.com'\n";
    let mut settings = Case::new(file).settings(&Purpose::All);
    let listen = |address: &str| {
        let addresses = vec![address.parse().unwrap()];
        ChallengeSettings::Listen(http01::Settings::new(addresses))
    };
    let all = |settings: &Settings| {
        let all = settings.listens();
        all.iter()
            .map(|one| one.address.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(all(&settings), ["0.0.0.0:80", "[::]:80"]);
    settings.certificates[0].challenge = listen("127.0.0.1:5002");
    assert_eq!(all(&settings), ["0.0.0.0:80", "127.0.0.1:5002", "[::]:80"]);
    // One socket of the same port serves both.
    settings.certificates[1].challenge = listen("127.0.0.1:80");
    assert_eq!(all(&settings), ["0.0.0.0:80", "127.0.0.1:5002", "[::]:80"]);
    settings.certificates[2].challenge = listen("127.0.0.1:81");
    assert_eq!(
        all(&settings),
        ["127.0.0.1:80", "127.0.0.1:81", "127.0.0.1:5002"]
    );
    for certificate in &mut settings.certificates {
        certificate.challenge = ChallengeSettings::Webroot(webroot::Settings::new("/".into()));
    }
    assert_eq!(settings.listens(), []);
}

#[test]
fn strongest_source_names_the_kind_and_its_own_keys_say_how() {
    let file = "agree_tos = true\nhttp_listen = '127.0.0.1:5002'\ntls_listen = '127.0.0.1:5001'\n\
                [[certificate]]\nnames = 'a.example.com'\n\
                [[certificate]]\nnames = 'b.example.com'\nchallenge = 'tls-alpn-01'\n\
                [[certificate]]\nnames = 'c.example.com'\nwebroot = '/'\n";
    let address = |port: u16| vec![([127, 0, 0, 1], port).into()];
    let http = ChallengeSettings::Listen(http01::Settings::new(address(5002)));
    let tls = ChallengeSettings::TlsListen(tls_alpn01::Settings::new(address(5001)));
    let webroot = ChallengeSettings::Webroot(webroot::Settings::new("/".into()));
    let challenges = |case: &Case| {
        let settings = case.settings(&Purpose::All);
        settings
            .certificates
            .into_iter()
            .map(|one| one.challenge.clone())
            .collect::<Vec<_>>()
    };
    let case = Case::new(file);
    assert_eq!(challenges(&case), [http, tls.clone(), webroot.clone()]);
    assert_eq!(case.settings(&Purpose::All).listens().len(), 2);
    let case = case.set("CERTS_CHALLENGE", "tls-alpn-01");
    // The environment is stronger than all of the file.
    assert_eq!(challenges(&case), [tls.clone(), tls.clone(), tls]);
    // Without an address of its own it is port 443.
    let case = Case::new(
        "agree_tos = true\nchallenge = 'tls-alpn-01'\n[[certificate]]\nnames = 'a.example.com'\n",
    );
    let listens = case.settings(&Purpose::All).listens();
    let shown = listens.iter().map(|one| (one.protocol, one.address.port()));
    assert_eq!(shown.collect::<Vec<_>>(), [(Protocol::Tls, 443); 2]);
}

#[test]
fn contradictions_of_one_table_prevent_its_order_alone() {
    let file = "agree_tos = true\n[[certificate]]\nnames = 'a.example.com'\n";
    for (keys, word, own) in [
        (
            "challenge = 'tls-alpn-01'\nwebroot = '/'\n",
            "webroot is for http-01",
            "tls-alpn-01",
        ),
        (
            "challenge = 'http-01'\ndns = 'self'\n",
            "dns is for dns-01",
            "http-01",
        ),
        (
            "dns = 'self'\nwebroot = '/'\n",
            "webroot is for http-01",
            "dns-01",
        ),
    ] {
        // The other certificate of the file is renewed all the same.
        let other = "[[certificate]]\nnames = 'b.example.com'\n";
        let case = Case::new(&format!("{file}{keys}{other}"));
        let certificates = case.settings(&Purpose::All).certificates;
        let causes = certificates.into_iter().map(|one| one.cannot_order.clone());
        let [Some(cause), None] = &causes.collect::<Vec<_>>()[..] else {
            panic!("{keys}");
        };
        let own = format!("the challenge beside it is {own}");
        assert!(
            cause.why.contains(word) && cause.why.contains(&own),
            "{cause:?}"
        );
        assert!(cause.why.contains("certs.toml:"), "{cause:?}");
        // The file's defaults are for the certificates that use them, and what is ignored of
        // them is said.
        let case = Case::new(&format!("{keys}{file}"));
        case.sources().settings(&Purpose::All).unwrap();
        let said = case.sources().warnings.join("\n");
        assert!(
            said.contains(word) && said.contains("hint: leave "),
            "{said}"
        );
        assert!(said.contains("certs.toml:"), "{said}");
    }
    for (variables, word) in [
        (
            [("CERTS_CHALLENGE", "http-01"), ("CERTS_DNS", "self")],
            "CERTS_DNS: dns is for dns-01",
        ),
        (
            [
                ("CERTS_WEBROOT", "/"),
                ("CERTS_HTTP_LISTEN", "127.0.0.1:80"),
            ],
            "CERTS_HTTP_LISTEN: http_listen is not used beside webroot",
        ),
    ] {
        let case = variables
            .into_iter()
            .fold(Case::new(file), |case, (name, value)| case.set(name, value));
        let said = case.sources().warnings;
        assert!(
            matches!(&said[..], [only] if only.contains(word)),
            "{said:?}"
        );
    }
    assert_eq!(Case::new(file).sources().warnings, [""; 0]);
    // And what a certificate says replaces them.
    let case = Case::new(
        "agree_tos = true\nwebroot = '/'\n[[certificate]]\nnames = 'a.example.com'\nchallenge = 'tls-alpn-01'\n",
    );
    let settings = case.settings(&Purpose::All);
    assert_eq!(
        settings.certificates[0].challenge.kind(),
        ChallengeKind::TlsAlpn01
    );
    // As the hint says.
    let case = Case::new(file).set("CERTS_WEBROOT", "/");
    assert_eq!(case.sources().warnings, [""; 0]);
}

#[test]
fn unused_options_are_named() {
    let parse = |words: &[&str], environment: &[(&str, &str)]| {
        let command = KeyOptions::<ISSUE>::augment_args(clap::Command::new("issue"));
        let matches = command.get_matches_from([&["issue"], words].concat());
        let given = KeyOptions::<ISSUE>::from_arg_matches(&matches).unwrap();
        let mut options = Options::default();
        options.names(&["a.example.com".to_owned()]);
        options.keys(&given);
        let agreed = [("CERTS_AGREE_TOS", "true")];
        let environment = agreed.iter().chain(environment);
        let environment =
            environment.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let sources = Sources::read(&options, &environment.collect());
        let sources = sources.with_default_data_dir(Path::new("/data"));
        let settings = sources.settings(&Purpose::Named);
        settings.map(|read| sources.unused_options(&read.certificates[0]).join("; "))
    };
    let (tls, http) = (
        ["--tls-listen", "127.0.0.1:5001"],
        ["--http-listen", "127.0.0.1:5002"],
    );
    let (dns, resolver) = (
        ["--dns-listen", "127.0.0.1:5003"],
        ["--resolver", "127.0.0.1:5004"],
    );
    let kind = |kind| ["--challenge", kind];
    for (words, environment, unused) in [
        (vec![kind("tls-alpn-01"), tls], vec![], vec![]),
        // It implies its challenge, unless another one is chosen.
        (vec![tls], vec![], vec![]),
        (vec![http, tls], vec![], vec!["--tls-listen"]),
        (vec![tls], vec![("CERTS_CHALLENGE", "tls-alpn-01")], vec![]),
        (
            vec![kind("tls-alpn-01"), http],
            vec![],
            vec!["--http-listen"],
        ),
        (vec![["--dns", "self"], dns, resolver], vec![], vec![]),
        (vec![["--dns", "self"], http], vec![], vec!["--http-listen"]),
        (vec![dns, resolver], vec![], vec!["--dns-listen"]),
        (vec![["--webroot", "/"], tls], vec![], vec!["--tls-listen"]),
        // A default of the environment is for the certificates that use it.
        (
            vec![kind("tls-alpn-01")],
            vec![("CERTS_HTTP_LISTEN", "127.0.0.1:1")],
            vec![],
        ),
    ] {
        let said = parse(&words.concat(), &environment).unwrap();
        let needs = "--dns-listen: not used: a.example.com is proven by http-01; hint: leave it out, or choose --dns self";
        assert_eq!(
            said.contains("--dns-listen"),
            said.contains(needs),
            "{said}"
        );
        let count = said.matches("not used: a.example.com is proven by").count();
        assert_eq!(count, unused.len(), "{words:?}: {said}");
        assert!(
            unused.iter().all(|one| said.contains(one)),
            "{words:?}: {said}"
        );
    }
    for words in [
        vec![kind("tls-alpn-01"), ["--webroot", "/"]],
        vec![["--dns", "self"], ["--webroot", "/"]],
        vec![kind("http-01"), ["--dns", "self"]],
    ] {
        let problems = parse(&words.concat(), &[]).unwrap_err();
        let problems = messages(&problems).join("; ");
        assert!(
            problems.contains("and the challenge beside it is"),
            "{problems}"
        );
    }
}

#[test]
fn option_of_process_changes_no_stored_challenge_that_alone_proves_the_names() {
    let file = "agree_tos = true\n[[certificate]]\nnames = 'a.example.com'\ndns = 'self'\n";
    let mut stored = Case::new(file)
        .settings(&Purpose::All)
        .certificates
        .remove(0);
    let root = tempfile::tempdir().unwrap();
    let case = Case::new("").set("CERTS_WEBROOT", root.path().to_str().unwrap());
    let own = stored.challenge.clone();
    let mut kind = |names: &str, challenge: ChallengeSettings| {
        (stored.names, stored.challenge) = (vec![names.parse().unwrap()], challenge);
        let stored = Remembered::Whole(Box::new(stored.clone()));
        let kept = case.sources().remembered(&stored).unwrap();
        assert_eq!(kept.cannot_order, None);
        kept.challenge.kind()
    };
    assert_eq!(kind("a.example.com", own.clone()), ChallengeKind::Http01);
    assert_eq!(kind("*.example.com", own), ChallengeKind::Dns01);
}

#[test]
fn addresses_of_listeners_change_no_stored_kind() {
    let file = "agree_tos = true\n[[certificate]]\nnames = 'a.example.com'\n";
    let mut stored = Case::new(file)
        .settings(&Purpose::All)
        .certificates
        .remove(0);
    stored.challenge = ChallengeKind::TlsAlpn01.into();
    let stored = Remembered::Whole(Box::new(stored));
    let listens = |case: &Case| {
        let kept = case.sources().remembered(&stored).unwrap();
        let first = kept.challenge.listens()[0];
        (first.protocol, first.address.port())
    };
    let case = Case::new("").set("CERTS_HTTP_LISTEN", "127.0.0.1:5002");
    assert_eq!(listens(&case), (Protocol::Tls, 443));
    let case = case.set("CERTS_TLS_LISTEN", "127.0.0.1:5001");
    assert_eq!(listens(&case), (Protocol::Tls, 5001));
}

#[test]
fn each_webroot_holds_for_the_names_after_it() {
    let parse = |words: &[&str]| {
        let names = clap::Arg::new("names").action(clap::ArgAction::Append);
        let command = KeyOptions::<ISSUE>::augment_args(clap::Command::new("issue").arg(names));
        let matches = command.get_matches_from([&["issue"], words].concat());
        let given = KeyOptions::<ISSUE>::from_arg_matches(&matches).unwrap();
        let names: Vec<String> = matches.get_many("names").unwrap().cloned().collect();
        let mut options = Options::default();
        options.names(&names);
        options.keys(&given);
        let environment = [("CERTS_AGREE_TOS".to_owned(), "true".to_owned())].into();
        let sources = Sources::read(&options, &environment);
        sources
            .with_default_data_dir(Path::new("/data"))
            .settings(&Purpose::Named)
    };
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [first, second] = [&a, &b].map(|root| root.path().to_str().unwrap());
    let settings = parse(&[
        "--webroot",
        first,
        "x.example.com",
        "y.example.com",
        "--webroot",
        second,
        "z.example.com",
    ]);
    let challenge = settings.unwrap().certificates[0].challenge.clone();
    let each = [("x", first), ("y", first), ("z", second)];
    let each =
        each.map(|(name, root)| (format!("{name}.example.com").parse().unwrap(), root.into()));
    assert_eq!(
        challenge,
        ChallengeSettings::Webroot(webroot::Settings::of_each(each.into()))
    );
    let settings = parse(&["x.example.com", "--webroot", first]);
    let challenge = settings.unwrap().certificates[0].challenge.clone();
    assert_eq!(
        challenge,
        ChallengeSettings::Webroot(webroot::Settings::new(first.into()))
    );
    let problems = parse(&[
        "x.example.com",
        "--webroot",
        first,
        "y.example.com",
        "--webroot",
        second,
    ]);
    let problems = messages(&problems.unwrap_err()).join("; ");
    assert!(
        problems.contains("x.example.com: no webroot is named for it"),
        "{problems}"
    );
}

#[test]
fn path_may_begin_with_the_home_directory() {
    let home = std::env::home_dir().unwrap();
    let output = |case: &Case| case.settings(&Purpose::All).output.directory;
    let case = Case::new("output_dir = '~/of-file'\n");
    assert_eq!(output(&case), home.join("of-file"));
    assert_eq!(
        output(&case.set("CERTS_OUTPUT_DIR", "~/out")),
        home.join("out")
    );
    let file = "[deploy.x]\nkind = 'exec'\ncommand = '~/hook'\n\
                [[certificate]]\nnames = 'a.example.com'\ndeploy = ['x', 'file:~/copy.pem']\n";
    let settings = Case::new(file);
    let settings = settings
        .set("CERTS_AGREE_TOS", "true")
        .settings(&Purpose::All);
    let specs = settings.certificates[0]
        .deploy
        .iter()
        .map(ToString::to_string);
    let below = |kind: &str, name: &str| format!("{kind}:{}", home.join(name).display());
    assert_eq!(
        specs.collect::<Vec<_>>(),
        [below("exec", "hook"), below("file", "copy.pem")]
    );
    let case = Case::new("output_dir = '~other/out'\n");
    assert!(output(&case).ends_with("~other/out"));
}
