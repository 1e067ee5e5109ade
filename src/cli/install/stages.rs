//! The stages of an install. Port 80 answers challenges, the CA issues, the blocks get TLS,
//! handshakes verify it, and then port 80 redirects. Each stage is tested by nginx, reloaded
//! and looked at; a stage that fails undoes those of this run.

use serde_json::json;

use super::super::issue::interrupted;
use super::super::meant;
use super::super::output::{say, say_json};
use super::draft::Draft;
use super::proof::{Looks, check_free};
use super::{Work, absolute, identifier};
use crate::challenge::protocol::Protocol;
use crate::config::Settings;
use crate::failure::Failure;
use crate::files::trust;
use crate::install::change::apply;
use crate::install::journal::{Change, Subject};
use crate::install::plan::{InstallPlan, PlanOptions, Stage, choose, names_beside, plan};
use crate::install::program::Program;
use crate::install::tree::{Overlay, Tree};
use crate::lineage::Lineage;
use crate::text::shell_word;

/// What an install has done so far.
#[derive(Default)]
struct Report {
    changed: Vec<std::path::PathBuf>,
    done: Vec<String>,
    notes: Vec<String>,
    /// What port 80 answers instead of a redirect.
    unredirected: Option<String>,
    /// The result of the last reload.
    reloaded: Option<Result<(), String>>,
}

impl Work<'_> {
    pub(super) async fn install(&self) -> Result<(), Failure> {
        if let Some(name) = &self.options.domain {
            identifier(name)?;
        }
        let program = self.program().await?;
        let main = absolute(self.options.conf.as_ref().unwrap_or(&program.main));
        trust::resolve(&main)?;
        let _lock = self.journals.lock()?;
        if self.journals.recover()? {
            tracing::warn!("an install that was cut off has been undone");
        }
        program.test(&main).await.map_err(|error| {
            let hint = match is_denied(&error) {
                true => {
                    "run the same command as the user that starts nginx, usually root: with sudo"
                }
                false => "fix the reported error first, or name another main file with --conf FILE",
            };
            let main = main.display();
            let message = format!("nginx refuses {main} as it is; nothing was changed:\n{error}");
            Failure::usage(message, hint)
        })?;
        let before = self.journals.newest()?;
        let mut run = Run {
            work: self,
            program,
            main,
            report: Report::default(),
            trusts_locations: true,
            ordered: None,
            is_issued: false,
        };
        let ended = tokio::select! {
            biased;
            failure = interrupted() => Err(failure),
            ended = run.stages() => ended,
        };
        let plan = match ended {
            Ok(plan) => plan,
            Err(failure) => {
                let mut failure = run.undone(before, failure).await;
                if run.is_issued && failure.code == 2 {
                    // Something was sent to the CA.
                    failure.code = 7;
                }
                run.say_stored().await;
                return Err(failure);
            }
        };
        run.print(&plan).await;
        run.is_redirected(&plan)
    }
}

/// Whether nginx may not read a file. Of a key, OpenSSL reports what failed.
fn is_denied(error: &str) -> bool {
    error.contains("Permission denied")
}

/// One install.
pub(super) struct Run<'a> {
    pub(super) work: &'a Work<'a>,
    pub(super) program: Program,
    pub(super) main: std::path::PathBuf,
    report: Report,
    /// See [`crate::install::plan::PlanOptions`].
    pub(super) trusts_locations: bool,
    /// The certificate that this command has begun to order.
    ordered: Option<Lineage>,
    /// Whether it was issued.
    is_issued: bool,
}

