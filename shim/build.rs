//! Link arguments of `libstoreshim.so`: no NEEDED entry, so that one file serves glibc and musl processes.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        // Neither start files nor libraries: what the library needs of libc (memcpy, malloc, errno) stays undefined
        // and is found in whichever libc the process has.
        "-nostartfiles",
        "-nodefaultlibs",
        "-nostdlib",
        // Calls between our own functions never go through the symbol table.
        "-Wl,-Bsymbolic",
        "-Wl,--gc-sections",
        "-Wl,--hash-style=gnu",
        // Each segment costs every process that starts a mapping and its page faults: two instead of four.
        "-Wl,-z,norelro",
        "-Wl,--no-rosegment",
        "-Wl,-soname,libstoreshim.so",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        // Many hooks are the same but for their names. (lld, the compiler's linker here, folds them; GNU's cannot.)
        println!("cargo:rustc-cdylib-link-arg=-Wl,--icf=all");
    }
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        // The dynamic symbols are all that anyone uses.
        println!("cargo:rustc-cdylib-link-arg=-Wl,--strip-all");
    }
}
