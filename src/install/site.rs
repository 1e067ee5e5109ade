//! A whole site for the common deployment: a single-page front end at `/`, a back
//! end at `/api`, CORS for a list of origins, TLS, HTTP/2, HSTS and gzip. A pure
//! function from options to text. Variables have the site's name in theirs: they are
//! global in nginx, and two sites must not share them.

use std::path::{Path, PathBuf};

use super::InstallError;
use super::plan::{POLICY, challenge_location};
use super::syntax::quoted;
use crate::fingerprint::Fingerprint;

/// The first version with an `http2` directive.
const HTTP2_DIRECTIVE: (u32, u32, u32) = (1, 25, 1);
/// Two years, as the preload list requires.
const HSTS: &str = "add_header Strict-Transport-Security \"max-age=63072000\" always;";
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// The options of a site.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Its host names, the certificate's name first.
    pub names: Vec<String>,
    /// The files of the front end.
    pub root: PathBuf,
    /// The URL of the back end.
    pub api: String,
    /// The origins that may call the back end from a browser.
    pub origins: Vec<String>,
    /// The directory of the pair.
    pub live: PathBuf,
    /// The directory for challenge answers.
    pub webroot: PathBuf,
    /// 80, except in tests.
    pub http_port: u16,
    /// 443, except in tests.
    pub https_port: u16,
    /// Whether this machine has IPv6.
    pub has_ipv6: bool,
    /// nginx's version.
    pub version: (u32, u32, u32),
}

/// Checks an origin as a browser sends it.
///
/// # Errors
/// [`InstallError::Refused`] with the origin.
pub(crate) fn check_origin(text: &str) -> Result<(), InstallError> {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let is_of_host =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
    match host {
        Some(host) if !host.is_empty() && host.bytes().all(is_of_host) => Ok(()),
        _ => Err(InstallError::refused(
            format!("--cors-origin: invalid origin `{}`", text.escape_debug()),
            "write it as the browser sends it: https://app.example.com, lower case, no path, no `*`",
        )),
    }
}

/// Checks the back end's URL.
///
/// # Errors
/// [`InstallError::Refused`] with the URL.
pub(crate) fn check_api(text: &str) -> Result<(), InstallError> {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let is_of_url = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:/[]~%".contains(&byte);
    match host {
        Some(host) if !host.is_empty() && host.bytes().all(is_of_url) => Ok(()),
        _ => Err(InstallError::refused(
            format!("--api: invalid URL `{}`", text.escape_debug()),
            "write it as http://127.0.0.1:8080; a path in it replaces /api",
        )),
    }
}

impl Site {
    /// The text of the file.
    #[must_use]
    pub(crate) fn text(&self) -> String {
        let mut page = Page::default();
        page.line("# Written by certs install nginx --site; yours to edit.");
        self.maps(&mut page);
        self.plain(&mut page);
        self.tls(&mut page);
        page.0
    }

