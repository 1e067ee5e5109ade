//! The programming interfaces of DNS providers, at the addresses that those have: a proxy that
//! answers for every host itself, with a certificate of its own. What they change is changed at
//! BIND.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::bind::Bind;

pub(crate) const TOKEN: &str = "the-token-of-the-tests";
const ZONE: &str = "example.com";
const HOSTS: [&str; 5] = [
    "api.cloudflare.com",
    "api.digitalocean.com",
    "desec.io",
    "api.hetzner.cloud",
    "pdns.example.net",
];

pub(crate) struct Apis {
    pub(crate) proxy: String,
    pub(crate) root: PathBuf,
    zone: Arc<Mutex<Zone>>,
    _directory: TempDir,
}

/// The TXT values by their names, and how BIND gets them.
struct Zone {
    values: BTreeMap<String, BTreeSet<String>>,
    nsupdate: Box<dyn Fn(&str) + Send>,
}

impl Zone {
    fn set(&mut self, name: &str, values: BTreeSet<String>) {
        let before = self
            .values
            .insert(name.to_owned(), values.clone())
            .unwrap_or_default();
        let lines = before
            .difference(&values)
            .map(|value| format!("update delete {name} TXT {value}\n"));
        let added = values
            .difference(&before)
            .map(|value| format!("update add {name} 1 TXT {value}\n"));
        let lines: String = lines.chain(added).collect();
        if !lines.is_empty() {
            (self.nsupdate)(&lines);
        }
    }

    fn of(&self, name: &str) -> BTreeSet<String> {
        self.values.get(name).cloned().unwrap_or_default()
    }
}

impl Apis {
    pub(crate) fn start(bind: &Bind, nsupdate: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(HOSTS.map(str::to_owned)).unwrap();
        let root = directory.path().join("root.pem");
        std::fs::write(&root, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider);
        let config = config
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        let config = Arc::new(
            config
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap(),
        );
        let (server, script) = (bind.address, directory.path().join("update"));
        let key = format!("hmac-sha256:{}:{}", super::bind::KEY, super::bind::SECRET);
        let nsupdate = Box::new(move |lines: &str| {
            std::fs::write(&script, format!("server {server}\n{lines}send\n")).unwrap();
            let changed = Command::new(&nsupdate)
                .args(["-y", &key])
                .arg(&script)
                .output()
                .unwrap();
            assert!(changed.status.success(), "{}", super::text(&changed));
        });
        let values = BTreeMap::new();
        let zone = Arc::new(Mutex::new(Zone { values, nsupdate }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let shared = zone.clone();
        // It ends with the process of the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, zone) = (config.clone(), shared.clone());
                std::thread::spawn(move || serve(stream.unwrap(), config, &zone));
            }
        });
        Self {
            proxy,
            root,
            zone,
            _directory: directory,
        }
    }

    /// Lets the command reach them, and its CA without the proxy.
    pub(crate) fn configure<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("HTTPS_PROXY", &self.proxy)
            .env("NO_PROXY", "localhost,127.0.0.1")
            .env("SSL_CERT_FILE", &self.root)
    }

    /// Whether every value was removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.zone
            .lock()
            .unwrap()
            .values
            .values()
            .all(BTreeSet::is_empty)
    }
}

/// The requests of one connection; a client may close it at any time.
fn serve(mut stream: TcpStream, config: Arc<ServerConfig>, zone: &Mutex<Zone>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let Ok(1) = stream.read(&mut byte) else {
            return;
        };
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let host = head.split([' ', ':']).nth(1).unwrap().to_owned();
    assert!(
        head.starts_with("CONNECT ") && HOSTS.contains(&host.as_str()),
        "{head}"
    );
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let connection = ServerConnection::new(config).unwrap();
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    loop {
        let (mut first, mut length, mut is_known) = (String::new(), 0, false);
        if stream.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap(),
                "authorization" | "x-api-key" => is_known = value.trim().ends_with(TOKEN),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (status, reply) = match is_known {
            true => reply(&host, method, path, query, &body, &mut zone.lock().unwrap()),
            false => (401, json!({"error": "unknown token"})),
        };
        let reply = if status == 204 {
            String::new()
        } else {
            reply.to_string()
        };
        let head = format!(
            "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            reply.len()
        );
        let stream = stream.get_mut();
        if stream
            .write_all((head + &reply).as_bytes())
            .and_then(|()| stream.flush())
            .is_err()
        {
            return;
        }
    }
}

fn bare(value: &str) -> String {
    value.trim_matches('"').to_owned()
}

fn texts(list: &Value, member: Option<&str>) -> BTreeSet<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|one| bare(member.map_or(one, |member| &one[member]).as_str().unwrap()))
        .collect()
}

