//! Why a dial fails, whether it is worth another attempt, and when that comes.

use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::Rng;

use super::config::RetryConfig;
use crate::peer::ConnectError;
use crate::quic::CloseReason;

/// Why an attempt to reach a peer failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DialError {
    /// It could not be begun.
    #[error(transparent)]
    NotBegun(#[from] ConnectError),
    /// The handshake came to nothing.
    #[error(transparent)]
    Ended(#[from] CloseReason),
    /// It was over neither way within the time for an attempt.
    #[error("no connection within {0:?}")]
    TooSlow(Duration),
}

/// Whether another attempt may succeed where one has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorClass {
    /// It may.
    Transient,
    /// Something has to be changed first.
    Permanent,
}

impl DialError {
    /// Whether another attempt may succeed.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::TooSlow(_) => ErrorClass::Transient,
            Self::NotBegun(error) => match error {
                // Those that are over make room within seconds.
                ConnectError::Full(_) => ErrorClass::Transient,
                ConnectError::Myself
                | ConnectError::NoAddress(_)
                | ConnectError::ShuttingDown
                | ConnectError::Exhausted => ErrorClass::Permanent,
            },
            Self::Ended(reason) => class_of_close(reason),
        }
    }
}

fn class_of_close(reason: &CloseReason) -> ErrorClass {
    match reason {
        CloseReason::TimedOut
        | CloseReason::Busy
        | CloseReason::Forgotten
        | CloseReason::Peer { .. }
        | CloseReason::PeerGaveUp(_)
        | CloseReason::NoConnectionIds => ErrorClass::Transient,
        CloseReason::Here
        | CloseReason::WrongPeer(_)
        | CloseReason::NoIdentity
        | CloseReason::NoCommonKeyExchange
        | CloseReason::Refused(_)
        | CloseReason::Version
        | CloseReason::PeerMisbehaved(_) => ErrorClass::Permanent,
    }
}

/// The pause after so many attempts: up to `base_delay`, doubled each time, `max_delay` at most. The
/// part of it that is not random is always waited for.
pub(super) fn pause(config: &RetryConfig, attempts: u32, rng: &mut ChaCha12Rng) -> Duration {
    let doublings = attempts.saturating_sub(1).min(u32::BITS - 1);
    let longest = config
        .base_delay
        .saturating_mul(1 << doublings)
        .min(config.max_delay);
    let random = rng.next_u32();
    let part = 1.0 - config.jitter * (f64::from(random) / f64::from(u32::MAX));
    longest.mul_f64(part.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;
    use crate::identity::PeerId;

    #[test]
    fn a_pause_doubles_up_to_its_cap_and_is_random_below_it() {
        let mut rng = ChaCha12Rng::from_seed([7; 32]);
        let ms = Duration::from_millis;
        let config = RetryConfig {
            base_delay: ms(100),
            max_delay: ms(5_000),
            jitter: 1.0,
            ..RetryConfig::default()
        };
        for (attempts, cap) in [(1, 100), (2, 200), (3, 400), (7, 5_000), (u32::MAX, 5_000)] {
            let pauses: Vec<_> = (0..1_000)
                .map(|_| pause(&config, attempts, &mut rng))
                .collect();
            assert!(pauses.iter().all(|pause| *pause <= ms(cap)));
            let mean = pauses.iter().sum::<Duration>() / 1_000;
            assert!(mean > ms(cap) * 45 / 100 && mean < ms(cap) * 55 / 100);
        }
        let steady = RetryConfig {
            jitter: 0.0,
            ..config.clone()
        };
        assert_eq!(pause(&steady, 3, &mut rng), ms(400));
        let half = RetryConfig {
            jitter: 0.5,
            ..config
        };
        assert!((0..1_000).all(|_| pause(&half, 3, &mut rng) >= ms(200)));
    }

    #[test]
    fn who_is_somebody_else_or_speaks_otherwise_is_not_tried_again() {
        let peer = PeerId::from_bytes([1; 32]);
        for reason in [
            CloseReason::WrongPeer(peer),
            CloseReason::NoIdentity,
            CloseReason::NoCommonKeyExchange,
            CloseReason::Version,
            CloseReason::Refused(40),
        ] {
            assert_eq!(DialError::Ended(reason).class(), ErrorClass::Permanent);
        }
        for reason in [
            CloseReason::TimedOut,
            CloseReason::Busy,
            CloseReason::Forgotten,
        ] {
            assert_eq!(DialError::Ended(reason).class(), ErrorClass::Transient);
        }
        let no_address = DialError::NotBegun(ConnectError::NoAddress(0));
        assert_eq!(no_address.class(), ErrorClass::Permanent);
        let full = DialError::NotBegun(ConnectError::Full(9));
        assert_eq!(full.class(), ErrorClass::Transient);
        let slow = DialError::TooSlow(Duration::from_secs(1));
        assert_eq!(slow.class(), ErrorClass::Transient);
    }
}
