//! `certs import`: imports another client's state and prints one line for each part:
//! taken, already here, not taken with the reason, or left to the operator. The source
//! is only read.

mod account;
mod report;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use self::account::Accounts;
use self::report::Report;
use super::Call;
use super::catalog::{confirm, existing_store, open_store, trusted};
use super::factory::outputs_for;
use super::meant;
use crate::certificate::{Bundle, Facts, Freshness};
use crate::config::{DirectoryUrl, IMPORT, KeyOptions, Settings};
use crate::control;
use crate::deploy::Outlet;
use crate::deploy::confirmed::Right;
use crate::deploy::outputs::Outputs;
use crate::failure::Failure;
use crate::identifier::Identifier;
use crate::import::{self, Found, ImportedCertificate, IssuingCa, Remark, Tool};
use crate::lineage::{Known, Lineage};
use crate::manage::import::{Imported, ImportedPair, import_pair, preview};
use crate::random::SystemRandom;
use crate::store::Store;
use crate::store::fs::FileStore;
use crate::time::{Clock, SystemClock, Timestamp};

#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is ordered, and the source is only read. certs run and certs renew then renew imported certificates \
    when they are due. --deploy adds to the client's own deploy targets. A repeated import changes only the settings that its options name; newer certificates here stay.\n\n\
    Exit codes: 0 every certificate and account of the source is here, 2 no state of this client found (nothing \
    was written), 8 a part could not be imported, each named with its reason, or the store or an output could not be used\n\n\
    Example: certs import certbot --dry-run"
)]
pub(super) struct Import {
    /// The client whose state is imported
    #[arg(value_name = "CLIENT", hide_possible_values = false)]
    pub source: Tool,
    /// The path of its state (default: the client's own default)
    pub path: Option<PathBuf>,
    /// Show what would be imported; nothing is written
    #[arg(long)]
    pub dry_run: bool,
    /// The CA, if the client stores only its host (lego, traefik with a private CA)
    #[arg(long, value_name = "NAME|URL")]
    pub ca: Option<String>,
    #[command(flatten)]
    pub keys: KeyOptions<IMPORT>,
}

/// Imports the state that is found.
pub(super) async fn import(call: &Call, options: &Import) -> Result<(), Failure> {
    let settings = call.sources.process_settings()?;
    let named = options.ca.as_deref().map(str::parse::<DirectoryUrl>);
    let hint = "use one of the names in certs issue --help, or an https:// URL";
    let named = named.transpose();
    let named = named.map_err(|message| Failure::usage(message, hint))?;
    let tool = options.source;
    let path = source_path(call, options)?;
    let hint = format!("name the path of the state of {}", tool.name());
    readable(&path).map_err(|error| Failure::unusable(&path, &error))?;
    let found = import::read(tool, &path);
    let found = found.map_err(|message| Failure::usage(message, hint))?;
    // Invalid options and configuration are errors before anything is written.
    settings::base(call, None)?;
    let (data_dir, dry_run) = (settings.data_dir.clone(), options.dry_run);
    let store = match dry_run {
        true => existing_store(data_dir)?,
        false => Some(open_store(data_dir)?),
    };
    let target = Destination {
        store,
        output: outputs_for(&settings)?,
        dry_run,
    };
    let mut work = Work {
        call,
        tool,
        named,
        report: Report::new(call, options.dry_run),
        target,
        insists: !options.keys.is_empty(),
        confirms_in: (!dry_run).then(|| settings.data_dir.clone()),
        now: SystemClock.now(),
        known: meant::stored(&settings.data_dir)?,
    };
    work.import(found).await;
    work.next_steps(&settings).await;
    work.report.end(&path)
}

/// An unreadable state is not a missing one.
fn readable(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => std::fs::read_dir(path).map(drop),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // The reader of the state says what is missing.
        _ => Ok(()),
    }
}

/// The named path, or the first of the client's default paths that exists.
fn source_path(call: &Call, options: &Import) -> Result<PathBuf, Failure> {
    if let Some(path) = &options.path {
        return Ok(path.clone());
    }
    let tool = options.source;
    let home = call.environment.get("HOME").map(PathBuf::from);
    let mut usual = tool.usual_places(home.as_deref()).into_iter();
    // The failure to read it names the cause.
    let is_there = |path: &PathBuf| path.try_exists().unwrap_or(true);
    usual.find(is_there).ok_or_else(|| {
        let name = tool.name();
        Failure::usage(
            format!("no state of {name} found at its default paths"),
            format!("name the path: certs import {name} PATH"),
        )
    })
}

