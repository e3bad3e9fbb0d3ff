//! Hosts that clients talk to through the relay: they send back what has hops left, and now and then
//! send to a relayed address on their own.

use std::net::SocketAddr;
use std::time::Duration;

use towpath_proto::Timestamp;

use crate::dice::Dice;
use crate::network::Packet;
use crate::traffic::{Ledger, some_len};
use crate::world::{Context, Node};

/// A peer with one socket for each of its addresses.
#[derive(Debug)]
pub struct Peer {
    sockets: Vec<SocketAddr>,
    ledger: Ledger,
    dice: Dice,
    next: Timestamp,
    left: u32,
}

impl Peer {
    /// A peer that sends so many datagrams on its own; its sockets have to be bound by the caller.
    pub fn new(sockets: Vec<SocketAddr>, ledger: Ledger, dice: Dice, sends: u32) -> Self {
        Self {
            sockets,
            ledger,
            dice,
            next: Timestamp::ZERO,
            left: sends,
        }
    }
}

impl Node for Peer {
    fn handle_packet(&mut self, context: &mut Context<'_>, packet: Packet) {
        self.ledger
            .received(&packet.payload, Some(packet.destination));
        if let Some(answer) = self.ledger.answer(&packet.payload, Some(packet.source)) {
            context.send(packet.destination, packet.source, &answer);
        }
    }

    fn handle_wakeup(&mut self, context: &mut Context<'_>) {
        let pause = self.dice.duration(Duration::ZERO..Duration::from_secs(60));
        self.next = context.now + pause;
        self.left = self.left.saturating_sub(1);
        let Some(relayed) = self.ledger.some_relayed(&mut self.dice) else {
            return;
        };
        let from = self
            .sockets
            .iter()
            .find(|socket| socket.is_ipv4() == relayed.is_ipv4());
        let Some(from) = from else { return };
        let len = some_len(&mut self.dice);
        let payload = self.ledger.payload(&mut self.dice, Some(relayed), len);
        context.send(*from, relayed, &payload);
    }

    fn wakeup(&self) -> Option<Timestamp> {
        (self.left > 0).then_some(self.next)
    }
}
