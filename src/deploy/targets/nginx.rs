//! nginx: `nginx -t` if its program may be run, then HUP to the master process of the pid
//! file. It never runs a program that another user could have written or started, and takes
//! over only the options of nginx that name its configuration.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use crate::deploy::identity::{field, ticks_at_start};
use crate::deploy::key_access;
use crate::deploy::keys::values::within;
use crate::deploy::process::{Process, Server};
use crate::deploy::target_settings::prelude::*;
use crate::net::sockets::{
    ListenAddress, NGINX_ENDING, NGINX_MASTER, NGINX_WORKER, children_of, children_titled,
    listened_on_by, unix_sockets_of,
};
use crate::text::printable_lines;

const SERVER: Server<'_> = Server {
    target: Settings::KIND,
    programs: &["nginx", "openresty", "tengine", "angie", "freenginx"],
    pid_files: &[
        "/run/nginx.pid",
        "/run/nginx/nginx.pid",
        "/var/run/nginx.pid",
    ],
};
/// Handshakes there would only fill nginx's log.
const PLAIN_HTTP: u16 = 80;
/// What `nginx -t` reports when another process moved a pair while nginx read it.
const MOVED: &str = "key values mismatch";
const MOVED_TRIES: u32 = 3;
const MOVED_PAUSE: Duration = Duration::from_millis(500);
/// The longest wait for new workers, which have read the pairs. If nginx refuses the
/// configuration, there are none.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// Each keeps its memory and its connections until its clients leave.
const MOST_DRAINING: usize = 3;
const DRAINED_WITHIN: Duration = Duration::from_secs(10);
/// In hundredths of a second: workers that start within it are one generation.
const TOGETHER: u64 = 20;

settings! {
    /// nginx reads the pair again at a reload. `certs` runs `nginx -t` if nginx and its program are root's or its own,
    /// with the options `-c`, `-p`, `-e` and `-g` of the master process, and then sends HUP to that process. While three generations of workers still serve old connections, the reload
    /// waits. If nginx cannot read the key, `certs` names its user and the file's mode: the workers' user, if
    /// `ssl_certificate_key` has a variable.
    ///
    /// Without `verify` the ports and Unix sockets on which nginx listens are verified, port 80 and plain sockets excepted.
    /// In containers, share the PID namespace. With two of them for one certificate, messages name each by its pid file.
    struct Settings {
        /// The pid file of its master process
        #[schemars(extend("x-default" = "the usual places below /run and /var/run"))]
        pid_file: Option<PathKey>,
        /// How long `nginx -t` may take, from 1s to 60m
        #[schemars(extend("default" = "2m"))]
        timeout: Option<Timeout>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "nginx";
    const SHORT: ShortForm = ShortForm::Keys(&["pid_file"]);
    const EXAMPLE: &'static str = r#"pid_file = "/run/nginx.pid""#;
    const STAGE: DeployStage = DeployStage::AllCertificates;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        None
    }

    fn rights(&self) -> Rights {
        Rights::over(Processes::Controls)
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }

    fn deadline(&self) -> Duration {
        within(self.timeout.as_ref())
    }
}

/// A master process.
struct Master {
    process: Process,
    /// The options for `nginx -t`; `None` if the title does not show them all.
    options: Option<Vec<String>>,
}

impl Settings {
    fn master(&self) -> Result<Master, DeployCause> {
        let process = Process::find(self.pid_file.as_ref(), &SERVER)?;
        let title = &process.command_line;
        let used = title.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let is_whole = room_for_title(process.pid).is_none_or(|room| used < room);
        let title = String::from_utf8_lossy(title).replace('\0', " ");
        // A worker has another title, as an nginx that `-t` or `-s` was given to.
        let Some((_, command)) = title.trim_end().split_once(NGINX_MASTER) else {
            return Err(process.other_program(Self::KIND));
        };
        let options = is_whole.then(|| options_in(command)).flatten();
        Ok(Master { process, options })
    }
}

