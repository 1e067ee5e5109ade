//! `certs import` of state that is damaged, in the wrong directory or imported already: each line of output,
//! and the exit code. No request goes to a CA.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::embedded::EmbeddedCa;
use crate::support::{Running, as_nobody, certs, run, until};

/// A pair for these names, valid for `days` from now.
pub(crate) fn pair(names: &[&str], days: i64) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(90 - days);
    params.not_after = now + time::Duration::days(days);
    let chain = params.self_signed(&key).unwrap().pem();
    (key.serialize_pem(), chain)
}

/// A certbot directory with a lineage for each pair, all of one CA.
pub(crate) fn letsencrypt(root: &Path, lineages: &[(&str, &str, &(String, String))]) {
    for (name, settings, (key, chain)) in lineages {
        let conf = format!(
            "version = 5.8.0\n[renewalparams]\nserver = https://acme-v02.api.letsencrypt.org/directory\n\
             account = 1\n{settings}\n"
        );
        for (path, content) in [
            (format!("renewal/{name}.conf"), &conf),
            (format!("live/{name}/privkey.pem"), key),
            (format!("live/{name}/fullchain.pem"), chain),
        ] {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }
}

/// The output without parts that differ from run to run.
fn without_run_details(printed: &str, root: &Path) -> String {
    let printed = printed.replace(&root.display().to_string(), "ROOT");
    let parts = printed.split(" (in ").enumerate();
    let parts = parts.map(|(at, part)| match (at, part.split_once(" days)")) {
        (0, _) => part.to_owned(),
        (_, Some((_, rest))) => format!(" (in N days){rest}"),
        (_, None) => format!(" (in {part}"),
    });
    let printed = parts.collect::<String>();
    let words = printed.split(' ').map(|word| {
        let is_date = word.len() > 19 && word.starts_with("20") && word.as_bytes()[10] == b'T';
        match (is_date, word.split_once('\n')) {
            (true, Some((_, rest))) => format!("DATE\n{rest}"),
            (true, None) => "DATE".to_owned(),
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn import_takes_valid_lineages_and_names_invalid_ones() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let source = root.join("letsencrypt");
    let (good, wild) = (
        pair(&["good.example.com"], 60),
        pair(&["*.example.com"], 60),
    );
    let mismatch = (good.0.clone(), wild.1.clone());
    let expired = pair(&["old.example.com"], -1);
    letsencrypt(
        &source,
        &[
            (
                "good.example.com",
                "authenticator = webroot\nwebroot_path = /no/such/webroot,\ninstaller = nginx\n\
                 renew_hook = /no/such/program",
                &good,
            ),
            (
                "expired.example.com",
                "authenticator = standalone",
                &expired,
            ),
            (
                "mismatch.example.com",
                "authenticator = standalone",
                &mismatch,
            ),
            ("nothing.example.com", "", &(String::new(), String::new())),
            ("wild.example.com", "authenticator = dns-cloudflare", &wild),
        ],
    );
    std::fs::remove_file(source.join("live/nothing.example.com/privkey.pem")).unwrap();
    let import = |code| {
        let mut command = certs(root);
        command.current_dir(root).args(["import", "certbot"]);
        without_run_details(&run(command.arg(&source), code), root)
    };
    insta::assert_snapshot!("import-certbot", import(8));
    insta::assert_snapshot!("import-certbot-again", import(8));
    let status = run(certs(root).current_dir(root).arg("status"), 0);
    assert!(status.contains("good.example.com"), "{status}");
    assert!(status.contains("wild.example.com"), "{status}");
    let key = std::fs::read_to_string(root.join("out/live/good.example.com/privkey.pem")).unwrap();
    assert_eq!(key, good.0);
    // Without an account, no user has agreed to the CA's terms.
    let printed = run(certs(root).current_dir(root).arg("renew"), 2);
    assert!(printed.contains("terms of service"), "{printed}");
    assert!(
        printed.contains("HTTP-01 cannot prove a wildcard"),
        "{printed}"
    );
}

#[test]
fn import_applies_options_to_stored_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let source = root.join("letsencrypt");
    letsencrypt(
        &source,
        &[("a.example.com", "", &pair(&["a.example.com"], 60))],
    );
    let import = |more: &[&str]| {
        let mut command = certs(root);
        command.current_dir(root).args(["import", "certbot"]);
        run(command.arg(&source).args(more), 0)
    };
    import(&[]);
    let path = root.join("data/records/a.example.com/options.json");
    let deploy = || {
        let options: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        options["deploy"].clone()
    };
    assert_eq!(deploy(), json!([]));
    let printed = import(&["--deploy", "nginx"]);
    assert!(printed.contains("this command's options"), "{printed}");
    assert_eq!(deploy(), json!(["nginx"]));
    assert!(!import(&[]).contains("this command's options"));
    assert_eq!(deploy(), json!(["nginx"]));
    // They get their rights, too, and the report names each.
    for spec in ["exec:/usr/local/bin/hook", "file:/srv/copy.pem"] {
        let printed = import(&["--deploy", spec]);
        let right = format!("confirmed right: deploy to {spec}");
        assert!(printed.contains(&right), "{printed}");
        let confirmed = std::fs::read_to_string(root.join("data.confirmed/rights.json")).unwrap();
        let name = spec.rsplit_once('/').unwrap().1;
        assert!(confirmed.contains(name), "{confirmed}");
    }
    let mut command = certs(root);
    command
        .current_dir(root)
        .args(["import", "certbot", "--deploy", "apache"]);
    let printed = run(command.arg(&source), 2);
    assert!(
        printed.contains("unknown deploy target `apache`"),
        "{printed}"
    );
}

#[test]
fn import_does_not_call_a_webroot_missing_that_it_cannot_examine() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    std::fs::write(root.join("file"), "").unwrap();
    for (name, webroot, why) in [
        ("a.example.com", "file/below", "cannot be examined"),
        ("b.example.com", "file", "is not a directory"),
        ("c.example.com", "absent", "is not a directory"),
    ] {
        let source = root.join(format!("{name}.letsencrypt"));
        let webroot = root.join(webroot).display().to_string();
        let settings = format!("authenticator = webroot\nwebroot_path = {webroot},");
        letsencrypt(&source, &[(name, &settings, &pair(&[name], 60))]);
        let mut command = certs(root);
        let printed = run(command.args(["import", "certbot"]).arg(&source), 0);
        let why = format!("{webroot} {why}");
        assert!(printed.contains(&why), "no `{why}` in {printed}");
    }
}

#[test]
fn import_of_stored_names_under_another_name_is_the_same_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let names = ["b.example.com", "a.example.com"];
    for (client, name, days, generation) in
        [("one", "b.example.com", 40, 1), ("two", "site", 60, 2)]
    {
        let source = directory.path().join(client);
        letsencrypt(&source, &[(name, "", &pair(&names, days))]);
        let mut import = certs(directory.path());
        // The account is missing.
        let printed = import
            .args(["import", "certbot"])
            .arg(&source)
            .output()
            .unwrap();
        let printed = crate::support::text(&printed);
        assert!(printed.contains("certificate b.example.com"), "{printed}");
        let live = directory.path().join("out/live/b.example.com");
        let live = std::fs::read_link(live).unwrap();
        assert!(live.ends_with(format!("{generation:04}")), "{printed}");
    }
    let status = run(certs(directory.path()).args(["status", "--json"]), 0);
    let status: Value = serde_json::from_str(status.lines().next().unwrap()).unwrap();
    assert_eq!(status.as_array().unwrap().len(), 1, "{status}");
}

#[test]
fn import_writes_nothing_for_wrong_path_or_client() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let source = root.join("letsencrypt");
    letsencrypt(
        &source,
        &[("a.example.com", "", &pair(&["a.example.com"], 60))],
    );
    let path = source.display().to_string();
    let mut printed = String::new();
    for arguments in [
        vec!["lego", &path],
        vec!["caddy", &path],
        vec!["acme.sh", &path],
        vec!["traefik", &path],
        vec!["certbot", "/no/such/place"],
        vec!["traefik"],
        vec!["lego", &path, "--ca", "nonsense"],
    ] {
        let mut command = certs(root);
        command.current_dir(root).arg("import").args(&arguments);
        printed.push_str(&without_run_details(&run(&mut command, 2), root));
    }
    insta::assert_snapshot!("import-wrong", printed);
    assert!(!root.join("data").exists() && !root.join("out").exists());
}

