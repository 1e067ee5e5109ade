//! The redirect of blocks that have TLS already, or beside them, as users of certbot expect it.

use super::issued::{ca_of, whole};
use super::{Machine, pair};
use crate::support::run;

/// A machine with this site, in which `PAIR` is a certificate of another tool, and `TLS` the port of https.
fn machine(site: &str) -> Option<Machine> {
    let machine = Machine::new("")?;
    let live = pair(&machine, "other");
    let pair =
        format!("ssl_certificate {live}/fullchain.pem; ssl_certificate_key {live}/privkey.pem;");
    let site = site.replace("PAIR", &pair);
    machine.write_site(&site.replace("TLS", &machine.https.to_string()));
    Some(machine)
}

#[test]
fn block_with_both_ports_and_plain_block_beside_tls_get_the_redirect() {
    for site in [
        "server { listen 127.0.0.1:HTTP; listen 127.0.0.1:TLS ssl; server_name www.example.com; PAIR\n\
         location / { return 200 'hello'; } }\n",
        "server { listen 127.0.0.1:TLS ssl; server_name www.example.com; PAIR location / { return 200 'hello'; } }\n\
         server { listen 127.0.0.1:HTTP; server_name www.example.com other.example.com; location / { return 200 'hello'; } }\n",
    ] {
        let Some(machine) = machine(site) else {
            return;
        };
        let ca = ca_of(&machine);
        machine.start();
        let before = machine.files();
        let arguments = ["--domain", "www.example.com"];
        let printed = run(&mut whole(&machine, &ca, &arguments), 0);
        assert!(printed.contains("redirects to https"), "{printed}");
        let moved = machine.ask("http://www.example.com:HTTP/a?b", &[]);
        let target = format!("location: https://www.example.com:{}/a?b", machine.https);
        assert!(
            moved.contains(" 308 ") && moved.contains(&target),
            "{moved}"
        );
        let shown = machine.ask("https://www.example.com:HTTPS/", &[]);
        assert!(shown.ends_with("hello"), "{shown}");
        // A name without TLS is not led to that of another.
        if site.contains("other.example.com") {
            let plain = machine.ask("http://other.example.com:HTTP/", &[]);
            assert!(plain.ends_with("hello"), "{plain}");
        }
        let printed = run(&mut machine.install(&arguments), 0);
        assert!(printed.contains("nothing to change"), "{printed}");
        run(&mut machine.install(&["--undo"]), 0);
        assert_eq!(machine.files(), before);
    }
}

#[test]
fn redirect_of_the_user_stays_alone() {
    for rule in [
        "if ($scheme = http) { return 301 https://$host:TLS$request_uri; }",
        "if ($host = www.example.com) { return 302 https://$host:TLS$request_uri; } return 404;",
        "rewrite ^ https://$host:TLS$request_uri permanent;",
    ] {
        let plain = match rule.starts_with("if ($scheme") {
            true => format!(
                "server {{ listen 127.0.0.1:HTTP; listen 127.0.0.1:TLS ssl; server_name www.example.com; PAIR\n{rule}\nlocation / {{ return 200 'hello'; }} }}\n"
            ),
            false => format!(
                "server {{ listen 127.0.0.1:HTTP; server_name www.example.com; {rule} }}\n\
                 server {{ listen 127.0.0.1:TLS ssl; server_name www.example.com; PAIR location / {{ return 200 'hello'; }} }}\n"
            ),
        };
        let Some(machine) = machine(&plain) else {
            return;
        };
        let ca = ca_of(&machine);
        machine.start();
        let arguments = ["--domain", "www.example.com"];
        run(&mut whole(&machine, &ca, &arguments), 0);
        assert!(
            !machine.site().contains("$certs_plain"),
            "{}",
            machine.site()
        );
        let moved = machine.ask("http://www.example.com:HTTP/", &[]);
        assert!(
            moved.contains(" 301 ") || moved.contains(" 302 "),
            "{moved}"
        );
        assert!(
            machine
                .ask("https://www.example.com:HTTPS/", &[])
                .ends_with("hello")
        );
    }
}
