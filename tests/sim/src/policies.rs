//! Reference models of the rules that judge other nodes, and random runs that compare every answer.
//!
//! A model keeps everything that ever happened in a list and finds its answers by going through all of
//! it. It knows nothing of the structures of the code that it is compared with.

pub mod breaker;
pub mod health;

use std::time::Duration;

use towpath_proto::Timestamp;

use crate::dice::Dice;

/// What an observer of a run would want to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Answers that were compared.
    pub answers: u64,
    /// Changes that were told.
    pub changes: u64,
    /// Attempts that were refused.
    pub refused: u64,
    /// Who was not kept for want of room.
    pub without_room: u64,
}

/// A length of time between so many microseconds, with short ones as likely as long ones.
fn some_time(dice: &mut Dice, micros: std::ops::Range<u64>) -> Duration {
    let bits = 64 - micros.end.leading_zeros();
    let longest = dice.range(0..micros.end) >> dice.below(bits as usize);
    Duration::from_micros(micros.start + longest) + Duration::from_nanos(dice.range(0..3))
}

/// The time of the next step: a bit later, much later, about when something is due, or before.
fn step(dice: &mut Dice, now: Timestamp, due: Option<Timestamp>) -> Timestamp {
    match (dice.below(24), due) {
        (0..3, Some(due)) => {
            let around = due - Duration::from_nanos(1) + Duration::from_nanos(dice.range(0..3));
            around.max(now)
        }
        (3, _) => now + some_time(dice, 0..1 << 34),
        (4, _) => now - some_time(dice, 0..1 << 20),
        (5..16, _) => now,
        _ => now + some_time(dice, 0..1 << 22),
    }
}