impl Settings {
    /// Runs nginx with its own options and `action`; `None` if the program is gone.
    async fn run(
        &self,
        program: &Path,
        options: &[String],
        action: &str,
    ) -> Result<Option<Output>, DeployCause> {
        let run = tokio::process::Command::new(program)
            .args(options)
            .args([action, "-q"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let within = self.deadline();
        let detail = match tokio::time::timeout(within, run).await {
            Ok(Ok(output)) => return Ok(Some(output)),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Ok(Err(error)) => format!("`nginx {action}` could not be run: {error}"),
            Err(_) => format!(
                "`nginx {action}` did not end within {} s: its configuration may wait for slow DNS; `timeout` in its [deploy.NAME] allows more",
                within.as_secs()
            ),
        };
        Err(DeployCause::Unreachable(detail))
    }

    /// Whether the path of a pair has a variable: then each handshake reads it, by the
    /// workers' user.
    async fn is_read_by_workers(&self, master: &Master) -> bool {
        let program = master.process.trusted_program();
        let Some((program, options)) = program.zip(master.options.as_ref()) else {
            return false;
        };
        let shown = self.run(&program, options, "-T").await;
        let shown = shown.ok().flatten().map(|output| output.stdout);
        has_variable_pair(&String::from_utf8_lossy(&shown.unwrap_or_default()))
    }
}

/// Whether a configuration has `ssl_certificate_key` with a variable in its path.
fn has_variable_pair(configuration: &str) -> bool {
    let directives = configuration.split([';', '{', '}', '\n']).map(str::trim);
    let mut keys = directives.filter_map(|it| it.strip_prefix("ssl_certificate_key"));
    keys.any(|path| path.contains('$'))
}

fn was_moved(output: &Output) -> bool {
    !output.status.success() && String::from_utf8_lossy(&output.stderr).contains(MOVED)
}

/// The options of `command`, without its program, that name its configuration; `None` if it
/// has any other word. A title does not show where arguments with blanks began and ended,
/// as in `-g 'daemon on; master_process on;'`: directives continue until the next option.
fn options_in(command: &str) -> Option<Vec<String>> {
    const TAKEN: [&str; 4] = ["-c", "-p", "-e", "-g"];
    let mut options = Vec::new();
    let mut words = command.split_whitespace().skip(1).peekable();
    while let Some(option) = words.next() {
        if option == "-q" {
            continue;
        }
        let mut value = words.next().filter(|_| TAKEN.contains(&option))?.to_owned();
        let is_option = |word: &&str| TAKEN.contains(word) || *word == "-q";
        while let Some(word) = words.next_if(|word| option == "-g" && !is_option(word)) {
            value.push(' ');
            value.push_str(word);
        }
        // nginx's working directory is not ours; other paths are relative to this one.
        if option == "-p" && !Path::new(&value).is_absolute() {
            return None;
        }
        options.extend([option.to_owned(), value]);
    }
    Some(options)
}

/// The largest length of a title: nginx writes it over its arguments and environment, and
/// cuts it off there. `None` if /proc does not show that. See proc_pid_stat(5).
fn room_for_title(pid: u32) -> Option<usize> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    room_in(&stat)
}

fn room_in(stat: &str) -> Option<usize> {
    const ARG_START: usize = 48;
    const ENV_END: usize = 51;
    let room = field(stat, ENV_END)?.checked_sub(field(stat, ARG_START)?)?;
    (room > 0).then(|| usize::try_from(room - 1).ok())?
}

fn verdict(output: &Output) -> Result<(), DeployCause> {
    match output.status.code() {
        Some(0) => Ok(()),
        Some(_) => {
            let output = String::from_utf8_lossy(&output.stderr);
            Err(DeployCause::Check(printable_lines(&output)))
        }
        // For example by the kernel, for its memory: the configuration may be valid.
        None => Err(DeployCause::Unreachable(format!(
            "`nginx -t` was killed ({})",
            output.status
        ))),
    }
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        Self::KIND.to_owned()
    }

