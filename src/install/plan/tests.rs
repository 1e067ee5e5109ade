//! Plans for each form of a server block; a second run changes nothing.

use proptest::prelude::*;

use super::*;
use crate::install::change::apply;
use crate::install::tree::Overlay;

fn options() -> PlanOptions {
    PlanOptions {
        name: Some("example.com".to_owned()),
        http_port: 80,
        https_port: 443,
        webroot: None,
        default_webroot: PathBuf::from("/webroot"),
        prefix: PathBuf::from("/prefix"),
        trusts_locations: true,
        by_dns: false,
    }
}

/// The file after one run up to `stage`, and its plan, for a certificate of these names.
fn planned(site: &str, issued: &[&str], stage: Stage) -> Result<(String, InstallPlan), Failure> {
    let directory = tempfile::tempdir().unwrap();
    let main = directory.path().join("nginx.conf");
    std::fs::write(&main, site).unwrap();
    let issued = issued.iter().map(|name| Identifier::parse(name).unwrap());
    let pair = Pair {
        live: PathBuf::from("/live/example.com"),
        issued: issued.collect(),
    };
    let tree = Tree::load(&main, &Overlay::new())?;
    let name = choose(&tree, &options())?;
    let plan = plan(&tree, &name, &options(), &pair, stage)?;
    let edits = plan.edits.values().next();
    let made = edits.map_or(site.into(), |edits| apply(site.as_bytes(), edits));
    Ok((String::from_utf8(made).unwrap(), plan))
}

/// The same, and whether a second run would change nothing.
fn run(site: &str, issued: &[&str]) -> Result<(String, bool), Failure> {
    let (made, _) = planned(site, issued, Stage::Tls)?;
    let (again, _) = planned(&made, issued, Stage::Tls)?;
    let is_settled = again == made;
    Ok((made, is_settled))
}

fn edited(server: &str) -> String {
    let (made, settled) = run(&format!("http {{\n{server}\n}}\n"), &[]).unwrap();
    assert!(settled, "{made}");
    made
}

#[test]
fn plan_adds_tls_beside_plain_http() {
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
    let refused = run(&site, &["example.com"]).unwrap_err();
    assert!(refused.summary().contains("2 certificates"), "{refused:?}");
}

#[test]
fn server_of_another_kind_is_moved_as_the_hint_says() {
    let http = "http { server { listen 80; server_name example.com; } }";
    for kind in ["stream", "mail"] {
        let other = |port: u16| format!("{http} {kind} {{ server {{ listen {port}; }} }}");
        let refused = run(&other(443), &[]).unwrap_err().in_a_line();
        let hint = "hint: move that server to another port or address";
        assert!(refused.contains(hint), "{refused}");
        run(&other(8443), &[]).unwrap();
    }
}

#[test]
fn redirect_follows_the_certificate_and_its_names() {
    let site = "http {\nserver {\n  listen 80;\n  server_name example.com www.example.com;\n  return 200;\n}\n}\n";
    let (tls, _) = planned(site, &[], Stage::Tls).unwrap();
    assert!(!tls.contains("308"), "{tls}");
    let issued = ["example.com"];
    let (made, plan) = planned(&tls, &issued, Stage::Redirect).unwrap();
    let rules = "    if ($uri ~ ^/\\.well-known/acme-challenge/) { break; }\n    set $certs_plain $scheme://$host:$server_port;\n    \
                 if ($certs_plain ~ \"^http://(example\\.com):80$\") { return 308 https://$host$request_uri; }\n";
    assert!(made.contains(rules), "{made}");
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("lacks www.example.com"))
    );
    let (again, _) = planned(&made, &issued, Stage::Redirect).unwrap();
    assert_eq!(again, made);
    // So it does in a block of the user with both ports, unless a rule there leads to https.
    let rule = "if ($scheme = http) { return 301 https://$host; }";
    for (rule, is_led) in [("", true), (rule, false), ("return 301 $there;", false)] {
        let both = format!(
            "http {{ server {{ listen 80; listen 443 ssl; server_name example.com; {rule} \
             ssl_certificate a; ssl_certificate_key b; }} }}"
        );
        let (made, _) = planned(&both, &issued, Stage::Redirect).unwrap();
        assert!(made.contains("/live/example.com"), "{made}");
        assert_eq!(made.contains("308"), is_led, "{made}");
        let (again, _) = planned(&made, &issued, Stage::Redirect).unwrap();
        assert_eq!(again, made);
    }
}

