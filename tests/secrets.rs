//! Keys exist only in their files: not in any output at any log level, not in the replies of the endpoints,
//! and not in the memory of an idle sidecar.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::support::{Running, certs, free_port, text, until};

/// A P-256 key in PKCS#8, and its file.
#[derive(Clone)]
struct Key {
    from: PathBuf,
    der: Vec<u8>,
}

impl Key {
    /// The secret part; the rest of the DER is public or the same for all keys.
    fn scalar(&self) -> (usize, &[u8]) {
        const BEFORE: [u8; 5] = [2, 1, 1, 4, 32];
        let mut windows = self.der.windows(BEFORE.len());
        let start = windows.position(|window| window == BEFORE).unwrap() + BEFORE.len();
        (start, &self.der[start..start + 32])
    }

    /// Every encoding in which output may reveal it.
    fn forms(&self) -> BTreeSet<Vec<u8>> {
        let (start, scalar) = self.scalar();
        let hexadecimal: String = scalar.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{scalar:?}");
        let list = list.trim_matches(['[', ']']);
        // Base64 of the whole key, from the first group with only bytes of the scalar.
        let groups = &self.der[start.next_multiple_of(3)..][..24];
        let mut forms =
            BTreeSet::from([scalar.to_vec(), list.into(), list.replace(' ', "").into()]);
        forms.extend([hexadecimal.to_uppercase().into(), hexadecimal.into()]);
        for part in [groups, scalar] {
            forms.insert(BASE64_STANDARD_NO_PAD.encode(&part[..24]).into());
            forms.insert(BASE64_URL_SAFE_NO_PAD.encode(&part[..24]).into());
        }
        forms
    }

    fn count(&self, printed: &[u8]) -> usize {
        // PEM has line breaks, which JSON escapes.
        let escaped = replace(printed, b"\\n", b"");
        let joined: Vec<u8> = escaped
            .iter()
            .copied()
            .filter(|byte| *byte != b'\n')
            .collect();
        let forms = self.forms();
        let in_each = [printed, &joined].map(|printed| {
            forms
                .iter()
                .map(|form| occurrences(printed, form))
                .sum::<usize>()
        });
        in_each[0].max(in_each[1])
    }
}

fn replace(text: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let (mut made, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some(at) = find(rest, what) {
        made.extend_from_slice(&rest[..at]);
        made.extend_from_slice(with);
        rest = &rest[at + what.len()..];
    }
    made.extend_from_slice(rest);
    made
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    // Searches for the first byte first: tests are not optimized, and the memory is large.
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|byte| *byte == what[0]) {
        if text[from + at..].starts_with(what) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

fn occurrences(text: &[u8], what: &[u8]) -> usize {
    let (mut count, mut rest) = (0, text);
    while let Some(at) = find(rest, what) {
        count += 1;
        rest = &rest[at + what.len()..];
    }
    count
}

/// Every key below `root`: of certificates, accounts and the CA.
fn keys(root: &Path) -> Vec<Key> {
    let (mut folders, mut keys) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let from = entry.unwrap().path();
            if from.is_dir() {
                folders.push(from);
            } else if let Some(der) = key_in(&from) {
                keys.push(Key { from, der });
            }
        }
    }
    keys
}

fn key_in(file: &Path) -> Option<Vec<u8>> {
    let text = std::fs::read_to_string(file).ok()?;
    if let Ok(key) = PrivateKeyDer::from_pem_slice(text.as_bytes()) {
        return Some(key.secret_der().to_vec());
    }
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    let key = json.get("key_pkcs8")?.as_str()?;
    Some(BASE64_URL_SAFE_NO_PAD.decode(key).unwrap())
}

#[test]
fn key_search_finds_every_encoding() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let (der, pem) = (pair.serialize_der(), pair.serialize_pem());
    let key = Key {
        from: PathBuf::new(),
        der,
    };
    let (_, scalar) = key.scalar();
    let hexadecimal: String = scalar.iter().map(|byte| format!("{byte:02x}")).collect();
    for printed in [
        key.der.clone(),
        serde_json::json!({ "key": pem }).to_string().into(),
        format!("{pem:?}").into(),
        pem.into(),
        format!("{:?}", key.der).into(),
        serde_json::to_vec(&key.der).unwrap(),
        hexadecimal.into(),
        BASE64_STANDARD.encode(&key.der).into(),
        BASE64_URL_SAFE_NO_PAD.encode(&key.der).into(),
        serde_json::json!({ "d": BASE64_URL_SAFE_NO_PAD.encode(scalar) })
            .to_string()
            .into(),
    ] {
        let surrounded = [b"before ", printed.as_slice(), b" after"].concat();
        assert_eq!(
            key.count(&surrounded),
            1,
            "{}",
            String::from_utf8_lossy(&printed)
        );
    }
    let public = pair.public_key_pem() + &format!("{:?}", pair.public_key_raw());
    assert_eq!(key.count(public.as_bytes()), 0);
}

