//! HAProxy through its runtime socket: a transaction (`set`, then `commit` or `abort`)
//! loads the pair into its memory without a reload. A restart loses that memory, so that
//! the file that HAProxy reads at its start is written too. See its management guide,
//! section 9.3.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::certificate::Secret;
use crate::deploy::identity::Identity;
use crate::deploy::owner::Owner;
use crate::deploy::target_settings::prelude::*;
use crate::deploy::{copy, off_thread};
use crate::files::beneath::Directory;
use crate::identifier::Identifier;
use crate::net::sockets::listened_on_by;
use crate::net::unix;

const REPLY_WITHIN: Duration = Duration::from_secs(10);
const LONGEST_REPLY: u64 = 4 << 20;
const PAIR: &str = "combined.pem";
const MODE: u32 = 0o640;
/// The most certificates that are searched for a hint.
const MOST_LOOKED_AT: usize = 200;

settings! {
    /// HAProxy gets the pair through its runtime socket, which must be of `level admin`, without a reload: `set ssl
    /// cert` and `commit ssl cert`, or `abort ssl cert` if HAProxy refuses it. A restart loses HAProxy's memory, so that
    /// HAProxy must also read the pair from a file: either `live/NAME/combined.pem` of the output directory, or the file
    /// that `certificate` names. `certs` writes that file too, and adds it to HAProxy's certificates if it is new.
    struct Settings {
        /// The runtime socket
        socket: PathKey,
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
        let message = "HAProxy takes no blanks and no `;`, `<` or `\\` in it";
        (!is_a_name(&file)).then(|| InvalidTarget::key("certificate", message))
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Untouched,
            connects_to: Some(self.socket.to_path_buf()),
            reads: None,
            writes: self.certificate.as_ref().map_or(Writes::Nothing, |file| {
                Writes::ServersFile(file.to_path_buf())
            }),
        }
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }
}

/// The pair as HAProxy names it.
#[derive(Debug, PartialEq, Eq)]
struct KnownPair {
    /// The file's name in its configuration.
    file: String,
    /// Whether HAProxy has no pair of that name yet.
    is_new: bool,
    /// The list or directory to add the file to, if no bind uses it.
    list: Option<String>,
}

impl Settings {
    fn refused(detail: &str) -> DeployCause {
        DeployCause::Refused(printable(detail.trim()))
    }

