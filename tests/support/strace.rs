//! The real binary under `strace`: its system calls in order, and any of them killed or failed. Harmless
//! calls are listed, so that a new call counts as a point.

pub(crate) mod aimed;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use super::{Running, certs, program, text, until};

/// Calls that change nothing beyond the process and send nothing.
const HARMLESS: &str = "access,accept4,?arch_prctl,bind,brk,?clone,clone3,close,clock_gettime,\
    clock_nanosleep,dup,epoll_create1,epoll_ctl,epoll_pwait,?epoll_pwait2,?epoll_wait,eventfd2,\
    exit,exit_group,faccessat,?faccessat2,fcntl,fstat,futex,getcwd,getdents64,getegid,geteuid,\
    getgid,getpeername,getpid,getrandom,getsockname,getsockopt,gettid,getuid,ioctl,listen,lseek,\
    ?lstat,madvise,mmap,mprotect,mremap,munmap,newfstatat,?poll,ppoll,prctl,pread64,prlimit64,read,\
    ?readlink,readlinkat,readv,restart_syscall,rseq,rt_sigaction,rt_sigprocmask,rt_sigreturn,\
    sched_getaffinity,sched_yield,set_robust_list,set_tid_address,setsockopt,shutdown,sigaltstack,\
    socket,socketpair,?stat,statx,sysinfo,timerfd_create,timerfd_settime,?time,uname";

/// Calls that create a file; `open` only with `O_CREAT`.
const MAKES: &str = "?open,openat,?openat2,?creat,?mkdir,mkdirat,?rename,?renameat,renameat2,?link,\
    linkat,?symlink,symlinkat,?mknod,mknodat";

const NOWHERE: &str = "/dev/null";

/// A call that returned, or that never did (`exit`, a kill).
#[derive(Clone, Debug)]
pub(crate) struct Call {
    process: u32,
    pub(crate) name: String,
    pub(crate) arguments: String,
    /// `None` if the call failed.
    pub(crate) returned: Option<i64>,
    /// Its number among the calls of this name in its thread, from 1, as `when=` counts.
    pub(crate) nth: u32,
}

/// One call of the next run of the same command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) call: String,
    pub(crate) nth: u32,
}

pub(crate) struct Strace {
    program: PathBuf,
}

impl Strace {
    /// `None`, and a line that says why `what` was skipped.
    pub(crate) fn find(what: &str) -> Option<Self> {
        let Some(program) = program("CERTS_LAB_STRACE", "/usr/bin/strace") else {
            eprintln!("SKIPPED: {what}: there is no strace");
            return None;
        };
        let found = Self { program };
        match found.probe() {
            Ok(()) => Some(found),
            Err(why) => {
                eprintln!("SKIPPED: {what}: strace cannot be used here: {why}");
                None
            }
        }
    }

    /// The same with a check that arguments are visible: only root may read the memory of the process.
    pub(crate) fn find_with_arguments(what: &str) -> Option<Self> {
        let found = Self::find(what)?;
        let directory = tempfile::tempdir().unwrap();
        let mut status = certs(directory.path());
        status.arg("status");
        let (_, calls) = found.trace(&status, &["statx"], &[]);
        if calls.iter().any(|call| is_about(call, &[directory.path()])) {
            return Some(found);
        }
        eprintln!("SKIPPED: {what}: only root can trace the arguments of the program's calls");
        None
    }

