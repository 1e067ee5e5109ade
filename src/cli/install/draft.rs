//! What `certs install nginx` is going to write: edits of existing files, or the file of a
//! whole site. It reads, and writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::super::catalog::as_stored;
use super::super::factory::outputs_for;
use super::super::meant;
use super::{Work, absolute, identifier};
use crate::certificate::Facts;
use crate::deploy::Outlet;
use crate::failure::Failure;
use crate::files::beneath::Directory;
use crate::identifier::Identifier;
use crate::install::journal::{Change, Link};
use crate::install::plan::{InstallPlan, PROBED, Pair, Reach, Stage};
use crate::install::program::Program;
use crate::install::site::{self, Site};
use crate::install::tree::Overlay;
use crate::lineage::Lineage;
use crate::record::Generation;
use crate::time::{Clock, SystemClock};

/// The changes to write.
pub(super) struct Draft {
    pub(super) plan: InstallPlan,
    pub(super) changes: Vec<Change>,
    pub(super) links: Vec<Link>,
    pub(super) pair: Pair,
}

impl Draft {
    pub(super) fn is_issued(&self) -> bool {
        !self.pair.issued.is_empty()
    }

    fn write_site(
        &mut self,
        file: PathBuf,
        text: String,
        link: Option<PathBuf>,
    ) -> Result<(), Failure> {
        let done = format!("{}: the site is written", file.display());
        self.plan.done.push(done);
        let target = file.clone();
        let link = link.map(|path| Link { path, target });
        let missing = |link: &Link| match link.path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            found => found
                .map(|_| false)
                .map_err(|error| Failure::unusable(&link.path, &error)),
        };
        if let Some(link) = link
            && missing(&link)?
        {
            self.links.push(link);
        }
        let content = text.into_bytes();
        self.changes.push(Change {
            path: file,
            content,
        });
        Ok(())
    }

    /// The new content by the path through which nginx reads it: the link, if there is one.
    pub(super) fn overlay(&self) -> Overlay {
        let mut overlay = BTreeMap::new();
        for change in &self.changes {
            let link = self.links.iter().find(|link| link.target == change.path);
            let path = link.map_or(&change.path, |link| &link.path);
            overlay.insert(path.clone(), change.content.clone());
        }
        overlay
    }
}

