//! Arguments in, exit code out.

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// Wipes what is freed: keys pass through buffers of many libraries, and not
/// all of them do so.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

#[allow(clippy::disallowed_methods)] // the one place that reads the environment
fn main() -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    certs::cli::run(std::env::args_os(), environment)
}
