//! The AWS template of `deploy/`: what it writes on a machine is valid, and its role may do what the documentation says.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::{certs, make_script, run, text};

const TEMPLATE: &str = include_str!("../deploy/aws/template.yaml");
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// The script of a machine's first start, with values for the parameters.
fn user_data() -> String {
    let (_, rest) = TEMPLATE.split_once("Fn::Base64: !Sub |\n").unwrap();
    let indent = " ".repeat(12);
    let lines = rest.lines().map_while(|line| match line.is_empty() {
        true => Some(""),
        false => line.strip_prefix(&indent),
    });
    let mut script: String = lines.flat_map(|line| [line, "\n"]).collect();
    for (parameter, value) in [
        ("AWS::Region", "eu-central-1"),
        ("AWS::StackName", "site"),
        ("CertificateAuthority", "letsencrypt"),
        ("Domain", "www.example.com"),
        ("Email", "admin@example.com"),
        ("PackageBucket", "example-packages"),
        ("PackageKey", "certs_0.1.0-1_amd64.deb"),
        ("SealKey", "/certs/seal-key"),
        ("Store", "site-store-1abc"),
    ] {
        script = script.replace(&format!("${{{parameter}}}"), value);
    }
    assert!(!script.contains("${"), "a parameter without a value");
    script
}

/// What the script writes to `path`.
fn written(path: &str) -> String {
    let script = user_data();
    let (_, rest) = script
        .split_once(&format!("cat >{path} <<'END' || return\n"))
        .unwrap();
    rest.split_once("\nEND\n").unwrap().0.to_owned() + "\n"
}

/// The rights on S3 that a text names.
fn rights(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != ':');
    let rights = words.filter(|word| word.starts_with("s3:") && word.len() > 3);
    rights.map(str::to_owned).collect()
}

#[test]
fn scripts_of_a_machine_are_valid() {
    for script in [
        user_data(),
        written("/usr/local/bin/fetch-seal-key"),
        written("/usr/local/bin/drain"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("script");
        std::fs::write(&file, &script).unwrap();
        let parsed = Command::new("bash").arg("-n").arg(&file).output().unwrap();
        assert!(
            parsed.status.success() && parsed.stderr.is_empty(),
            "{}",
            text(&parsed)
        );
    }
}

#[test]
fn configuration_of_a_machine_is_valid_and_its_keys_are_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    // The Parameter Store, which replies to these very arguments.
    let arguments = "ssm get-parameter --region eu-central-1 --name /certs/seal-key --with-decryption --query Parameter.Value --output text";
    let reply = format!("test \"$*\" = '{arguments}' && echo {KEY}");
    make_script(&path("aws"), &reply);
    let in_memory = |text: String| {
        let here = directory.path().display().to_string();
        assert!(text.contains("/run/certs/seal.key"), "{text}");
        text.replace("/run/certs", &here)
    };
    let fetch = in_memory(written("/usr/local/bin/fetch-seal-key"));
    let search = format!("{}:/usr/bin:/bin", directory.path().display());
    let fetched = Command::new("bash")
        .arg("-c")
        .arg(fetch)
        .env("PATH", search)
        .output()
        .unwrap();
    assert!(fetched.status.success(), "{}", text(&fetched));
    let mode = std::fs::metadata(path("seal.key")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let config = in_memory(written("/etc/certs/certs.toml"));
    std::fs::write(path("certs.toml"), config).unwrap();
    let check = |directory: &std::path::Path| {
        let mut command = certs(directory);
        command.args(["config", "check", "--config"]);
        command
            .arg(path("certs.toml"))
            .env("AWS_REGION", "eu-central-1");
        command
    };
    run(&mut check(directory.path()), 0);
    // Without the key it is not.
    std::fs::remove_file(path("seal.key")).unwrap();
    let said = run(&mut check(directory.path()), 2);
    assert!(said.contains("seal.key"), "{said}");
    assert!(user_data().contains("tmpfs /var/lib/certs tmpfs "));
}

#[test]
fn role_of_a_machine_has_the_documented_rights_on_the_store() {
    let (_, policy) = TEMPLATE.split_once("PolicyName: store").unwrap();
    let (policy, _) = policy.split_once("PolicyName:").unwrap();
    let documented = include_str!("../docs/fleet.md");
    let (_, documented) = documented.split_once("The role needs ").unwrap();
    let (documented, _) = documented.split_once("\n- ").unwrap();
    let granted = rights(policy);
    assert_eq!(granted, rights(documented));
    assert_eq!(granted.len(), 4, "{granted:?}");
}
