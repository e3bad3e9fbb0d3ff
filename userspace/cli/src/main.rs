//! The `towpath` binary: one command per file, and nothing here that another program could want.
#![forbid(unsafe_code)]

mod config;
mod exit;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use exit::Failure;

/// A TURN and STUN relay for Linux, and the tools around it.
#[derive(Parser)]
#[command(name = "towpath", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  towpath config default > towpath.toml       write a commented configuration
  towpath config check towpath.toml           say what is wrong with it, and where

Exit codes: 0 done, 1 failed, 2 wrong usage, 77 a privilege is missing, 78 the configuration is
wrong.";

#[derive(Subcommand)]
enum Command {
    /// Print or check a configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Config(command) => config::run(command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "towpath", &mut script);
            exit::print(&script)
        }
    }
}
