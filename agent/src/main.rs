//! The `storeshim` binary: everything is in the library, but for what depends on how it is linked.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    names_without_modules();
    storeshim_agent::cli::main()
}

/// A program that is linked with glibc statically would still load the modules that the machine's nsswitch.conf names, and with
/// them the machine's own glibc, which may be another one. Files and DNS are within the program.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
fn names_without_modules() {
    unsafe extern "C" {
        fn __nss_configure_lookup(
            database: *const std::ffi::c_char,
            services: *const std::ffi::c_char,
        ) -> std::ffi::c_int;
    }
    // SAFETY: two C strings; no other thread runs yet. It fails for unknown databases only.
    unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
}