impl Work<'_> {
    pub(super) async fn site(&self, program: &Program, main: &Path) -> Result<Draft, Failure> {
        let options = self.options;
        let (Some(name), Some(root)) = (&options.domain, &options.root) else {
            // The parser requires both.
            return Err(Failure::unexpected("--site needs --domain and --root"));
        };
        site::check_api(&options.api)?;
        for origin in &options.cors_origin {
            site::check_origin(origin)?;
        }
        let name = identifier(name)?;
        let webroot = self.webroot().unwrap_or_else(|| self.default_webroot());
        let pair = self.pair(&[name.to_string()]).await?;
        let site = self.site_of(program, &name, root, (&webroot, &pair));
        let text = site.text();
        // Before a CA has issued, the site has another redirect.
        let earlier = Site {
            is_issued: false,
            ..site
        }
        .text();
        let (file, link) = match &options.file {
            Some(file) => (absolute(file), None),
            None => site::usual_place(main, &name.to_string()),
        };
        let mut draft = Draft {
            plan: InstallPlan {
                name: name.to_string(),
                names: vec![name.to_string()],
                edits: Default::default(),
                done: Vec::new(),
                notes: Vec::new(),
                plain: self.reaches(self.options.http_port, &name),
                tls: self.reaches(self.options.https_port, &name),
                redirected: Vec::new(),
                relies_on_location: false,
                webroot,
            },
            changes: Vec::new(),
            links: Vec::new(),
            pair,
        };
        if !is_written(&file, &text, &earlier)? {
            draft.write_site(file, text, link)?;
        }
        Ok(draft)
    }

    fn site_of(
        &self,
        program: &Program,
        name: &Identifier,
        root: &Path,
        (webroot, pair): (&Path, &Pair),
    ) -> Site {
        Site {
            names: vec![name.to_string()],
            root: absolute(root),
            api: self.options.api.clone(),
            origins: self.options.cors_origin.clone(),
            live: pair.live.clone(),
            webroot: webroot.to_owned(),
            http_port: self.options.http_port,
            https_port: self.options.https_port,
            has_ipv6: Path::new("/proc/net/if_inet6").exists(),
            version: program.version,
            is_issued: !pair.issued.is_empty(),
        }
    }

    /// Where a whole site is reached.
    fn reaches(&self, port: u16, name: &Identifier) -> Vec<Reach> {
        vec![Reach {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into(),
            binds: None,
            is_proxied: false,
            name: name.to_string().replacen("*.", PROBED, 1),
        }]
    }

    /// The directory for challenge answers, if a source sets it.
    pub(super) fn webroot(&self) -> Option<PathBuf> {
        self.settings
            .challenge
            .writes_in()
            .first()
            .map(|path| absolute(path))
    }

    pub(super) fn default_webroot(&self) -> PathBuf {
        // Next to the data directory, which nginx's workers cannot enter.
        let mut path = self.settings.data_dir.clone().into_os_string();
        path.push("-webroot");
        PathBuf::from(path)
    }

    /// Creates the paths that the new configuration names, before nginx reads it.
    pub(super) async fn prepare(&self, draft: &Draft, stage: Stage) -> Result<(), Failure> {
        make_webroot(&draft.plan.webroot)?;
        if draft.is_issued() || (stage == Stage::Challenges && !self.options.site) {
            return Ok(());
        }
        let names = draft.plan.names.iter();
        let names = names.filter_map(|name| Identifier::parse(name).ok());
        let lineage = Lineage::of(&identifier(&draft.plan.name)?);
        let made =
            outputs_for(self.settings)?.placeholder(&lineage, &names.collect(), SystemClock.now());
        made.map(drop)
            .map_err(|error| Failure::output(error.to_string(), error.hint()))
    }

    /// The stored pair for the first of `names`: of the certificates that cover it, the one
    /// that covers most of them.
    pub(super) async fn pair(&self, names: &[String]) -> Result<Pair, Failure> {
        let names: Vec<Identifier> = names
            .iter()
            .filter_map(|name| Identifier::parse(name).ok())
            .collect();
        let Some(first) = names.first() else {
            return Err(Failure::unexpected("no name of a certificate"));
        };
        let own = Lineage::of(first);
        let stored = meant::stored(&self.settings.data_dir)?;
        let lineages = stored.into_iter().map(|known| known.lineage);
        let lineages: BTreeSet<Lineage> = lineages.chain([own.clone()]).collect();
        let made_with = as_stored(&self.call.sources, self.settings);
        let mut best = Pair {
            live: PathBuf::new(),
            issued: BTreeSet::new(),
        };
        let mut covered = 0;
        for lineage in lineages {
            let mut settings = self.settings.clone();
            if let Some(own) = made_with.iter().find(|one| one.lineage == lineage) {
                settings.output = settings.output_of(own);
            }
            let output = outputs_for(&settings)?;
            let live = absolute(&output.live_path(&lineage));
            let generation = output
                .live(&lineage)
                .map_err(Failure::on(lineage.as_str()))?;
            let issued = match generation {
                Some(generation) if generation != Generation(0) => names_in(&live)?,
                _ => BTreeSet::new(),
            };
            let covers = |name: &&Identifier| issued.iter().any(|one| name.is_covered_by(one));
            let count = match covers(&first) {
                true => 2 * names.iter().filter(covers).count() + usize::from(lineage == own),
                false => 0,
            };
            if count > covered || (covered == 0 && lineage == own) {
                let issued = if count > 0 { issued } else { BTreeSet::new() };
                (best, covered) = (Pair { live, issued }, count);
            }
        }
        Ok(best)
    }
}

/// Creates the directory for challenge answers.
pub(super) fn make_webroot(webroot: &Path) -> Result<(), Failure> {
    let made = Directory::make(webroot, 0o755);
    made.map(drop).map_err(|error| {
        let message = format!("{}: {error}", webroot.display());
        let hint = "name a writable directory with --webroot DIR";
        Failure::of_file(&error, message, hint)
    })
}

/// The names of a published certificate.
fn names_in(live: &Path) -> Result<BTreeSet<Identifier>, Failure> {
    let chain = live.join("fullchain.pem");
    let text =
        std::fs::read_to_string(&chain).map_err(|error| Failure::unusable(&chain, &error))?;
    let facts = Facts::of_chain(&text);
    let facts = facts.map_err(|error| Failure::store(format!("{}: {error}", chain.display())))?;
    Ok(facts.identifiers)
}

/// Whether `file` exists with the content `text`, and not with `earlier`; other content is
/// an error.
fn is_written(file: &Path, text: &str, earlier: &str) -> Result<bool, Failure> {
    let found = Directory::of(file).map(|(directory, name)| {
        let holds = |text: &str| directory.holds(name, text.as_bytes());
        directory.has(name).then(|| (holds(text), holds(earlier)))
    });
    match found {
        Ok(Some((false, false))) => Err(Failure::usage(
            format!("{}: the file exists with other content", file.display()),
            "edit it by hand, move it away, or name another with --file FILE",
        )),
        found => Ok(matches!(found, Ok(Some((true, _))))),
    }
}
