//! `certs import`: what another client keeps becomes ours, line by line: taken, here
//! already, not taken and why, or left to the owner. The source is only read.

mod account;
mod report;
mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::account::Accounts;
use self::report::Report;
use super::Call;
use super::catalog::open_store;
use super::factory::output_for;
use crate::certificate::{Bundle, Facts, Freshness};
use crate::config::{Directory, IMPORT, KeyOptions, Settings};
use crate::control;
use crate::deploy::Outlet;
use crate::deploy::output::Output;
use crate::failure::Failure;
use crate::identifier::Lineage;
use crate::import::{self, Ca, Certificate, Found, Tool};
use crate::manage::import::{Foreign, Taken, preview, take};
use crate::random::SystemRandom;
use crate::store::fs::FileStore;
use crate::store::{Store, StoreError};
use crate::time::{Clock, SystemClock, Timestamp};

/// Whose state it is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Source {
    /// /etc/letsencrypt
    Certbot,
    /// ~/.acme.sh
    #[value(name = "acme.sh")]
    AcmeSh,
    /// ./.lego
    Lego,
    /// Its storage: /var/lib/caddy/.local/share/caddy or ~/.local/share/caddy
    Caddy,
    /// Its acme.json
    Traefik,
}

impl Source {
    fn tool(self) -> Tool {
        match self {
            Self::Certbot => Tool::Certbot,
            Self::AcmeSh => Tool::AcmeSh,
            Self::Lego => Tool::Lego,
            Self::Caddy => Tool::Caddy,
            Self::Traefik => Tool::Traefik,
        }
    }
}

/// Options of `import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is ordered, and the source is only read. certs run and certs renew then keep what was taken, \
    each when it is due. --deploy adds to what the client deployed to. Once more it changes nothing but what its own options say: what is newer here stays.\n\n\
    Exit codes: 0 every certificate and account of the source is here, 2 that is no place of this client (nothing \
    was written), 8 some could not be taken, each named with its reason, or the store or an output could not be used"
)]
pub struct Import {
    /// The client whose state is taken over
    #[arg(value_name = "CLIENT", hide_possible_values = false)]
    pub source: Source,
    /// Where it keeps it (default: the client's own)
    pub path: Option<PathBuf>,
    /// Say what would be taken; nothing is written
    #[arg(long)]
    pub dry_run: bool,
    /// The CA, where the client keeps its host alone (lego, traefik with a private CA)
    #[arg(long, value_name = "NAME|URL")]
    pub ca: Option<String>,
    /// Those that are configuration keys.
    #[command(flatten)]
    pub keys: KeyOptions<IMPORT>,
}

/// Takes over what is found.
pub(super) async fn import(call: &Call, options: &Import) -> Result<(), Failure> {
    let process = call.sources.process_settings();
    let settings = process.map_err(Failure::configuration)?;
    let named = options.ca.as_deref().map(str::parse::<Directory>);
    let hint = "write one of the names of certs issue --help, or an https:// URL";
    let named = named
        .transpose()
        .map_err(|message| Failure::usage(message, hint))?;
    let tool = options.source.tool();
    let path = place(call, options)?;
    let found = import::read(tool, &path).map_err(|message| {
        Failure::usage(
            message,
            format!("name where {} keeps its state", tool.name()),
        )
    })?;
    // What is wrong with options and configuration is told before anything is written.
    settings::base(call, None)?;
    let target = Target::open(&settings, options.dry_run)?;
    let mut work = Work {
        call,
        tool,
        named,
        report: Report::new(call, options.dry_run),
        target,
        insists: !options.keys.is_empty(),
        now: SystemClock.now(),
    };
    work.take(found).await;
    work.farewell(&settings).await;
    work.report.end(&path)
}

