//! The nginx program: its version, its main file, and the test of a configuration.
//! The test uses copies: each file that changes, and each file that includes one, is
//! copied, and the includes in the copies name the other copies.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::AtEnd;
use super::change::{Edit, apply};
use super::syntax::quoted;
use super::tree::{Overlay, Tree};
use crate::failure::Failure;
use crate::files::beneath::Directory;
use crate::files::{self, trust};
use crate::net::sockets::{NGINX_ENDING, NGINX_MASTER, NGINX_WORKER, children_titled, title_of};
use crate::text::{printable, printable_lines};

const DEFAULT: &str = "/etc/nginx/nginx.conf";
const DEFAULT_PREFIX: &str = "/usr/share/nginx";
const DEFAULT_PID_FILE: &str = "/run/nginx.pid";
const DEFAULT_LOG: &str = "/var/log/nginx/error.log";
const MOST_OF_LOG: u64 = 64 * 1024;
/// The copy of the main file under test, beside it.
const COPY: &str = ".certs-test.conf";
/// Between two texts about a command.
const STEP: Duration = Duration::from_secs(1);

/// How long a command of nginx is waited for, and what is shown meanwhile.
#[derive(Clone)]
pub(crate) struct Patience {
    /// The longest time of one command.
    pub within: Duration,
    /// Shows what is waited for; an empty text at its end.
    pub show: Arc<dyn Fn(&str) + Send + Sync>,
}

/// An nginx that can be started.
#[derive(Clone)]
pub(crate) struct Program {
    path: PathBuf,
    patience: Patience,
    /// The time of the last test: a reload reads the configuration as slowly.
    tested: Arc<Mutex<Duration>>,
    /// The version from `nginx -V`; zeroes if there is none in its output.
    pub version: (u32, u32, u32),
    /// The main file that it was built with.
    pub main: PathBuf,
    /// The directory of relative paths of files.
    pub prefix: PathBuf,
    pid_file: PathBuf,
    error_log: PathBuf,
}

/// What nginx writes to its error log from now on.
#[derive(Debug)]
pub(crate) struct ErrorLog {
    path: PathBuf,
    from: u64,
}

impl ErrorLog {
    /// The new lines with `word`, at most three.
    #[must_use]
    pub(crate) fn lines_with(&self, word: &str) -> Vec<String> {
        let mut text = Vec::new();
        let read = std::fs::File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.from))?;
            file.take(MOST_OF_LOG).read_to_end(&mut text)
        });
        // It may be a pipe, or another machine's.
        if read.is_err() {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().filter(|line| line.contains(word));
        lines.take(3).map(printable).collect()
    }
}

