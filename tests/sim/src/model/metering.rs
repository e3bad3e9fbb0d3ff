//! What a relay may pass of each user's traffic: exact buckets, apart from the code under test, and
//! the rule they stand for, checked by itself.
//!
//! A bucket is kept as the time up to which its budget is spent. Beside it stands everything that
//! passed since the limit was set last, so that in every window of time T no more than
//! rate · T + burst passed, however the bucket works.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use towpath_proto::Timestamp;
use towpath_proto::common::meter::{Class, Direction, OWN_DOWN, OWN_UP};
use towpath_proto::common::rate::LimitWord;
use towpath_proto::slots::{Identity, PeerSlot, Slots, Way};

use super::{Alternative, Expectation, Model, Sent};

/// A limit as it is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// Bits a second.
    pub rate: u64,
    /// Bytes that pass at once: a multiple of 64.
    pub burst: u64,
}

/// A change of limits while the relay runs.
#[derive(Clone, Debug)]
pub enum LimitChange {
    /// What users without limits of their own may send and receive.
    Defaults(Option<Limit>, Option<Limit>),
    /// What all users together may.
    Class(Way, Option<Limit>),
    /// What one user may.
    User(String, Way, Option<Limit>),
}

/// A datagram that somebody pays for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Toll {
    user: String,
    is_up: bool,
    charged: u64,
    payload: u64,
}

/// Who may what, and what passed.
#[derive(Debug, Default)]
pub struct Metering {
    defaults: [Option<Limit>; 2],
    class: [Option<Limit>; 2],
    own: BTreeMap<(String, bool), Option<Limit>>,
    users: BTreeMap<(String, bool), Bucket>,
    together: [Bucket; 2],
    tallies: BTreeMap<(String, bool), Tally>,
}

/// Time in parts of a nanosecond.
const PARTS: u128 = 1 << 32;

/// How far the relay's arithmetic may be off: each packet is rounded to a 128th of a nanosecond.
const SLACK: u128 = 1000 * PARTS;

/// The relay counts time in so many bits of nanoseconds, nine years.
const CLOCK_BITS: u32 = 58;

#[derive(Debug, Default)]
struct Bucket {
    spent: u128,
    /// Times and charged bytes.
    passed: Vec<(u128, u64)>,
}

/// Packets, charged bytes, payload bytes, dropped packets, dropped bytes.
type Tally = [u64; 5];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    No,
    Maybe,
    Yes,
}

impl Bucket {
    fn after(&self, limit: Limit, now: u128, bytes: u64) -> u128 {
        let time = |bytes: u64| u128::from(bytes) * 8_000_000_000 * PARTS / u128::from(limit.rate);
        let earliest = now.saturating_sub(time(limit.burst));
        self.spent.max(earliest) + time(bytes)
    }

    fn verdict(&self, limit: Option<Limit>, now: u128, bytes: u64) -> Verdict {
        let Some(limit) = limit else {
            return Verdict::Yes;
        };
        let spent = self.after(limit, now, bytes);
        if spent > now + SLACK {
            Verdict::No
        } else if spent + SLACK > now {
            Verdict::Maybe
        } else {
            Verdict::Yes
        }
    }

    fn pass(&mut self, limit: Option<Limit>, now: u128, bytes: u64) {
        let Some(limit) = limit else {
            return;
        };
        self.spent = self.after(limit, now, bytes);
        self.passed.push((now, bytes));
        let mut sum = 0;
        for (start, bytes) in self.passed.iter().rev() {
            sum += u128::from(*bytes);
            let earned = (now - start) * u128::from(limit.rate) / 8_000_000_000 / PARTS;
            let most = earned + u128::from(limit.burst);
            // A byte for what the division cut off, and one for a thousand roundings.
            assert!(
                sum <= most + 2,
                "{sum} bytes passed in {} ns with {limit:?}",
                (now - start) / PARTS
            );
        }
    }
}

impl Metering {
    fn limit(&self, user: &str, is_up: bool) -> Option<Limit> {
        let own = self.own.get(&(user.to_owned(), is_up));
        own.copied().unwrap_or(self.defaults[usize::from(!is_up)])
    }

    fn verdict(&self, now: u128, toll: &Toll) -> Verdict {
        let limit = self.limit(&toll.user, toll.is_up);
        let key = (toll.user.clone(), toll.is_up);
        let unused = Bucket::default();
        let bucket = self.users.get(&key).unwrap_or(&unused);
        let class = usize::from(!toll.is_up);
        let together = self.together[class].verdict(self.class[class], now, toll.charged);
        bucket.verdict(limit, now, toll.charged).min(together)
    }

    fn pass(&mut self, now: u128, toll: &Toll) {
        let limit = self.limit(&toll.user, toll.is_up);
        let key = (toll.user.clone(), toll.is_up);
        let bucket = self.users.entry(key.clone()).or_default();
        bucket.pass(limit, now, toll.charged);
        let class = usize::from(!toll.is_up);
        self.together[class].pass(self.class[class], now, toll.charged);
        let [packets, bytes, payload, ..] = self.tallies.entry(key).or_default();
        *packets += 1;
        *bytes += toll.charged;
        *payload += toll.payload;
    }

    fn refuse(&mut self, toll: &Toll) {
        let key = (toll.user.clone(), toll.is_up);
        let [.., packets, bytes] = self.tallies.entry(key).or_default();
        *packets += 1;
        *bytes += toll.charged;
    }

