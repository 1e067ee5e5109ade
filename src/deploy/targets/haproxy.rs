//! HAProxy through its runtime socket: a transaction (`set`, then `commit` or `abort`)
//! loads the pair into its memory without a reload. A restart loses that memory, so that
//! the file that HAProxy reads at its start is written too. See its management guide,
//! section 9.3.

mod cli;
pub(crate) mod replies;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::certificate::{Secret, serial_of};
use crate::deploy::identity::Identity;
use crate::deploy::keys::address::Address;
use crate::deploy::owner::Owner;
use crate::deploy::target_settings::prelude::*;
use crate::deploy::{copy, off_thread};
use crate::files::beneath::Directory;
use crate::identifier::Identifier;
use crate::net::dns::lookup::Resolver;
use crate::net::sockets::{ListenAddress, listened_on_by};

use self::cli::{Cli, refused};
use self::replies::{Shown, is_a_name};

/// How often a pair is loaded that HAProxy mixed up with another.
const TRIES: u32 = 5;
const PAIR: &str = "combined.pem";
const MODE: u32 = 0o640;
/// The most certificates that are examined.
const MOST_LOOKED_AT: usize = 200;

settings! {
    /// HAProxy gets the pair through its runtime socket, which must be of `level admin`, without a reload: `set ssl
    /// cert` and `commit ssl cert`, or `abort ssl cert` if HAProxy refuses it. A restart loses HAProxy's memory, so that
    /// HAProxy must also read the pair from a file: either `live/NAME/combined.pem` of the output directory, or the file
    /// that `certificate` names. `certs` writes that file too, and adds it to HAProxy's certificates if it is new. A
    /// `load` of a `crt-store` counts as well, by the file that it reads; `@STORE/ALIAS` is found out.
    ///
    /// The socket is a path, or HOST:PORT, also as `unix@PATH` or `ipv4@HOST:PORT`; the socket of the master process
    /// works as well. Over TCP keys travel unencrypted: use the loopback. HAProxy has one transaction at a time: those of
    /// others are waited for, and one that stays open for 5 s is aborted.
    struct Settings {
        /// The runtime socket, a path or HOST:PORT
        socket: Address,
        /// The file that HAProxy reads when it starts; `{name}` is replaced by the certificate's name
        #[schemars(extend("x-default" = "live/NAME/combined.pem of the output directory"))]
        certificate: Option<PathKey>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "haproxy";
    const SHORT: ShortForm = ShortForm::Keys(&["socket"]);
    const EXAMPLE: &'static str = r#"socket = "/run/haproxy/admin.sock"
certificate = "/etc/haproxy/certs/{name}.pem""#;
    const STAGE: DeployStage = DeployStage::EachCertificate;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        let file = self.certificate.as_ref()?.display().to_string();
        let message = match file.starts_with('@') {
            true => {
                "write the file of its `load` line: HAProxy loses at a restart what it has by `@STORE/ALIAS` alone"
            }
            false if is_a_name(&file) => return None,
            false => "HAProxy takes no blanks and no `;`, `<` or `\\` in it",
        };
        Some(InvalidTarget::key("certificate", message))
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: self.socket.unix(),
            reads: None,
            writes: self.certificate.as_ref().map_or(Writes::Nothing, |file| {
                Writes::ServersFile(file.to_path_buf())
            }),
        }
    }

    fn needs_key(&self) -> bool {
        true
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }
}

impl Settings {
    /// The same server, without what is one certificate's own.
    pub(in crate::deploy) fn server(&self) -> Self {
        let certificate = None;
        Self {
            certificate,
            ..self.clone()
        }
    }
}

/// The pair as HAProxy names it.
#[derive(Debug, PartialEq, Eq)]
struct KnownPair {
    /// Its name in HAProxy: a file, or the name in a `crt-store`.
    name: String,
    /// Whether HAProxy has no pair of that name yet.
    is_new: bool,
    /// The list or directory to add the file to, if no bind uses it.
    list: Option<String>,
}

impl KnownPair {
    /// One that a bind uses.
    fn used(name: String) -> Self {
        let (is_new, list) = (false, None);
        Self { name, is_new, list }
    }
}

