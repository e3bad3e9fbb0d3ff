//! `towpath id`: who this node is.

use clap::Args;

use crate::exit::{self, Failure};
use crate::node::{KeyOption, id_of};

#[derive(Args)]
#[command(after_help = "\
The key is made where there is none. Without --key it is node.key in /var/lib/towpath for root, and in
$XDG_STATE_HOME/towpath for others. Who has the file is this node; others are named by what is printed.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    key: KeyOption,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let id = id_of(arguments.key.read()?);
    exit::print(format!("{id}\n").as_bytes())
}
