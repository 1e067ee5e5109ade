//! What `certs install nginx` is going to write: edits of existing files, or the file of a
//! whole site. It reads, and writes nothing.

use std::io;
use std::path::{Path, PathBuf};

use super::super::factory::outputs_for;
use super::{Work, absolute, identifier};
use crate::deploy::Outlet;
use crate::failure::Failure;
use crate::files::beneath::Directory;
use crate::identifier::Identifier;
use crate::install::change::apply;
use crate::install::journal::{Change, Link};
use crate::install::plan::{InstallPlan, Pair, PlanOptions, choose, plan};
use crate::install::program::Program;
use crate::install::site::{self, Site};
use crate::install::tree::{Overlay, Tree};
use crate::lineage::Lineage;
use crate::record::Generation;

/// The changes to write.
pub(super) struct Draft {
    pub(super) plan: InstallPlan,
    pub(super) changes: Vec<Change>,
    pub(super) links: Vec<Link>,
}

impl Work<'_> {
    pub(super) fn edits(&self, main: &Path) -> Result<Draft, Failure> {
        let options = self.options;
        let tree = Tree::load(main, &Overlay::new())?;
        let wanted = PlanOptions {
            name: options.domain.clone(),
            http_port: options.http_port,
            https_port: options.https_port,
            webroot: options.webroot.as_deref().map(absolute),
            default_webroot: self.default_webroot(),
        };
        let name = choose(&tree, &wanted)?;
        let pair = self.pair(&identifier(&name)?)?;
        let plan = plan(&tree, &name, &wanted, &pair)?;
        let change = |(number, edits): (&usize, &Vec<_>)| Change {
            path: tree.files[*number].path.clone(),
            content: apply(&tree.files[*number].text, edits),
        };
        Ok(Draft {
            changes: plan.edits.iter().map(change).collect(),
            links: Vec::new(),
            plan,
        })
    }

    pub(super) fn site(&self, program: &Program, main: &Path) -> Result<Draft, Failure> {
        let options = self.options;
        let (Some(name), Some(root)) = (&options.domain, &options.root) else {
            return Err(Failure::usage(
                "--site needs --domain and --root",
                "see certs install nginx --help",
            ));
        };
        site::check_api(&options.api)?;
        for origin in &options.cors_origin {
            site::check_origin(origin)?;
        }
        let name = identifier(name)?;
        let webroot = options.webroot.as_deref().map(absolute);
        let webroot = webroot.unwrap_or_else(|| self.default_webroot());
        let text = self.site_text(program, &name, root, &webroot)?;
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
                webroot: Some(webroot),
            },
            changes: Vec::new(),
            links: Vec::new(),
        };
        if !is_written(&file, &text)? {
            let done = format!("{}: the site is written", file.display());
            draft.plan.done.push(done);
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
                draft.links.push(link);
            }
            let content = text.into_bytes();
            draft.changes.push(Change {
                path: file,
                content,
            });
        }
        Ok(draft)
    }

    fn site_text(
        &self,
        program: &Program,
        name: &Identifier,
        root: &Path,
        webroot: &Path,
    ) -> Result<String, Failure> {
        let site = Site {
            names: vec![name.to_string()],
            root: absolute(root),
            api: self.options.api.clone(),
            origins: self.options.cors_origin.clone(),
            live: self.pair(name)?.live,
            webroot: webroot.to_owned(),
            http_port: self.options.http_port,
            https_port: self.options.https_port,
            has_ipv6: Path::new("/proc/net/if_inet6").exists(),
            version: program.version,
        };
        Ok(site.text())
    }

    fn default_webroot(&self) -> PathBuf {
        // Next to the data directory, which nginx's workers cannot enter.
        let mut path = self.settings.data_dir.clone().into_os_string();
        path.push("-webroot");
        PathBuf::from(path)
    }

    pub(super) fn pair(&self, name: &Identifier) -> Result<Pair, Failure> {
        let output = outputs_for(self.settings)?;
        let lineage = Lineage::of(name);
        let live = output.live(&lineage);
        let live = live.map_err(Failure::on(lineage.as_str()))?;
        Ok(Pair {
            live: absolute(&output.live_path(&lineage)),
            is_issued: live.is_some_and(|live| live != Generation(0)),
        })
    }
}

/// Whether `file` exists with the content `text`; other content is an error.
fn is_written(file: &Path, text: &str) -> Result<bool, Failure> {
    let found = Directory::of(file).map(|(directory, name)| {
        let exists = directory.has(name);
        exists.then(|| directory.holds(name, text.as_bytes()))
    });
    match found {
        Ok(Some(false)) => Err(Failure::usage(
            format!("{}: the file exists with other content", file.display()),
            "edit it by hand, move it away, or name another with --file FILE",
        )),
        found => Ok(found.is_ok_and(|same| same == Some(true))),
    }
}
