//! Arguments in, exit code out.

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// Wipes memory when it is freed: keys pass through buffers of libraries that
/// do not wipe them.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

#[allow(clippy::disallowed_methods)] // the one place that reads the environment
fn main() -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    certs::cli::run(std::env::args_os(), environment)
}