/// A sidecar and commands that share its data directory.
struct Installation {
    directory: tempfile::TempDir,
    http: u16,
    admin: u16,
    format: &'static str,
}

impl Installation {
    fn new(format: &'static str) -> Self {
        let (directory, http, admin) = (tempfile::tempdir().unwrap(), free_port(), free_port());
        Self {
            directory,
            http,
            admin,
            format,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = certs(self.directory.path());
        command
            .args(arguments)
            .args(["-v", "-v"])
            .env("CERTS_DOMAINS", "example.com")
            .env("CERTS_CA", "embedded")
            .env("CERTS_LOG_FORMAT", self.format)
            .env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{}", self.admin))
            .env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{}", self.http));
        command
    }

    fn start(&self) -> Running {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let running = Running::start_logging(&mut self.command(&["run"]), log.into());
        until("the certificate", || {
            let live = std::fs::read_link(self.path("out/live/example.com"));
            live.is_ok_and(|target| target.ends_with("0001"))
        });
        until("readiness", || {
            self.ask("GET /readyz").starts_with("HTTP/1.1 200")
        });
        running
    }

    fn ask(&self, request: &str) -> String {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin));
        stream.map_or_else(
            |error| error.to_string(),
            |stream| send_request(stream, request, ""),
        )
    }

    /// Damages a file while a command runs, and restores it.
    fn with_damaged_file(&self, file: &Path, content: &str, command: &mut Command) -> String {
        let sound = std::fs::read(file).unwrap();
        std::fs::write(file, content).unwrap();
        let printed = text(&command.output().unwrap());
        std::fs::write(file, sound).unwrap();
        printed
    }
}

fn send_request(mut stream: impl Read + Write, request: &str, body: &str) -> String {
    let length = body.len();
    let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    let typed = "Content-Type: application/json\r\n";
    write!(
        stream,
        "{head}{typed}Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    String::from_utf8_lossy(&reply).into_owned()
}

fn all_output(installation: &Installation) -> String {
    let running = installation.start();
    let mut printed = String::new();
    for path in [
        "/",
        "/metrics",
        "/api/v1/certificates",
        "/healthz",
        "/readyz",
        "/x",
    ] {
        printed += &installation.ask(&format!("GET {path}"));
        printed += &installation.ask(&format!("POST {path}"));
    }
    for (request, body) in [
        ("GET /", ""),
        ("GET /v1/work", ""),
        ("POST /v1/work", "{"),
        ("POST /v1/work", "{\"certificate\": {}, \"task\": 1}"),
    ] {
        let socket = UnixStream::connect(installation.path("data/admin.sock")).unwrap();
        printed += &send_request(socket, request, body);
    }
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["config", "check", "--json"],
        &["issue", "example.com", "--json"],
        &["issue", "example.com", "--force"],
        &["issue", "other.example.com", "--dry-run"],
        &["issue", "other.example.com", "--reuse-key"],
        &["renew", "--force", "--json"],
    ] {
        printed += &text(&installation.command(arguments).output().unwrap());
    }
    drop(running);
    printed += &std::fs::read_to_string(installation.path("log")).unwrap();
    printed
}

fn all_output_with_damage(installation: &Installation) -> String {
    let mut printed = String::new();
    let records = installation.path("data/records");
    let other = records.join("other.example.com/0001/privkey.pem");
    let other = std::fs::read_to_string(other).unwrap();
    let mut accounts = std::fs::read_dir(installation.path("data/accounts")).unwrap();
    let account = accounts.next().unwrap().unwrap().path();
    let live = installation.path("out/live/example.com");
    let newest = std::fs::read_link(&live).unwrap();
    let newest = records
        .join("example.com")
        .join(newest.file_name().unwrap());
    let of_key = &["issue", "--reuse-key", "--force"][..];
    for (file, forced) in [
        (newest.join("privkey.pem"), &["status", "--json"][..]),
        (live.join("privkey.pem"), &["status"]),
        (account, of_key),
    ] {
        let sound = std::fs::read_to_string(&file).unwrap();
        for content in [&sound[..sound.len() / 2], &sound.replace('M', "!"), &other] {
            for arguments in [&["issue"], forced] {
                printed += &installation.with_damaged_file(
                    &file,
                    content,
                    &mut installation.command(arguments),
                );
            }
        }
    }
    // A renewal that would reuse a damaged key.
    let key = newest.join("privkey.pem");
    let half = other.split_at(other.len() / 2).0;
    std::fs::write(key, half).unwrap();
    printed += &text(&installation.command(of_key).output().unwrap());
    printed
}

