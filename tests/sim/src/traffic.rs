//! Payloads that can be told apart: who sent what to whom, as the ends see it.
//!
//! ```text
//!   byte 0      hops: how often an end may still send the payload back
//!   byte 1..9   number of the payload, unique in a run
//!   byte 9..    random
//! ```
//! A shorter payload has no number and is not checked here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::dice::Dice;
use crate::trace::Fnv;

/// Most hops of a payload.
const MAX_HOPS: u64 = 3;
const HEADER_BYTES: usize = 9;

/// What all ends of a run know together.
#[derive(Clone, Debug)]
pub struct Ledger(Rc<RefCell<Entries>>);

#[derive(Debug)]
struct Entries {
    sent: BTreeMap<u64, Entry>,
    relayed: Vec<SocketAddr>,
    tokens: Vec<(usize, Vec<u8>)>,
    mobiles: Vec<Mobile>,
    received: u64,
    exact: bool,
}

/// A mobile allocation, as its client sees it: enough to take it over, rightly or not.
#[derive(Clone, Debug)]
pub struct Mobile {
    /// Who made it.
    pub user: usize,
    /// Its tickets, the newest last.
    pub tickets: Vec<Vec<u8>>,
    /// A nonce of the client that made it.
    pub nonce: Option<Vec<u8>>,
    /// Its relayed addresses.
    pub relayed: Vec<SocketAddr>,
    /// Peers that it may reach.
    pub permitted: Vec<SocketAddr>,
    /// Its channels.
    pub channels: Vec<(u16, SocketAddr)>,
}

#[derive(Debug)]
struct Entry {
    to: Option<SocketAddr>,
    digest: u64,
}

impl Ledger {
    /// An empty ledger. Payloads are compared where `exact` is set: the network corrupts nothing.
    pub fn new(exact: bool) -> Self {
        let (sent, relayed, tokens) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self(Rc::new(RefCell::new(Entries {
            sent,
            relayed,
            tokens,
            mobiles: Vec::new(),
            received: 0,
            exact,
        })))
    }

    /// A payload of `len` bytes for the peer or the relayed address `to`, where the sender knows it:
    /// a channel may be bound to another peer when the payload comes to the relay.
    pub fn payload(&self, dice: &mut Dice, to: Option<SocketAddr>, len: usize) -> Vec<u8> {
        let hops = u8::try_from(dice.range(0..MAX_HOPS + 1)).expect("hops are few");
        let mut payload = dice.bytes(len);
        if let Some(first) = payload.first_mut() {
            *first = hops;
        }
        self.note(payload, to)
    }

    /// The payload that answers this one; `None` where it has no hops left.
    pub fn answer(&self, payload: &[u8], to: Option<SocketAddr>) -> Option<Vec<u8>> {
        let mut answer = payload.to_vec();
        let hops = answer.first_mut()?;
        // A corrupted number of hops could keep a payload going for long.
        *hops = hops
            .checked_sub(1)
            .filter(|left| u64::from(*left) < MAX_HOPS)?;
        Some(self.note(answer, to))
    }

    fn note(&self, mut payload: Vec<u8>, to: Option<SocketAddr>) -> Vec<u8> {
        let mut entries = self.0.borrow_mut();
        let number = entries.sent.len() as u64;
        if payload.len() >= HEADER_BYTES {
            payload[1..HEADER_BYTES].copy_from_slice(&number.to_be_bytes());
            let digest = digest(&payload);
            entries.sent.insert(number, Entry { to, digest });
        }
        payload
    }

    /// An end received a payload that was sent to the address `at`, where the end knows it.
    pub fn received(&self, payload: &[u8], at: Option<SocketAddr>) {
        let mut entries = self.0.borrow_mut();
        entries.received += 1;
        let Some(number) = payload.get(1..HEADER_BYTES).filter(|_| entries.exact) else {
            return;
        };
        let number = u64::from_be_bytes(number.try_into().expect("it has 8 bytes"));
        let entry = entries.sent.get(&number);
        let entry = entry.unwrap_or_else(|| panic!("nobody sent {payload:02x?}, {at:?} has it"));
        assert_eq!(
            entry.digest,
            digest(payload),
            "payload {number} arrived with other bytes"
        );
        if let (Some(at), Some(to)) = (at, entry.to) {
            assert_eq!(to, at, "payload {number} arrived elsewhere");
        }
    }

    /// Payloads received so far.
    pub fn count(&self) -> u64 {
        self.0.borrow().received
    }

    /// Whether payloads are compared.
    pub fn is_exact(&self) -> bool {
        self.0.borrow().exact
    }

    /// A client was given a relayed address.
    pub fn publish(&self, relayed: SocketAddr) {
        let mut entries = self.0.borrow_mut();
        if !entries.relayed.contains(&relayed) {
            entries.relayed.push(relayed);
        }
    }

    /// A user was given a reservation token.
    pub fn publish_token(&self, user: usize, token: &[u8]) {
        self.0.borrow_mut().tokens.push((user, token.to_vec()));
    }

    /// The reservation token that a user was given last.
    pub fn last_token(&self, user: usize) -> Option<Vec<u8>> {
        let entries = self.0.borrow();
        let mut latest = entries.tokens.iter().rev();
        latest
            .find(|(owner, _)| *owner == user)
            .map(|(_, token)| token.clone())
    }

    /// A client was given a ticket for a new allocation.
    pub fn publish_mobile(&self, mobile: Mobile) {
        self.0.borrow_mut().mobiles.push(mobile);
    }

    /// Changes what is known of a mobile allocation.
    pub fn update_mobile(&self, relayed: SocketAddr, update: impl FnOnce(&mut Mobile)) {
        let mut entries = self.0.borrow_mut();
        let mut latest = entries.mobiles.iter_mut().rev();
        if let Some(mobile) = latest.find(|mobile| mobile.relayed.contains(&relayed)) {
            update(mobile);
        }
    }

    /// A mobile allocation: mostly one of the last.
    pub fn some_mobile(&self, dice: &mut Dice) -> Option<Mobile> {
        let entries = self.0.borrow();
        let last = entries.mobiles.len().saturating_sub(3);
        let from = if dice.one_in(6) { 0 } else { last };
        let some = entries.mobiles.get(from..)?;
        (!some.is_empty()).then(|| dice.pick(some).clone())
    }

    /// One of the relayed addresses that clients were given so far.
    pub fn some_relayed(&self, dice: &mut Dice) -> Option<SocketAddr> {
        let entries = self.0.borrow();
        (!entries.relayed.is_empty()).then(|| *dice.pick(&entries.relayed))
    }
}

/// A random length of a payload: mostly that of a packet of voice or video.
pub fn some_len(dice: &mut Dice) -> usize {
    match dice.weighted(&[1, 2, 10, 10, 4, 1]) {
        0 => 0,
        1 => dice.below(HEADER_BYTES) + 1,
        2 => 172,
        3 => 1200,
        4 => dice.below(1473),
        _ => 65_507 - dice.below(100),
    }
}

fn digest(payload: &[u8]) -> u64 {
    let mut hash = Fnv::new();
    hash.write(payload);
    hash.finish()
}