/// The destination of the import.
struct Destination {
    /// None in a dry run without a store, which must not be created.
    store: Option<FileStore>,
    output: Outputs,
    dry_run: bool,
}

/// One import.
struct Work<'a> {
    call: &'a Call,
    tool: Tool,
    /// The CA that the user has named.
    named: Option<DirectoryUrl>,
    report: Report<'a>,
    target: Destination,
    /// Whether the command line sets renewal options.
    insists: bool,
    /// The data directory; None in a dry run.
    confirms_in: Option<PathBuf>,
    now: Timestamp,
    /// The stored certificates.
    known: Vec<Known>,
}

/// A certificate that can be imported.
struct Valid {
    certificate: ImportedCertificate,
    directory: DirectoryUrl,
    bundle: Bundle,
}

impl Work<'_> {
    async fn import(&mut self, found: Found) {
        let valid = self.valid(found.certificates);
        let uses = valid.iter().filter_map(|one| {
            let account = one.certificate.account.clone()?;
            Some((one.directory.identity().to_owned(), account))
        });
        let uses: Vec<_> = uses.collect();
        let mut accounts = Accounts::default();
        for account in found.accounts {
            match self.directory_of(&account.ca) {
                Ok(directory) => accounts.add(directory, account),
                Err(why) => {
                    let subject = format!("account {}", account.name);
                    self.report.not_imported(&subject, &why);
                }
            }
        }
        accounts.import(&self.target, &uses, &mut self.report).await;
        for one in valid {
            self.certificate(one, &accounts).await;
        }
        for remark in &found.remarks {
            let live = self.target.output.live_path_of_all();
            self.report.remark(None, remark, &live);
        }
    }

    /// The valid certificates; of two of one lineage, the newer.
    fn valid(&mut self, certificates: Vec<ImportedCertificate>) -> Vec<Valid> {
        let mut valid: BTreeMap<Lineage, Valid> = BTreeMap::new();
        for certificate in certificates {
            let lineage = certificate.lineage.clone();
            let one = match self.check(certificate) {
                Ok(one) => one,
                Err(why) => {
                    let subject = format!("certificate {lineage}");
                    self.report.not_imported(&subject, &why);
                    continue;
                }
            };
            let lineage = one.certificate.lineage.clone();
            let not_before = |one: &Valid| one.bundle.facts().not_before;
            let older = match valid.remove(&lineage) {
                Some(known) if not_before(&known) >= not_before(&one) => {
                    valid.insert(lineage, known);
                    one
                }
                Some(known) => {
                    valid.insert(lineage, one);
                    known
                }
                None => {
                    valid.insert(lineage, one);
                    continue;
                }
            };
            let ca = older.directory.identity();
            let subject = format!("certificate {} from {ca}", older.certificate.lineage);
            let why = "the source has a newer one of that name";
            self.report.skipped(&subject, why);
        }
        valid.into_values().collect()
    }

    /// The same names are the same certificate, whatever the other client calls it.
    fn stored_name(&self, lineage: Lineage, names: &BTreeSet<Identifier>) -> Lineage {
        if self.known.iter().any(|one| one.lineage == lineage) {
            return lineage;
        }
        let mut same = self.known.iter().filter(|one| one.issued == *names);
        same.next().map_or(lineage, |one| one.lineage.clone())
    }

    fn check(&self, mut certificate: ImportedCertificate) -> Result<Valid, String> {
        let directory = self.directory_of(&certificate.ca)?;
        let chain = &certificate.chain_pem;
        let facts = Facts::of_chain(chain).map_err(|error| error.to_string())?;
        if facts.identifiers.is_empty() {
            return Err("it has no subject alternative names".to_owned());
        }
        certificate.lineage = self.stored_name(certificate.lineage, &facts.identifiers);
        let key = certificate.key_pem.clone();
        let bundle = Bundle::new(key, chain, &facts.identifiers, self.now, Freshness::Stored);
        Ok(Valid {
            bundle: bundle.map_err(|error| error.to_string())?,
            certificate,
            directory,
        })
    }

    fn directory_of(&self, ca: &IssuingCa) -> Result<DirectoryUrl, String> {
        let (host, port) = match ca {
            IssuingCa::Directory(url) => return url.parse(),
            IssuingCa::Host(host) => (host.as_str(), host.split_once(':')),
        };
        let is_there = |named: &&DirectoryUrl| {
            let url = named.identity().strip_prefix("https://");
            url.is_some_and(|url| url == host || url.starts_with(&format!("{host}/")))
        };
        if let Some(named) = self.named.as_ref().filter(is_there) {
            return Ok(named.clone());
        }
        let public = DirectoryUrl::at_host(host).filter(|_| port.is_none());
        public.ok_or_else(|| {
            let (name, host) = (self.tool.name(), crate::text::printable(host));
            format!("{name} stores only the host of its CA, {host}: name its directory with --ca https://{host}/…")
        })
    }

    async fn certificate(&mut self, mut one: Valid, accounts: &Accounts) {
        let (lineage, directory) = (one.certificate.lineage.clone(), one.directory.clone());
        let live = self.target.output.live_path(&lineage);
        let mut remarks = Vec::new();
        let known = accounts.of(&directory);
        let wanted = settings::of(self.call, self.tool, &one, known, &mut remarks);
        remarks.extend(accounts.remark(&one));
        if let Ok(wanted) = &wanted {
            settings::drop_answered(wanted, &mut one);
        }
        let mut rights = BTreeSet::new();
        let foreign = wanted.and_then(|settings| {
            rights = trusted(settings.rights());
            Ok(ImportedPair {
                lineage: lineage.clone(),
                ca: directory.identity().to_owned(),
                options: serde_json::to_string_pretty(&settings)?,
                profile: settings.profile.clone(),
                bundle: one.bundle,
                insists: self.insists,
            })
        });
        let subject = format!("certificate {lineage}");
        let imported = async {
            let foreign = foreign?;
            Ok::<_, Failure>((self.store(&foreign).await?, foreign))
        };
        let (imported, foreign) = match imported.await {
            Ok(imported) => imported,
            Err(failure) => return self.report.not_imported(&subject, &failure.in_a_line()),
        };
        let facts = foreign.bundle.facts();
        self.report
            .certificate(&subject, &imported, facts, &live, self.now);
        let (all, of_settings) = match imported {
            Imported::Stored(..) => (one.certificate.remarks, remarks),
            Imported::Present {
                has_new_settings: true,
                ..
            } => {
                // The source's own settings were reported when it was stored.
                let shown = |right: &Right| Remark::stored("confirmed right", right.to_string());
                (rights.iter().map(shown).collect(), remarks)
            }
            _ => {
                rights.clear();
                Default::default()
            }
        };
        if let Some(data_dir) = &self.confirms_in {
            let confirmed = confirm(data_dir, rights);
            if let Err(failure) = confirmed {
                self.report.not_imported(&subject, &failure.in_a_line());
            }
        }
        for remark in all.iter().chain(&of_settings) {
            self.report.remark(Some(&lineage), remark, &live);
        }
    }

    async fn store(&self, foreign: &ImportedPair) -> Result<Imported, Failure> {
        let (lineage, target) = (&foreign.lineage, &self.target);
        let random = SystemRandom;
        match &target.store {
            Some(store) if !target.dry_run => {
                let imported = import_pair(store, &target.output, foreign, self.now, &random).await;
                imported.map_err(Failure::on(lineage.as_str()))
            }
            Some(store) => {
                let stored = store.load(lineage).await;
                let stored = stored.map_err(Failure::on(lineage.as_str()))?;
                let record = stored.as_ref().map(|(record, _)| record);
                Ok(preview(record, foreign, &random))
            }
            None => Ok(preview(None, foreign, &random)),
        }
    }

    /// Reports the operator's next steps after an import.
    async fn next_steps(&mut self, settings: &Settings) {
        let timer = match self.tool {
            Tool::Certbot => {
                "stop it, or both renew: systemctl disable --now certbot.timer, and remove /etc/cron.d/certbot"
            }
            Tool::AcmeSh => "stop it, or both renew: acme.sh --uninstall-cronjob",
            Tool::Lego => "stop your timer or cron line that runs it, or both renew",
            Tool::Caddy | Tool::Traefik => "remove these names from it, or both renew",
        };
        if self.report.has_imported() {
            self.report.by_hand(self.tool.name(), timer);
            if control::is_running(&settings.data_dir)
                .await
                .unwrap_or(true)
            {
                let text =
                    "restart the one that runs on this data directory, so that it renews these";
                self.report.by_hand("certs run", text);
            }
        }
    }
}
