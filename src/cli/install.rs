//! `certs install nginx`: adds TLS to an existing nginx, or a whole site, and undoes
//! it.

mod draft;
mod issuing;
mod proof;
mod stages;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use super::catalog::as_stored;
use super::output::{say, say_json};
use super::{Call, meant};
use crate::challenge::ChallengeSettings;
use crate::config::{ISSUE, KeyOptions, Settings};
use crate::deploy::target::DeployTarget;
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::install::journal::{Journals, Undone};
use crate::install::program::{Patience, Program, forget_copy};
use crate::install::tree::{Overlay, Tree};
use crate::lineage::Known;
use crate::text::shell_word;

/// Without a progress line, a command of nginx is named after this time.
const SLOW: &str = ": 5 s";

/// The server to configure.
#[derive(Debug, Subcommand)]
pub(super) enum Install {
    /// Obtain a certificate through nginx, add TLS to its configuration, verify it, and then redirect port 80
    #[command(
        after_help = "Without --agree-tos or another option of certs issue nothing is ordered: the block gets a \
        self-signed certificate, and no redirect until certs issue has stored one and this command has run again. \
        What nginx does not serve as planned is undone; a redirect that something else prevents is named (exit code 7). \
        nginx -t may take as long as `timeout` in the [deploy.NAME] of nginx says, 2 minutes by default.\n\n\
        Example: certs install nginx --domain www.example.com --agree-tos --email you@example.com"
    )]
    Nginx(NginxOptions),
}

#[derive(Debug, Args)]
pub(super) struct NginxOptions {
    /// The server block, by one of its names (default: the only one with a name)
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// nginx's main file (default: from nginx -V)
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,
    /// Undo every install (with --domain or --conf only those): restores each file's old content; files edited since are kept and named
    #[arg(long, conflicts_with = "site")]
    undo: bool,
    /// The nginx program
    #[arg(long, value_name = "FILE", default_value = "nginx")]
    nginx: PathBuf,
    /// Write a whole site: a single-page front end at /, a back end at /api
    #[arg(long, requires = "domain", requires = "root")]
    site: bool,
    /// --site: the files of the front end
    #[arg(long, value_name = "DIR", requires = "site")]
    root: Option<PathBuf>,
    /// --site: the back end of /api; a path in the URL replaces /api
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    api: String,
    /// --site: an origin that may call /api from a browser, with credentials (repeatable)
    #[arg(long, value_name = "URL", requires = "site")]
    cors_origin: Vec<String>,
    /// --site: the file (default: sites-available/NAME.conf with its link, or conf.d/NAME.conf)
    #[arg(long, value_name = "FILE", requires = "site")]
    file: Option<PathBuf>,
    /// Another port than 80, for tests
    #[arg(long, value_name = "N", default_value_t = 80, hide = true)]
    http_port: u16,
    /// Another port than 443, for tests
    #[arg(long, value_name = "N", default_value_t = 443, hide = true)]
    https_port: u16,
    /// As for certs issue; --webroot is DATA_DIR-webroot by default
    #[command(flatten)]
    pub(super) keys: KeyOptions<ISSUE>,
}

impl NginxOptions {
    /// The options that choose the nginx, each with a blank before it.
    pub(super) fn repeated(&self) -> Vec<String> {
        let word = |path: &Path| shell_word(&path.to_string_lossy());
        let nginx = self.nginx.as_path();
        let nginx = (nginx != Path::new("nginx")).then(|| format!(" --nginx {}", word(nginx)));
        let conf = self.conf.as_deref();
        let conf = conf.map(|conf| format!(" --conf {}", word(conf)));
        nginx.into_iter().chain(conf).collect()
    }
}

pub(super) async fn run(call: &Call, verb: Install) -> Result<(), Failure> {
    let Install::Nginx(options) = verb;
    let settings = call.sources.process_settings()?;
    let work = Work {
        call,
        options: &options,
        settings: &settings,
        journals: Journals::new(&settings.data_dir),
    };
    match options.undo {
        true => work.undo().await,
        false => work.install().await,
    }
}