#[test]
fn keys_never_appear_in_any_output() {
    for format in ["text", "json"] {
        let installation = Installation::new(format);
        let mut printed = all_output(&installation);
        let mut keys = keys(&installation.path("data"));
        printed += &all_output_with_damage(&installation);
        keys.extend(self::keys(&installation.path("data")));
        for kind in ["records", "accounts", "ca"] {
            let of_kind = installation.path("data").join(kind);
            assert!(
                keys.iter().any(|key| key.from.starts_with(&of_kind)),
                "no key of {kind}"
            );
        }
        // The output includes debug logs, endpoints and commands.
        for words in [
            "DEBUG",
            "certs_certificate_not_after",
            "generation_served",
            "hint",
        ] {
            assert!(printed.contains(words), "nothing said `{words}`: {printed}");
        }
        for key in &keys {
            assert_eq!(
                key.count(printed.as_bytes()),
                0,
                "{}: {printed}",
                key.from.display()
            );
        }
    }
}

/// The writable memory of process `id`.
#[test]
fn credentials_of_a_certificate_are_stored_and_never_shown() {
    let installation = Installation::new("text");
    let closed = format!("127.0.0.1:{}", free_port());
    let (proxy, hook) = (
        format!("http://user:hunter-of-proxy@{closed}"),
        format!("https://user:hunter-of-hook@{closed}/hunter-of-path"),
    );
    let mut issue = installation.command(&["issue", "shown.example.com", "--dns", "rfc2136"]);
    issue
        .args(["--deploy", &hook, "--proxy", &proxy])
        .env("CERTS_DNS_RFC2136_SERVER", &closed)
        .env("CERTS_DNS_RFC2136_TSIG_NAME", "key")
        .env("CERTS_DNS_RFC2136_TSIG_SECRET", "aHVudGVyLW9mLWRucw==");
    // No server takes the record.
    let mut printed = text(&issue.output().unwrap());
    let stored = installation.path("data/records/shown.example.com/options.json");
    let stored = std::fs::read_to_string(stored).unwrap();
    for arguments in [
        &["status", "shown.example.com"][..],
        &["status", "shown.example.com", "--json"],
        &["status", "--json"],
        &["renew", "shown.example.com"],
        &["delete", "shown.example.com", "--yes"],
    ] {
        printed += &text(&installation.command(arguments).output().unwrap());
    }
    assert!(printed.contains("tsig_secret"), "{printed}");
    for secret in [
        "aHVudGVyLW9mLWRucw==",
        "hunter-of-proxy",
        "hunter-of-hook",
        "hunter-of-path",
    ] {
        assert!(stored.contains(secret), "{secret}: {stored}");
        assert!(!printed.contains(secret), "{secret}: {printed}");
    }
}

fn memory(id: u32) -> Vec<u8> {
    let maps = std::fs::read_to_string(format!("/proc/{id}/maps")).unwrap();
    let mut memory = std::fs::File::open(format!("/proc/{id}/mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, mode) = (fields.next().unwrap(), fields.next().unwrap());
        if !mode.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
        memory.seek(SeekFrom::Start(start)).unwrap();
        let mut region = vec![0; usize::try_from(end - start).unwrap()];
        // Some kernel mappings cannot be read.
        if memory.read_exact(&mut region).is_ok() {
            all.append(&mut region);
        }
    }
    all
}

#[test]
fn idle_sidecar_holds_no_certificate_key() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: keys in memory: only root may read a process's memory");
        return;
    }
    let installation = Installation::new("text");
    let running = installation.start();
    let (placeholder, issued) = ("archive/example.com/0000", "archive/example.com/0001");
    let keys_of = |part: &str| keys(&installation.path("out").join(part));
    let accounts = keys(&installation.path("data/accounts"));
    let count = |key: &Key, memory: &[u8]| {
        // The library stores numbers with the lowest byte first.
        let (_, scalar) = key.scalar();
        let number: Vec<u8> = scalar.iter().rev().copied().collect();
        key.count(memory) + occurrences(memory, &number)
    };
    // The sidecar's memory settles shortly after it is ready.
    until("a memory without a certificate's key", || {
        let memory = memory(running.id());
        // The sidecar signs with this key, so its memory must contain it.
        assert_eq!(accounts.len(), 1);
        assert!(count(&accounts[0], &memory) > 0);
        let keys = [keys_of(placeholder), keys_of(issued)].concat();
        assert!(keys.len() >= 2);
        keys.iter().all(|key| count(key, &memory) == 0)
    });
}
