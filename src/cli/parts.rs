//! Options and environment, resolved once into the parts of a flow. The
//! command line wins, then `CERTS_…`, then the default.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::args::{Global, Issue};
use super::output::Failure;
use crate::acme::{self, AccountOptions, Client, Https};
use crate::challenge::Solver;
use crate::challenge::http01::Listener;
use crate::challenge::responses::Responses;
use crate::challenge::webroot::Webroot;
use crate::deploy::Target;
use crate::deploy::nginx::Nginx;
use crate::deploy::output::Output;
use crate::deploy::verify::Endpoint;
use crate::identifier::{Identifier, Lineage};
use crate::manage::{Certificate, Parts, Wanted};
use crate::random::SystemRandom;
use crate::store::fs::FileStore;
use crate::time::SystemClock;

const CAS: [(&str, &str); 8] = [
    (
        "letsencrypt",
        "https://acme-v02.api.letsencrypt.org/directory",
    ),
    (
        "letsencrypt-staging",
        "https://acme-staging-v02.api.letsencrypt.org/directory",
    ),
    ("zerossl", "https://acme.zerossl.com/v2/DV90"),
    ("google", "https://dv.acme-v02.api.pki.goog/directory"),
    (
        "google-staging",
        "https://dv.acme-v02.test-api.pki.goog/directory",
    ),
    ("actalis", "https://acme-api.actalis.com/acme/directory"),
    ("sslcom-rsa", "https://acme.ssl.com/sslcom-dv-rsa"),
    ("sslcom-ecc", "https://acme.ssl.com/sslcom-dv-ecc"),
];

/// `CERTS_…`, with `CERTS_…_FILE` read in its stead.
pub(super) struct Environment<'a>(pub(super) &'a BTreeMap<String, String>);

impl Environment<'_> {
    fn value(&self, name: &str) -> Result<Option<String>, Failure> {
        if let Some(value) = self.0.get(name) {
            return Ok(Some(value.clone()).filter(|value| !value.is_empty()));
        }
        let file_name = format!("{name}_FILE");
        let Some(file) = self.0.get(&file_name) else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|error| {
            Failure::usage(
                format!("{file_name}: {file}: {error}"),
                "name a readable file",
            )
        })?;
        Ok(Some(text.trim().to_owned()).filter(|value| !value.is_empty()))
    }

    fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Failure>
    where
        T::Err: std::fmt::Display,
    {
        self.value(name)?
            .map(|text| {
                text.parse().map_err(|error| {
                    Failure::usage(
                        format!("{name}=`{}`: {error}", text.escape_debug()),
                        "correct the variable, or unset it",
                    )
                })
            })
            .transpose()
    }

    fn list<T>(&self, name: &str, given: &[T]) -> Result<Vec<T>, Failure>
    where
        T: FromStr + Clone,
        T::Err: std::fmt::Display,
    {
        if !given.is_empty() {
            return Ok(given.to_vec());
        }
        let text = self.value(name)?.unwrap_or_default();
        text.split([' ', ',', '\n'])
            .filter(|part| !part.is_empty())
            .map(|part| {
                part.parse().map_err(|error| {
                    Failure::usage(
                        format!("{name}: `{}`: {error}", part.escape_debug()),
                        "correct the variable, or unset it",
                    )
                })
            })
            .collect()
    }
}

/// Where the private state lies.
pub(super) fn data_dir(
    global: &Global,
    environment: &BTreeMap<String, String>,
) -> Result<PathBuf, Failure> {
    if let Some(given) = &global.data_dir {
        return Ok(given.clone());
    }
    if let Some(given) = Environment(environment).value("CERTS_DATA_DIR")? {
        return Ok(given.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/certs".into());
    }
    let base = environment
        .get("XDG_DATA_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    let base = base.or_else(|| {
        environment
            .get("HOME")
            .map(|home| PathBuf::from(home).join(".local/share"))
    });
    base.map(|base| base.join("certs")).ok_or_else(|| {
        Failure::usage(
            "there is no place for the private state",
            "give --data-dir DIR",
        )
    })
}

/// Opens the store.
pub(super) fn open_store(
    global: &Global,
    environment: &BTreeMap<String, String>,
) -> Result<(FileStore, PathBuf), Failure> {
    let directory = data_dir(global, environment)?;
    let store =
        FileStore::open(directory.clone()).map_err(|error| Failure::of("store", &error.into()))?;
    Ok((store, directory))
}