    /// Takes over a change, which the relay is told at the same time.
    fn change(&mut self, change: &LimitChange) {
        match change {
            LimitChange::Defaults(up, down) => self.defaults = [*up, *down],
            LimitChange::Class(way, limit) => {
                let class = usize::from(*way == Way::Down);
                self.class[class] = *limit;
                self.together[class].passed.clear();
            }
            LimitChange::User(user, way, limit) => {
                self.own.insert((user.clone(), *way == Way::Up), *limit);
            }
        }
        for bucket in self.users.values_mut() {
            bucket.passed.clear();
        }
    }
}

impl Model {
    /// Sets limits, here and in the relay. A user without a slot is left alone.
    pub fn change_limits(&mut self, slots: &dyn Slots, change: &LimitChange) {
        let word = |limit: &Option<Limit>| {
            limit.map_or(LimitWord::UNLIMITED, |Limit { rate, burst }| {
                LimitWord::new(rate, burst).expect("the limits drawn are in range")
            })
        };
        match change {
            LimitChange::Defaults(up, down) => slots.set_defaults(word(up), word(down)),
            LimitChange::Class(way, limit) => {
                let slot = PeerSlot(Class::default().slot());
                let class = slots.slot(slot).expect("classes have slots").limits;
                match way {
                    Way::Up => class.set_up(word(limit)),
                    Way::Down => class.set_down(word(limit)),
                }
            }
            LimitChange::User(user, way, limit) => {
                let identity = Identity::user(&self.rules.realm, user);
                let slot = slots.find(&identity).and_then(|slot| slots.slot(slot));
                let Some(slot) = slot else {
                    return;
                };
                let flag = match way {
                    Way::Up => {
                        slot.limits.set_up(word(limit));
                        OWN_UP
                    }
                    Way::Down => {
                        slot.limits.set_down(word(limit));
                        OWN_DOWN
                    }
                };
                slot.limits.flags.fetch_or(flag, Ordering::Relaxed);
            }
        }
        self.metering.change(change);
    }

    /// Compares what the relay counted for each user with what left and what did not.
    pub fn check_meters(&self, slots: &dyn Slots) {
        for user in self.rules.users.keys() {
            let identity = Identity::user(&self.rules.realm, user);
            let slot = slots.find(&identity).and_then(|slot| slots.slot(slot));
            for way in [Way::Up, Way::Down] {
                let counted = slot.map_or([0; 5], |slot| tally(slot.direction(way)));
                let expected = self.metering.tallies.get(&(user.clone(), way == Way::Up));
                let expected = expected.copied().unwrap_or_default();
                assert_eq!(counted, expected, "{user} {way:?}");
            }
        }
    }

    /// What may come of a datagram once its limits are looked at.
    pub(super) fn metered(&self, now: Timestamp, expected: Expectation) -> Expectation {
        let mut metered = Vec::with_capacity(expected.len());
        for alternative in expected {
            let Some(toll) = self.toll(&alternative) else {
                metered.push(alternative);
                continue;
            };
            let verdict = self.metering.verdict(parts(now), &toll);
            if verdict != Verdict::No {
                metered.push(alternative);
            }
            if verdict != Verdict::Yes {
                metered.push(Alternative::OverLimit(toll));
            }
        }
        metered
    }

    /// Keeps what follows from what happened.
    pub(super) fn meter(&mut self, now: Timestamp, found: &Alternative) {
        if let Alternative::OverLimit(toll) = found {
            self.metering.refuse(toll);
        } else if let Some(toll) = self.toll(found) {
            self.metering.pass(parts(now), &toll);
        }
    }

    /// Who pays for a datagram that is forwarded, and what.
    fn toll(&self, alternative: &Alternative) -> Option<Toll> {
        // The leg between relay and peer is of the peer's family.
        let (flow, is_up, payload, v4) = match alternative {
            Alternative::Datagram(Sent {
                source, payload, ..
            }) => (
                self.ports.get(source)?,
                true,
                payload.len(),
                source.is_ipv4(),
            ),
            Alternative::OnChannel(number, flow, data) => {
                let (peer, _) = self.allocations.get(flow)?.channels.get(number)?;
                (flow, false, data.len(), peer.is_ipv4())
            }
            Alternative::Indication(peer, flow, data) => (flow, false, data.len(), peer.is_ipv4()),
            Alternative::Drop(_)
            | Alternative::Noticed
            | Alternative::Opening(..)
            | Alternative::Icmp(..)
            | Alternative::Success(..)
            | Alternative::Error(..)
            | Alternative::OverLimit(_) => return None,
        };
        let allocation = self.allocations.get(flow)?;
        let headers = if v4 { 28 } else { 48 };
        Some(Toll {
            user: allocation.user.clone(),
            is_up,
            charged: payload as u64 + headers,
            payload: payload as u64,
        })
    }
}

fn parts(now: Timestamp) -> u128 {
    u128::from(now.as_nanos() & ((1 << CLOCK_BITS) - 1)) * PARTS
}

fn tally(direction: &Direction<AtomicU64>) -> Tally {
    let words = [
        &direction.packets,
        &direction.bytes,
        &direction.payload_bytes,
        &direction.dropped_packets,
        &direction.dropped_bytes,
    ];
    words.map(|word| word.load(Ordering::Relaxed))
}