#[test]
fn import_reports_unreadable_files() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let source = root.join("letsencrypt");
    letsencrypt(
        &source,
        &[("a.example.com", "", &pair(&["a.example.com"], 60))],
    );
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(root, 0o777);
    mode(&source.join("renewal"), 0o700);
    let mut command = certs(root);
    command.current_dir(root).args(["import", "certbot"]);
    command.arg(&source);
    if rustix::process::geteuid().is_root() {
        command = as_nobody(&command, root);
    } else {
        mode(&source.join("renewal"), 0);
    }
    let printed = run(&mut command, 8);
    mode(&source.join("renewal"), 0o700);
    assert!(printed.contains("renewal: Permission denied"), "{printed}");
}

/// `certs run` starts first. After SIGHUP it manages the imported certificate too, by the configuration of
/// that moment.
#[test]
fn imported_certificate_follows_reloaded_configuration_and_loses_file_of_another() {
    let ca = EmbeddedCa::start();
    let (root, url) = (ca.path(""), ca.server.directory_url());
    let process = format!(
        "agree_tos = true\nhttp_listen = ['127.0.0.1:{}']\ndata_dir = 'data'\noutput_dir = 'out'\n",
        ca.http_port
    );
    std::fs::write(ca.path("certs.toml"), &process).unwrap();
    let log = || std::fs::read_to_string(ca.path("log")).unwrap();
    let mut command = certs(&root);
    command.arg("run").current_dir(&root);
    command.env("CERTS_ADMIN_LISTEN", "off");
    // The sandbox is off, since an output path is configured later.
    command.env("CERTS_HARDEN", "off");
    let file = std::fs::File::create(ca.path("log")).unwrap();
    let running = Running::start_logging(&mut command, file.into());
    until("the control socket", || ca.path("data/admin.sock").exists());

    // A due certificate of a CA whose root is not trusted yet, with a target file that it will lose.
    let source = ca.path("letsencrypt");
    let old = pair(&["old.example.com"], 1);
    letsencrypt(&source, &[("old.example.com", "", &old)]);
    let conf = source.join("renewal/old.example.com.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    let text = text.replace("https://acme-v02.api.letsencrypt.org/directory", &url);
    std::fs::write(&conf, text).unwrap();
    let copy = ca.path("copy.pem");
    let mut import = certs(&root);
    import.current_dir(&root).args(["import", "certbot"]);
    import.arg(&source);
    run(import.arg(format!("--deploy=file:{}", copy.display())), 0);
    let with_both = format!(
        "{process}ca = '{url}'\nca_root = 'root.pem'\n\
         [[certificate]]\nnames = ['a.example.com']\ndeploy = ['file:{}']\n",
        copy.display()
    );
    std::fs::write(ca.path("certs.toml"), with_both).unwrap();
    running.signal(rustix::process::Signal::HUP);
    until("the configured certificate", || {
        ca.path("out/live/a.example.com").exists()
    });
    let lost = format!(
        "{}: not written, because a.example.com is written there",
        copy.display()
    );
    until("the message about the file", || log().contains(&lost));
    until("the renewal of the imported certificate", || {
        let live = std::fs::read(ca.path("out/live/old.example.com/fullchain.pem"));
        live.is_ok_and(|live| live != old.1.as_bytes())
    });
    let wanted = ca.path("out/live/a.example.com/combined.pem");
    until("the file of the configured certificate", || {
        let both = (std::fs::read(&copy), std::fs::read(&wanted));
        matches!(both, (Ok(copy), Ok(wanted)) if copy == wanted)
    });
}

#[test]
fn hints_of_an_import_are_followed() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let import = |words: &[&str], code| {
        let mut command = certs(root);
        run(command.current_dir(root).arg("import").args(words), code)
    };
    // Where the client has no state, and where it has.
    let (key, chain) = pair(&["l.example.com"], 60);
    let place = root.join("lego/certificates");
    std::fs::create_dir_all(&place).unwrap();
    let about = r#"{"domain": "l.example.com", "certUrl": "https://ca.test/cert/7"}"#;
    for (name, content) in [("json", about), ("key", &key), ("crt", &chain)] {
        std::fs::write(place.join(format!("l.example.com.{name}")), content).unwrap();
    }
    let (lego, elsewhere) = (root.join("lego"), root.join("elsewhere"));
    let (lego, elsewhere) = (lego.to_str().unwrap(), elsewhere.to_str().unwrap());
    let printed = import(&["lego", elsewhere], 2);
    assert!(
        printed.contains("hint: name the path of the state of lego"),
        "{printed}"
    );
    let printed = import(&["lego"], 2);
    let words =
        crate::followed::printed_command(&printed, "hint: name the path: certs import ", "\n");
    assert_eq!(words, ["lego", "PATH"]);
    let printed = import(&["lego", lego, "--ca", "nonsense"], 2);
    let words = "or an https:// URL";
    assert!(printed.contains(words), "{printed}");
    import(&["lego", lego, "--ca", "https://ca.test/directory"], 0);
    // A part that could not be taken is mended, and one program may run after a chmod.
    let (good, other) = (pair(&["a.example.com"], 60), pair(&["b.example.com"], 60));
    let hook = root.join("hook");
    crate::support::make_script(&hook, "true");
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o777)).unwrap();
    let hook = hook.display();
    let settings = format!("renew_hook = {hook}");
    let source = root.join("letsencrypt");
    let write = |chain: &str| {
        let mixed = (other.0.clone(), chain.to_owned());
        let both = [
            ("a.example.com", &*settings, &good),
            ("b.example.com", "", &mixed),
        ];
        letsencrypt(&source, &both);
    };
    write(&good.1);
    let certbot = ["certbot", source.to_str().unwrap()];
    let printed = import(&certbot, 8);
    let words = "fix the reason named above for each, and import again";
    assert!(printed.contains(words), "{printed}");
    let (_, mend) = printed
        .split_once("; hint: chmod ")
        .unwrap_or_else(|| panic!("{printed}"));
    let (mend, again) = mend.split_once(", and import again with ").unwrap();
    let mut chmod = std::process::Command::new("chmod");
    run(chmod.args(mend.split(' ')), 0);
    let option = again.split_whitespace().take(2);
    let option: Vec<String> = option
        .map(|word| word.replace("/PROGRAM", &hook.to_string()))
        .collect();
    write(&other.1);
    let words = [&certbot[..], &[&option[0], &option[1]]].concat();
    import(&words, 0);
    let options = root.join("data/records/a.example.com/options.json");
    let options = std::fs::read_to_string(options).unwrap();
    assert!(options.contains(&format!("exec:{hook}")), "{options}");
}