/// The parts for one command line: what to work on, with what, and the
/// listener that must be served meanwhile.
pub(super) fn build(
    global: &Global,
    options: &Issue,
    environment: &BTreeMap<String, String>,
) -> Result<(Vec<Certificate>, Parts, Option<Listener>), Failure> {
    let variables = Environment(environment);
    let ca = directory(
        options
            .ca
            .clone()
            .map_or_else(|| variables.value("CERTS_CA"), |ca| Ok(Some(ca)))?,
    )?;
    let wanted = wanted(options, &variables, &ca)?;
    let deploy = variables.list::<String>("CERTS_DEPLOY", &options.deploy)?;
    let targets = deploy
        .iter()
        .map(|spec| target(spec))
        .collect::<Result<Vec<_>, _>>()?;
    let verify = variables.list::<String>("CERTS_VERIFY", &options.verify)?;
    let endpoints = verify
        .iter()
        .map(|text| endpoint(text))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(kind) = variables
        .value("CERTS_CHALLENGE")?
        .filter(|kind| kind != "http-01")
    {
        return Err(Failure::usage(
            format!("CERTS_CHALLENGE=`{}` is not known", kind.escape_debug()),
            "http-01 is",
        ));
    }
    let account = account(options, &variables, &ca)?;
    let roots = roots(options, &variables)?;
    let (solver, listener) = solver(options, &variables)?;
    let (store, directory) = open_store(global, environment)?;
    let refused = |message| Failure::usage(message, "see --ca and --ca-root");
    let client = Client::new(acme::Options {
        directory: ca,
        account,
        exchange: Arc::new(Https::new(roots.as_deref()).map_err(refused)?),
        solvers: vec![solver],
        clock: Arc::new(SystemClock),
        observer: Arc::new(()),
        preferred_chain: None,
    })
    .map_err(refused)?;
    let output_dir = match (&global.output_dir, variables.value("CERTS_OUTPUT_DIR")?) {
        (Some(given), _) => given.clone(),
        (None, Some(given)) => given.into(),
        (None, None) => directory.join("public"),
    };
    let parts = Parts {
        store: Arc::new(store),
        output: Arc::new(Output::new(output_dir)),
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
        metrics: crate::observe::Metrics::default(),
        spacing: crate::manage::SPACING,
        maintenance: None,
    };
    let issuer: Arc<dyn crate::acme::Issuer> = Arc::new(client);
    let certificates = wanted
        .into_iter()
        .map(|wanted| Certificate {
            wanted,
            issuer: issuer.clone(),
            targets: targets.clone(),
            endpoints: endpoints.clone(),
        })
        .collect();
    Ok((certificates, parts, listener))
}

fn directory(ca: Option<String>) -> Result<String, Failure> {
    let ca = ca.unwrap_or_else(|| "letsencrypt".to_owned());
    if let Some((_, url)) = CAS.iter().find(|(name, _)| *name == ca) {
        return Ok((*url).to_owned());
    }
    if ca.starts_with("https://") && ca.parse::<http::Uri>().is_ok() {
        return Ok(ca);
    }
    let names = CAS.map(|(name, _)| name).join(", ");
    Err(Failure::usage(
        format!("`{}` is no CA", ca.escape_debug()),
        format!("give an https:// directory URL or one of {names}"),
    ))
}

fn wanted(options: &Issue, variables: &Environment<'_>, ca: &str) -> Result<Vec<Wanted>, Failure> {
    let groups: Vec<Vec<Identifier>> = if options.names.is_empty() {
        let text = variables.value("CERTS_DOMAINS")?.unwrap_or_default();
        let groups = text
            .split(';')
            .map(str::trim)
            .filter(|group| !group.is_empty());
        groups.map(parse_group).collect::<Result<_, _>>()?
    } else {
        vec![options.names.clone()]
    };
    if groups.is_empty() {
        return Err(Failure::usage(
            "no name is given",
            "certs issue example.com, or CERTS_DOMAINS=\"example.com www.example.com\"",
        ));
    }
    if groups.len() > 1 && options.name.is_some() {
        return Err(Failure::usage(
            "--name is for one certificate, and there are several",
            "leave it out",
        ));
    }
    let public = CAS.iter().any(|(_, url)| *url == ca);
    let profile = options.profile.clone().map_or_else(
        || variables.value("CERTS_PROFILE"),
        |profile| Ok(Some(profile)),
    )?;
    groups
        .into_iter()
        .map(|group| one_wanted(options, &group, ca, public, profile.clone()))
        .collect()
}

fn parse_group(group: &str) -> Result<Vec<Identifier>, Failure> {
    group
        .split([' ', ',', '\n', '\t'])
        .filter(|name| !name.is_empty())
        .map(|name| {
            Identifier::parse(name).map_err(|error| {
                Failure::usage(format!("CERTS_DOMAINS: {error}"), "correct the name")
            })
        })
        .collect()
}

