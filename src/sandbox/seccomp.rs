//! seccomp: allows only the system calls that a sidecar makes. All others return
//! ENOSYS, as on an older kernel, instead of killing the process: libraries have a
//! fallback, and a killed sidecar would let certificates expire.
//!
//! Denied, among others: starting programs and processes, new namespaces, other
//! processes' memory, mounts, changing users, io_uring, bpf, kernel keyrings,
//! modules, raw sockets, and new listeners.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule,
};

/// The numbers of system calls by their names in the libc crate.
macro_rules! calls {
    ($($call:ident)*) => { &[$(libc::$call),*] };
}

/// Allowed with any arguments.
const ALLOWED: &[c_long] = calls! {
    // Memory, threads and time.
    SYS_brk SYS_mmap SYS_mprotect SYS_mremap SYS_munmap SYS_madvise SYS_membarrier SYS_futex
    SYS_set_robust_list SYS_get_robust_list SYS_rseq SYS_set_tid_address SYS_sched_yield
    SYS_sched_getaffinity SYS_getcpu SYS_gettid SYS_getpid SYS_getppid SYS_exit
    SYS_exit_group SYS_restart_syscall SYS_clock_gettime SYS_clock_getres
    SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_getrandom SYS_getrusage SYS_times
    SYS_sysinfo SYS_uname
    // Signals to ourselves.
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigtimedwait SYS_sigaltstack
    // Reading, not changing, our user and groups.
    SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getgroups SYS_getresuid SYS_getresgid
    SYS_capget
    // Waiting.
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2
    SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_ppoll SYS_pselect6
    SYS_pipe2
    // Files.
    SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_read SYS_readv SYS_pread64
    SYS_preadv SYS_write SYS_writev SYS_pwrite64 SYS_pwritev SYS_lseek SYS_fcntl SYS_dup
    SYS_dup3 SYS_flock SYS_fsync SYS_fdatasync SYS_ftruncate SYS_fallocate SYS_fadvise64
    SYS_copy_file_range SYS_sendfile SYS_splice SYS_fstat SYS_newfstatat SYS_statx
    SYS_statfs SYS_fstatfs SYS_faccessat SYS_faccessat2 SYS_getdents64 SYS_getcwd
    SYS_readlinkat SYS_renameat2 SYS_unlinkat SYS_mkdirat SYS_symlinkat SYS_linkat
    SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_utimensat SYS_umask SYS_getxattr
    SYS_fgetxattr
    // Open sockets.
    SYS_bind SYS_connect SYS_accept4 SYS_accept SYS_getsockname SYS_getpeername
    SYS_getsockopt SYS_setsockopt SYS_sendto SYS_sendmsg SYS_sendmmsg SYS_recvfrom
    SYS_recvmsg SYS_recvmmsg SYS_shutdown
};

/// Calls that only x86-64 has; its C library prefers some of them.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = calls! {
    SYS_open SYS_stat SYS_lstat SYS_access SYS_poll SYS_select SYS_epoll_wait
    SYS_epoll_create SYS_eventfd SYS_pipe SYS_dup2 SYS_readlink SYS_rename SYS_renameat
    SYS_unlink SYS_rmdir SYS_mkdir SYS_symlink SYS_link SYS_chmod SYS_chown SYS_lchown
    SYS_time SYS_getrlimit SYS_arch_prctl
};
/// `renameat`, which the libc crate does not name on this architecture.
#[cfg(target_arch = "aarch64")]
const OLDER: &[c_long] = &[38];

/// Denies all other calls for this thread and its children.
pub(super) fn restrict_calls() {
    let applied = program()
        .map_err(|error| error.to_string())
        .and_then(|program| seccompiler::apply_filter(&program).map_err(|error| error.to_string()));
    match applied {
        Ok(()) => tracing::info!("system calls are restricted by seccomp; no program is started"),
        Err(error) => tracing::warn!("system calls are not restricted: seccomp: {error}"),
    }
}