    /// Sends one command; the socket serves one for each connection.
    async fn command(&self, command: &str) -> Result<String, DeployCause> {
        let reply = async {
            let mut stream = unix::connect(&self.socket).await?;
            // In one write: HAProxy closes as soon as it has parsed the command.
            stream.write_all(format!("{command}\n").as_bytes()).await?;
            let mut reply = Vec::new();
            stream.take(LONGEST_REPLY).read_to_end(&mut reply).await?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&reply).into_owned())
        };
        match tokio::time::timeout(REPLY_WITHIN, reply).await {
            Ok(Ok(reply)) if reply.starts_with("Permission denied") => Err(Self::refused(
                "its socket is not of `level admin`: write `stats socket PATH mode 660 level admin`",
            )),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(DeployCause::Unreachable(error.to_string())),
            Err(_) => Err(DeployCause::Unreachable(format!(
                "no reply within {} s",
                REPLY_WITHIN.as_secs()
            ))),
        }
    }

    /// The entry for the pair of `delivery`.
    async fn entry(&self, delivery: &Delivery) -> Result<KnownPair, DeployCause> {
        let known = files_in(&self.command("show ssl cert").await?);
        if let Some(wanted) = &self.certificate {
            let file = wanted.display().to_string();
            let is_new = !known.contains(&file);
            // A process that was killed may have left a certificate that no list has.
            let used = !is_new && is_used(&self.command(&format!("show ssl cert {file}")).await?);
            let list = match used {
                true => None,
                false => Some(self.list_for(wanted).await?),
            };
            return Ok(KnownPair { file, is_new, list });
        }
        if let Some(file) = live_file(&known, delivery) {
            let (is_new, list) = (false, None);
            return Ok(KnownPair { file, is_new, list });
        }
        let live = delivery.live.join(PAIR);
        Err(match self.one_for(&known, delivery).await? {
            // The operator, not HAProxy, decides which file is written.
            Some(file) => Self::refused(&format!(
                "it reads {file} at its start, and certs does not write that file: write `certificate = \"{file}\"` in its [deploy.NAME], or `crt {}` at its bind",
                live.display()
            )),
            None => Self::refused(&format!(
                "none of its certificates [{}] is for {}: write `crt {}` at its bind, or name the file with `certificate` in its [deploy.NAME]",
                known.join(", "),
                delivery.lineage,
                live.display()
            )),
        })
    }

    /// HAProxy's file for the same names.
    async fn one_for(
        &self,
        known: &[String],
        delivery: &Delivery,
    ) -> Result<Option<String>, DeployCause> {
        for file in known.iter().take(MOST_LOOKED_AT) {
            let shown = self.command(&format!("show ssl cert {file}")).await?;
            if names_in(&shown).is_some_and(|names| names == delivery.names) {
                return Ok(Some(file.clone()));
            }
        }
        Ok(None)
    }

    /// The list or directory that a bind reads and that `file` can be added to.
    async fn list_for(&self, file: &Path) -> Result<String, DeployCause> {
        let lists = self.command("show ssl crt-list").await?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        let mut lists = lists.lines().map(str::trim);
        let found = lists.find(|list| list.starts_with('/') && Path::new(list) == directory);
        found.map(str::to_owned).ok_or_else(|| {
            Self::refused(&format!(
                "no bind of it uses {}, and none reads the directory {}",
                file.display(),
                directory.display()
            ))
        })
    }

    /// Loads `pair` into HAProxy's memory; a failed transaction is rolled back.
    async fn swap(&self, entry: &KnownPair, pair: &str) -> Result<(), DeployCause> {
        let file = &entry.file;
        if entry.is_new {
            self.command(&format!("new ssl cert {file}")).await?;
        }
        let set = self
            .command(&format!("set ssl cert {file} <<\n{pair}"))
            .await?;
        let mut ended =
            match set.contains("Transaction created") || set.contains("Transaction updated") {
                true => self.command(&format!("commit ssl cert {file}")).await?,
                false => set,
            };
        let mut done = ended.contains("Success!");
        if let (true, Some(list)) = (done, &entry.list) {
            ended = self
                .command(&format!("add ssl crt-list {list} {file}"))
                .await?;
            done = ended.contains("Success!");
        }
        if done {
            return Ok(());
        }
        // The refusal is reported, whatever the abort replies.
        let _ = self.command(&format!("abort ssl cert {file}")).await;
        if entry.is_new {
            let _ = self.command(&format!("del ssl cert {file}")).await;
        }
        Err(Self::refused(&ended))
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
        let entry = self.entry(delivery).await?;
        let payload = Secret::new(without_empty_lines(pair.expose()));
        self.swap(&entry, payload.expose()).await?;
        self.keep(pair).await
    }

    async fn listens_on(&self) -> Option<Vec<SocketAddr>> {
        let info = self.command("show info").await.ok()?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid: "))?;
        let pid = pid.trim().parse().ok()?;
        // In another PID namespace the number belongs to another process.
        let process = Identity::of(pid).ok()?;
        process.runs(&[Self::KIND]).then(|| listened_on_by(pid))?
    }
}

/// Whether a bind uses the certificate of this reply.
fn is_used(reply: &str) -> bool {
    let mut lines = reply.lines();
    let status = lines.find_map(|line| line.strip_prefix("Status: "));
    // Older versions have no status.
    status.is_none_or(|status| status.trim() == "Used")
}