    /// Checks that a killed or failed call was not executed.
    fn probe(&self) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("made");
        for (how, ends) in [("signal=KILL", None), ("error=ENOSPC", Some(1))] {
            let mut mkdir = Command::new("mkdir");
            mkdir.arg(&target);
            let inject = format!("inject=?mkdir,mkdirat:{how}:when=1+");
            let output = self.run(&mkdir, &["-e", "trace=?mkdir,mkdirat", "-e", &inject]);
            if output.status.code() != ends || target.exists() {
                return Err(format!("{how}: {}: {}", output.status, text(&output)));
            }
        }
        Ok(())
    }

    /// Every call of interest in one successful run of `command`.
    pub(crate) fn calls(&self, command: &Command) -> Vec<Call> {
        self.record(command, &[], &["-y"])
    }

    /// The same with every call named in `also`, and `more` options.
    pub(crate) fn record(&self, command: &Command, also: &[&str], more: &[&str]) -> Vec<Call> {
        let (output, calls) = self.trace(command, also, more);
        assert!(output.status.success(), "{}", text(&output));
        calls
    }

    /// The same of a run that is killed just before `point`.
    pub(crate) fn record_killed(
        &self,
        command: &Command,
        also: &[&str],
        more: &[&str],
        point: &Point,
    ) -> Vec<Call> {
        let Point { call, nth } = point;
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        let more = [more, &["-e", &inject]].concat();
        self.trace(command, also, &more).1
    }

    fn trace(&self, command: &Command, also: &[&str], more: &[&str]) -> (Output, Vec<Call>) {
        let directory = tempfile::tempdir().unwrap();
        let written = directory.path().join("trace");
        let left_out = HARMLESS.split(',').filter(|name| !also.contains(name));
        let trace = format!("trace=!{}", left_out.collect::<Vec<_>>().join(","));
        let mut options = vec!["-f", "-qq", "-o", written.to_str().unwrap(), "-e", &trace];
        options.extend(more);
        let output = self.under(command, &options).output().unwrap();
        (output, calls(&std::fs::read_to_string(&written).unwrap()))
    }

    /// Every program that one run starts, itself first, with the whole environment; and every call that
    /// created a file.
    pub(crate) fn programs(&self, command: &Command) -> (Output, Vec<Call>, Vec<Call>) {
        let directory = tempfile::tempdir().unwrap();
        let written = directory.path().join("trace");
        let trace = format!("trace=execve,execveat,{MAKES}");
        let whole = ["-f", "-qq", "-v", "-y", "-s", "65536", "-e", &trace];
        let options = [&["-o", written.to_str().unwrap()], &whole[..]].concat();
        let output = self.under(command, &options).output().unwrap();
        let calls = calls(&std::fs::read_to_string(&written).unwrap());
        let (programs, mut others): (Vec<_>, Vec<_>) =
            { calls.into_iter() }.partition(|call| call.name.starts_with("exec"));
        others.retain(|call| {
            let opens = call.name.starts_with("open");
            call.returned.is_some() && (!opens || call.arguments.contains("O_CREAT"))
        });
        (output, programs, others)
    }

    /// One run that is killed just before `point`.
    pub(crate) fn kill_at(&self, command: &Command, point: &Point) -> Output {
        self.inject(command, point, "signal=KILL", "")
    }

    /// One run in which `point` fails; with `+`, also every such call after it.
    pub(crate) fn fail_at(
        &self,
        command: &Command,
        point: &Point,
        error: &str,
        also: &str,
    ) -> Output {
        self.inject(command, point, &format!("error={error}"), also)
    }

    fn inject(&self, command: &Command, point: &Point, how: &str, also: &str) -> Output {
        let Point { call, nth } = point;
        let inject = format!("inject={call}:{how}:when={nth}{also}");
        self.run(command, &["-e", &format!("trace={call}"), "-e", &inject])
    }

    /// `command` under strace: only its first thread is traced, into `file`, and the child is the command
    /// itself, not strace.
    pub(crate) fn tracing(&self, command: &Command, file: &Path) -> Command {
        let trace = format!("trace=!{HARMLESS}");
        let options = ["-D", "-q", "-y", "-o", file.to_str().unwrap(), "-e", &trace];
        self.under(command, &options)
    }

    /// The calls from [`Self::tracing`] of a process that has ended after SIGTERM, up to the signal.
    pub(crate) fn traced(file: &Path) -> Vec<Call> {
        let read = || std::fs::read_to_string(file).unwrap();
        until("the end of the trace", || read().contains("+++ exited"));
        let lines = read();
        let lines = lines.lines();
        calls_of_one(lines.take_while(|line| !line.starts_with("--- SIGTERM")))
    }

    /// The same child, killed when its first thread is about to execute `point`.
    pub(crate) fn killing(&self, command: &Command, point: &Point) -> Command {
        let Point { call, nth } = point;
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        let trace = format!("trace={call}");
        let options = ["-D", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        self.under(command, &options)
    }

    /// Fails each of `calls` in the running `process` from now on, until the returned strace is ended.
    /// `None`, and a line, if strace may not attach.
    pub(crate) fn fail_from_now(
        &self,
        process: &Running,
        calls: &str,
        error: &str,
    ) -> Option<Running> {
        let trace = format!("trace={calls}");
        let inject = format!("inject={calls}:error={error}");
        self.attach(process, &["-f", "-e", &trace, "-e", &inject], NOWHERE)
    }

    /// Kills the process when its first thread is about to execute `point`, counted from now on. As
    /// [`Self::fail_from_now`].
    pub(crate) fn kill_from_now(&self, process: &Running, point: &Point) -> Option<Running> {
        let Point { call, nth } = point;
        let trace = format!("trace={call}");
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        self.attach(process, &["-e", &trace, "-e", &inject], NOWHERE)
    }

    /// Writes every call of interest of its first thread to `file` from now on.
    pub(crate) fn trace_from_now(&self, process: &Running, file: &Path) -> Option<Running> {
        let trace = format!("trace=!{HARMLESS}");
        self.attach(process, &["-y", "-e", &trace], file)
    }

    /// The calls from [`Self::trace_from_now`], after [`Self::detach`].
    pub(crate) fn attached_trace(file: &Path) -> Vec<Call> {
        calls_of_one(std::fs::read_to_string(file).unwrap().lines())
    }

    /// Ends strace; the traced process continues.
    pub(crate) fn detach(mut tracer: Running) {
        tracer.signal(Signal::TERM);
        until("strace's end", || tracer.has_ended());
    }

    fn attach(
        &self,
        process: &Running,
        options: &[&str],
        file: impl AsRef<Path>,
    ) -> Option<Running> {
        let process = process.id().to_string();
        let mut command = Command::new(&self.program);
        command
            .args(["-qq", "-p", &process, "-o"])
            .arg(file.as_ref());
        let mut tracer = Running::start(command.args(options));
        let is_ours = match options.contains(&"-f") {
            true => are_traced,
            false => is_traced,
        };
        let mut refused = false;
        until("strace", || {
            refused = tracer.has_ended();
            refused || is_ours(&process)
        });
        if refused {
            eprintln!("SKIPPED: {options:?}: strace cannot attach here");
            return None;
        }
        Some(tracer)
    }

    fn run(&self, command: &Command, options: &[&str]) -> Output {
        let quiet = ["-f", "-qq", "-o", "/dev/null"];
        let options = [&quiet[..], options].concat();
        self.under(command, &options).output().unwrap()
    }

    /// `command` under strace. Not with strace's seccomp filter, which would be faster but injects no signal.
    fn under(&self, command: &Command, options: &[&str]) -> Command {
        let mut under = Command::new(&self.program);
        under.args(options).arg("--").arg(command.get_program());
        under.args(command.get_args());
        keep_environment(command, &mut under);
        under
    }
}