impl Settings {
    /// HAProxy's command line, and its entry for the pair of `delivery`.
    async fn entry(&self, delivery: &Delivery) -> Result<(Cli<'_>, KnownPair), DeployCause> {
        let (cli, known) = Cli::open(&self.socket, &delivery.resolver).await?;
        let entry = match &self.certificate {
            Some(wanted) => named(&cli, &known, wanted).await?,
            None => live(&cli, &known, delivery).await?,
        };
        Ok((cli, entry))
    }

    /// Writes the file that HAProxy reads at its start, unless that is the live file.
    async fn keep(&self, pair: Secret) -> Result<(), DeployCause> {
        let Some(file) = self.certificate.clone() else {
            return Ok(());
        };
        off_thread(move || {
            keep(&file, pair.expose()).map_err(|error| copy::unwritten(&file, &error))
        })
        .await
    }
}

/// The entry for the file `wanted`, new or not.
async fn named(cli: &Cli<'_>, known: &[String], wanted: &Path) -> Result<KnownPair, DeployCause> {
    let file = wanted.display().to_string();
    // A process that was killed may have left a certificate that no list has.
    let is_new = !known.contains(&file);
    if !is_new && show(cli, &file).await?.is_used {
        return Ok(KnownPair::used(file));
    }
    for (name, shown) in in_stores(cli, known).await? {
        // A relative path is below a `crt-base`, which HAProxy does not show.
        if !wanted.ends_with(&shown.file) {
            continue;
        }
        return match shown.key {
            None => Ok(KnownPair::used(name)),
            Some(key) => Err(refused(&format!(
                "its {name} has the key in {key}, beside {}: write `load crt {file}` without `key` in its crt-store, with the key in that file too",
                shown.file
            ))),
        };
    }
    let (name, list) = (file, Some(list_for(cli, wanted).await?));
    Ok(KnownPair { name, is_new, list })
}

/// The entry that reads the live pair at its start.
async fn live(
    cli: &Cli<'_>,
    known: &[String],
    delivery: &Delivery,
) -> Result<KnownPair, DeployCause> {
    if let Some(file) = live_file(known, delivery) {
        return Ok(KnownPair::used(file));
    }
    let stores = in_stores(cli, known).await?;
    let is_live = |file: &str, name: &str| leads_to_live(file, delivery, name);
    let mut ours = stores.iter().filter(|(_, shown)| match &shown.key {
        None => is_live(&shown.file, PAIR),
        Some(key) => is_live(&shown.file, "fullchain.pem") && is_live(key, "privkey.pem"),
    });
    if let Some((name, _)) = ours.next() {
        return Ok(KnownPair::used(name.clone()));
    }
    let live = delivery.live.join(PAIR);
    let live = live.display();
    // The operator, not HAProxy, decides which file is written.
    Err(refused(&match one_for(cli, known, delivery).await? {
        Some((name, shown)) if name.starts_with('@') => {
            let alias = name.rsplit('/').next().unwrap_or_default();
            format!(
                "it reads {} for {name} at its start, and certs does not write that file: write `load crt \"{live}\" alias \"{alias}\"` in its crt-store",
                shown.file
            )
        }
        Some((file, _)) => format!(
            "it reads {file} at its start, and certs does not write that file: write `certificate = \"{file}\"` in its [deploy.NAME], or `crt {live}` at its bind"
        ),
        None => format!(
            "none of its certificates [{}] is for {}: write `crt {live}` at its bind, or name the file with `certificate` in its [deploy.NAME]",
            known.join(", "),
            delivery.lineage,
        ),
    }))
}

async fn show(cli: &Cli<'_>, name: &str) -> Result<Shown, DeployCause> {
    let reply = cli.command(&format!("show ssl cert {name}")).await?;
    Ok(Shown::of(name, &reply))
}

/// The certificates of a `crt-store`, whose names are not those of their files.
async fn in_stores(cli: &Cli<'_>, known: &[String]) -> Result<Vec<(String, Shown)>, DeployCause> {
    let mut found = Vec::new();
    let names = known.iter().filter(|name| name.starts_with('@'));
    for name in names.take(MOST_LOOKED_AT) {
        found.push((name.clone(), show(cli, name).await?));
    }
    Ok(found)
}