/// What was named, or the first usual place that is there.
fn place(call: &Call, options: &Import) -> Result<PathBuf, Failure> {
    if let Some(path) = &options.path {
        return Ok(path.clone());
    }
    let tool = options.source.tool();
    let home = call.environment.get("HOME").map(PathBuf::from);
    let mut usual = tool.usual_places(home.as_deref()).into_iter();
    usual.find(|path| path.exists()).ok_or_else(|| {
        let name = tool.name();
        Failure::usage(
            format!("there is no state of {name} where it usually is"),
            format!("name it: certs import {name} PATH"),
        )
    })
}

/// Where it is taken to.
struct Target {
    /// None before the first certificate, where nothing may be written.
    store: Option<FileStore>,
    output: Output,
    dry_run: bool,
}

impl Target {
    fn open(settings: &Settings, dry_run: bool) -> Result<Self, Failure> {
        let data_dir = settings.data_dir.clone();
        let store = match dry_run {
            true => FileStore::existing(data_dir),
            false => Some(open_store(data_dir)?),
        };
        Ok(Self {
            store,
            output: output_for(settings)?,
            dry_run,
        })
    }
}

/// One import.
struct Work<'a> {
    call: &'a Call,
    tool: Tool,
    /// The CA that the user has named.
    named: Option<Directory>,
    report: Report<'a>,
    target: Target,
    /// Whether the command line says how they are renewed.
    insists: bool,
    now: Timestamp,
}

/// A certificate that is sound.
struct Sound {
    certificate: Certificate,
    directory: Directory,
    bundle: Bundle,
}

