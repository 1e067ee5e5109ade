//! Plans for each form of a server block; a second run changes nothing.

use proptest::prelude::*;

use super::*;
use crate::install::change::apply;
use crate::install::tree::Overlay;

/// The file after one run, its plan, and whether a second run would change nothing.
fn run(site: &str, is_issued: bool) -> Result<(String, InstallPlan, bool), Failure> {
    let directory = tempfile::tempdir().unwrap();
    let main = directory.path().join("nginx.conf");
    let options = PlanOptions {
        name: Some("example.com".to_owned()),
        http_port: 80,
        https_port: 443,
        webroot: None,
        default_webroot: PathBuf::from("/webroot"),
    };
    let pair = Pair {
        live: PathBuf::from("/live/example.com"),
        is_issued,
    };
    let once = |text: &[u8]| {
        std::fs::write(&main, text).unwrap();
        let tree = Tree::load(&main, &Overlay::new())?;
        let plan = plan(&tree, "example.com", &options, &pair)?;
        let edits = plan.edits.values().next();
        let made = edits.map_or(text.to_vec(), |edits| apply(text, edits));
        Ok::<_, Failure>((made, plan))
    };
    let (made, plan) = once(site.as_bytes())?;
    let (_, again) = once(&made)?;
    let made = String::from_utf8(made).unwrap();
    Ok((made, plan, again.edits.is_empty()))
}

fn edited(server: &str) -> String {
    let (made, _, settled) = run(&format!("http {{\n{server}\n}}\n"), false).unwrap();
    assert!(settled, "{made}");
    made
}

#[test]
fn plan_splits_plain_block_in_two() {
    insta::assert_snapshot!(
        "install-plain-block",
        edited(
            "  # ours\n  server {\n    listen 80 default_server; # here\n    listen [::]:80 ipv6only=on;\n    \
             server_name example.com .example.com;\n\n    root /srv; # files\n  }"
        )
    );
}

#[test]
fn plan_settles_for_every_form_of_block() {
    let one_line = edited("server { listen 80; server_name example.com; }");
    assert!(one_line.contains("listen 443 ssl;"), "{one_line}");
    let unsaid = edited("server {\n server_name example.com;\n}");
    assert!(unsaid.contains("listen 443 ssl;") && unsaid.contains("listen 80;"));
    let other = edited("server {\n listen 8080;\n server_name example.com;\n}");
    assert!(
        other.contains("listen 8080;") && !other.contains("308"),
        "{other}"
    );
    let mixed = edited(
        "server { listen 443 ssl default_server; server_name b.c; ssl_certificate x; ssl_certificate_key y; }\n\
         server { listen *:80 default_server reuseport; server_name example.com; }",
    );
    assert!(
        mixed.contains("listen \"*:443\" ssl;") || mixed.contains("listen *:443 ssl;"),
        "{mixed}"
    );
    let windows = edited("server {\r\n  listen 80;\r\n  server_name example.com;\r\n}\r\n");
    assert_eq!(
        windows.matches('\n').count(),
        windows.matches("\r\n").count() + 3
    );
}

#[test]
fn plan_refuses_two_pairs_in_block() {
    let pairs = "ssl_certificate a; ssl_certificate_key b; ".repeat(2);
    let site = format!("http {{ server {{ listen 443 ssl; server_name example.com; {pairs} }} }}");
    let refused = run(&site, true).unwrap_err();
    assert!(refused.summary().contains("2 certificates"), "{refused:?}");
}

proptest! {
    #[test]
    fn plan_settles_and_keeps_every_line(
        lines in prop::collection::vec(prop::sample::select(vec![
            "listen 80;", "listen 81;", "listen [::]:80;", "listen 127.0.0.1:80 default_server;",
            "# a comment", "root /srv;", "location / { return 200; } # x", "ssl_protocols TLSv1.3;", "",
        ]), 0..8),
        tail in prop::sample::select(vec!["", "server { listen 443 ssl; server_name x.y; }"]),
    ) {
        let site = format!("http {{\nserver {{\n  server_name example.com;\n  {}\n}}\n{tail} }}", lines.join("\n  "));
        let (made, _, settled) = run(&site, false).unwrap();
        prop_assert!(settled, "{}", made);
        for line in lines.iter().filter(|line| !line.starts_with("listen")) {
            prop_assert!(made.contains(line), "{}", made);
        }
    }
}