    /// A suffix for variables: the first name and a hash, which tells `a-b.c` from `a.b-c`.
    fn slug(&self) -> String {
        let name = self.names.first().map_or("", |name| name.as_str());
        let hash = Fingerprint::of(name.as_bytes()).to_string();
        let plain = |letter: char| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '_'
            }
        };
        let plain: String = name.chars().map(plain).collect();
        format!("{plain}_{}", hash.get(..6).unwrap_or_default())
    }

    fn maps(&self, page: &mut Page) {
        let slug = self.slug();
        page.open(&format!("map $http_upgrade $certs_upgrade_{slug} {{"));
        page.line("default upgrade;");
        page.line("\"\" \"\";");
        page.close();
        if self.origins.is_empty() {
            return;
        }
        // Regular expressions, since long texts do not fit nginx's hash by default.
        for (variable, value) in [("origin", "$http_origin"), ("credentials", "true")] {
            page.open(&format!("map $http_origin $certs_{variable}_{slug} {{"));
            page.line("default \"\";");
            for origin in &self.origins {
                let escaped: String = origin.chars().map(escaped).collect();
                page.line(&format!("\"~^{escaped}$\" {value};"));
            }
            page.close();
        }
        page.open(&format!(
            "map \"$request_method:$http_access_control_request_method\" $certs_preflight_{slug} {{"
        ));
        page.line("default 0;");
        page.line("\"~^OPTIONS:.\" 1;");
        page.close();
    }

    fn listen(&self, page: &mut Page, port: u16, more: &str) {
        page.line(&format!("listen {port}{more};"));
        if self.has_ipv6 {
            page.line(&format!("listen [::]:{port}{more};"));
        }
    }

    fn plain(&self, page: &mut Page) {
        page.open("server {");
        self.listen(page, self.http_port, "");
        page.line(&format!("server_name {};", self.names.join(" ")));
        page.lines(&challenge_location(&self.webroot, "    "));
        page.open("location / {");
        let port = match self.https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        page.line(&format!("return 308 https://$host{port}$request_uri;"));
        page.close();
        page.close();
    }

    fn tls(&self, page: &mut Page) {
        page.open("server {");
        if self.version >= HTTP2_DIRECTIVE {
            self.listen(page, self.https_port, " ssl");
            page.line("http2 on;");
        } else {
            self.listen(page, self.https_port, " ssl http2");
        }
        page.line(&format!("server_name {};", self.names.join(" ")));
        let file = |name: &str| quoted(&self.live.join(name).to_string_lossy());
        page.line(&format!("ssl_certificate {};", file("fullchain.pem")));
        page.line(&format!("ssl_certificate_key {};", file("privkey.pem")));
        for (name, value) in POLICY {
            page.line(&format!("{name} {value};"));
        }
        page.line("server_tokens off;");
        page.line(HSTS);
        self.gzip(page);
        self.front_end(page);
        self.back_end(page);
        page.close();
    }

    fn gzip(&self, page: &mut Page) {
        for line in [
            "gzip on;",
            "gzip_vary on;",
            "gzip_proxied any;",
            "gzip_min_length 1024;",
            "gzip_types text/plain text/css text/javascript application/javascript application/json application/manifest+json application/wasm image/svg+xml;",
        ] {
            page.line(line);
        }
    }

    fn front_end(&self, page: &mut Page) {
        page.line(&format!("root {};", quoted(&self.root.to_string_lossy())));
        page.line("index index.html;");
        page.line("# A path without a file is a page of the application.");
        page.open("location / {");
        page.line("try_files $uri $uri/ /index.html;");
        page.line("add_header Cache-Control \"no-cache\";");
        page.line(HSTS);
        page.close();
        page.line(
            "# A hash in the name: the content never changes. A missing file is an error 404.",
        );
        let kinds = "(?:js|mjs|css|map|wasm|woff2?|png|jpe?g|gif|svg|webp|avif|ico)";
        let hashed = format!(
            "\"^/(?:assets|static|_next/static)/.*[.-][0-9A-Za-z_-]{{8,}}\\.{kinds}$|[.-](?=[0-9A-Za-z_]*[0-9])[0-9A-Za-z_]{{8,}}\\.{kinds}$\""
        );
        page.open(&format!("location ~ {hashed} {{"));
        page.line("try_files $uri =404;");
        page.line("add_header Cache-Control \"public, max-age=31536000, immutable\";");
        page.line(HSTS);
        page.close();
    }

    fn back_end(&self, page: &mut Page) {
        let with_path = self
            .api
            .split_once("://")
            .is_some_and(|(_, rest)| rest.contains('/'));
        let api = self.api.trim_end_matches('/');
        let (exact, below) = if with_path {
            // A path in the URL replaces /api.
            let exact = if api.matches('/').count() > 2 {
                api.to_owned()
            } else {
                format!("{api}/")
            };
            (exact, format!("{api}/"))
        } else {
            (api.to_owned(), api.to_owned())
        };
        for (location, upstream) in [("= /api", exact), ("^~ /api/", below)] {
            page.open(&format!("location {location} {{"));
            self.cors(page);
            self.proxy(page, &upstream);
            page.close();
        }
    }

    fn cors(&self, page: &mut Page) {
        page.line(HSTS);
        if self.origins.is_empty() {
            return;
        }
        let slug = self.slug();
        let common = [
            // nginx sends no header with an empty value: other origins get none.
            format!("add_header Access-Control-Allow-Origin $certs_origin_{slug} always;"),
            format!(
                "add_header Access-Control-Allow-Credentials $certs_credentials_{slug} always;"
            ),
            "add_header Vary Origin always;".to_owned(),
        ];
        page.lines(&common);
        page.open(&format!("if ($certs_preflight_{slug}) {{"));
        page.lines(&common);
        page.line(&format!(
            "add_header Access-Control-Allow-Methods \"{METHODS}\" always;"
        ));
        page.line(
            "add_header Access-Control-Allow-Headers $http_access_control_request_headers always;",
        );
        page.line("add_header Access-Control-Max-Age 7200 always;");
        page.line("return 204;");
        page.close();
        for header in ["Origin", "Credentials"] {
            // With the back end's own there would be two, which browsers refuse.
            page.line(&format!("proxy_hide_header Access-Control-Allow-{header};"));
        }
    }

    fn proxy(&self, page: &mut Page, upstream: &str) {
        page.line(&format!("proxy_pass {upstream};"));
        page.line("proxy_http_version 1.1;");
        for (name, value) in [
            ("Host", "$host"),
            ("X-Real-IP", "$remote_addr"),
            // This is the edge: the client's own value is not trusted.
            ("X-Forwarded-For", "$remote_addr"),
            ("X-Forwarded-Proto", "$scheme"),
            ("X-Forwarded-Host", "$host"),
            ("Upgrade", "$http_upgrade"),
        ] {
            page.line(&format!("proxy_set_header {name} {value};"));
        }
        page.line(&format!(
            "proxy_set_header Connection $certs_upgrade_{};",
            self.slug()
        ));
        page.line("proxy_connect_timeout 5s;");
        page.line("proxy_send_timeout 60s;");
        page.line("# A WebSocket that is idle for longer is closed.");
        page.line("proxy_read_timeout 300s;");
        page.line("client_max_body_size 10m;");
    }
}