/// Gives `under` the environment and directory of `command`.
fn keep_environment(command: &Command, under: &mut Command) {
    under.stdin(Stdio::null());
    if command.get_envs().any(|(name, _)| name == "CERTS_DATA_DIR") {
        // The command has an environment of its own.
        under.env_clear();
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            under.env(name, value);
        }
    }
}

/// The points that `wanted` selects, in order, of the first thread only: it does all the work, and `when=`
/// counts for each thread.
pub(crate) fn points(calls: &[Call], wanted: impl Fn(&Call) -> bool) -> Vec<Point> {
    let main = calls.first().map_or(0, |call| call.process);
    let chosen = calls.iter().filter(|call| call.process == main);
    let chosen = chosen.filter(|call| wanted(call));
    let points = chosen.map(|call| Point {
        call: call.name.clone(),
        nth: call.nth,
    });
    points.collect()
}

/// Whether its first thread is traced.
fn is_traced(process: &str) -> bool {
    has_tracer(&Path::new("/proc").join(process))
}

/// Whether all its threads are traced.
fn are_traced(process: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    { threads }.all(|thread| has_tracer(&thread.unwrap().path()))
}

fn has_tracer(task: &Path) -> bool {
    let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
    !status.contains("TracerPid:\t0\n")
}

/// Whether the call is about a file below one of `roots`.
pub(crate) fn is_about(call: &Call, roots: &[&Path]) -> bool {
    let mut roots = roots.iter().map(|root| root.to_str().unwrap());
    // A name in an open directory: `14</DIRECTORY>, "NAME"`.
    let joined = call.arguments.replace(">, \"", "/");
    roots.any(|root| call.arguments.contains(root) || joined.contains(root))
}

