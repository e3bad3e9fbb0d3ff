//! `towpath drain`: has the server of this machine end with its last allocation.

use clap::Args;
use towpath_server::ControlClient;

use crate::exit::{self, Failure};
use crate::serve::Places;

#[derive(Args)]
#[command(after_help = "\
It does what SIGUSR1 does: who asks for a new allocation is sent to one of relay.alternate_servers, or
refused; those that exist go on. `towpath status` shows how many are left, SIGTERM ends them.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    places: Places,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let directories = arguments.places.choose()?;
    let left = ControlClient::new(directories.control_socket())
        .drain()
        .map_err(|error| Failure::Runtime(error.to_string()))?;
    let text = format!("draining: the server ends with the last of {left} allocations\n");
    exit::print(text.as_bytes())
}
