//! The repository's own commands: `cargo xtask <command>`, one file each.

#![forbid(unsafe_code)]

mod bench;
mod ci;
mod coverage;
mod dependencies;
mod ebpf;
mod fuzz;
mod prerequisites;
mod process;
mod skips;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tests, checks and measures Towpath.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what the tests need and runs all of them.
    Test(test::Arguments),
    /// Runs every check that guards the main branch, then all tests.
    Ci(ci::Arguments),
    /// Builds the kernel's programs, or checks that what is committed is what the sources make.
    Ebpf(ebpf::Arguments),
    /// Fuzzes the parsers and machines, guided by coverage.
    Fuzz(fuzz::Arguments),
    /// Measures: the relay beside coturn and the yardsticks, or its parts.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Test(arguments) => test::run(&arguments),
        Command::Ci(arguments) => ci::run(&arguments),
        Command::Ebpf(arguments) => ebpf::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