struct Work<'a> {
    call: &'a Call,
    options: &'a NginxOptions,
    settings: &'a Settings,
    journals: Journals,
}

impl Work<'_> {
    async fn program(&self) -> Result<Program, Failure> {
        let directories = self.call.environment.get("PATH");
        let directories = directories.map_or("", String::as_str);
        Program::read(&self.options.nginx, directories, self.patience()?).await
    }

    /// As long as the configured nginx targets allow, else as long as such a target does.
    fn patience(&self) -> Result<Patience, Failure> {
        let usual: DeployTarget = "nginx".parse().map_err(Failure::unexpected)?;
        let tables = self.call.sources.tables();
        let own = tables
            .iter()
            .filter(|one| matches!(one, DeployTarget::Nginx(_)));
        let within = own.map(DeployTarget::deadline).max();
        let terminal = self.call.terminal.clone();
        Ok(Patience {
            within: within.unwrap_or(usual.deadline()),
            show: Arc::new(move |text| match terminal.shows_progress() {
                true => terminal.show(text.to_owned()),
                false if text.ends_with(SLOW) => tracing::info!("{text}"),
                false => {}
            }),
        })
    }

    async fn undo(&self) -> Result<(), Failure> {
        let main = self.options.conf.as_deref().map(absolute);
        let domain = self.options.domain.as_deref().map(|name| {
            let parsed = Identifier::parse(name).map(|name| name.to_string());
            parsed.unwrap_or_else(|_| name.to_ascii_lowercase())
        });
        let _lock = self.journals.lock()?;
        let undone = self.journals.undo(domain.as_deref(), main.as_deref())?;
        let data_dir = self.settings.data_dir.display();
        let selected = domain.map(|domain| format!(" of {domain}"));
        let selected = selected.or_else(|| Some(format!(" in {}", main.as_ref()?.display())));
        if let (true, Some(selected)) = (undone.is_empty(), &selected) {
            return Err(Failure::usage(
                format!(
                    "nothing to undo{selected}: no install with the data directory {data_dir} has changed it"
                ),
                "repeat the command with the --data-dir of the install; without --domain and --conf it undoes all of them",
            ));
        }
        let program = self.program().await;
        let mains: BTreeSet<&PathBuf> = undone.iter().map(|one| &one.subject.main).collect();
        let mut reloaded = Vec::new();
        for main in mains {
            forget_copy(main);
            reloaded.push(match &program {
                Ok(program) => {
                    program.test(main).await.is_ok() && program.reload(main).await.is_ok()
                }
                Err(_) => false,
            });
        }
        if self.call.json {
            let restored: Vec<_> = undone
                .iter()
                .map(|one| json!({"name": one.subject.name, "files": one.files}))
                .collect();
            say_json(json!({"undone": restored, "reloaded": reloaded}));
            self.forget(&undone).await;
            return Ok(());
        }
        let restored = undone.iter().flat_map(|one| {
            let files = one.files.iter();
            files.map(|file| (file, &one.subject.name))
        });
        // An install has several stages.
        for (file, name) in restored.collect::<BTreeSet<_>>() {
            let file = file.display();
            say(format_args!("{file}: restored as it was before {name}"));
        }
        match (undone.is_empty(), reloaded.iter().all(|done| *done)) {
            (true, _) => say(format_args!(
                "nothing to undo: no install with the data directory {data_dir}"
            )),
            (false, true) => say("nginx was reloaded"),
            (false, false) => say("nginx is not running or failed to reload: see nginx -t"),
        }
        self.forget(&undone).await;
        self.say_renewed(&undone).await
    }

    /// Deploys to nginx no longer what its configuration no longer names: nothing is expected
    /// to be served there.
    async fn forget(&self, undone: &[Undone]) {
        let names: BTreeSet<&str> = undone.iter().map(|one| &*one.subject.name).collect();
        let stored = as_stored(&self.call.sources, self.settings);
        for mut settings in stored {
            let live = absolute(&self.settings.output_of(&settings).directory);
            let live = live.join("live").join(settings.lineage.as_str());
            let is_named = |one: &Undone| {
                let tree = Tree::load(&one.subject.main, &Overlay::new());
                tree.is_ok_and(|tree| tree.names(&live))
            };
            let count = settings.deploy.len();
            let is_nginx = |one: &DeployTarget| matches!(one, DeployTarget::Nginx(_));
            settings.deploy.retain(|one| !is_nginx(one));
            let is_undone = names.contains(settings.lineage.as_str());
            if !is_undone || settings.deploy.len() == count || undone.iter().any(is_named) {
                continue;
            }
            let lineage = settings.lineage.clone();
            let mut process = self.settings.clone();
            process.certificates = vec![settings];
            if let Err(failure) = self.redeployed(&process).await {
                tracing::warn!(%lineage, "still deployed to nginx: {}", failure.in_a_line());
            }
        }
    }

    /// Names the certificates that are still kept, and what their renewals lack: nginx no longer
    /// answers from the directory of the install.
    async fn say_renewed(&self, undone: &[Undone]) -> Result<(), Failure> {
        let stored = meant::stored(&self.settings.data_dir)?;
        let is_of = |known: &&Known| {
            let mut names = undone.iter().map(|one| &one.subject.name);
            names.any(|name| *name == known.lineage.as_str())
        };
        let made_with = as_stored(&self.call.sources, self.settings);
        for known in stored.iter().filter(is_of) {
            let name = &known.lineage;
            let mut settings = made_with.iter();
            let made_with = settings.find(|one| one.lineage == *name);
            let webroot = made_with.and_then(|one| match &one.challenge {
                ChallengeSettings::Webroot(_) => one.challenge.writes_in().into_iter().next(),
                _ => None,
            });
            let line = kept(known, webroot);
            say(self.call.terminal.hint(&line));
        }
        Ok(())
    }
}

