//! What this process gives up before it reads a single name: it holds private
//! keys, so nothing may look into it, and nothing it starts may gain a privilege.

use rustix::io;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

/// Gives it up, before any thread is started. A kernel that refuses one of them
/// keeps nobody from a certificate: it is told, and the others hold.
pub(super) fn harden() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    for (what, done) in [
        ("new privileges are not given up", set_no_new_privs(true)),
        (
            "keys may end in a core file",
            setrlimit(Resource::Core, none),
        ),
        ("other processes may look in", not_dumpable()),
    ] {
        if let Err(error) = done {
            tracing::warn!("{what}: {error}");
        }
    }
}

/// No core file, no ptrace by the same user, and /proc shows our memory to root
/// alone.
fn not_dumpable() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