/// A payload ends at the first empty line.
fn without_empty_lines(pem: &str) -> String {
    let lines = pem.lines().map(str::trim_end);
    let lines = lines.filter(|line| !line.is_empty());
    lines.fold(String::new(), |all, line| all + line + "\n")
}

/// The files of `show ssl cert`, without pending transactions and without names that are
/// more than one word of a command.
fn files_in(reply: &str) -> Vec<String> {
    let lines = reply.lines().map(str::trim);
    let files = lines.filter(|line| !line.starts_with(['#', '*']) && is_a_name(line));
    files.map(str::to_owned).collect()
}

/// Whether `text` is exactly one word of a command: `;` begins the next command, `<<` a
/// payload, and `\` escapes the next character.
fn is_a_name(text: &str) -> bool {
    let plain =
        |letter: char| !letter.is_whitespace() && !letter.is_control() && !";\\<".contains(letter);
    !text.is_empty() && text.chars().all(plain)
}

/// The live file among `known`, at whatever path it is mounted.
fn live_file(known: &[String], delivery: &Delivery) -> Option<String> {
    let live = Path::new("live").join(delivery.lineage.as_str()).join(PAIR);
    let mut known = known.iter();
    known.find(|file| Path::new(file).ends_with(&live)).cloned()
}

/// The names in a reply of `show ssl cert FILE`; `None` when it has none.
fn names_in(reply: &str) -> Option<BTreeSet<Identifier>> {
    let mut lines = reply.lines();
    let names = lines.find_map(|line| line.strip_prefix("Subject Alternative Name: "))?;
    let names = names.split(", ").filter_map(|name| {
        let (_, value) = name.split_once(':')?;
        Identifier::parse(value.trim()).ok()
    });
    Some(names.collect())
}

/// The checks of `fuzz/` on HAProxy's replies.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::{files_in, is_a_name, names_in, without_empty_lines};

    /// No listed name is more than one word of the next command, and no payload has an
    /// empty line.
    pub(crate) fn answer(bytes: &[u8]) {
        let reply = String::from_utf8_lossy(bytes);
        for file in files_in(&reply) {
            assert!(is_a_name(&file), "{file:?}");
            let command = format!("show ssl cert {file}");
            assert_eq!(command.lines().count(), 1);
            assert_eq!(command.split_whitespace().count(), 4);
        }
        let _ = names_in(&reply);
        let payload = without_empty_lines(&reply);
        assert!(payload.lines().all(|line| !line.is_empty()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::sample;
    use crate::deploy::target::DeployTarget;

    #[test]
    fn lists_and_names_are_parsed() {
        let known =
            files_in("# transaction\n*/etc/a.pem\n# filename\n/etc/a.pem\n/etc/b.pem\n\n\n");
        assert_eq!(known, ["/etc/a.pem", "/etc/b.pem"]);
        let names = names_in(
            "Filename: x\nSubject Alternative Name: DNS:b.example, IP Address:::1, DNS:a.example\n",
        );
        let names: Vec<String> = names.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a.example", "b.example", "::1"]);
        assert_eq!(names_in("Filename: x\nStatus: Empty\n"), None);
    }

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
    fn unused_certificate_is_recognised() {
        assert!(is_used("Filename: /a.pem\nStatus: Used\n"));
        assert!(!is_used("Filename: /a.pem\nStatus: Unused\n"));
        assert!(!is_used("Filename: /a.pem\nStatus: Empty\n"));
        assert!(is_used("Filename: /a.pem\n"));
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

    #[test]
    fn name_of_a_file_is_one_word_of_a_command() {
        let hostile = "/a.pem; shutdown\n/b.pem <<\n/c\\ d.pem\n/e f\n/good.pem\n";
        assert_eq!(files_in(hostile), ["/good.pem"]);
    }

    #[test]
    fn no_empty_line_cuts_a_payload_short() {
        assert_eq!(without_empty_lines("a\n\n  \r\nb\r\n"), "a\nb\n");
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