impl Program {
    /// Reads version and main file from the program at `path`; a name without a `/` is
    /// searched in `directories`.
    pub(crate) async fn read(
        path: &Path,
        directories: &str,
        patience: Patience,
    ) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            let hint = "install nginx, or name its program with --nginx FILE";
            Failure::usage(format!("{}: {error}", path.display()), hint)
        };
        let is_name = path.components().count() == 1 && !path.is_absolute();
        let path = match path.to_str().filter(|_| is_name) {
            Some(name) => files::in_directories(name, directories.split(':'))
                .ok_or_else(|| failed(&"not found on PATH"))?,
            None => path.to_owned(),
        };
        match trust::resolve(&path) {
            Err(error) if error.is_absent() => return Err(failed(&error)),
            resolved => resolved?,
        };
        let output = Command::new(&path).arg("-V").stdin(Stdio::null()).output();
        let output = output.await.map_err(|error| failed(&error))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let built_with = |option: &str, default: &str| {
            let mut words = text.split_whitespace();
            PathBuf::from(
                words
                    .find_map(|word| word.strip_prefix(option))
                    .unwrap_or(default),
            )
        };
        Ok(Self {
            path,
            patience,
            tested: Arc::default(),
            version: version(&text),
            main: built_with("--conf-path=", DEFAULT),
            prefix: built_with("--prefix=", DEFAULT_PREFIX),
            pid_file: built_with("--pid-path=", DEFAULT_PID_FILE),
            error_log: built_with("--error-log-path=", DEFAULT_LOG),
        })
    }

    /// The pid file of an nginx with this configuration; `None` at its usual place.
    #[must_use]
    pub(crate) fn pid_file(&self, tree: &Tree) -> Option<PathBuf> {
        let file = self.pid_path(tree);
        let usual = ["/run/nginx.pid", "/var/run/nginx.pid"].map(Path::new);
        (!usual.contains(&file.as_path())).then_some(file)
    }

    fn pid_path(&self, tree: &Tree) -> PathBuf {
        let own = self.of_main(tree, "pid");
        own.unwrap_or_else(|| self.pid_file.clone())
    }

    /// The pid file of the nginx of `main`, and the process id in it.
    fn named_process(&self, main: &Path) -> Option<(PathBuf, u32)> {
        let file = self.pid_path(&Tree::load(main, &Overlay::new()).ok()?);
        let pid = std::fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        Some((file, pid))
    }

    /// The error log of an nginx with this configuration, from now on.
    #[must_use]
    pub(crate) fn error_log(&self, tree: &Tree) -> ErrorLog {
        let path = self.of_main(tree, "error_log");
        let path = path.unwrap_or_else(|| self.error_log.clone());
        let from = std::fs::metadata(&path).map_or(0, |found| found.len());
        ErrorLog { path, from }
    }

    /// The path in this directive outside of all blocks.
    fn of_main(&self, tree: &Tree, name: &str) -> Option<PathBuf> {
        let mut all = tree.within(0, &tree.files[0].directives).into_iter();
        let found = all.find(|one| one.directive.name() == name)?;
        Some(self.prefix.join(found.directive.argument()))
    }

    /// `nginx -t`; the error is nginx's message.
    pub(crate) async fn test(&self, main: &Path) -> Result<(), String> {
        self.run(main, &["-t", "-q"]).await
    }

    /// Reloads a running nginx; the error is nginx's message, usually that it does not run.
    pub(crate) async fn reload(&self, main: &Path) -> Result<(), String> {
        self.check_pid_file(main)?;
        self.run(main, &["-s", "reload"]).await
    }

    /// The workers that accept connections for the nginx of `main`; none if they cannot be
    /// seen.
    #[must_use]
    pub(crate) fn workers(&self, main: &Path) -> BTreeSet<u32> {
        let Some((_, pid)) = self.named_process(main) else {
            return BTreeSet::new();
        };
        let ending = children_titled(pid, NGINX_ENDING);
        &children_titled(pid, NGINX_WORKER) - &ending
    }

    /// How long a reload may take until new workers have replaced the old ones.
    #[must_use]
    pub(crate) fn reloads_within(&self) -> Duration {
        let tested = *self.tested.lock().unwrap_or_else(PoisonError::into_inner);
        2 * tested
    }

    /// `nginx -s` signals whatever process has the number in its pid file, and HUP ends most.
    fn check_pid_file(&self, main: &Path) -> Result<(), String> {
        // nginx itself reports a missing file or process.
        let Some((file, pid)) = self.named_process(main) else {
            return Ok(());
        };
        match title_of(pid) {
            Some(title) if !title.contains(NGINX_MASTER) => Err(format!(
                "{} is stale: process {pid} is another program, and nginx does not run",
                file.display()
            )),
            _ => Ok(()),
        }
    }

    /// nginx loads the modules that `main` names into its own process, which is root's.
    async fn run(&self, main: &Path, arguments: &[&str]) -> Result<(), String> {
        trust::resolve(main).map_err(|error| format!("{error}; hint: {}", error.hint()))?;
        let mut command = Command::new(&self.path);
        command.args(arguments).arg("-c").arg(main);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let begun = Instant::now();
        let started = command.stderr(Stdio::piped()).kill_on_drop(true).spawn();
        let mut child = started.map_err(|error| error.to_string())?;
        // A full pipe would stop it.
        let said = child.stderr.take().map(|stderr| {
            tokio::spawn(async move {
                let mut said = Vec::new();
                let read = stderr.take(MOST_OF_LOG).read_to_end(&mut said).await;
                read.map(|_| said).unwrap_or_default()
            })
        });
        let shown = format!("nginx {}", arguments.join(" ").replace(" -q", ""));
        let showing = AtEnd(|| (self.patience.show)(""));
        let ended = self.wait(&mut child, &shown).await;
        drop(showing);
        if arguments.contains(&"-t") {
            *self.tested.lock().unwrap_or_else(PoisonError::into_inner) = begun.elapsed();
        }
        match (ended?, said) {
            (status, _) if status.success() => Ok(()),
            (_, None) => Err(String::new()),
            (_, Some(said)) => {
                let said = said.await.unwrap_or_default();
                Err(printable_lines(&String::from_utf8_lossy(&said)))
            }
        }
    }

    /// Waits for the end of a command, and shows for how long.
    async fn wait(&self, child: &mut Child, shown: &str) -> Result<ExitStatus, String> {
        let within = self.patience.within.as_secs();
        for seconds in 1..=within {
            match tokio::time::timeout(STEP, child.wait()).await {
                Ok(ended) => return ended.map_err(|error| error.to_string()),
                Err(_) => (self.patience.show)(&format!("waits for {shown}: {seconds} s")),
            }
        }
        // It may have ended by now.
        let _ = child.kill().await;
        Err(format!(
            "`{shown}` did not end within {within} s: its configuration may wait for slow DNS; `timeout` in a [deploy.NAME] of nginx allows more"
        ))
    }

    /// `nginx -t` on a copy with the files of `overlay`; `scratch` is an empty directory
    /// of our own.
    ///
    /// # Errors
    /// The message of nginx, with the paths of the originals.
    pub(crate) async fn rehearse(
        &self,
        main: &Path,
        overlay: &Overlay,
        scratch: &Path,
    ) -> Result<(), Failure> {
        let tree = Tree::load(main, overlay)?;
        let is_read = |path: &Path| tree.files.iter().any(|one| one.path == path);
        if let Some(path) = overlay.keys().find(|path| !is_read(path)) {
            return Err(Failure::usage(
                format!(
                    "{}: no include of {} matches it",
                    path.display(),
                    main.display()
                ),
                "choose another file with --file FILE, or add an include to the `http` block",
            ));
        }
        // Relative paths are relative to the main file's directory.
        let copy = main.with_file_name(COPY);
        let copies = staged(&tree, overlay, &copy, scratch);
        let _forgotten = AtEnd(|| forget_copy(main));
        let written = copies.iter().try_for_each(|(number, path)| {
            let (place, name) = Directory::of(path)?;
            place.remove(name)?;
            let copied = with_copied_includes(&tree, *number, &copies);
            place.write_new(name, 0o600, &copied, |_| Ok(()))
        });
        let written = written.map_err(|error: io::Error| {
            let copy = copy.display();
            Failure::of_file(
                &error,
                format!("{copy}: cannot write the copy for the test: {error}"),
                "run as a user that may write there, usually root",
            )
        });
        written?;
        self.test(&copy).await.map_err(|mut text| {
            for (number, path) in &copies {
                let real = tree.files[*number].path.display().to_string();
                text = text.replace(&path.display().to_string(), &real);
            }
            Failure::usage(
                format!("nginx would refuse the new configuration; nothing was changed:\n{text}"),
                "fix the cause and run this command again",
            )
        })
    }
}

