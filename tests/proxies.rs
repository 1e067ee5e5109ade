//! HTTP proxies to a CA: by which settings they are used, that their credentials are shown nowhere, and what a
//! failure says.

use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::Endpoint;
use crate::support::proxy::{Manner, Proxy};
use crate::support::sidecar::{Sidecar, configured};
use crate::support::{certs, free_port, run, until};

const NAME: &str = "example.com";
/// `user:pass@word`.
const CODE: &str = "Basic dXNlcjpwYXNzQHdvcmQ=";
const USER: &str = "user:pass%40word@";

/// `account show` asks the CA without an order.
fn show(ca: &EmbeddedCa, more: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command.args(["account", "show", "--ca", &ca.server.directory_url()]);
    command.arg("--ca-root").arg(ca.path("root.pem")).args(more);
    command
}

fn assert_hidden(text: &str) {
    for secret in ["pass%40word", "pass@word", &CODE[6..]] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn proxy_is_used_with_credentials_that_are_shown_nowhere() {
    let (ca, proxy) = (EmbeddedCa::start(), Proxy::start(Manner::Authorize(CODE)));
    let file = ca.path("proxy");
    std::fs::write(&file, proxy.url(USER)).unwrap();
    let mut issue = ca.issue(&[NAME, "-v"]);
    let printed = run(issue.env("CERTS_PROXY_FILE", &file), 0);
    assert_hidden(&printed);
    let asked = proxy.asked();
    let address = ca.server.directory_url();
    let address = address.split('/').nth(2).unwrap().to_owned();
    assert!(
        asked[0].starts_with(&format!("CONNECT {address} HTTP/1.1\r\n")),
        "{asked:?}"
    );
    let mut status = certs(&ca.path(""));
    status.args(["status", "--json"]);
    for mut command in [show(&ca, &["--json"]), status] {
        assert_hidden(&run(command.env("CERTS_PROXY_FILE", &file), 0));
    }
    let mut check = certs(&ca.path(""));
    check
        .args(["config", "check", "--json"])
        .env("CERTS_DOMAINS", NAME);
    check.env("CERTS_CA", "https://ca.test/dir");
    let printed = run(check.env("HTTPS_PROXY", proxy.url(USER)), 0);
    assert!(printed.contains("HTTPS_PROXY"), "{printed}");
    assert_hidden(&printed);
    // Nothing of it is stored.
    let mut all = Command::new("grep");
    let all = all.args(["-rlE", "pass%40word|pass@word|dXNlcjpw"]);
    let found = all.arg(ca.path("data")).arg(ca.path("out"));
    run(found, 1);
}

/// Variables, options, and whether the proxy is used.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], bool);

#[test]
fn variables_choose_the_proxy_as_for_curl() {
    let (ca, proxy) = (EmbeddedCa::start(), Proxy::start(Manner::Tunnel));
    run(&mut ca.issue(&[NAME]), 0);
    let (url, other) = (proxy.url(""), "http://127.0.0.1:1");
    let url = url.as_str();
    let bare = url.trim_start_matches("http://");
    let cases: [Case<'_>; 15] = [
        (&[("HTTPS_PROXY", url)], &[], true),
        (&[("https_proxy", bare)], &[], true),
        (&[("ALL_PROXY", url)], &[], true),
        (&[("all_proxy", url)], &[], true),
        (&[("HTTP_PROXY", url)], &[], false),
        (&[("http_proxy", url)], &[], false),
        (&[("HTTPS_PROXY", other), ("https_proxy", url)], &[], true),
        (&[("HTTPS_PROXY", ""), ("ALL_PROXY", other)], &[], false),
        (&[("HTTPS_PROXY", other), ("CERTS_PROXY", url)], &[], true),
        (&[("HTTPS_PROXY", other)], &["--proxy", url], true),
        (&[("HTTPS_PROXY", other)], &["--proxy", "none"], false),
        (
            &[("HTTPS_PROXY", other), ("NO_PROXY", "127.0.0.0/8")],
            &[],
            false,
        ),
        (&[("HTTPS_PROXY", other), ("no_proxy", "*")], &[], false),
        (
            &[("CERTS_PROXY", other), ("NO_PROXY", "x.test, 127.0.0.1")],
            &[],
            false,
        ),
        (
            &[("HTTPS_PROXY", url), ("NO_PROXY", "192.0.2.1,localhost")],
            &[],
            true,
        ),
    ];
    for (variables, options, is_used) in cases {
        let before = proxy.asked().len();
        let mut command = show(&ca, options);
        command.envs(variables.iter().copied());
        run(&mut command, 0);
        let used = proxy.asked().len() > before;
        assert_eq!(used, is_used, "{variables:?} {options:?}");
    }
}

#[test]
fn failure_names_the_proxy_its_cause_and_what_to_do() {
    let ca = EmbeddedCa::start();
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p/>";
    for (manner, user, cause, hint) in [
        (
            Manner::Answer(
                "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p/>",
            ),
            "",
            "refused a tunnel to 127.0.0.1:",
            "have the proxy allow CONNECT to 127.0.0.1:",
        ),
        (
            Manner::Authorize(CODE),
            "",
            "wants credentials",
            "CERTS_PROXY_FILE",
        ),
        (
            Manner::Authorize(CODE),
            "user:pass%40wor@",
            "does not accept the credentials",
            "%40",
        ),
        (
            Manner::Answer(page),
            "",
            "a web page instead of a tunnel",
            "the URL of the proxy",
        ),
        (
            Manner::Answer(""),
            "",
            "opened no tunnel",
            "NO_PROXY=127.0.0.1",
        ),
        (
            Manner::Answer("SSH-2.0-x\r\n"),
            "",
            "opened no tunnel",
            "an HTTP proxy",
        ),
        // The tunnel leads to no TLS.
        (
            Manner::Answer("HTTP/1.1 200 OK\r\n\r\nnonsense nonsense"),
            "",
            "through the proxy",
            "",
        ),
    ] {
        let proxy = Proxy::start(manner);
        let mut issue = ca.issue(&[NAME]);
        let printed = run(issue.env("HTTPS_PROXY", proxy.url(user)), 3);
        let named = format!("{} (HTTPS_PROXY)", proxy.url(""));
        for words in [named.as_str(), cause, "hint: ", hint] {
            assert!(printed.contains(words), "{words}: {printed}");
        }
        assert!(
            !printed.contains("%40wor") && !printed.contains("@wor"),
            "{printed}"
        );
    }
    let port = free_port();
    let mut issue = ca.issue(&[NAME]);
    let closed = run(issue.arg(format!("--proxy=127.0.0.1:{port}")), 3);
    let named = format!("cannot connect to the proxy http://127.0.0.1:{port} (--proxy)");
    assert!(closed.contains(&named), "{closed}");
    assert_eq!(ca.script.count(Endpoint::Directory), 0);
    // The hints: right credentials, from a file too, or no proxy at all.
    let (proxy, file) = (Proxy::start(Manner::Authorize(CODE)), ca.path("proxy"));
    std::fs::write(&file, proxy.url(USER)).unwrap();
    run(ca.issue(&[NAME]).env("CERTS_PROXY_FILE", &file), 0);
    let mut issue = ca.issue(&[NAME, "--force"]);
    issue.env("HTTPS_PROXY", format!("http://127.0.0.1:{port}"));
    run(issue.env("NO_PROXY", "127.0.0.1"), 0);
}

#[test]
fn proxy_over_tls_is_verified_by_the_roots_of_this_machine() {
    let (ca, proxy) = (EmbeddedCa::start(), Proxy::start(Manner::Authorize(CODE)));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let url = format!("https://{USER}localhost:{}", proxy.over_tls(&made));
    let file = ca.path("proxy.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let mut issue = ca.issue(&[NAME]);
    let printed = run(issue.env("HTTPS_PROXY", &url), 3);
    assert!(
        printed.contains("cannot connect to the proxy https://localhost:"),
        "{printed}"
    );
    assert_hidden(&printed);
    assert_eq!(proxy.asked(), [""; 0]);
    let mut issue = ca.issue(&[NAME]);
    run(
        issue.env("HTTPS_PROXY", &url).env("SSL_CERT_FILE", &file),
        0,
    );
    assert!(!proxy.asked().is_empty());
    // In the sandbox, too.
    let admin = free_port();
    let mut command = configured(&ca, &["www.example.com"], admin);
    command.env("HTTPS_PROXY", &url).env("SSL_CERT_FILE", &file);
    let sidecar = Sidecar::start_as(&ca, &mut command, admin);
    let live = ca.path("out/live/www.example.com/cert.pem");
    let issued = ca.script.count(Endpoint::Certificate);
    until("a certificate", || {
        live.exists() && ca.script.count(Endpoint::Certificate) > issued
    });
    sidecar.stop();
}

#[test]
fn unusable_proxy_is_refused_before_anything_is_sent() {
    let ca = EmbeddedCa::start();
    for (variable, value) in [
        ("ALL_PROXY", "socks5h://user:secret@127.0.0.1:1080"),
        ("CERTS_PROXY", "socks5://user:secret@127.0.0.1"),
        ("HTTPS_PROXY", "http://user:se/cret@proxy.test:3128"),
        ("CERTS_PROXY", "user:secret@"),
        ("CERTS_PROXY", "ftp://user:secret@proxy.test"),
    ] {
        let printed = run(ca.issue(&[NAME]).env(variable, value), 2);
        assert!(
            printed.contains(variable) && printed.contains("hint:"),
            "{printed}"
        );
        assert!(!printed.contains("cret"), "{printed}");
        assert_eq!(
            value.contains("socks"),
            printed.contains("not supported"),
            "{printed}"
        );
    }
    // What reaches no CA works.
    let mut status = certs(&ca.path(""));
    run(
        status
            .arg("status")
            .env("ALL_PROXY", "socks5://127.0.0.1:1"),
        0,
    );
    assert_eq!(ca.script.count(Endpoint::Directory), 0);
}

#[test]
fn sidecar_says_its_proxy_at_start_and_issues_through_it() {
    let (ca, proxy) = (EmbeddedCa::start(), Proxy::start(Manner::Authorize(CODE)));
    let admin = free_port();
    let mut command = configured(&ca, &[NAME], admin);
    command.env("HTTPS_PROXY", proxy.url(USER));
    let sidecar = Sidecar::start_as(&ca, &mut command, admin);
    let live = ca.path("out/live").join(NAME);
    until("a certificate", || {
        ca.script.count(Endpoint::Certificate) > 0 && live.join("fullchain.pem").exists()
    });
    let said = format!(
        "is reached through the proxy {} (HTTPS_PROXY)",
        proxy.url("")
    );
    let log = sidecar.log();
    assert!(log.contains(&said), "{log}");
    assert_hidden(&log);
    assert!(!proxy.asked().is_empty());
    sidecar.stop();
}
