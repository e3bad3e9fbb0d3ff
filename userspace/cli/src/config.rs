//! `towpath config`: print the default, check a file.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use towpath_server::config::{Config, DEFAULT_FILE, KernelMode};
use towpath_server::limit::Class;

use crate::exit::{self, Failure};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print the commented default configuration
    Default,
    /// Check a configuration and the TOWPATH__* variables above it
    #[command(after_help = "Exits 0 where the server would start with it, 78 where not.")]
    Check {
        /// The file; without one, the embedded default is checked
        #[arg(env = "TOWPATH_CONFIG")]
        file: Option<PathBuf>,
    },
}

pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Default => exit::print(DEFAULT_FILE.as_bytes()),
        Command::Check { file } => {
            let config =
                Config::load(file.as_deref(), std::env::vars_os()).map_err(Failure::Config)?;
            let mut text = String::new();
            for warning in &config.warnings {
                let _ = writeln!(text, "warning: {}\n{}\n", warning.kind, warning.excerpt);
            }
            let name = file.map_or_else(
                || "the embedded default".to_owned(),
                |file| file.display().to_string(),
            );
            summarize(&mut text, &config);
            let _ = writeln!(text, "{name} is valid");
            exit::print(text.as_bytes())
        }
    }
}

/// What the less obvious sections mean together with their defaults.
fn summarize(text: &mut String, config: &Config) {
    let (kernel, limits) = (&config.kernel, &config.limits);
    let _ = write!(text, "kernel   {}", kernel.mode);
    if kernel.mode != KernelMode::Off {
        let (peers, routes, pins) = (kernel.max_peers, kernel.max_routes, kernel.pins.display());
        let _ = write!(
            text,
            "; room for {peers} peers and {routes} routes; pins in {pins}"
        );
    }
    let default = limits.default;
    let _ = writeln!(
        text,
        "\nlimits   up {}, down {}, burst {}; global {}; {} users with limits of their own",
        default.up,
        default.down,
        default.burst,
        limits.global,
        limits.users.len()
    );
    let weights: Vec<_> = Class::ALL
        .into_iter()
        .map(|class| format!("{class} {}", limits.classes.of(class)))
        .collect();
    let kept = if limits.persist { "kept" } else { "not kept" };
    let _ = writeln!(
        text,
        "         classes {}; limits set while it runs are {kept}",
        weights.join(", ")
    );
}