/// Removes the copy of this main file that a test left when it was killed; nginx ignores it.
pub(crate) fn forget_copy(main: &Path) {
    let copy = main.with_file_name(COPY);
    let _ = Directory::of(&copy).and_then(|(place, name)| place.remove(name));
}

/// The path of the copy of each file that must be copied.
fn staged(tree: &Tree, overlay: &Overlay, main: &Path, scratch: &Path) -> BTreeMap<usize, PathBuf> {
    let changed = |number: &usize| overlay.contains_key(&tree.files[*number].path);
    let mut wanted: BTreeSet<usize> = (0..tree.files.len()).filter(changed).collect();
    wanted.insert(0);
    loop {
        let before = wanted.len();
        let including = (0..tree.files.len()).filter(|number| {
            let mut includes = tree.includes_of(*number);
            includes.any(|(_, files)| files.iter().any(|file| wanted.contains(file)))
        });
        wanted.extend(including.collect::<Vec<_>>());
        if wanted.len() == before {
            break;
        }
    }
    let place = |number: usize| match number {
        0 => main.to_owned(),
        number => scratch.join(format!("{number}.conf")),
    };
    wanted
        .into_iter()
        .map(|number| (number, place(number)))
        .collect()
}

/// The text of a file, with includes of copied files replaced by their copies.
fn with_copied_includes(tree: &Tree, number: usize, copies: &BTreeMap<usize, PathBuf>) -> Vec<u8> {
    let path = |file: &usize| copies.get(file).unwrap_or(&tree.files[*file].path);
    let includes = tree.includes_of(number);
    let copied = includes.filter(|(_, files)| files.iter().any(|file| copies.contains_key(file)));
    let edits = copied.map(|(span, files)| {
        let lines = files
            .iter()
            .map(|file| format!("include {};", quoted(&path(file).to_string_lossy())));
        let text = lines.collect::<Vec<_>>().join(" ");
        let span = span.clone();
        Edit { span, text }
    });
    apply(&tree.files[number].text, &edits.collect::<Vec<_>>())
}

fn version(output: &str) -> (u32, u32, u32) {
    let text = output.split("nginx/").nth(1).unwrap_or_default();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let mut parts = text[..end.unwrap_or(text.len())].split('.');
    let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_output() {
        assert_eq!(version("nginx version: nginx/1.22.1\nbuilt"), (1, 22, 1));
        assert_eq!(version("nginx version: nginx/1.27.0 (Ubuntu)"), (1, 27, 0));
        assert_eq!(version("nothing"), (0, 0, 0));
    }
}
