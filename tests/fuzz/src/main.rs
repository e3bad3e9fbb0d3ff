//! libFuzzer's entry point. `TOWPATH_FUZZ_TARGET` names the target; the arguments are libFuzzer's.
//!
//! It forbids no unsafe code, as libfuzzer-sys's macro exports the function that libFuzzer calls.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod fuzzer {
    use std::sync::LazyLock;

    use towpath_fuzz::{TARGETS, Target, target};

    static TARGET: LazyLock<Target> = LazyLock::new(|| {
        let name = std::env::var("TOWPATH_FUZZ_TARGET").unwrap_or_default();
        target(&name).unwrap_or_else(|| {
            let known: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            eprintln!(
                "TOWPATH_FUZZ_TARGET is {name:?}, it must be one of {}",
                known.join(", ")
            );
            std::process::exit(2)
        })
    });

    libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
}

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    eprintln!("this binary needs instrumentation: run `cargo xtask fuzz`");
    std::process::ExitCode::FAILURE
}