impl Run<'_> {
    /// The failure of a stage, after the stages of this run are undone.
    async fn undone(&self, before: u64, failure: Failure) -> Failure {
        match self.work.journals.undo_after(before) {
            Ok(false) => failure,
            Ok(true) => {
                // A reload that fails has its cause in the first error.
                if self.program.test(&self.main).await.is_ok() {
                    let _ = self.program.reload(&self.main).await;
                }
                tracing::warn!("the configuration of nginx is as it was before this command");
                failure
            }
            Err(further) => {
                let all = failure.messages().chain(further.messages());
                let all = all.map(|(message, hint)| (message.to_owned(), hint.to_owned()));
                Failure::new(failure.code, all.collect())
            }
        }
    }

    /// Says what is stored of a certificate whose install has failed: not even `certs run`
    /// continues it.
    async fn say_stored(&self) {
        let stored = meant::stored(&self.work.settings.data_dir);
        let Some(lineage) = &self.ordered else {
            return;
        };
        for known in stored.unwrap_or_default() {
            if known.lineage == *lineage {
                let what = match known.issued.is_empty() {
                    true => "the attempt is stored, and nothing orders it",
                    false => "the certificate is stored, and nothing renews it",
                };
                tracing::warn!(%lineage, "{what} before this command succeeds; hint: run it again once the cause is mended, or certs delete {lineage} forgets it");
            }
        }
    }

    fn is_redirected(&self, plan: &InstallPlan) -> Result<(), Failure> {
        let Some(found) = &self.report.unredirected else {
            return Ok(());
        };
        let message = format!(
            "{}: https works, and plain HTTP does not lead to it: {found}",
            plan.name
        );
        let hint = "find what answers there instead: another program, a proxy in front, or another block of that name, which nginx -T shows; then run this command again";
        Err(Failure::new(7, vec![(message, hint.to_owned())]))
    }

    async fn stages(&mut self) -> Result<InstallPlan, Failure> {
        // Refuses what a later stage would refuse.
        let first = self.draft(Stage::Redirect).await?;
        check_free(&first.plan)?;
        let settings = match first.is_issued() {
            true => None,
            false => {
                self.work.check_challenge(&first.plan)?;
                self.work.check_count(&first.plan)?;
                self.work.wanted(&first.plan).await?
            }
        };
        let Some(settings) = settings else {
            let tls = self.stage(Stage::Tls).await?;
            if !first.is_issued() {
                return Ok(tls);
            }
            let plan = self.stage(Stage::Redirect).await?;
            self.keep(&first).await?;
            return Ok(plan);
        };
        let plan = self.stage(Stage::Challenges).await?;
        let new = settings.certificates.first();
        self.ordered = new.map(|one| one.lineage.clone());
        let settings = self.work.ordered(settings, &plan).await?;
        self.is_issued = true;
        self.stage(Stage::Tls).await?;
        let settings = self.deploy(settings).await?;
        let names = plan.names.join(", ");
        self.report
            .done
            .push(format!("{names}: issued, and verified by a handshake"));
        let plan = self.stage(Stage::Redirect).await?;
        // From now on it is kept.
        self.work.pass(&settings).await?;
        for one in &settings.certificates {
            self.note_configured(&one.lineage, &plan).await;
        }
        Ok(plan)
    }

    /// From now on the stored certificate of the blocks is kept, and deployed to nginx.
    async fn keep(&mut self, draft: &Draft) -> Result<(), Failure> {
        let Some(lineage) = draft.pair.lineage() else {
            return Ok(());
        };
        self.note_configured(&lineage, &draft.plan).await;
        self.note_unused(&lineage, draft).await;
        let Some(settings) = self.work.to_keep(&lineage).await else {
            return Ok(());
        };
        if let Some(Err(_)) = self.report.reloaded {
            let again = "nginx does not run: run this command again once it does, so that certs deploys each new certificate to it";
            self.report.notes.push(again.to_owned());
            return Ok(());
        }
        let settings = self.deploy(settings).await?;
        self.work.pass(&settings).await
    }

    /// Notes the options that would have made another certificate.
    async fn note_unused(&mut self, lineage: &Lineage, draft: &Draft) {
        let names: Vec<String> = draft.pair.issued.iter().map(ToString::to_string).collect();
        let unused = self.work.unused(lineage, &names).await;
        if !unused.is_empty() {
            let names: Vec<String> = names.iter().map(|name| shell_word(name)).collect();
            let names = names.join(" ");
            self.report.notes.push(format!(
                "{lineage} is issued already, and not with{unused}; to change that: certs issue {names}{unused}"
            ));
        }
    }

    /// Notes a configuration with which its certificate cannot be renewed beside nginx.
    async fn note_configured(&mut self, lineage: &Lineage, plan: &InstallPlan) {
        let configured = self.work.configured(lineage).await;
        let listens = configured.map(|one| one.challenge.listens());
        let mut listens = listens.into_iter().flatten();
        let port = listens.find_map(|at| match at.protocol {
            Protocol::Http => Some(80),
            Protocol::Tls => Some(443),
            Protocol::Dns => None,
        });
        if let Some(port) = port {
            let webroot = plan.webroot.display();
            self.report.notes.push(format!(
                "the configuration renews {lineage} by a listener on port {port}, which nginx has: add webroot = \"{webroot}\" to its [[certificate]]"
            ));
        }
    }

    /// nginx's configuration as it is now.
    fn tree(&self) -> Result<Tree, Failure> {
        Tree::load(&self.main, &Overlay::new())
    }

    /// What brings the configuration to `stage`.
    async fn draft(&self, stage: Stage) -> Result<Draft, Failure> {
        match self.work.options.site {
            true => self.work.site(&self.program, &self.main).await,
            false => self.edits(stage).await,
        }
    }

    async fn edits(&self, stage: Stage) -> Result<Draft, Failure> {
        let (work, tree) = (self.work, self.tree()?);
        let wanted = PlanOptions {
            name: work.options.domain.clone(),
            http_port: work.options.http_port,
            https_port: work.options.https_port,
            webroot: work.webroot(),
            default_webroot: work.default_webroot(),
            prefix: self.program.prefix.clone(),
            trusts_locations: self.trusts_locations,
            by_dns: work.is_by_dns(),
        };
        let name = choose(&tree, &wanted)?;
        let pair = work.pair(&names_beside(&tree, &name, &wanted)?).await?;
        let plan = plan(&tree, &name, &wanted, &pair, stage)?;
        let change = |(number, edits): (&usize, &Vec<_>)| Change {
            path: tree.files[*number].path.clone(),
            content: apply(&tree.files[*number].text, edits),
        };
        Ok(Draft {
            changes: plan.edits.iter().map(change).collect(),
            links: Vec::new(),
            plan,
            pair,
        })
    }

    /// Deploys the certificate to nginx from now on, and verifies it.
    async fn deploy(&self, settings: Settings) -> Result<Settings, Failure> {
        let pid_file = self.program.pid_file(&self.tree()?);
        self.work.deployed(settings, pid_file).await
    }

    /// Brings the configuration to `stage`, and looks at what nginx answers then.
    async fn stage(&mut self, stage: Stage) -> Result<InstallPlan, Failure> {
        let draft = self.draft(stage).await?;
        let before = self.work.journals.newest()?;
        let program = self.program.clone();
        let main = self.main.clone();
        let looks = Looks::new(&program, &main, &self.tree()?);
        if draft.changes.is_empty() && draft.links.is_empty() {
            if stage == Stage::Redirect && looks.is_running() {
                self.report.unredirected = looks.redirects(&draft).await;
            }
            if stage != Stage::Challenges {
                return Ok(self.noted(draft));
            }
        } else {
            self.write(&draft, stage).await?;
            let reloaded = self.program.reload(&self.main).await;
            let stopped = reloaded.as_ref().err().cloned();
            self.report.reloaded = Some(reloaded);
            match stopped {
                None => looks.replaced().await?,
                Some(error) if stage == Stage::Challenges => {
                    return Err(Failure::usage(
                        format!("nginx cannot be reloaded: {error}"),
                        "start nginx, which answers the CA; then run this command again",
                    ));
                }
                Some(_) => {
                    self.work.journals.finish()?;
                    return Ok(self.noted(draft));
                }
            }
        }
        match self.look(stage, &draft, &looks).await {
            // Once more beside the existing location.
            Err(_) if self.can_go_aside(&draft) => {
                self.work.journals.undo_after(before)?;
                self.trusts_locations = false;
                Box::pin(self.stage(stage)).await
            }
            looked => {
                looked?;
                self.work.journals.finish()?;
                Ok(self.noted(draft))
            }
        }
    }

    /// Whether answers can still get a place beside an existing location for challenges.
    fn can_go_aside(&self, draft: &Draft) -> bool {
        self.trusts_locations && draft.plan.relies_on_location
    }

    async fn look(&mut self, stage: Stage, draft: &Draft, log: &Looks<'_>) -> Result<(), Failure> {
        let answered = log.answers(&draft.plan).await;
        match answered {
            Err(failure)
                if !draft.is_issued() && !self.work.is_by_dns() || self.can_go_aside(draft) =>
            {
                return Err(failure);
            }
            Err(failure) => self.report.notes.push(failure.in_a_line()),
            Ok(()) => {}
        }
        if stage > Stage::Challenges {
            log.served(draft).await?;
        }
        if stage == Stage::Redirect {
            self.report.unredirected = log.redirects(draft).await;
        }
        Ok(())
    }

    fn noted(&mut self, draft: Draft) -> InstallPlan {
        let mut plan = draft.plan;
        for done in plan.done.drain(..) {
            if !self.report.done.contains(&done) {
                self.report.done.push(done);
            }
        }
        for note in plan.notes.drain(..) {
            if !self.report.notes.contains(&note) {
                self.report.notes.push(note);
            }
        }
        for change in draft.changes {
            if !self.report.changed.contains(&change.path) {
                self.report.changed.push(change.path);
            }
        }
        plan
    }

    /// Writes the changes once nginx accepts a copy of them.
    async fn write(&self, draft: &Draft, stage: Stage) -> Result<(), Failure> {
        let journals = &self.work.journals;
        self.work.prepare(draft, stage).await?;
        let scratch = journals.scratch()?;
        let rehearsed = self
            .program
            .rehearse(&self.main, &draft.overlay(), &scratch)
            .await;
        // Leftovers are harmless: each rehearsal starts with an empty directory.
        let _ = std::fs::remove_dir_all(&scratch);
        rehearsed?;
        let subject = Subject {
            name: draft.plan.name.clone(),
            names: draft.plan.names.clone(),
            main: self.main.clone(),
        };
        journals.write(subject, &draft.changes, &draft.links)?;
        // The rehearsal used a copy, where relative paths may resolve differently.
        self.program.test(&self.main).await.map_err(|error| {
            Failure::usage(
                format!("nginx refuses the new configuration; it was undone:\n{error}"),
                "report this with the configuration: nginx accepted a copy of it",
            )
        })
    }

    async fn print(&self, plan: &InstallPlan) {
        let Report {
            changed,
            done,
            notes,
            unredirected,
            reloaded,
        } = &self.report;
        let pair = self.work.pair(&plan.names).await;
        let issued = pair.is_ok_and(|pair| !pair.issued.is_empty());
        let next = (!issued).then(|| self.next(plan));
        let hint = |text: &str| self.work.call.terminal.hint(text);
        if self.work.call.json {
            let json = json!({
                "name": plan.name, "names": plan.names, "changed": changed, "done": done,
                "notes": notes.iter().map(|note| hint(note)).collect::<Vec<_>>(), "webroot": plan.webroot, "issued": issued, "next": next,
                "reloaded": reloaded.as_ref().map(Result::is_ok), "no_redirect": unredirected,
            });
            return say_json(json);
        }
        for line in done {
            say(line);
        }
        for note in notes {
            say(hint(&format!("note: {note}")));
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
            say("then run this command again: it adds the redirect");
        }
        if !changed.is_empty() {
            say(hint("to undo: certs install nginx --undo"));
        }
    }

    /// The command that issues the certificate.
    fn next(&self, plan: &InstallPlan) -> String {
        let names: Vec<String> = plan.names.iter().map(|name| shell_word(name)).collect();
        let webroot = shell_word(&plan.webroot.to_string_lossy());
        let webroot = match self.work.is_by_dns() {
            true => String::new(),
            false => format!(" --webroot {webroot}"),
        };
        let pid_file = self
            .tree()
            .ok()
            .and_then(|tree| self.program.pid_file(&tree));
        let target = pid_file.map_or("nginx".to_owned(), |file| {
            format!("nginx:{}", file.display())
        });
        let (names, target) = (names.join(" "), shell_word(&target));
        self.work.call.terminal.hint(&format!(
            "certs issue {names}{webroot} --deploy {target} --agree-tos"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_root_are_a_reason_for_sudo() {
        for error in [
            "nginx: [emerg] open() \"/run/nginx.pid\" failed (13: Permission denied)",
            "nginx: [emerg] cannot load certificate key \"/k.pem\": BIO_new_file() failed (SSL: error:8000000D:system \
             library::Permission denied:calling fopen(/k.pem, r) error:10080002:BIO routines::system lib)",
        ] {
            assert!(is_denied(error), "{error}");
        }
        let invalid = "nginx: [emerg] unknown directive \"sevrer\" in /etc/nginx/nginx.conf:3";
        assert!(!is_denied(invalid));
    }
}