fn one_wanted(
    options: &Issue,
    group: &[Identifier],
    ca: &str,
    public: bool,
    profile: Option<String>,
) -> Result<Wanted, Failure> {
    for identifier in group {
        if public && let Err(error) = identifier.require_public() {
            return Err(Failure::usage(
                error.to_string(),
                "use a public name, or a private CA with --ca https://…",
            ));
        }
        if identifier.is_wildcard() {
            let message = format!("{identifier}: HTTP-01 cannot prove a wildcard");
            return Err(Failure::usage(message, "list the names one by one"));
        }
    }
    let first = group
        .first()
        .ok_or_else(|| Failure::usage("a certificate without a name", "remove the empty group"))?;
    let identifiers: BTreeSet<_> = group.iter().cloned().collect();
    if identifiers.len() != group.len() {
        return Err(Failure::usage(
            "a name is given twice",
            "give each name once",
        ));
    }
    Ok(Wanted {
        lineage: options.name.clone().unwrap_or_else(|| Lineage::of(first)),
        identifiers,
        ca: ca.to_owned(),
        profile,
        key: options.key,
        reuse_key: false,
    })
}

fn target(spec: &str) -> Result<Arc<dyn Target>, Failure> {
    match spec.split_once(':') {
        None if spec == "nginx" => Ok(Arc::new(Nginx::new(None))),
        Some(("nginx", pid_file)) if !pid_file.is_empty() => {
            Ok(Arc::new(Nginx::new(Some(pid_file.into()))))
        }
        _ => Err(Failure::usage(
            format!("`{}` is no way to hand over", spec.escape_debug()),
            "nginx or nginx:/path/to/nginx.pid are; other servers read the files below live/",
        )),
    }
}

fn endpoint(text: &str) -> Result<Endpoint, Failure> {
    text.parse()
        .map_err(|message: String| Failure::usage(message, "for example --verify example.com:443"))
}

fn account(
    options: &Issue,
    variables: &Environment<'_>,
    ca: &str,
) -> Result<AccountOptions, Failure> {
    let email = options
        .email
        .clone()
        .map_or_else(|| variables.value("CERTS_EMAIL"), |email| Ok(Some(email)))?;
    let agreed = options.agree_tos
        || variables
            .parsed::<bool>("CERTS_AGREE_TOS")?
            .unwrap_or(false);
    if !agreed && CAS.iter().any(|(_, url)| *url == ca) {
        return Err(Failure::usage(
            "the CA's terms of service are not agreed to",
            "read them, then add --agree-tos or set CERTS_AGREE_TOS=true",
        ));
    }
    Ok(AccountOptions {
        email,
        terms_agreed: agreed,
        external: None,
    })
}

fn roots(options: &Issue, variables: &Environment<'_>) -> Result<Option<Vec<u8>>, Failure> {
    let path = options
        .ca_root
        .clone()
        .map_or_else(|| variables.parsed("CERTS_CA_ROOT"), |path| Ok(Some(path)))?;
    path.map(|path| {
        std::fs::read(&path).map_err(|error| {
            Failure::usage(
                format!("--ca-root {}: {error}", path.display()),
                "name a PEM file",
            )
        })
    })
    .transpose()
}

fn solver(
    options: &Issue,
    variables: &Environment<'_>,
) -> Result<(Arc<dyn Solver>, Option<Listener>), Failure> {
    if let Some(webroot) = &options.webroot {
        if !webroot.is_dir() {
            return Err(Failure::usage(
                format!("--webroot {} is not a directory", webroot.display()),
                "name the one that port 80 is served from",
            ));
        }
        return Ok((Arc::new(Webroot::new(webroot.clone())), None));
    }
    let given = variables.list::<SocketAddr>("CERTS_HTTP_LISTEN", &options.http_listen)?;
    let everywhere = [
        (Ipv4Addr::UNSPECIFIED, 80).into(),
        (Ipv6Addr::UNSPECIFIED, 80).into(),
    ];
    let responses = Responses::default();
    let bound = if given.is_empty() {
        // A machine without IPv6 has only the first.
        Listener::bind(&everywhere, responses.clone()).or_else(|error| {
            if error.address.is_ipv6() {
                Listener::bind(&everywhere[..1], responses.clone())
            } else {
                Err(error)
            }
        })
    } else {
        Listener::bind(&given, responses.clone())
    };
    let listener = bound.map_err(|error| Failure::usage(error.to_string(), error.hint()))?;
    Ok((Arc::new(responses), Some(listener)))
}