#[test]
fn listeners_are_decided_for_their_address() {
    const OTHER: &str = "server_name other.example; ssl_certificate a; ssl_certificate_key b; }";
    for (own, other, added) in [
        ("80 proxy_protocol", "443 ssl", "listen 443 ssl;"),
        (
            "80 proxy_protocol",
            "10.0.0.5:444 ssl",
            "listen 443 ssl proxy_protocol;",
        ),
        ("80 reuseport backlog=9", "443 ssl http2", "listen 443 ssl;"),
        ("80 default_server", "443 ssl", "listen 443 ssl;"),
        (
            "[::]:80 ipv6only=off",
            "443 ssl",
            "listen [::]:443 ssl;\n  listen 443 ssl;",
        ),
        (
            "[::]:80 ipv6only=off",
            "444 ssl",
            "listen [::]:443 ssl ipv6only=off;",
        ),
        ("80", "[::]:443 ssl ipv6only=off", "listen [::]:443 ssl;"),
        ("10.0.0.5:80", "443 ssl", "listen 443 ssl;"),
        ("10.0.0.5:80", "443 quic", "listen 10.0.0.5:443 ssl;"),
        ("80", "10.0.0.5:443 ssl", "listen 10.0.0.5:443 ssl;"),
    ] {
        let site = format!(
            "http {{\nserver {{\n  listen {own};\n  server_name example.com;\n}}\nserver {{ listen {other}; {OTHER} }}\n"
        );
        let (made, _) = planned(&site, &[], Stage::Tls).unwrap();
        let added = added.replacen(';', &format!("; {}", redirect::LATER), 1);
        assert!(
            made.contains(&format!("\n  {added}\n  ssl_certificate")),
            "{own}, {other}: {made}"
        );
        // The other block is the default of its address, as before.
        let is_shared = !other.contains("444") && !other.contains("quic");
        assert_eq!(
            made.contains(&format!("{other} default_server;")),
            is_shared,
            "{made}"
        );
    }
    let stream = "stream { server { listen 127.0.0.1:443; proxy_pass x; } } http { server { listen 80; server_name example.com; } }";
    let plain = "http { server { listen 443; server_name a.b; } server { listen 80; server_name example.com; } }";
    for (site, word) in [(stream, "`stream` has port 443"), (plain, "without TLS")] {
        let refused = planned(site, &[], Stage::Tls).unwrap_err();
        assert!(refused.summary().contains(word), "{refused:?}");
    }
}

#[test]
fn redirect_that_would_lead_to_itself_is_refused() {
    let site = |rule: &str| {
        format!(
            "http {{ server {{ listen 80; server_name example.com www.example.com; {rule} }} }}"
        )
    };
    for rule in [
        "return 301 https://$host$request_uri;",
        "if ($host = example.com) { return 301 https://$host$request_uri; } return 404;",
        "location / { return 302 https://example.com; }",
        "rewrite ^/(.*)$ https://$server_name/$1 permanent;",
    ] {
        let refused = planned(&site(rule), &[], Stage::Tls).unwrap_err();
        assert!(
            refused.summary().contains("lead to itself"),
            "{rule}: {refused:?}"
        );
    }
    for rule in [
        "if ($host = www.example.com) { return 301 https://example.com$request_uri; }",
        "if ($http_x_forwarded_proto = http) { return 301 https://$host$request_uri; }",
        "return 301 https://elsewhere.example$request_uri;",
        "rewrite ^/old$ https://$host/new permanent;",
    ] {
        planned(&site(rule), &[], Stage::Tls).unwrap();
    }
}