/// The same for the trace of a single thread, which has no thread ids.
fn calls_of_one<'l>(lines: impl Iterator<Item = &'l str>) -> Vec<Call> {
    let lines: Vec<_> = lines.map(|line| format!("1 {line}\n")).collect();
    calls(&lines.concat())
}

/// Parses strace's output: `PID NAME(ARGUMENTS) = RETURNED`. A call may be split by a line of another thread.
fn calls(trace: &str) -> Vec<Call> {
    let mut begun: BTreeMap<u32, String> = BTreeMap::new();
    let mut counts: BTreeMap<(u32, String), u32> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((process, rest)) = line.split_once(' ') else {
            continue;
        };
        let (process, rest) = (process.parse::<u32>().unwrap(), rest.trim_start());
        if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(process, start.to_owned());
            continue;
        }
        let whole = match rest.strip_prefix("<... ") {
            Some(resumed) => {
                let (_, end) = resumed.split_once(" resumed>").unwrap();
                begun.remove(&process).unwrap_or_default() + end
            }
            None => rest.to_owned(),
        };
        let (Some((name, rest)), Some((_, returned))) =
            (whole.split_once('('), whole.rsplit_once(" = "))
        else {
            continue; // a signal, or the end of a thread
        };
        let nth = counts.entry((process, name.to_owned())).or_default();
        *nth += 1;
        let returned = returned.split([' ', '<']).next().unwrap_or_default();
        let arguments = rest.rsplit_once(" = ").unwrap().0.trim_end();
        calls.push(Call {
            process,
            name: name.to_owned(),
            arguments: arguments.strip_suffix(')').unwrap_or(arguments).to_owned(),
            returned: returned.parse().ok().filter(|returned| *returned >= 0),
            nth: *nth,
        });
    }
    calls
}

#[test]
fn unfinished_and_resumed_call_is_counted_once() {
    let trace = "\
7  openat(AT_FDCWD, \"/a = b\", O_RDONLY) = 3</a>
7  write(3</a>, \"x\", 1 <unfinished ...>
8  rename(\"/a\", \"/b\")   = -1 ENOENT (No such file or directory)
7  <... write resumed>)              = 1
8  +++ exited with 0 +++
7  write(4, \"y\", 1)                 = 1
";
    let calls = calls(trace);
    let printed: Vec<_> = calls
        .iter()
        .map(|call| (call.name.as_str(), call.nth, call.returned))
        .collect();
    let wanted = [
        ("openat", 1, Some(3)),
        ("rename", 1, None),
        ("write", 1, Some(1)),
        ("write", 2, Some(1)),
    ];
    assert_eq!(printed, wanted);
    assert_eq!(calls[2].arguments, "3</a>, \"x\", 1");
    assert_eq!(
        points(&calls, |call| is_about(call, &[Path::new("/a")])).len(),
        2
    );
}
