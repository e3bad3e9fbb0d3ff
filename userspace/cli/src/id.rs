//! `towpath id`: who this node is.

use std::path::PathBuf;

use clap::Args;
use towpath::{Identity, key_file};
use towpath_server::directories::{self, Directories};

use crate::exit::{self, Failure};

/// The key's name in the directory for state.
const KEY_FILE: &str = "node.key";

#[derive(Args)]
#[command(after_help = "\
The key is made where there is none. Without --key it is node.key in /var/lib/towpath for root, and in
$XDG_STATE_HOME/towpath for others. Who has the file is this node; others are named by what is printed.")]
pub(crate) struct Arguments {
    /// The file with the key: PKCS #8 in PEM, which nobody else may read
    #[arg(short, long, value_name = "FILE")]
    key: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let path = match arguments.key {
        Some(path) => path,
        None => default_path()?,
    };
    let (key, _) =
        key_file::read_or_create(&path).map_err(|error| Failure::Runtime(error.to_string()))?;
    exit::print(format!("{}\n", Identity::new(key).id()).as_bytes())
}

fn default_path() -> Result<PathBuf, Failure> {
    let state = Directories::choose(None, None)
        .map_err(|_| {
            Failure::Usage("neither XDG_STATE_HOME nor HOME is set; name a file with --key".into())
        })?
        .state;
    directories::create(&state, 0o700).map_err(|error| {
        Failure::Runtime(format!(
            "cannot make the directory {}: {error}",
            state.display()
        ))
    })?;
    Ok(state.join(KEY_FILE))
}