/// What is kept after an undo, and what its renewals lack that were answered in `webroot`.
fn kept(known: &Known, webroot: Option<&Path>) -> String {
    let name = &known.lineage;
    let Some(webroot) = webroot else {
        return format!(
            "{name}: the certificate is still renewed; to stop that: certs delete {name}"
        );
    };
    let names = known
        .wanted
        .iter()
        .map(|name| shell_word(&name.to_string()));
    let names = names.collect::<Vec<_>>().join(" ");
    let webroot = webroot.display();
    format!(
        "{name}: the next renewal fails unless nginx answers /.well-known/acme-challenge/ from {webroot}: for the webroot \
         of another location: certs issue {names} --webroot DIR; to end the certificate: certs delete {name}"
    )
}

fn identifier(name: &str) -> Result<Identifier, Failure> {
    Identifier::parse(name)
        .map_err(|error| Failure::usage(format!("--domain: {error}"), error.hint()))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::Lineage;

    #[test]
    fn undo_names_what_renewals_lack() {
        let names = ["example.com", "www.example.com"].map(|name| Identifier::parse(name).unwrap());
        let known = Known {
            lineage: Lineage::of(&names[0]),
            wanted: names.into(),
            issued: BTreeSet::new(),
            is_second: false,
            kinds: Vec::new(),
        };
        let answered = kept(&known, Some(Path::new("/var/lib/certs-webroot")));
        for words in [
            "renewal fails unless nginx answers /.well-known/acme-challenge/ from /var/lib/certs-webroot",
            "certs issue example.com www.example.com --webroot DIR;",
            "certs delete example.com",
        ] {
            assert!(answered.contains(words), "{answered}");
        }
        let by_dns = kept(&known, None);
        assert!(by_dns.contains("still renewed"), "{by_dns}");
    }
}
