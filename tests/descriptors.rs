//! Attacks by the owner of a directory in which `certs` writes: links, named pipes and hard links in the place
//! of what it made. Nothing of another user is changed, and the command says what is in the way, with exit 8.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use crate::support::embedded::EmbeddedCa;
use crate::support::{NOBODY, Running, by_depth, run, text, until_within};
use crate::targets::{NAME, live};

/// The user of the consumer; no table of users has it.
const CONSUMER: u32 = 4_000_321;

/// `None`, and a line, without the right to give files away.
fn issued(what: &str, variables: &[(&str, String)]) -> Option<EmbeddedCa> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {what}: only root may give files away");
        return None;
    }
    let ca = EmbeddedCa::start();
    // Other users reach the output.
    open_to_all(&ca.path(""));
    run(ca.issue(&[NAME]).envs(variables.iter().cloned()), 0);
    Some(ca)
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// The owner, mode and content of everything below a path.
type Snapshot = BTreeMap<PathBuf, (u32, u32, u32, Vec<u8>)>;

fn snapshot(path: &Path) -> Snapshot {
    let found = std::fs::symlink_metadata(path).unwrap();
    let content = match found.file_type() {
        kind if kind.is_file() => std::fs::read(path).unwrap(),
        _ => Vec::new(),
    };
    let facts = (found.uid(), found.gid(), found.mode(), content);
    let mut all = Snapshot::from([(path.to_owned(), facts)]);
    if found.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            all.extend(snapshot(&entry.unwrap().path()));
        }
    }
    all
}

/// A directory of root's with everything that a careless program would remove or give away.
fn precious(ca: &EmbeddedCa) -> PathBuf {
    let root = ca.path("precious");
    for number in 1..=9 {
        let generation = root.join(format!("{number:04}"));
        std::fs::create_dir_all(&generation).unwrap();
        std::fs::write(generation.join("privkey.pem"), "root's own").unwrap();
    }
    std::fs::create_dir(root.join(NAME)).unwrap();
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o700)).unwrap();
    root
}

/// Puts a link to `target` in the place of `path`.
fn link_over(path: &Path, target: &Path) {
    std::fs::rename(path, path.with_extension("before")).unwrap();
    symlink(target, path).unwrap();
}

/// The command ends with exit 8, names `path` and what is there, and has changed nothing in `kept`.
fn is_refused(command: &mut Command, path: &Path, what: &str, kept: &Path) {
    let before = snapshot(kept);
    let printed = run(command, 8);
    let path = path.display().to_string();
    for word in [&path, what, "refused", "hint: certs did not make it"] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    assert_eq!(snapshot(kept), before, "{printed}");
}

/// The consumer's `user` reads the live key.
fn may_read(ca: &EmbeddedCa, user: u32, group: u32) -> bool {
    let mut read = Command::new("cat");
    read.arg(live(ca).join("privkey.pem")).uid(user).gid(group);
    let output = read.output().unwrap();
    output.status.success() && text(&output).contains("PRIVATE KEY")
}

