//! The `towpath` binary: one command per file, and nothing here that another program could want.
#![forbid(unsafe_code)]

mod config;
mod connect;
mod credentials;
mod drain;
mod exit;
mod id;
mod limits;
mod listen;
mod node;
mod perf;
mod ping;
mod reload;
mod round_trip;
mod serve;
mod status;
mod stun;
mod table;
mod target;
mod top;
mod turn;
mod user;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use exit::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A TURN and STUN relay for Linux, nodes that connect by key, and the tools around them.
#[derive(Parser)]
#[command(name = "towpath", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  towpath serve                                serve at once, with a user made up for trying
  towpath config default > towpath.toml        write a commented configuration
  towpath user add alice --config towpath.toml add a user to it
  towpath config check towpath.toml            say what is wrong with it, and where
  towpath credentials --config towpath.toml    make a credential that ends by itself
  towpath serve --config towpath.toml          serve
  towpath turn 127.0.0.1                       relay through it: round trips, loss, latency
  towpath stun stun.example.org                the address of this machine, seen from there
  towpath status                               what the server of this machine does
  towpath reload                               have it read its configuration again
  towpath top                                  who sends and receives how much, now
  towpath limits set alice --up 20Mbit         limit a user, from the next packet on
  towpath listen --serve                       a node of its own; prints the address it is called by
  towpath ping PEER-ADDR                       a connection to it: set-up time, round trips, loss
  tar c . | towpath connect PEER-ADDR          bytes to `towpath listen`, encrypted and by key

Exit codes: 0 done, 1 failed, 2 wrong usage, 77 a privilege is missing, 78 the configuration is
wrong.";

#[derive(Subcommand)]
enum Command {
    /// Relay: run the server until SIGTERM or Ctrl-C
    Serve(serve::Arguments),
    /// Show what the server of this machine does
    Status(status::Arguments),
    /// Have the server of this machine read its configuration again
    Reload(reload::Arguments),
    /// Have the server of this machine make no new allocations, and end with the last one
    Drain(drain::Arguments),
    /// Show and set what users may send and receive, while it is in force
    Limits(limits::Arguments),
    /// Watch what users send and receive, beside their limits
    Top(top::Arguments),
    /// Ask a STUN server for this machine's address, and measure round trips
    Stun(stun::Arguments),
    /// Test a TURN server: allocations, permissions, channels, then data through them
    Turn(turn::Arguments),
    /// Print or check a configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Manage users
    #[command(subcommand)]
    User(user::Command),
    /// Make a time-limited username and password from a shared secret
    Credentials(credentials::Arguments),
    /// Print this node's peer id, and make its key where there is none
    Id(id::Arguments),
    /// Wait for a peer, and join standard input and output with it; or serve ping and perf
    Listen(listen::Arguments),
    /// Join standard input and output with those of a peer that listens
    Connect(connect::Arguments),
    /// Connect to a peer, and measure round trips
    Ping(ping::Arguments),
    /// Connect to a peer, and measure throughput
    Perf(perf::Arguments),
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
        Command::Serve(arguments) => serve::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Reload(arguments) => reload::run(arguments),
        Command::Drain(arguments) => drain::run(arguments),
        Command::Limits(arguments) => limits::run(arguments),
        Command::Top(arguments) => top::run(arguments),
        Command::Stun(arguments) => stun::run(arguments),
        Command::Turn(arguments) => turn::run(arguments),
        Command::Config(command) => config::run(command),
        Command::User(command) => user::run(command),
        Command::Credentials(arguments) => credentials::run(arguments),
        Command::Id(arguments) => id::run(arguments),
        Command::Listen(arguments) => listen::run(arguments),
        Command::Connect(arguments) => connect::run(arguments),
        Command::Ping(arguments) => ping::run(arguments),
        Command::Perf(arguments) => perf::run(arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "towpath", &mut script);
            exit::print(&script)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
