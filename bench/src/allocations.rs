//! What it costs a server to make allocations, to bind channels, and to end them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::control::Clients;
use crate::results::AllocationRound;
use crate::rig::Rig;
use crate::server::{Server, Table};
use crate::usage::{Spent, Usage};

/// Ports of the clients of the rounds: each round has its own, until they begin again.
const FIRST_PORT: u16 = 12_000;
const PORTS_PER_ROUND: u16 = 5_000;
const PORT_RANGES: usize = 10;

/// Round `number`: `count` fresh allocations, their channels, and their end.
pub fn measure(
    rig: &Rig,
    server: &mut Server,
    peer: Ipv4Addr,
    count: usize,
    number: usize,
) -> Result<AllocationRound> {
    let first_port = FIRST_PORT + (number % PORT_RANGES) as u16 * PORTS_PER_ROUND;
    let mut clients = Clients::new(rig, server.address, first_port)?;
    let before = Usage::take(rig, server)?;
    let made = clients.allocate(count).with_context(|| server.name)?;
    let after = Usage::take(rig, server)?;
    let bound = clients
        .bind_channels(peer, count)
        .with_context(|| server.name)?;
    let later = Usage::take(rig, server)?;
    let ended = clients.delete_all().with_context(|| server.name)?;
    let last = Usage::take(rig, server)?;
    server.check_alive()?;
    let each = |spent: Spent| spent.total_ns() as f64 / 1000.0 / count as f64;
    let spent = after.since(&before);
    Ok(AllocationRound {
        count,
        made_per_second: count as f64 * 1e9 / made.elapsed_ns.max(1) as f64,
        make_us: each(spent),
        bind_us: each(later.since(&after)),
        end_us: each(last.since(&later)),
        retransmissions: made.retransmissions + bound.retransmissions + ended.retransmissions,
        spent,
    })
}

/// Whether a server takes allocations at all.
pub fn applies_to(server: &Server) -> bool {
    matches!(server.table, Table::Turn(_))
}