impl Work<'_> {
    async fn take(&mut self, found: Found) {
        let sound = self.sound(found.certificates);
        let uses = sound.iter().filter_map(|one| {
            let account = one.certificate.account.clone()?;
            Some((one.directory.identity().to_owned(), account))
        });
        let uses: Vec<_> = uses.collect();
        let mut accounts = Accounts::default();
        for account in found.accounts {
            match self.directory_of(&account.ca) {
                Ok(directory) => accounts.add(directory, account),
                Err(why) => self
                    .report
                    .broken(&format!("account {}", account.name), &why),
            }
        }
        accounts.take(&self.target, &uses, &mut self.report).await;
        for one in sound {
            self.certificate(one, &accounts).await;
        }
        for remark in &found.remarks {
            let live = self.target.output.live_path_of_all();
            self.report.remark(None, remark, &live);
        }
    }

    /// Those that can be used; of two with one name, the newer.
    fn sound(&mut self, certificates: Vec<Certificate>) -> Vec<Sound> {
        let mut sound: BTreeMap<Lineage, Sound> = BTreeMap::new();
        for certificate in certificates {
            let lineage = certificate.lineage.clone();
            let one = match self.check(certificate) {
                Ok(one) => one,
                Err(why) => {
                    self.report.broken(&format!("certificate {lineage}"), &why);
                    continue;
                }
            };
            let not_before = |one: &Sound| one.bundle.facts().not_before;
            let older = match sound.remove(&lineage) {
                Some(known) if not_before(&known) >= not_before(&one) => {
                    sound.insert(lineage, known);
                    Some(one)
                }
                known => {
                    sound.insert(lineage, one);
                    known
                }
            };
            if let Some(older) = older {
                let ca = older.directory.identity();
                let subject = format!("certificate {} from {ca}", older.certificate.lineage);
                self.report
                    .left(&subject, "a newer one of that name is in the source, too");
            }
        }
        sound.into_values().collect()
    }

    fn check(&self, certificate: Certificate) -> Result<Sound, String> {
        let directory = self.directory_of(&certificate.ca)?;
        let chain = &certificate.chain_pem;
        let facts = Facts::of_chain(chain).map_err(|error| error.to_string())?;
        if facts.identifiers.is_empty() {
            return Err("it is for no name: it has no alternative names".to_owned());
        }
        let key = certificate.key_pem.clone();
        let bundle = Bundle::new(key, chain, &facts.identifiers, self.now, Freshness::Stored);
        Ok(Sound {
            bundle: bundle.map_err(|error| error.to_string())?,
            certificate,
            directory,
        })
    }

    fn directory_of(&self, ca: &Ca) -> Result<Directory, String> {
        let (host, port) = match ca {
            Ca::Directory(url) => return url.parse(),
            Ca::Host(host) => (host.as_str(), host.split_once(':')),
        };
        let is_there = |named: &&Directory| {
            let url = named.identity().strip_prefix("https://");
            url.is_some_and(|url| url == host || url.starts_with(&format!("{host}/")))
        };
        if let Some(named) = self.named.as_ref().filter(is_there) {
            return Ok(named.clone());
        }
        let public = Directory::at_host(host).filter(|_| port.is_none());
        public.ok_or_else(|| {
            let (name, host) = (self.tool.name(), crate::text::printable(host));
            format!("{name} keeps the host of its CA alone, {host}: name its directory with --ca https://{host}/…")
        })
    }

    async fn certificate(&mut self, one: Sound, accounts: &Accounts) {
        let (lineage, directory) = (one.certificate.lineage.clone(), &one.directory);
        let live = self.target.output.live_path(&lineage);
        let mut remarks = Vec::new();
        let known = accounts.of(directory);
        let wanted = settings::of(self.call, self.tool, &one, known, &mut remarks);
        let foreign = wanted.and_then(|settings| {
            let options = serde_json::to_string_pretty(&settings);
            let options = options.map_err(|error| Failure::unexpected(error.to_string()))?;
            Ok(Foreign {
                lineage: lineage.clone(),
                ca: directory.identity().to_owned(),
                profile: settings.profile,
                bundle: one.bundle,
                options,
                insists: self.insists,
            })
        });
        let subject = format!("certificate {lineage}");
        let taken = match foreign {
            Ok(foreign) => self.store(&foreign).await.map(|taken| (taken, foreign)),
            Err(failure) => Err(failure),
        };
        let (taken, foreign) = match taken {
            Ok(taken) => taken,
            Err(failure) => {
                self.report.failed(&subject, &failure);
                return;
            }
        };
        self.report
            .certificate(&subject, &taken, foreign.bundle.facts(), &live);
        if let Taken::Stored(..) = taken {
            for remark in one.certificate.remarks.iter().chain(&remarks) {
                self.report.remark(Some(&lineage), remark, &live);
            }
        }
    }

    async fn store(&self, foreign: &Foreign) -> Result<Taken, Failure> {
        let failed = |error| Failure::of(foreign.lineage.as_str(), &error);
        let (random, target) = (SystemRandom, &self.target);
        match &target.store {
            Some(store) if !target.dry_run => {
                let taken = take(store, &target.output, foreign, self.now, &random).await;
                taken.map_err(failed)
            }
            Some(store) => {
                let stored = store.load(&foreign.lineage).await;
                let stored = stored.map_err(|error: StoreError| failed(error.into()))?;
                let record = stored.as_ref().map(|(record, _)| record);
                Ok(preview(record, foreign, &random))
            }
            None => Ok(preview(None, foreign, &random)),
        }
    }

    /// What is left to be done when all was taken.
    async fn farewell(&mut self, settings: &Settings) {
        let timer = match self.tool {
            Tool::Certbot => {
                "stop it, or both renew: systemctl disable --now certbot.timer, and take /etc/cron.d/certbot away"
            }
            Tool::AcmeSh => "stop it, or both renew: acme.sh --uninstall-cronjob",
            Tool::Lego => "stop your timer or cron line that runs it, or both renew",
            Tool::Caddy | Tool::Traefik => "while it manages these names, both renew",
        };
        if self.report.has_taken() {
            self.report.by_hand(self.tool.name(), timer);
            if control::is_running(&settings.data_dir).await {
                let text =
                    "restart the one that runs on this data directory: it keeps these from then on";
                self.report.by_hand("certs run", text);
            }
        }
    }
}