/// HAProxy's certificate for the same names.
async fn one_for(
    cli: &Cli<'_>,
    known: &[String],
    delivery: &Delivery,
) -> Result<Option<(String, Shown)>, DeployCause> {
    for name in known.iter().take(MOST_LOOKED_AT) {
        let shown = show(cli, name).await?;
        if shown.names.as_ref() == Some(&delivery.names) {
            return Ok(Some((name.clone(), shown)));
        }
    }
    Ok(None)
}

/// HAProxy's certificates beside `own` that it may show for a name of `delivery`: it shows the
/// one that it loaded first, and the load of a new pair makes ours the last.
async fn others_for(
    cli: &Cli<'_>,
    own: &str,
    delivery: &Delivery,
) -> Result<Vec<String>, DeployCause> {
    let mut others = Vec::new();
    let known = cli.names().await?;
    for name in known
        .into_iter()
        .filter(|name| name != own)
        .take(MOST_LOOKED_AT)
    {
        let shown = show(cli, &name).await?;
        let shows =
            |pattern: &Identifier| delivery.names.iter().any(|it| it.is_covered_by(pattern));
        if shown.is_used && shown.names.iter().flatten().any(shows) {
            others.push(match shown.file == name {
                true => name,
                false => format!("{name} ({})", shown.file),
            });
        }
    }
    Ok(others)
}

/// The list or directory that a bind reads and that `file` can be added to.
async fn list_for(cli: &Cli<'_>, file: &Path) -> Result<String, DeployCause> {
    let lists = cli.command("show ssl crt-list").await?;
    let directory = file.parent().unwrap_or(Path::new("/"));
    let mut lists = lists.lines().map(str::trim);
    let found = lists.find(|list| list.starts_with('/') && Path::new(list) == directory);
    found.map(str::to_owned).ok_or_else(|| {
        refused(&format!(
            "no bind of it uses {}, and none reads the directory {}",
            file.display(),
            directory.display()
        ))
    })
}

/// Loads `pair` into HAProxy's memory; a new certificate that failed is removed.
async fn swap(cli: &Cli<'_>, entry: &KnownPair, pair: &str) -> Result<(), DeployCause> {
    let name = &entry.name;
    if entry.is_new {
        cli.command(&format!("new ssl cert {name}")).await?;
    }
    let mut ended = cli.replace(name, pair).await;
    if let (Ok(()), Some(list)) = (&ended, &entry.list) {
        let added = cli
            .command(&format!("add ssl crt-list {list} {name}"))
            .await?;
        ended = match added.contains("Success!") {
            true => Ok(()),
            false => Err(refused(&added)),
        };
    }
    if ended.is_err() && entry.is_new {
        // The refusal is reported, whatever this replies.
        let _ = cli.command(&format!("del ssl cert {name}")).await;
    }
    ended
}