fn owner(path: &Path) -> (u32, u32, u32) {
    let found = std::fs::metadata(path).unwrap();
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

#[test]
fn output_group_opens_existing_output_to_its_members() {
    let Some(ca) = issued("an output for a group", &[]) else {
        return;
    };
    assert!(!may_read(&ca, CONSUMER, NOBODY));
    let mut reload = crate::support::certs(&ca.path(""));
    reload.args(["reload", NAME]);
    run(reload.env("CERTS_OUTPUT_GROUP", NOBODY.to_string()), 0);
    assert!(may_read(&ca, CONSUMER, NOBODY));
    assert!(!may_read(&ca, CONSUMER, CONSUMER));
    for path in [
        "",
        "live",
        "archive",
        "archive/example.com",
        "live/example.com/",
    ] {
        assert_eq!(
            owner(&ca.path("out").join(path)),
            (0, NOBODY, 0o2750),
            "{path}"
        );
    }
    assert_eq!(owner(&live(&ca).join("privkey.pem")), (0, NOBODY, 0o640));
}

#[test]
fn output_owner_reads_its_key_and_changes_no_directory() {
    let variables = [("CERTS_OUTPUT_OWNER", CONSUMER.to_string())];
    let Some(ca) = issued("an output for a user", &variables) else {
        return;
    };
    assert!(may_read(&ca, CONSUMER, CONSUMER));
    assert!(!may_read(&ca, CONSUMER + 1, CONSUMER + 1));
    assert_eq!(owner(&live(&ca).join("privkey.pem")).0, CONSUMER);
    for path in ["live", "archive", "archive/example.com", "live/example.com"] {
        let place = ca.path("out").join(path);
        assert_eq!(owner(&place).0, 0, "{path}");
        let mut swap = Command::new("mv");
        swap.arg(&place).arg(place.with_extension("swapped"));
        let refused = swap.uid(CONSUMER).gid(CONSUMER).output().unwrap();
        assert!(text(&refused).contains("Permission denied"), "{path}");
    }
}

#[test]
fn link_in_the_output_is_refused_and_its_target_unchanged() {
    let variables = [("CERTS_OUTPUT_OWNER", NOBODY.to_string())];
    let Some(ca) = issued("links in an output", &variables) else {
        return;
    };
    let precious = precious(&ca);
    let renew = || {
        let mut command = ca.issue(&[NAME, "--force"]);
        command.envs(variables.iter().cloned());
        command
    };
    for swapped in ["archive/example.com", "archive", "live"] {
        // As an earlier version left it: the owner may replace every name.
        for directory in ["", "live", "archive", "archive/example.com"] {
            chown(ca.path("out").join(directory), Some(NOBODY), None).unwrap();
        }
        let place = ca.path("out").join(swapped);
        link_over(&place, &precious);
        is_refused(&mut renew(), &place, "a symbolic link", &precious);
        std::fs::remove_file(&place).unwrap();
        std::fs::rename(place.with_extension("before"), &place).unwrap();
        run(&mut renew(), 0);
        for directory in ["live", "archive", "archive/example.com"] {
            assert_eq!(owner(&ca.path("out").join(directory)).0, 0, "{directory}");
        }
    }
}

#[test]
fn pipes_and_foreign_directories_in_the_output_are_refused_without_waiting() {
    let Some(ca) = issued("pipes in an output", &[]) else {
        return;
    };
    // A reader of the pipe would wait for ever. The pair is written again beside it.
    let key = std::fs::canonicalize(live(&ca))
        .unwrap()
        .join("privkey.pem");
    std::fs::remove_file(&key).unwrap();
    mknodat(CWD, &key, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let mut reload = crate::support::certs(&ca.path(""));
    let mut reload = Running::start(reload.args(["reload", NAME]));
    until_within("the reload", Duration::from_secs(60), || reload.has_ended());
    crate::support::loads(&live(&ca));
    // What another user put there is not removed.
    let archive = ca.path("out/archive");
    std::fs::rename(&archive, ca.path("archive")).unwrap();
    std::fs::create_dir_all(archive.join("example.com/0001")).unwrap();
    chown(&archive, Some(NOBODY), None).unwrap();
    let what = "a directory of another user";
    is_refused(&mut ca.issue(&[NAME, "--force"]), &archive, what, &archive);
}

/// Copies of two services, each for its own user. Returns their targets.
fn copies(ca: &EmbeddedCa, config: &str) -> String {
    let path = ca.path("certs.toml");
    std::fs::write(
        &path,
        config.replace("ROOT", &ca.path("").display().to_string()),
    )
    .unwrap();
    format!("--config={}", path.display())
}

#[test]
fn race_for_a_directory_copy_gives_away_no_other_services_key() {
    let Some(ca) = issued("a race for a copy", &[]) else {
        return;
    };
    let config = copies(
        &ca,
        "[deploy.one]\nkind = 'directory'\npath = 'ROOT/one'\nowner = '4000321'\n\
         [deploy.other]\nkind = 'directory'\npath = 'ROOT/other'\nowner = '65534'\n",
    );
    run(
        &mut ca.issue(&[NAME, &config, "--deploy=other", "--force"]),
        0,
    );
    run(
        &mut ca.issue(&[NAME, &config, "--deploy=one", "--force"]),
        0,
    );
    // The directory itself may be the attacker's own, and so is every name in it.
    let one = ca.path("one");
    std::fs::set_permissions(&one, PermissionsExt::from_mode(0o755)).unwrap();
    chown(&one, Some(CONSUMER), Some(CONSUMER)).unwrap();
    symlink(ca.path("other/archive"), one.join("link")).unwrap();
    let before = snapshot(&ca.path("other"));
    let ended = AtomicBool::new(false);
    let (mut codes, mut swaps) = (BTreeMap::new(), 0_u32);
    std::thread::scope(|scope| {
        let swap = scope.spawn(|| {
            let (real, link) = (one.join("archive"), one.join("link"));
            let mut swaps = 0_u32;
            while !ended.load(Ordering::Relaxed) {
                // An even number of swaps: what is real is in its place at the end.
                for _ in 0..2 {
                    renameat_with(CWD, &real, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                    swaps += 1;
                }
            }
            swaps
        });
        for _ in 0..by_depth(4, 20, 200) {
            let mut renew = ca.issue(&[NAME, &config, "--deploy=one", "--force"]);
            let output = renew.output().unwrap();
            let code = output.status.code().unwrap();
            assert!([0, 7, 8].contains(&code), "{code}: {}", text(&output));
            *codes.entry(code).or_insert(0) += 1;
        }
        ended.store(true, Ordering::Relaxed);
        swaps = swap.join().unwrap();
    });
    eprintln!("a race for a directory copy: {swaps} swaps, exit codes {codes:?}");
    assert_eq!(snapshot(&ca.path("other")), before);
    run(
        &mut ca.issue(&[NAME, &config, "--deploy=one", "--force"]),
        0,
    );
}

#[test]
fn file_copy_follows_no_link_of_another_user() {
    let Some(ca) = issued("links at a copy", &[]) else {
        return;
    };
    let config = copies(
        &ca,
        "[deploy.copy]\nkind = 'file'\npath = 'ROOT/app/tls/pair.pem'\nowner = '4000321'\n\
         [deploy.watched]\nkind = 'traefik'\nfile = 'ROOT/app/tls/pair.yaml'\n",
    );
    let (app, tls, secret) = (ca.path("app"), ca.path("app/tls"), ca.path("shadow"));
    std::fs::create_dir_all(&tls).unwrap();
    std::fs::write(&secret, "root's own").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    for directory in [&app, &tls] {
        chown(directory, Some(CONSUMER), Some(CONSUMER)).unwrap();
    }
    let issue = |target: &str| ca.issue(&[NAME, &config, target, "--force"]);
    let (copy, watched) = (|| issue("--deploy=copy"), || issue("--deploy=watched"));
    run(&mut copy(), 0);
    assert_eq!(owner(&tls.join("pair.pem")), (CONSUMER, 0, 0o640));
    // Its parent.
    let precious = precious(&ca);
    link_over(&tls, &precious);
    let what = "a link that another user can replace";
    for mut command in [copy(), watched()] {
        is_refused(&mut command, &tls, what, &precious);
    }
    // Root's own link is followed.
    chown(&app, Some(0), Some(0)).unwrap();
    std::fs::remove_file(&tls).unwrap();
    symlink(tls.with_extension("before"), &tls).unwrap();
    run(&mut copy(), 0);
    // The file itself, and its temporary name.
    for (name, mut command) in [("pair.pem", copy()), ("pair.yaml", watched())] {
        let place = tls.join(name);
        let _ = std::fs::remove_file(&place);
        symlink(&secret, &place).unwrap();
        is_refused(&mut command, &place, "a symbolic link", &secret);
        std::fs::remove_file(&place).unwrap();
        mknodat(CWD, &place, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
        is_refused(&mut command, &place, "a named pipe", &secret);
        std::fs::remove_file(&place).unwrap();
    }
    let before = snapshot(&secret);
    for made in ["ln", "ln -s"] {
        let command = copy();
        let made = format!(
            "{made} {} {}/.pair.pem.new-$$ && exec \"$0\" \"$@\"",
            secret.display(),
            tls.display()
        );
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &made]).arg(command.get_program());
        shell.args(command.get_args()).env_clear();
        let set = command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        run(shell.envs(set).env("PATH", "/usr/bin:/bin"), 0);
        assert_eq!(snapshot(&secret), before, "{made}");
    }
}

#[test]
fn webroot_follows_no_link_and_opens_no_existing_directory() {
    let Some(ca) = issued("links in a webroot", &[]) else {
        return;
    };
    let precious = precious(&ca);
    let webroot = ca.path("www");
    std::fs::create_dir(&webroot).unwrap();
    chown(&webroot, Some(NOBODY), Some(NOBODY)).unwrap();
    let issue = || {
        let mut command = crate::support::certs(&ca.path(""));
        command.args(["issue", NAME, "--force", "--agree-tos", "--ca"]);
        command.arg(ca.server.directory_url());
        command.arg("--ca-root").arg(ca.path("root.pem"));
        command.arg("--webroot").arg(&webroot);
        command
    };
    let known = webroot.join(".well-known");
    symlink(&precious, &known).unwrap();
    is_refused(&mut issue(), &known, "a symbolic link", &precious);
    std::fs::remove_file(&known).unwrap();
    std::fs::create_dir(&known).unwrap();
    let challenges = known.join("acme-challenge");
    symlink(&precious, &challenges).unwrap();
    is_refused(&mut issue(), &challenges, "a symbolic link", &precious);
}