fn program() -> Result<BpfProgram, BackendError> {
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let here = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules()?, missing, SeccompAction::Allow, here)?.try_into()
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let any = ALLOWED.iter().chain(OLDER).map(|call| (*call, Vec::new()));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = any.collect();
    let unix = || is(0, libc::AF_UNIX);
    // The routing socket, which the C library needs to look up addresses.
    let route = vec![is(0, libc::AF_NETLINK)?, is(2, libc::NETLINK_ROUTE)?];
    let mut sockets = vec![rule(vec![unix()?])?, rule(route)?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            // The other bits are flags.
            let kind = condition(1, Length::Dword, Compare::MaskedEq(0xf), kind)?;
            sockets.push(rule(vec![is(0, family)?, kind])?);
        }
    }
    rules.insert(libc::SYS_socket, sockets);
    rules.insert(libc::SYS_socketpair, vec![rule(vec![unix()?])?]);
    rules.insert(libc::SYS_ioctl, any_of(1, &IOCTLS)?);
    rules.insert(libc::SYS_prctl, any_of(0, &PRCTLS)?);
    // Threads only: no processes, no new namespaces. A filter cannot see clone3's
    // arguments, so clone3 is denied and the C library falls back to clone.
    let seen = u64::from((libc::CLONE_THREAD | NAMESPACES).unsigned_abs());
    let thread = condition(
        0,
        Length::Qword,
        Compare::MaskedEq(seen),
        libc::CLONE_THREAD,
    )?;
    rules.insert(libc::SYS_clone, vec![rule(vec![thread])?]);
    // Limits may be read but not set; only this process may be signalled.
    let unset = condition(2, Length::Qword, Compare::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![rule(vec![unset])?]);
    let own = is(0, rustix::process::getpid().as_raw_pid())?;
    rules.insert(libc::SYS_tgkill, vec![rule(vec![own])?]);
    Ok(rules)
}

/// Used by the C library: terminal detection and width, non-blocking mode.
const IOCTLS: [i32; 5] = [
    libc::TCGETS as i32,
    libc::TIOCGWINSZ as i32,
    libc::FIONBIO as i32,
    libc::FIONREAD as i32,
    libc::FIOCLEX as i32,
];
/// Naming threads and memory.
const PRCTLS: [i32; 3] = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

fn any_of(argument: u8, values: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
    let rules = values.iter();
    rules
        .map(|value| rule(vec![is(argument, *value)?]))
        .collect()
}

fn is(argument: u8, value: i32) -> Result<SeccompCondition, BackendError> {
    condition(argument, Length::Dword, Compare::Eq, value)
}

fn condition(
    argument: u8,
    length: Length,
    compare: Compare,
    value: i32,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, length, compare, u64::from(value.unsigned_abs()))
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
    use std::process::Command;

    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType, socket};

    use super::*;

    /// Runs `work` in a thread of its own, which the filter is limited to.
    fn restricted<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            seccompiler::apply_filter(&program().unwrap()).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    #[test]
    fn filter_denies_programs_listeners_and_raw_sockets() {
        let run = || {
            Command::new("/bin/true")
                .status()
                .map(|status| status.success())
        };
        assert!(run().unwrap());
        restricted(move || {
            let none = Errno::NOSYS.raw_os_error();
            assert_eq!(run().unwrap_err().raw_os_error(), Some(none));
            let listens = TcpListener::bind("127.0.0.1:0");
            assert_eq!(listens.unwrap_err().raw_os_error(), Some(none));
            for (family, kind) in [
                (AddressFamily::INET, SocketType::RAW),
                (AddressFamily::PACKET, SocketType::DGRAM),
                (AddressFamily::NETLINK, SocketType::DGRAM),
            ] {
                let made = socket(family, kind, Some(rustix::net::ipproto::ICMP));
                assert_eq!(made.unwrap_err(), Errno::NOSYS);
            }
            let parent = rustix::process::getppid().unwrap();
            let signalled = rustix::process::kill_process(parent, rustix::process::Signal::CONT);
            assert_eq!(signalled, Err(Errno::NOSYS));
            let dumpable =
                rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
            assert_eq!(dumpable, Err(Errno::NOSYS));
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            let raised = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
            assert_eq!(raised, Err(Errno::NOSYS));
        });
    }

    #[test]
    fn filter_allows_the_work_of_a_sidecar() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        restricted(move || {
            let stream = std::thread::spawn(move || TcpStream::connect(address));
            listener.accept().unwrap();
            stream.join().unwrap().unwrap();
            assert!(("localhost", 80).to_socket_addrs().unwrap().count() > 0);
            let local = UdpSocket::bind("127.0.0.1:0").unwrap();
            local
                .send_to(b"query", local.local_addr().unwrap())
                .unwrap();
            let file = directory.path().join("a/file");
            crate::files::make_directory(&directory.path().join("a"), 0o750).unwrap();
            crate::files::replace(&file, 0o640, b"content").unwrap();
            assert_eq!(std::fs::read(&file).unwrap(), b"content");
            std::fs::remove_dir_all(directory.path().join("a")).unwrap();
            assert_eq!(
                std::fs::read(&file).unwrap_err().kind(),
                ErrorKind::NotFound
            );
            let _: String = crate::certificate::KeyType::default()
                .generate()
                .unwrap()
                .expose()
                .into();
        });
    }
}