/// Replaces `file` with its owner kept. It has a key in it, and so it never becomes
/// readable to others.
fn keep(file: &Path, pair: &str) -> io::Result<()> {
    let (directory, name) = Directory::of(file)?;
    let (owner, mode) = match directory.file(name).and_then(|file| file.metadata()) {
        Ok(found) => {
            let (user, group) = (Some(found.uid()), Some(found.gid()));
            (Owner { user, group }, found.mode() & 0o770)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Owner::default(), MODE),
        Err(error) => return Err(error),
    };
    if directory.holds(name, pair.as_bytes()) {
        return Ok(());
    }
    copy::replace(file, mode, owner, pair.as_bytes())
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        self.short_form()
    }

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        self.entry(delivery).await.map(drop)
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let read = delivery.clone();
        let pair = off_thread(move || copy::read_live(&read, PAIR)).await?;
        let serial = serial_of(pair.expose());
        let (cli, _) = Cli::open(&self.socket, &delivery.resolver).await?;
        let turn = cli.turn().await?;
        for tries in 1.. {
            let (cli, entry) = self.entry(delivery).await?;
            swap(&cli, &entry, pair.expose()).await?;
            let loaded = show(&cli, &entry.name).await?.serial;
            if loaded.is_none() || loaded == serial {
                break;
            }
            if tries == TRIES {
                return Err(refused(&format!(
                    "it has loaded another certificate as {}: old versions mix up the pairs of clients that change certificates at once; let no other program do that, and restart it",
                    entry.name
                )));
            }
        }
        drop(turn);
        self.keep(pair).await
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        if cli::hangs(&self.socket, &delivery.resolver).await {
            let why = "HAProxy takes connections at its socket and does not answer: it hangs or is stopped; see its log, and restart it";
            return Some(why.to_owned());
        }
        let (cli, own) = self.entry(delivery).await.ok()?;
        let others = others_for(&cli, &own.name, delivery).await.ok()?;
        let (is, names) = match others.as_slice() {
            [] => return None,
            [_] => ("is", others),
            _ => ("are", others),
        };
        let (lineage, names) = (&delivery.lineage, names.join(", "));
        Some(format!(
            "HAProxy also has {names}, which {is} for names of {lineage}, too, and shows one certificate for a name: take {names} out of its configuration, or out of the directory that it reads, and reload it"
        ))
    }

    async fn listens_on(&self) -> Option<Vec<ListenAddress>> {
        // Only a HAProxy of this machine tells them.
        let cli = Cli::open(&self.socket, &Resolver::default()).await;
        let (cli, _) = cli.ok()?;
        let pid = cli.pid().await.ok()??;
        // In another PID namespace the number belongs to another process.
        let process = Identity::of(pid).ok()?;
        process.runs(&[Self::KIND]).then(|| listened_on_by(pid))?
    }
}

/// The live file among `known`, at whatever path it is mounted.
fn live_file(known: &[String], delivery: &Delivery) -> Option<String> {
    let mut known = known.iter();
    known
        .find(|file| leads_to_live(file, delivery, PAIR))
        .cloned()
}

/// Whether `file` is that file of the live pair.
fn leads_to_live(file: &str, delivery: &Delivery, name: &str) -> bool {
    let live = Path::new("live").join(delivery.lineage.as_str()).join(name);
    // HAProxy finds the pairs of a bundle by the ends of their names: links to the live ones.
    let linked = std::fs::read_link(file);
    Path::new(file).ends_with(&live) || linked.is_ok_and(|linked| linked.ends_with(live))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::sample;
    use crate::deploy::target::DeployTarget;

    #[test]
    fn servers_file_keeps_its_owner() {
        use std::os::unix::fs::{PermissionsExt, chown};
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("front.pem");
        keep(&file, "one").unwrap();
        let found = || {
            let found = std::fs::metadata(&file).unwrap();
            (found.uid(), found.gid(), found.mode() & 0o7777)
        };
        let (user, group, mode) = found();
        assert_eq!(mode, MODE);
        let is_root = rustix::process::geteuid().is_root();
        let theirs = if is_root { (4321, 8765) } else { (user, group) };
        chown(&file, Some(theirs.0), Some(theirs.1)).unwrap();
        for (before, after) in [(0o600, 0o600), (0o664, 0o660)] {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(before)).unwrap();
            keep(&file, &format!("{before:o}")).unwrap();
            assert_eq!(found(), (theirs.0, theirs.1, after));
        }
    }

    #[test]
    fn live_file_is_found_at_any_mount_point() {
        let find = |names: &[&str]| {
            let known: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            live_file(&known, &sample())
        };
        let mounted = "/x/live/example.com/combined.pem";
        assert_eq!(find(&["/etc/a.pem", mounted]).as_deref(), Some(mounted));
        assert_eq!(find(&["/etc/certs/example.com.pem"]), None);
        assert_eq!(find(&["/x/live/www.example.com/combined.pem"]), None);
    }

    #[tokio::test]
    async fn absent_socket_is_named() {
        let absent: DeployTarget = "haproxy:/absent/haproxy.sock".parse().unwrap();
        let absent = absent.target();
        let error = absent.check(&sample()).await.unwrap_err();
        let error = error.of(absent.name());
        assert!(
            error.to_string().contains("/absent/haproxy.sock"),
            "{error}"
        );
    }
}
