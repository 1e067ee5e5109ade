//! Handing over from end to end, where it is about more than one kind of server:
//! what many certificates share, and what comes after a failure.

use crate::support::certs;
use crate::support::embedded::EmbeddedCa;
use crate::support::run;
use crate::told::docker;

#[test]
fn twenty_certificates_share_the_reloads_of_one_server() {
    let ca = EmbeddedCa::start();
    let (_runtime, host, done) = docker(&ca, 403, 0);
    let mut config = format!(
        "ca = '{}'\nca_root = 'root.pem'\nagree_tos = true\nhttp_listen = ['127.0.0.1:{}']\n\
         [deploy.web]\nkind = 'docker'\ncontainer = 'web'\nhost = '{host}'\n",
        ca.server.directory_url(),
        ca.http_port,
    );
    for number in 0..20 {
        config += &format!("[[certificate]]\nnames = ['n{number}.example.com']\n");
    }
    std::fs::write(ca.path("certs.toml"), config).unwrap();
    let mut told = 0;
    // Issued a few at a time, and handed over again all at once.
    for (verb, most) in [("renew", 10), ("reload", 3)] {
        run(certs(&ca.path("")).arg(verb).current_dir(ca.path("")), 0);
        let now = done.lock().unwrap().len();
        let reloads = now - std::mem::replace(&mut told, now);
        assert!((1..=most).contains(&reloads), "{verb}: {reloads} reloads");
    }
}