    async fn check(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let master = self.master()?;
        // Before the first change: a rollback would be one more reload.
        may_reload(master.process.pid, delivery).await?;
        // Without `nginx -t`, the handshake after the reload still verifies the pair.
        let (Some(program), Some(options)) = (master.process.trusted_program(), &master.options)
        else {
            return Ok(());
        };
        for tries in 1.. {
            match self.run(&program, options, "-t").await? {
                Some(output) if was_moved(&output) && tries < MOVED_TRIES => {
                    tokio::time::sleep(MOVED_PAUSE).await;
                }
                Some(output) => return verdict(&output),
                None => break,
            }
        }
        Ok(())
    }

    fn check_phase(&self) -> String {
        "waits for nginx -t".to_owned()
    }

    async fn apply(&self, delivery: &Delivery) -> Result<(), DeployCause> {
        let master = self.master()?;
        may_reload(master.process.pid, delivery).await?;
        let before = children_of(master.process.pid);
        master.process.signal(Signal::HUP)?;
        let (pid, end) = (master.process.pid, Instant::now() + READ_WITHIN);
        while !before.is_empty() && children_of(pid).is_subset(&before) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn listens_on(&self) -> Option<Vec<ListenAddress>> {
        let pid = self.master().ok()?.process.pid;
        let mut found = listened_on_by(pid).unwrap_or_default();
        found.retain(|address| address.tcp().is_none_or(|at| at.port() != PLAIN_HTTP));
        // Behind another server.
        found.extend(unix_sockets_of(pid));
        (!found.is_empty()).then_some(found)
    }

    async fn obstacle(&self, delivery: &Delivery) -> Option<String> {
        let master = self.master().ok()?;
        let pid = match self.is_read_by_workers(&master).await {
            true => children_titled(master.process.pid, NGINX_WORKER).pop_first()?,
            false => master.process.pid,
        };
        key_access::obstacle(pid, Self::KIND, &delivery.live)
    }
}

/// Waits until few enough generations of workers drain.
async fn may_reload(master: u32, delivery: &Delivery) -> Result<(), DeployCause> {
    if delivery.urgent {
        return Ok(());
    }
    let end = Instant::now() + DRAINED_WITHIN;
    loop {
        match draining(master) {
            few if few < MOST_DRAINING => return Ok(()),
            many if Instant::now() >= end => return Err(DeployCause::Draining(many)),
            _ => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// The number of draining generations: workers that shut down and still serve. Workers
/// that started together are one generation.
fn draining(master: u32) -> usize {
    let ending = children_titled(master, NGINX_ENDING).into_iter();
    let started = ending.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        ticks_at_start(&stat)
    });
    let started = Vec::from_iter(started.collect::<BTreeSet<u64>>());
    let pairs = started.windows(2);
    let apart = pairs.filter(|pair| pair[1] - pair[0] > TOGETHER);
    apart.count() + usize::from(!started.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::target::DeployTarget;

    #[test]
    fn title_that_fills_its_room_may_be_cut_off() {
        let stat = |start: u32, end: u32| {
            let before = vec!["0"; 44].join(" ");
            format!("7 (a) b) S {before} {start} 0 0 {end} 0")
        };
        assert_eq!(room_in(&stat(1000, 1100)), Some(99));
        assert_eq!(room_in(&stat(0, 0)), None);
        assert_eq!(room_in("7 (x) S 0"), None);
        assert!(room_for_title(std::process::id()).is_some_and(|room| room > 10));
    }

    #[test]
    fn check_is_named_and_waits_for_slow_dns() {
        let nginx: DeployTarget = "nginx".parse().unwrap();
        assert_eq!(nginx.target().check_phase(), "waits for nginx -t");
        assert_eq!(nginx.deadline(), Duration::from_secs(120));
        let keys = [("timeout".to_owned(), vec!["10m".to_owned()])];
        let nginx = DeployTarget::long("nginx", keys.into()).unwrap();
        assert_eq!(nginx.deadline(), Duration::from_secs(600));
        assert!(nginx.answers_within() > nginx.deadline());
    }

    #[test]
    fn pair_with_a_variable_is_read_by_workers() {
        for (configuration, wanted) in [
            (
                "server { ssl_certificate_key /l/$ssl_server_name/k.pem; }",
                true,
            ),
            ("a;\n  ssl_certificate_key\t\"/l/$x.pem\";", true),
            ("ssl_certificate_key /l/k.pem; return 301 $host;", false),
            ("proxy_ssl_certificate_key /l/$x.pem;", false),
            ("# ssl_certificate_key /l/$x.pem;", false),
        ] {
            assert_eq!(has_variable_pair(configuration), wanted, "{configuration}");
        }
    }

    #[test]
    fn killed_check_is_not_reported_as_a_bad_configuration() {
        use std::os::unix::process::ExitStatusExt;
        let ended = |status| {
            let status = std::process::ExitStatus::from_raw(status);
            let stderr = b"nginx: [emerg] \x1b[2J no such file".to_vec();
            let stdout = Vec::new();
            verdict(&Output {
                status,
                stdout,
                stderr,
            })
        };
        assert!(ended(0).is_ok());
        let refused = ended(1 << 8).unwrap_err().to_string();
        assert!(
            refused.contains("configuration is invalid: nginx: [emerg]"),
            "{refused}"
        );
        assert!(!refused.contains('\x1b'), "{refused}");
        let killed = ended(9).unwrap_err().to_string();
        assert!(
            killed.contains("`nginx -t` was killed (signal: 9"),
            "{killed}"
        );
        assert!(!killed.contains("invalid"), "{killed}");
    }

    #[test]
    fn only_the_options_of_a_configuration_are_taken_over() {
        let debian = "/usr/sbin/nginx -g daemon on; master_process on;";
        let wanted = ["-g", "daemon on; master_process on;"];
        assert_eq!(options_in(debian).unwrap(), wanted);
        let more = "nginx -q -c /etc/n.conf -g daemon off; -p /srv/ -e stderr";
        let wanted = [
            "-c",
            "/etc/n.conf",
            "-g",
            "daemon off;",
            "-p",
            "/srv/",
            "-e",
            "stderr",
        ];
        assert_eq!(options_in(more).unwrap(), wanted);
        assert!(options_in("nginx").unwrap().is_empty());
        for other in [
            "su -c x.sh -- root",
            "nginx -c",
            "nginx -c a b",
            "nginx -p relative",
            "nginx -T",
            "nginx -x /etc/n.conf",
            "nginx v1.2 #1 [/usr/sbin/nginx]",
        ] {
            assert_eq!(options_in(other), None, "{other}");
        }
        assert_eq!(draining(std::process::id()), 0);
    }

    #[tokio::test]
    async fn signals_no_process_but_nginx() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nginx.pid");
        let nginx: DeployTarget = format!("nginx:{}", file.display()).parse().unwrap();
        let nginx = nginx.target();
        let mut errors = vec![nginx.apply(&crate::deploy::sample()).await.unwrap_err()];
        for content in [
            "",
            "x",
            "0",
            "1",
            "-1",
            "4194305",
            &std::process::id().to_string(),
        ] {
            std::fs::write(&file, content).unwrap();
            errors.push(nginx.apply(&crate::deploy::sample()).await.unwrap_err());
        }
        assert!(matches!(errors.first(), Some(DeployCause::NoPidFile(_))));
        assert!(matches!(
            errors[6],
            DeployCause::NotRunning { pid: 4_194_305, .. }
        ));
        // HUP would have ended this process.
        assert!(matches!(
            errors.last(),
            Some(DeployCause::OtherProgram { .. })
        ));
    }
}
