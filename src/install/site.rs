//! A whole site for the common deployment: a single-page front end at `/`, a back
//! end at `/api`, CORS for a list of origins, TLS, HTTP/2, HSTS and gzip. A pure
//! function from options to text. Variables have the site's name in theirs: they are
//! global in nginx, and two sites must not share them.

use std::path::{Path, PathBuf};

use super::plan::{POLICY, challenge_location, shown_port};
use super::syntax::quoted;
use crate::failure::Failure;
use crate::fingerprint::Fingerprint;

/// The first version with an `http2` directive.
const HTTP2_DIRECTIVE: (u32, u32, u32) = (1, 25, 1);
/// Two years, as the preload list requires.
const HSTS: &str = "add_header Strict-Transport-Security \"max-age=63072000\" always;";
/// The endings of files that a build names by a hash of their content.
const KINDS: &str = "(?:js|mjs|css|map|wasm|woff2?|png|jpe?g|gif|svg|webp|avif|ico)";

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
    /// Whether a CA has issued the pair. No client may keep a redirect to another one.
    pub is_issued: bool,
}

/// Checks an origin as a browser sends it.
pub(crate) fn check_origin(text: &str) -> Result<(), Failure> {
    let is_of_host =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
    let hint =
        "write it as the browser sends it: https://app.example.com, lower case, no path, no `*`";
    check_url("--cors-origin: invalid origin", text, is_of_host, hint)
}

/// Checks the back end's URL.
pub(crate) fn check_api(text: &str) -> Result<(), Failure> {
    let is_of_url = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:/[]~%".contains(&byte);
    let hint = "write it as http://127.0.0.1:8080; a path in it replaces /api";
    check_url("--api: invalid URL", text, is_of_url, hint)
}

fn check_url(
    invalid: &str,
    text: &str,
    may_have: impl Fn(u8) -> bool,
    hint: &str,
) -> Result<(), Failure> {
    let mut schemes = ["https://", "http://"].into_iter();
    let rest = schemes.find_map(|scheme| text.strip_prefix(scheme));
    match rest {
        Some(rest) if !rest.is_empty() && rest.bytes().all(may_have) => Ok(()),
        _ => Err(Failure::usage(
            format!("{invalid} `{}`", text.escape_debug()),
            hint,
        )),
    }
}

/// The whole file. `@maps@` is [`MAPS`], `@api@` is [`API`] twice.
const SITE: &str = r#"# Written by certs install nginx --site; yours to edit.
map $http_upgrade $certs_upgrade_@slug@ {
    default upgrade;
    "" "";
}
@maps@server {
@plain@    server_name @names@;
@challenges@    location / {
        return @code@ https://$host@port@$request_uri;
    }
}
server {
@tls@    server_name @names@;
    ssl_certificate @chain@;
    ssl_certificate_key @key@;
@policy@    server_tokens off;
    @hsts@
    gzip on;
    gzip_vary on;
    gzip_proxied any;
    gzip_min_length 1024;
    gzip_types text/plain text/css text/javascript application/javascript application/json application/manifest+json application/wasm image/svg+xml;
    root @root@;
    index index.html;
    # A path without a file is a page of the application.
    location / {
        try_files $uri $uri/ /index.html;
        add_header Cache-Control "no-cache";
        @hsts@
    }
    # A hash in the name: the content never changes. A missing file is an error 404.
    location ~ "^/(?:assets|static|_next/static)/.*[.-][0-9A-Za-z_-]{8,}\.@kinds@$|[.-](?=[0-9A-Za-z_]*[0-9])[0-9A-Za-z_]{8,}\.@kinds@$" {
        try_files $uri =404;
        add_header Cache-Control "public, max-age=31536000, immutable";
        @hsts@
    }
@api@}
"#;

/// Regular expressions, since long texts do not fit nginx's hash by default.
const MAPS: &str = r#"map $http_origin $certs_origin_@slug@ {
    default "";
@origins@}
map $http_origin $certs_credentials_@slug@ {
    default "";
@credentials@}
map "$request_method:$http_access_control_request_method" $certs_preflight_@slug@ {
    default 0;
    "~^OPTIONS:." 1;
}
"#;

/// `@cors@` is [`CORS`]. This is the edge: the client's own X-Forwarded-For is not trusted.
const API: &str = r#"    location @location@ {
        @hsts@
@cors@        proxy_pass @upstream@;
        proxy_http_version 1.1;
        proxy_set_header Host $host;
        proxy_set_header X-Real-IP $remote_addr;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $certs_upgrade_@slug@;
        proxy_connect_timeout 5s;
        proxy_send_timeout 60s;
        # A WebSocket that is idle for longer is closed.
        proxy_read_timeout 300s;
        client_max_body_size 10m;
    }
"#;