fn escaped(letter: char) -> String {
    match letter {
        '.' | '[' | ']' | '-' => format!("\\{letter}"),
        other => other.to_string(),
    }
}

/// The path for a site beside `main`: sites-available, with a link in sites-enabled, if
/// both exist as on Debian, else conf.d.
#[must_use]
pub(crate) fn usual_place(main: &Path, name: &str) -> (PathBuf, Option<PathBuf>) {
    let base = main.parent().unwrap_or(Path::new("/"));
    let file = format!("{}.conf", name.replace("*.", "_wildcard_."));
    let (available, enabled) = (base.join("sites-available"), base.join("sites-enabled"));
    if available.is_dir() && enabled.is_dir() {
        (available.join(&file), Some(enabled.join(file)))
    } else {
        (base.join("conf.d").join(file), None)
    }
}

/// Indented lines.
#[derive(Default)]
struct Page(String, usize);

impl Page {
    fn line(&mut self, line: &str) {
        self.0
            .push_str(&format!("{}{line}\n", "    ".repeat(self.1)));
    }

    fn lines(&mut self, lines: &[String]) {
        lines.iter().for_each(|line| self.line(line));
    }

    fn open(&mut self, line: &str) {
        self.line(line);
        self.1 += 1;
    }

    fn close(&mut self) {
        self.1 = self.1.saturating_sub(1);
        self.line("}");
    }
}
