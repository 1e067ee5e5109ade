//! Arguments in, exit code out.

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// Wipes memory when it is freed: keys pass through buffers of libraries that
/// do not wipe them.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

// All settings in the environment. Variables of others are read where they are used: the
// bus of D-Bus (`deploy::dbus`), those that a program inherits (`program`), those of a role
// at AWS (`net::aws`), and those of a shared store's server (`store::documents`).
#[allow(clippy::disallowed_methods)]
fn main() -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    certs::cli::run(std::env::args_os(), environment)
}
