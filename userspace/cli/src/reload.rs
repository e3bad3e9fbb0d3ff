//! `towpath reload`: has the server of this machine read its configuration again.

use std::fmt::Write as _;

use clap::Args;
use towpath_server::ControlClient;
use towpath_server::reload::Reloaded;

use crate::exit::{self, Failure};
use crate::serve::Places;

#[derive(Args)]
#[command(after_help = "\
It does what SIGHUP does, and says what came of it. A configuration that is wrong changes nothing.
`towpath config check FILE` tells beforehand.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    places: Places,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let directories = arguments.places.choose()?;
    let Reloaded {
        applied,
        needs_restart,
    } = ControlClient::new(directories.control_socket())
        .reload()
        .map_err(|error| Failure::Runtime(error.to_string()))?;
    let mut text = match applied.as_slice() {
        [] => "nothing to apply\n".to_owned(),
        keys => format!("applied: {}\n", keys.join(", ")),
    };
    if !needs_restart.is_empty() {
        let _ = writeln!(text, "needs a restart: {}", needs_restart.join(", "));
    }
    exit::print(text.as_bytes())
}