#[test]
fn location_for_challenges_is_used_or_stays() {
    for (location, webroot) in [
        (
            "location ^~ /.well-known/acme-challenge/ { root /srv/acme; }",
            "/srv/acme",
        ),
        (
            "location /.well-known/acme-challenge { root acme; }",
            "/prefix/acme",
        ),
        (
            "location /.well-known/acme-challenge/ { allow all; } root /srv/www;",
            "/srv/www",
        ),
        (
            "location ~ /\\.well-known/acme-challenge { allow all; }",
            "/prefix/html",
        ),
        (
            "location /.well-known/acme-challenge/ { alias /a/.well-known/acme-challenge/; }",
            "/a",
        ),
        (
            "location /.well-known/acme-challenge/ { alias /a/; }",
            "/webroot",
        ),
        (
            "location /.well-known/acme-challenge/ { root /srv/$host; }",
            "/webroot",
        ),
        (
            "location /.well-known/acme-challenge/ { proxy_pass http://x; }",
            "/webroot",
        ),
        (
            "location = /.well-known/acme-challenge/token { return 200; }",
            "/webroot",
        ),
    ] {
        let site =
            format!("http {{ server {{ listen 80; server_name example.com; {location} }} }}");
        let (made, plan) = planned(&site, &[], Stage::Challenges).unwrap();
        assert_eq!(plan.webroot, PathBuf::from(webroot), "{location}");
        let is_ours = webroot == "/webroot";
        assert_eq!(made.contains("root /webroot;"), is_ours, "{made}");
        assert!(made.contains(location), "{made}");
        let (again, plan) = planned(&made, &[], Stage::Challenges).unwrap();
        assert_eq!((again, plan.webroot), (made, PathBuf::from(webroot)));
    }
}

#[test]
fn name_in_unicode_is_its_a_label() {
    let site = "http { server { listen 80; server_name bücher.example; } }";
    let directory = tempfile::tempdir().unwrap();
    let main = directory.path().join("nginx.conf");
    std::fs::write(&main, site).unwrap();
    let tree = Tree::load(&main, &Overlay::new()).unwrap();
    for name in ["bücher.example", "xn--bcher-kva.example", "BÜCHER.example"] {
        let options = PlanOptions {
            name: Some(name.to_owned()),
            ..options()
        };
        assert_eq!(choose(&tree, &options).unwrap(), "xn--bcher-kva.example");
    }
    let pair = Pair {
        live: PathBuf::from("/live"),
        issued: BTreeSet::new(),
    };
    let plan = plan(
        &tree,
        "xn--bcher-kva.example",
        &options(),
        &pair,
        Stage::Challenges,
    )
    .unwrap();
    let made = apply(site.as_bytes(), &plan.edits[&0]);
    let made = String::from_utf8(made).unwrap();
    assert!(
        made.contains("server_name bücher.example xn--bcher-kva.example;"),
        "{made}"
    );
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
        let (made, settled) = run(&site, &[]).unwrap();
        prop_assert!(settled, "{}", made);
        for line in lines.iter().filter(|line| !line.starts_with("listen")) {
            prop_assert!(made.contains(line), "{}", made);
        }
    }
}

#[test]
fn redirect_grows_and_shrinks_with_the_certificate() {
    let site = "http {\n  server {\n    listen 80;\n    server_name .example.com;\n    return 200;\n  }\n}\n";
    let (tls, plan) = planned(site, &[], Stage::Tls).unwrap();
    assert_eq!(plan.names, ["example.com"]);
    let note = "*.example.com: HTTP-01 cannot validate a pattern; for '*.example.com': certs issue example.com '*.example.com' --dns PROVIDER, and then this command again";
    assert!(plan.notes[0].ends_with(note), "{:?}", plan.notes);
    let rule = |names: &str| format!("\"^http://({names}):80$\") {{ return 308 ");
    let (apex, _) = planned(&tls, &["example.com"], Stage::Redirect).unwrap();
    assert!(apex.contains(&rule("example\\.com")), "{apex}");
    let both = ["example.com", "*.example.com"];
    let (grown, plan) = planned(&apex, &both, Stage::Redirect).unwrap();
    assert!(
        grown.contains(&rule("example\\.com|[^.]+\\.example\\.com")),
        "{grown}"
    );
    assert_eq!(grown.lines().count(), apex.lines().count());
    let reached: Vec<_> = plan.redirected.iter().map(|reach| &*reach.name).collect();
    assert_eq!(reached, ["example.com", "certs-probe.example.com"]);
    let (again, plan) = planned(&grown, &both, Stage::Redirect).unwrap();
    // It is looked at nevertheless.
    assert!(again == grown && plan.redirected.len() == 2, "{again}");
    let (shrunk, _) = planned(&grown, &["example.com"], Stage::Redirect).unwrap();
    assert_eq!(shrunk, apex);
}

