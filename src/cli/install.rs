//! `certs install nginx`: adds TLS to an existing nginx, or a whole site, and undoes
//! it.

mod draft;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use self::draft::Draft;
use super::Call;
use super::factory::outputs_for;
use super::output::{say, say_json};
use crate::config::Settings;
use crate::deploy::Outlet;
use crate::failure::Failure;
use crate::files::beneath::Directory;
use crate::files::trust;
use crate::identifier::Identifier;
use crate::install::answer::wait_for_answer;
use crate::install::journal::{Journals, Subject};
use crate::install::plan::InstallPlan;
use crate::install::program::Program;
use crate::install::tree::Overlay;
use crate::lineage::Lineage;
use crate::time::{Clock, SystemClock};

/// The server to configure.
#[derive(Debug, Subcommand)]
pub(super) enum Install {
    /// Add TLS, the challenge location and the redirect to nginx's configuration, after nginx -t accepts them
    #[command(after_help = "Example: certs install nginx --domain www.example.com")]
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
    /// The directory for challenge answers (default DATA_DIR-webroot): nginx serves them, certs issue --webroot writes them
    #[arg(long, value_name = "DIR")]
    webroot: Option<PathBuf>,
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
}

pub(super) fn run(call: &Call, verb: Install) -> Result<(), Failure> {
    let Install::Nginx(options) = verb;
    let settings = call.sources.process_settings()?;
    let work = Work {
        call,
        options: &options,
        settings: &settings,
        journals: Journals::new(&settings.data_dir),
    };
    match options.undo {
        true => work.undo(),
        false => work.install(),
    }
}

struct Work<'a> {
    call: &'a Call,
    options: &'a NginxOptions,
    settings: &'a Settings,
    journals: Journals,
}

