//! Fair shares of a limit that everybody together has reached.
//!
//! ```text
//!   rate │        ┌── ceiling of b ──         level · weight, but
//!        │      ╱                               - never below a peer's floor
//!        │    ╱ b                               - never above its ceiling
//!        │  ╱   ┌── a wants no more ─         and what a peer does not want goes to the others
//!        │╱_╱_ a
//!        └────────────▲───────────── level
//!                     └ where what all take together is what there is
//! ```
//!
//! [`fair_level`] is the arithmetic alone. On a relay, [`Adaptation`] reads what peers did from their
//! slots and writes what they may; it knows no clock and is called every [`Adaptation::INTERVAL`].
//!
//! A node has a [`Bandwidth`]: limits of its peers and of all together. What is over them waits in its
//! place in a [`Scheduler`] until [`reserve`] lets it pass.

mod account;
mod adaptation;
mod manager;
mod reserve;
mod schedule;
mod shares;

pub use account::{Account, Allowance, Usage, Used};
pub use adaptation::{Adaptation, Sharing, State};
pub use manager::{Bandwidth, BandwidthConfig, BandwidthError};
pub use reserve::{Bound, Budget, Depth, MAX_GRANT_BYTES, Refused, Reservation, reserve};
pub use schedule::Scheduler;
pub use towpath_ebpf_common::meter::Class as Priority;

pub(crate) use account::Tally;

/// One who wants a part, in any unit of rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// What it would take if nobody else were there.
    pub demand: u64,
    /// What its part is in proportion to; at least 1.
    pub weight: u32,
    /// What it gets however many others there are, as far as it wants it.
    pub floor: u64,
    /// What it never gets more than.
    pub ceiling: u64,
}

impl Wish {
    /// What it takes if there is enough.
    fn most(&self) -> u64 {
        self.demand.min(self.ceiling)
    }

    /// What it takes however little there is.
    fn least(&self) -> u64 {
        self.floor.min(self.most())
    }
}

/// The rate of one unit of weight: an exact fraction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level {
    rate: u128,
    weights: u128,
}

impl Level {
    /// What somebody may take at this level, rounded down: also more than it wants now, so that it
    /// need not ask before it takes its whole part.
    pub fn limit(&self, wish: &Wish) -> u64 {
        let part = u128::from(wish.weight) * self.rate / self.weights;
        let part = u64::try_from(part).unwrap_or(u64::MAX);
        part.max(wish.floor).min(wish.ceiling)
    }
}

/// The level at which all wishes together take `capacity`: the weighted max-min fair one, where
/// nobody can get more without somebody getting less who has no more for its weight. `None` where
/// there is enough for all. Where the floors alone take more than there is, the level is 0.
///
/// Takes O(n) for n wishes, on average.
pub fn fair_level(capacity: u64, wishes: &[Wish]) -> Option<Level> {
    let capacity = u128::from(capacity);
    let most: u128 = wishes.iter().map(|wish| u128::from(wish.most())).sum();
    if most <= capacity {
        return None;
    }
    // What is taken at a level is a broken line: flat below a wish's floor, rising by its weight up to
    // what it wants, flat again.
    let mut bends = Vec::with_capacity(2 * wishes.len());
    for wish in wishes.iter().filter(|wish| wish.least() < wish.most()) {
        bends.push(Bend::new(wish.least(), wish.weight, Turn::Rises));
        bends.push(Bend::new(wish.most(), wish.weight, Turn::Flattens));
    }
    let least: u128 = wishes.iter().map(|wish| u128::from(wish.least())).sum();
    if least >= capacity {
        return Some(Level {
            rate: 0,
            weights: 1,
        });
    }
    let mut line = Line {
        flat: least,
        rising: 0,
    };
    // The stretch of the line that reaches `capacity` is found by halves: `line` is what it is before
    // the first of `bends`, in the order of their levels.
    let mut bends = &mut bends[..];
    while !bends.is_empty() {
        let (before, middle, behind) = bends.select_nth_unstable_by(bends.len() / 2, Bend::cmp);
        let there = before.iter().fold(line, Line::bent);
        if there.reaches(capacity, middle) {
            bends = before;
        } else {
            line = there.bent(middle);
            bends = behind;
        }
    }
    Some(Level {
        rate: capacity - line.flat,
        weights: line.rising,
    })
}

/// What all take together: at level x, `flat` + `rising` · x.
#[derive(Clone, Copy)]
struct Line {
    flat: u128,
    rising: u128,
}

impl Line {
    /// Whether it is at `capacity` where it bends.
    fn reaches(self, capacity: u128, bend: &Bend) -> bool {
        let (rate, weight) = (u128::from(bend.rate), u128::from(bend.weight));
        self.flat * weight + self.rising * rate >= capacity * weight
    }

    /// What it is behind a bend, where one wish begins or stops to rise. Taken in any order, sums may
    /// be below zero before all of them are in; they wrap.
    fn bent(self, bend: &Bend) -> Self {
        let (rate, weight) = (u128::from(bend.rate), u128::from(bend.weight));
        match bend.turn {
            Turn::Rises => Self {
                flat: self.flat.wrapping_sub(rate),
                rising: self.rising.wrapping_add(weight),
            },
            Turn::Flattens => Self {
                flat: self.flat.wrapping_add(rate),
                rising: self.rising.wrapping_sub(weight),
            },
        }
    }
}

/// Where the line of one wish bends: at level `rate / weight`.
#[derive(Clone, Copy)]
struct Bend {
    rate: u64,
    weight: u32,
    turn: Turn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Rises,
    Flattens,
}

impl Bend {
    fn new(rate: u64, weight: u32, turn: Turn) -> Self {
        let weight = weight.max(1);
        Self { rate, weight, turn }
    }

    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let (left, right) = (
            u128::from(self.rate) * u128::from(other.weight),
            u128::from(other.rate) * u128::from(self.weight),
        );
        left.cmp(&right)
    }
}

#[cfg(test)]
mod tests;
