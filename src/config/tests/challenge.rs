//! Where challenges are answered: the listeners of all certificates, and webroots.

use clap::{Args, FromArgMatches};

use super::*;

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
        let addresses = settings.http_listen().unwrap_or_default();
        addresses
            .iter()
            .map(ToString::to_string)
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
    assert_eq!(settings.http_listen(), None);
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
    let challenge = settings.unwrap().certificates.remove(0).challenge;
    let each = [("x", first), ("y", first), ("z", second)];
    let each =
        each.map(|(name, root)| (format!("{name}.example.com").parse().unwrap(), root.into()));
    assert_eq!(
        challenge,
        ChallengeSettings::Webroot(webroot::Settings::of_each(each.into()))
    );
    let settings = parse(&["x.example.com", "--webroot", first]);
    let challenge = settings.unwrap().certificates.remove(0).challenge;
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