impl Work<'_> {
    fn install(&self) -> Result<(), Failure> {
        if let Some(name) = &self.options.domain {
            identifier(name)?;
        }
        let program = self.program()?;
        let main = absolute(self.options.conf.as_ref().unwrap_or(&program.main));
        trust::resolve(&main)?;
        let _lock = self.journals.lock()?;
        if self.journals.recover()? {
            tracing::warn!("an install that was cut off has been undone");
        }
        program.test(&main).map_err(|error| {
            let main = main.display();
            Failure::usage(
                format!("nginx refuses {main} as it is; nothing was changed:\n{error}"),
                "fix the reported error first, or name another main file with --conf FILE",
            )
        })?;
        let draft = match self.options.site {
            true => self.site(&program, &main)?,
            false => self.edits(&main)?,
        };
        if draft.changes.is_empty() && draft.links.is_empty() {
            self.report(&draft, None);
            return Ok(());
        }
        let made = self.prepare(&draft.plan)?;
        let overlay = self.overlay(&draft);
        let scratch = self.journals.scratch()?;
        let rehearsed = program.rehearse(&main, &overlay, &scratch);
        // Leftovers are harmless: each rehearsal starts with an empty directory.
        let _ = std::fs::remove_dir_all(&scratch);
        rehearsed?;
        let subject = Subject {
            name: draft.plan.name.clone(),
            names: draft.plan.names.clone(),
            main: main.clone(),
        };
        let written = self.journals.write(subject, &draft.changes, &draft.links);
        written?;
        // The rehearsal used a copy, where relative paths may resolve differently.
        if let Err(error) = program.test(&main) {
            self.journals.undo_newest()?;
            return Err(Failure::usage(
                format!("nginx refuses the new configuration; it was undone:\n{error}"),
                "report this with the configuration: nginx accepted a copy of it",
            ));
        }
        tracing::debug!(placeholder = made, "written");
        let reloaded = program.reload(&main);
        let mut draft = draft;
        if reloaded.is_ok() {
            draft.plan.notes.extend(self.unanswered(&draft.plan));
        }
        self.report(&draft, Some(reloaded));
        Ok(())
    }

    /// Why a CA would not see an answer of the reloaded nginx, as far as that shows here.
    fn unanswered(&self, plan: &InstallPlan) -> Option<String> {
        let (webroot, port) = (plan.webroot.as_deref()?, self.options.http_port);
        let host = plan.name.replacen("*.", "certs-probe.", 1);
        let found = wait_for_answer(webroot, &host, port);
        let found = found.unwrap_or_else(|error| Some(error.to_string()))?;
        Some(format!(
            "a challenge for {} on port {port} is not answered from {}: {found}; another server block or rule is in the way",
            plan.name,
            webroot.display()
        ))
    }

    fn program(&self) -> Result<Program, Failure> {
        let directories = self.call.environment.get("PATH");
        Program::read(&self.options.nginx, directories.map_or("", String::as_str))
    }

    /// The new content by the path through which nginx reads it: the link, if there is one.
    fn overlay(&self, draft: &Draft) -> Overlay {
        let mut overlay = BTreeMap::new();
        for change in &draft.changes {
            let link = draft.links.iter().find(|link| link.target == change.path);
            let path = link.map_or(&change.path, |link| &link.path);
            overlay.insert(path.clone(), change.content.clone());
        }
        overlay
    }

    /// Creates the paths that the new configuration names, before nginx reads it.
    fn prepare(&self, plan: &InstallPlan) -> Result<bool, Failure> {
        if let Some(webroot) = &plan.webroot {
            Directory::make(webroot, 0o755).map_err(|error| {
                let message = format!("{}: {error}", webroot.display());
                let hint = "name a writable directory with --webroot DIR";
                Failure::of_file(&error, message, hint)
            })?;
        }
        let names = plan.names.iter();
        let names = names.filter_map(|name| Identifier::parse(name).ok());
        let lineage = Lineage::of(&identifier(&plan.name)?);
        let output = outputs_for(self.settings)?;
        let made = output.placeholder(&lineage, &names.collect(), SystemClock.now());
        made.map_err(|error| Failure::output(error.to_string(), error.hint()))
    }

    fn report(&self, draft: &Draft, reloaded: Option<Result<(), String>>) {
        let plan = &draft.plan;
        let issued = identifier(&plan.name)
            .and_then(|name| self.pair(&name))
            .is_ok_and(|pair| pair.is_issued);
        let next = (!issued).then(|| self.next(plan));
        let changed: Vec<&PathBuf> = draft.changes.iter().map(|change| &change.path).collect();
        if self.call.json {
            let json = json!({
                "name": plan.name, "names": plan.names, "changed": changed, "done": plan.done,
                "notes": plan.notes, "webroot": plan.webroot, "issued": issued, "next": next,
                "reloaded": reloaded.as_ref().map(Result::is_ok),
            });
            return say_json(json);
        }
        for line in plan.done.iter() {
            say(line);
        }
        for note in &plan.notes {
            say(format_args!("note: {note}"));
        }
        match reloaded {
            None => say(format_args!("{}: nothing to change", plan.name)),
            Some(Ok(())) => say("nginx accepted the configuration and was reloaded"),
            Some(Err(_)) => say(
                "nginx accepts the configuration but is not running or failed to reload: start it",
            ),
        }
        if let Some(next) = next {
            say(format_args!("no certificate is issued yet; next: {next}"));
        }
        if !changed.is_empty() {
            let undo = self.call.terminal.hint("certs install nginx --undo");
            say(format_args!("to undo: {undo}"));
        }
    }

    /// The command that issues the certificate.
    fn next(&self, plan: &InstallPlan) -> String {
        let webroot = plan.webroot.as_ref();
        let webroot = webroot.map(|webroot| format!(" --webroot {}", webroot.display()));
        let (names, webroot) = (plan.names.join(" "), webroot.unwrap_or_default());
        let verify = format!("{}:{}", plan.name, self.options.https_port);
        self.call.terminal.hint(&format!(
            "certs issue {names}{webroot} --deploy nginx --verify {verify} --agree-tos --email YOU"
        ))
    }

    fn undo(&self) -> Result<(), Failure> {
        let main = self.options.conf.as_deref().map(absolute);
        let domain = self.options.domain.as_deref().map(str::to_ascii_lowercase);
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
        let program = self.program();
        let mains: BTreeSet<&PathBuf> = undone.iter().map(|one| &one.subject.main).collect();
        let mut reloaded = Vec::new();
        for main in mains {
            let reload =
                |program: &Program| program.test(main).is_ok() && program.reload(main).is_ok();
            reloaded.push(program.as_ref().is_ok_and(reload));
        }
        if self.call.json {
            let restored: Vec<_> = undone
                .iter()
                .map(|one| json!({"name": one.subject.name, "files": one.files}))
                .collect();
            say_json(json!({"undone": restored, "reloaded": reloaded}));
            return Ok(());
        }
        for one in &undone {
            for file in &one.files {
                let (file, name) = (file.display(), &one.subject.name);
                say(format_args!("{file}: restored as it was before {name}"));
            }
        }
        match (undone.is_empty(), reloaded.iter().all(|done| *done)) {
            (true, _) => say(format_args!(
                "nothing to undo: no install with the data directory {data_dir}"
            )),
            (false, true) => say("nginx was reloaded"),
            (false, false) => say("nginx is not running or failed to reload: see nginx -t"),
        }
        Ok(())
    }
}

fn identifier(name: &str) -> Result<Identifier, Failure> {
    Identifier::parse(name)
        .map_err(|error| Failure::usage(format!("--domain: {error}"), error.hint()))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