/// nginx sends no header with an empty value: other origins get none. The back end's own
/// headers are hidden, since browsers refuse two.
const CORS: &str = r#"        add_header Access-Control-Allow-Origin $certs_origin_@slug@ always;
        add_header Access-Control-Allow-Credentials $certs_credentials_@slug@ always;
        add_header Vary Origin always;
        if ($certs_preflight_@slug@) {
            add_header Access-Control-Allow-Origin $certs_origin_@slug@ always;
            add_header Access-Control-Allow-Credentials $certs_credentials_@slug@ always;
            add_header Vary Origin always;
            add_header Access-Control-Allow-Methods "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS" always;
            add_header Access-Control-Allow-Headers $http_access_control_request_headers always;
            add_header Access-Control-Max-Age 7200 always;
            return 204;
        }
        proxy_hide_header Access-Control-Allow-Origin;
        proxy_hide_header Access-Control-Allow-Credentials;
"#;

/// `template` with each `@name@` replaced by its value.
fn filled(template: &str, values: &[(&str, &str)]) -> String {
    let value = |name: &str| {
        let mut values = values.iter();
        values
            .find(|(known, _)| *known == name)
            .map_or("", |(_, value)| value)
    };
    let parts = template.split('@').enumerate();
    let parts = parts.map(|(index, part)| if index % 2 == 0 { part } else { value(part) });
    parts.collect()
}

fn indented(lines: impl IntoIterator<Item = String>) -> String {
    let lines = lines.into_iter();
    lines.map(|line| format!("    {line}\n")).collect()
}

impl Site {
    /// The text of the file.
    #[must_use]
    pub(crate) fn text(&self) -> String {
        let file = |name: &str| quoted(&self.live.join(name).to_string_lossy());
        let tls = match self.version >= HTTP2_DIRECTIVE {
            true => self.listen(self.https_port, " ssl") + "    http2 on;\n",
            false => self.listen(self.https_port, " ssl http2"),
        };
        let policy = POLICY.map(|(name, value)| format!("{name} {value};"));
        let slug = self.slug();
        let origins = map_of(&self.origins, "$http_origin");
        let credentials = map_of(&self.origins, "true");
        let maps = [
            ("origins", &*origins),
            ("credentials", &credentials),
            ("slug", &slug),
        ];
        let maps = match self.origins.is_empty() {
            true => String::new(),
            false => filled(MAPS, &maps),
        };
        filled(
            SITE,
            &[
                ("slug", &slug),
                ("maps", &maps),
                ("plain", &self.listen(self.http_port, "")),
                ("names", &self.names.join(" ")),
                ("challenges", &indented(challenge_location(&self.webroot))),
                ("code", if self.is_issued { "308" } else { "307" }),
                ("port", &shown_port(self.https_port)),
                ("tls", &tls),
                ("chain", &file("fullchain.pem")),
                ("key", &file("privkey.pem")),
                ("policy", &indented(policy)),
                ("hsts", HSTS),
                ("root", &quoted(&self.root.to_string_lossy())),
                ("kinds", KINDS),
                ("api", &self.back_end(&slug)),
            ],
        )
    }

    /// A suffix for variables: the first name and a hash, which tells `a-b.c` from `a.b-c`.
    fn slug(&self) -> String {
        let name = self.names.first().map_or("", |name| name.as_str());
        let hash = Fingerprint::of(name.as_bytes()).to_string();
        let plain = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
        format!("{plain}_{}", hash.get(..6).unwrap_or_default())
    }

    fn listen(&self, port: u16, more: &str) -> String {
        let v6 = self.has_ipv6.then(|| format!("listen [::]:{port}{more};"));
        indented([format!("listen {port}{more};")].into_iter().chain(v6))
    }

    fn back_end(&self, slug: &str) -> String {
        let rest = self.api.split_once("://").map_or("", |(_, rest)| rest);
        let api = self.api.trim_end_matches('/');
        // A path in the URL replaces /api.
        let below = if rest.contains('/') { "/" } else { "" };
        let has_path = rest.trim_end_matches('/').contains('/');
        let exact = if has_path { "" } else { below };
        let cors = match self.origins.is_empty() {
            true => String::new(),
            false => filled(CORS, &[("slug", slug)]),
        };
        let locations = [("= /api", exact), ("^~ /api/", below)];
        let locations = locations.map(|(location, end)| {
            let upstream = format!("{api}{end}");
            let values = [
                ("location", location),
                ("hsts", HSTS),
                ("cors", &cors),
                ("upstream", &upstream),
                ("slug", slug),
            ];
            filled(API, &values)
        });
        locations.concat()
    }
}

fn map_of(origins: &[String], value: &str) -> String {
    let lines = origins.iter().map(|origin| {
        let escaped: String = origin.chars().map(escaped).collect();
        format!("\"~^{escaped}$\" {value};")
    });
    indented(lines)
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
