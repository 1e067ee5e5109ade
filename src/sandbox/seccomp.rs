//! seccomp: allows only the system calls that a sidecar makes. All others return
//! ENOSYS, as on an older kernel, instead of killing the process: libraries have a
//! fallback, and a killed sidecar would let certificates expire.
//!
//! Denied, among others: starting programs and processes, new namespaces, other
//! processes' memory, mounts, changing users, io_uring, bpf, kernel keyrings,
//! modules, raw sockets, and new listeners.

use std::collections::BTreeMap;

use libc::{c_long, c_ulong};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule,
};

/// Allowed with any arguments.
const ALLOWED: &[c_long] = &[
    // Memory, threads and time.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Signals to ourselves.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Reading, not changing, our user and groups.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_pipe2,
    // Files.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_readlinkat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_getxattr,
    libc::SYS_fgetxattr,
    // Open sockets.
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_accept,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
];

/// Calls that only x86-64 has; its C library prefers some of them.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_create,
    libc::SYS_eventfd,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_symlink,
    libc::SYS_link,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_arch_prctl,
];
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
    rules.insert(libc::SYS_clone, vec![threads_only()?]);
    rules.insert(libc::SYS_socket, sockets()?);
    rules.insert(
        libc::SYS_socketpair,
        vec![rule(vec![is(0, libc::AF_UNIX)?])?],
    );
    rules.insert(libc::SYS_ioctl, any_of(1, IOCTLS)?);
    rules.insert(libc::SYS_prctl, any_of(0, PRCTLS)?);
    // Limits may be read but not set; only this process may be signalled.
    let unset = SeccompCondition::new(2, Length::Qword, Compare::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![rule(vec![unset])?]);
    let own = u64::from(std::process::id());
    let own = SeccompCondition::new(0, Length::Dword, Compare::Eq, own)?;
    rules.insert(libc::SYS_tgkill, vec![rule(vec![own])?]);
    Ok(rules)
}

/// Used by the C library: terminal detection and width, non-blocking mode.
const IOCTLS: &[c_ulong] = &[
    libc::TCGETS as c_ulong,
    libc::TIOCGWINSZ as c_ulong,
    libc::FIONBIO as c_ulong,
    libc::FIONREAD as c_ulong,
    libc::FIOCLEX as c_ulong,
];
/// Naming threads and memory.
const PRCTLS: &[c_ulong] = &[
    libc::PR_SET_NAME as c_ulong,
    libc::PR_GET_NAME as c_ulong,
    libc::PR_SET_VMA as c_ulong,
];

/// Threads only: no processes, no new namespaces. A filter cannot see clone3's
/// arguments, so clone3 is denied and the C library falls back to clone.
fn threads_only() -> Result<SeccompRule, BackendError> {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let seen = thread | u64::from(namespaces.unsigned_abs());
    let flags = SeccompCondition::new(0, Length::Qword, Compare::MaskedEq(seen), thread)?;
    rule(vec![flags])
}

/// TCP, UDP, Unix sockets, and the routing netlink socket that the C library needs
/// to look up addresses.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    const KIND: u64 = 0xf;
    let mut rules = vec![rule(vec![is(0, libc::AF_UNIX)?])?];
    let route = u64::from(libc::NETLINK_ROUTE.unsigned_abs());
    let route = SeccompCondition::new(2, Length::Dword, Compare::Eq, route)?;
    rules.push(rule(vec![is(0, libc::AF_NETLINK)?, route])?);
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let kind = u64::from(kind.unsigned_abs());
            let kind = SeccompCondition::new(1, Length::Dword, Compare::MaskedEq(KIND), kind)?;
            rules.push(rule(vec![is(0, family)?, kind])?);
        }
    }
    Ok(rules)
}

fn any_of(argument: u8, values: &[c_ulong]) -> Result<Vec<SeccompRule>, BackendError> {
    let conditions = values.iter().map(|value| {
        let condition = SeccompCondition::new(argument, Length::Dword, Compare::Eq, *value)?;
        rule(vec![condition])
    });
    conditions.collect()
}

fn is(argument: u8, value: i32) -> Result<SeccompCondition, BackendError> {
    let value = u64::from(value.unsigned_abs());
    SeccompCondition::new(argument, Length::Dword, Compare::Eq, value)
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