#[test]
fn block_on_a_unix_socket_is_left_to_the_server_in_front() {
    let alone = "http { server { listen unix:/run/x; server_name example.com; } }";
    let refused = planned(alone, &[], Stage::Redirect).unwrap_err();
    assert!(
        refused.summary().contains("Unix socket alone"),
        "{refused:?}"
    );
    let beside = "http {\nserver { listen unix:/run/x; server_name example.com; }\nserver {\n  listen 80;\n  server_name example.com;\n}\n}\n";
    let (made, plan) = planned(beside, &[], Stage::Tls).unwrap();
    assert!(
        plan.notes[0].contains("the server in front of it"),
        "{:?}",
        plan.notes
    );
    let first = beside.lines().nth(1).unwrap();
    assert!(
        made.contains(first) && made.contains("listen 443 ssl;"),
        "{made}"
    );
    // And both in one block.
    let both = "http { server { listen unix:/run/x; listen 80; server_name example.com; } }";
    let (made, _) = planned(both, &[], Stage::Tls).unwrap();
    assert!(
        !made.contains("x:443") && made.contains("listen 443 ssl;"),
        "{made}"
    );
}

#[test]
fn block_with_tls_on_a_unix_socket_gets_its_certificate_alone() {
    let block = "server {\n  listen unix:/run/x ssl proxy_protocol;\n  server_name example.com;\n  ssl_certificate /old.pem;\n  ssl_certificate_key /old.key;\n}\n";
    let alone = format!("http {{\n{block}}}\n");
    for stage in [Stage::Challenges, Stage::Redirect] {
        let refused = planned(&alone, &[], stage).unwrap_err();
        assert!(
            refused
                .summary()
                .contains("port 80 belongs to the server in front"),
            "{refused:?}"
        );
    }
    let (made, plan) = planned(&alone, &["example.com"], Stage::Redirect).unwrap();
    let pair = ["fullchain.pem", "privkey.pem"].map(|name| format!("/live/example.com/{name}"));
    let wanted = alone
        .replace("/old.pem", &pair[0])
        .replace("/old.key", &pair[1]);
    assert_eq!(made, wanted);
    assert!(plan.plain.is_empty() && plan.redirected.is_empty());
    let reached: Vec<_> = plan
        .tls
        .iter()
        .map(|reach| reach.address.to_string())
        .collect();
    assert_eq!(reached, ["unix:/run/x"]);
    assert!(plan.tls[0].is_proxied);
    // A block of this nginx on port 80 answers for it, and has no TLS of its own.
    let plain = "server { listen 80; server_name example.com; }\n";
    let both = format!("http {{\n{block}{plain}}}\n");
    let (made, plan) = planned(&both, &["example.com"], Stage::Redirect).unwrap();
    assert!(!made.contains("443") && made.contains(&pair[0]), "{made}");
    assert_eq!((plan.plain.len(), plan.redirected.len()), (1, 0));
    planned(&both, &[], Stage::Redirect).unwrap();
}

#[test]
fn leading_dot_in_unicode_gets_its_a_label() {
    let site = "http { server { listen 80; server_name .bücher.example; } server { listen 80; server_name example.com; } }";
    let directory = tempfile::tempdir().unwrap();
    let main = directory.path().join("nginx.conf");
    std::fs::write(&main, site).unwrap();
    let tree = Tree::load(&main, &Overlay::new()).unwrap();
    let name = "xn--bcher-kva.example".to_owned();
    let options = PlanOptions {
        name: Some(name.clone()),
        ..options()
    };
    let pair = Pair {
        live: PathBuf::from("/live"),
        issued: BTreeSet::new(),
    };
    let plan = plan(&tree, &name, &options, &pair, Stage::Tls).unwrap();
    let made = apply(site.as_bytes(), plan.edits.values().next().unwrap());
    let made = String::from_utf8(made).unwrap();
    assert!(
        made.contains("server_name .bücher.example .xn--bcher-kva.example;"),
        "{made}"
    );
    assert_eq!(plan.names, [name]);
}
