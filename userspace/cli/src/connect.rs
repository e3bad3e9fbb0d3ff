//! `towpath connect`: standard input and output, joined with those of a peer.

use clap::Args;
use futures::executor::block_on;

use crate::exit::Failure;
use crate::node::{self, Call, Callee, Interrupt, Pipe, Request, StreamFailure, join};

#[derive(Args)]
#[command(after_help = "\
The peer runs `towpath listen`. What comes on standard input comes out of its standard output, and
the other way round, until both have ended. Exits 0 where everything was delivered, in both
directions, and 1 where it was not or nobody knows. A terminal as standard input ends with the
other end's.

Examples:
  tar c . | towpath connect PEER-ID@192.0.2.1:4433
  towpath connect --ephemeral PEER-ID@[2001:db8::1]:4433 < /dev/null > file")]
pub(crate) struct Arguments {
    #[command(flatten)]
    callee: Callee,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::catch()?;
    let Call {
        node, connection, ..
    } = arguments.callee.call(&interrupt)?;
    let opened = block_on(async {
        let (mut send, receive) = connection.open_bi().await?;
        Request::Pipe.write(&mut send).await?;
        Ok(Pipe {
            connection: connection.clone(),
            send,
            receive,
        })
    });
    let outcome = opened
        .map_err(|failure: StreamFailure| {
            let why = failure.explain(Request::Pipe);
            Failure::Runtime(format!("no stream to {}: {why}", connection.peer()))
        })
        .and_then(|pipe| join(pipe, &interrupt));
    node::close(&node);
    outcome
}