/// A wildcard that HTTP-01 cannot prove gets another challenge by the printed command.
#[test]
fn imported_wildcard_is_kept_or_left_as_printed() {
    use crate::support::faults::{Endpoint, Fault, Which};
    let ca = EmbeddedCa::start();
    let source = ca.path("letsencrypt");
    letsencrypt(
        &source,
        &[(
            "wild",
            "authenticator = dns-cloudflare",
            &pair(&["*.example.com"], 1),
        )],
    );
    let conf = source.join("renewal/wild.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    let public = "https://acme-v02.api.letsencrypt.org/directory";
    std::fs::write(&conf, text.replace(public, &ca.server.directory_url())).unwrap();
    let verb = |words: &[&str], code| {
        let mut command = certs(&ca.path(""));
        command.env("CERTS_DNS_EXEC_PROGRAM", "/bin/true");
        run(
            command
                .args(words)
                .env("CERTS_CA_ROOT", ca.path("root.pem")),
            code,
        )
    };
    verb(&["import", "certbot", source.to_str().unwrap()], 0);
    let printed = verb(&["renew"], 2);
    let keep = crate::followed::printed_command(&printed, "hint: certs ", " keeps it");
    let keep: Vec<String> = keep
        .iter()
        .map(|word| word.replace("PROVIDER", "exec"))
        .collect();
    let keep: Vec<&str> = keep.iter().map(String::as_str).collect();
    // The order is sent: which zone the CA sees does not matter here.
    let refusal = Fault::problem(400, "rejectedIdentifier", "sent");
    ca.script.add(Endpoint::NewOrder, Which::Every, refusal);
    assert!(verb(&keep, 4).contains("sent"));
    let delete = crate::followed::printed_command(&printed, "keeps it, certs ", " leaves it");
    let delete: Vec<&str> = delete.iter().map(String::as_str).collect();
    let printed = verb(&delete, 2);
    let delete = crate::followed::printed_command(&printed, "to delete it: certs ", "\n");
    let delete: Vec<&str> = delete.iter().map(String::as_str).collect();
    verb(&delete, 0);
}