/// What each provider's documentation says.
fn reply(
    host: &str,
    method: &str,
    path: &str,
    query: &str,
    body: &Value,
    zone: &mut Zone,
) -> (u16, Value) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let fqdn = |name: &str| format!("{name}.{ZONE}");
    let asked = || {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix("name="))
            .unwrap()
            .to_owned()
    };
    match (host, method, parts.as_slice()) {
        ("api.cloudflare.com", "GET", ["client", "v4", "zones"]) => {
            let zones = json!([{"id": "z1", "name": ZONE}]);
            (
                200,
                json!({"success": true, "errors": [], "result": zones, "result_info": {"total_count": 3}}),
            )
        }
        ("api.cloudflare.com", _, ["client", "v4", "zones", "z1", "dns_records", rest @ ..]) => {
            let result = match (method, rest) {
                ("GET", []) => {
                    let name = asked();
                    let all = zone.of(&name).into_iter().map(|value| {
                        json!({"id": format!("{name}|{value}"), "type": "TXT", "name": name, "content": format!("\"{value}\"")})
                    });
                    all.collect()
                }
                ("POST", []) => {
                    let (name, mut all) = (
                        body["name"].as_str().unwrap(),
                        zone.of(body["name"].as_str().unwrap()),
                    );
                    all.insert(bare(body["content"].as_str().unwrap()));
                    zone.set(name, all);
                    json!({})
                }
                ("DELETE", [id]) => {
                    let id = id.replace("%7C", "|");
                    let (name, value) = id.split_once('|').unwrap();
                    let mut all = zone.of(name);
                    all.remove(value);
                    zone.set(name, all);
                    json!({})
                }
                other => panic!("{other:?}"),
            };
            (
                200,
                json!({"success": true, "errors": [], "result": result}),
            )
        }
        ("api.digitalocean.com", "GET", ["v2", "domains"]) => (200, json!({"meta": {"total": 1}})),
        ("api.digitalocean.com", "GET", ["v2", "domains", ZONE, "records"]) => {
            let name = asked();
            let all = zone.of(&name).into_iter().enumerate().map(|(id, value)| {
                json!({"id": id, "ttl": 60, "type": "TXT", "name": name.strip_suffix(".example.com"), "data": value})
            });
            (200, json!({"domain_records": Vec::from_iter(all)}))
        }
        ("api.digitalocean.com", "POST", ["v2", "domains", ZONE, "records"]) => {
            let name = fqdn(body["name"].as_str().unwrap());
            let mut all = zone.of(&name);
            all.insert(bare(body["data"].as_str().unwrap()));
            zone.set(&name, all);
            (201, json!({"domain_record": {}}))
        }
        ("api.digitalocean.com", "DELETE", ["v2", "domains", ZONE, "records", id]) => {
            let name = fqdn("_acme-challenge");
            let gone = zone.of(&name).into_iter().nth(id.parse().unwrap()).unwrap();
            let mut all = zone.of(&name);
            all.remove(&gone);
            zone.set(&name, all);
            (204, json!(null))
        }
        ("desec.io", "GET", ["api", "v1", "domains", ZONE]) => (200, json!({"name": ZONE})),
        ("desec.io", _, ["api", "v1", "domains", ZONE, "rrsets", rest @ ..]) => {
            let name = fqdn(rest.first().copied().or(body["subname"].as_str()).unwrap());
            match method {
                "GET" if zone.of(&name).is_empty() => {
                    return (404, json!({"detail": "Not found."}));
                }
                "DELETE" => zone.set(&name, BTreeSet::new()),
                "POST" | "PUT" => zone.set(&name, texts(&body["records"], None)),
                _ => {}
            }
            let values = zone
                .of(&name)
                .into_iter()
                .map(|value| format!("\"{value}\""));
            let rrset = json!({"created": "", "domain": ZONE, "subname": "", "name": name, "touched": "",
                "records": Vec::from_iter(values), "ttl": 3600, "type": "TXT"});
            if method == "DELETE" {
                (204, rrset)
            } else {
                (200, rrset)
            }
        }
        ("api.hetzner.cloud", "GET", ["v1", "zones"]) => {
            (200, json!({"meta": {"pagination": {"total_entries": 2}}}))
        }
        (
            "api.hetzner.cloud",
            "POST",
            [
                "v1",
                "zones",
                ZONE,
                "rrsets",
                name,
                "TXT",
                "actions",
                action,
            ],
        ) => {
            let name = fqdn(name);
            let (mut all, given) = (zone.of(&name), body["records"].clone());
            match *action {
                "add_records" => all.extend(texts(&given, Some("value"))),
                "remove_records" => {
                    all.retain(|value| !texts(&given, Some("value")).contains(value))
                }
                "change_ttl" => {}
                other => panic!("{other}"),
            }
            zone.set(&name, all);
            (201, json!({"action": {}}))
        }
        ("pdns.example.net", "GET", ["api", "v1", "servers", "localhost", "zones", _]) => {
            let rrsets = zone.values.iter().filter(|(_, values)| !values.is_empty()).map(|(name, values)| {
                let records = values.iter().map(|value| json!({"content": format!("\"{value}\""), "disabled": false}));
                json!({"name": format!("{name}."), "type": "TXT", "ttl": 60, "records": Vec::from_iter(records)})
            });
            (
                200,
                json!({"name": "example.com.", "rrsets": Vec::from_iter(rrsets)}),
            )
        }
        ("pdns.example.net", "PATCH", ["api", "v1", "servers", "localhost", "zones", _]) => {
            let change = &body["rrsets"][0];
            let name = change["name"]
                .as_str()
                .unwrap()
                .trim_end_matches('.')
                .to_owned();
            let values = match change["changetype"].as_str() {
                Some("DELETE") => BTreeSet::new(),
                _ => texts(&change["records"], Some("content")),
            };
            zone.set(&name, values);
            (204, json!(null))
        }
        other => panic!("{other:?}"),
    }
}
