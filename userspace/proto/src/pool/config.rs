//! What a pool is configured with.

use std::time::Duration;

/// How many connections a pool keeps, for how long, and how it makes them.
#[derive(Clone, PartialEq, Debug)]
pub struct PoolConfig {
    /// Connections with one peer that are given to callers. One carries any number of streams.
    pub max_connections_per_peer: usize,
    /// Connections and dials of the whole node.
    pub max_total_connections: usize,
    /// Where more than one connection with a peer is allowed: a further one is dialled when each of
    /// them has so many references.
    pub references_per_connection: u32,
    /// A connection that nobody has used for so long is closed.
    pub idle_timeout: Duration,
    /// So often something is sent on a connection in use, to keep the NATs on its way and the peer
    /// from forgetting it. At most half of `idle_timeout`.
    pub keep_alive_interval: Duration,
    /// How a peer is dialled that does not answer.
    pub retry: RetryConfig,
    /// Callers that may wait for a connection at a time, per shard.
    pub max_waiters: usize,
    /// Whether [`PoolEvent`](super::PoolEvent)s are wanted. Counters count without.
    pub observe: bool,
}

/// How a peer is dialled that does not answer.
#[derive(Clone, PartialEq, Debug)]
pub struct RetryConfig {
    /// Attempts before the callers are told that it does not work.
    pub max_attempts: u32,
    /// An attempt that takes longer has failed.
    pub attempt_timeout: Duration,
    /// Longest pause after the first attempt; it doubles with each further one.
    pub base_delay: Duration,
    /// Longest pause of all.
    pub max_delay: Duration,
    /// Which part of a pause is random, from 0 to 1.
    pub jitter: f64,
    /// A caller waits no longer than this, attempts and pauses together.
    pub deadline: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            max_connections_per_peer: 1,
            max_total_connections: 16_384,
            references_per_connection: 64,
            idle_timeout: Duration::from_secs(25),
            keep_alive_interval: Duration::from_secs(10),
            retry: RetryConfig::default(),
            max_waiters: 16_384,
            observe: false,
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 4,
            attempt_timeout: Duration::from_secs(10),
            base_delay: Duration::from_millis(250),
            max_delay: Duration::from_secs(5),
            jitter: 1.0,
            deadline: Duration::from_secs(30),
        }
    }
}

/// What is wrong with a [`PoolConfig`].
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
pub enum PoolConfigError {
    /// A number has to be one at least.
    #[error("{0} is 0, it must be at least 1")]
    Zero(&'static str),
    /// A time has to be longer than nothing.
    #[error("{0} is no time at all, it must be longer")]
    NoTime(&'static str),
    /// The shortest pause is longer than the longest.
    #[error("base_delay is {base:?}, it must not be longer than max_delay, which is {max:?}")]
    Delays {
        /// `base_delay`.
        base: Duration,
        /// `max_delay`.
        max: Duration,
    },
    /// It is no part of anything.
    #[error("jitter is {0}, it must be from 0 to 1")]
    Jitter(f64),
    /// A peer would take a connection in use for an idle one.
    #[error(
        "keep_alive_interval is {keep_alive:?}, it must be at most half of idle_timeout, which is \
         {idle:?}"
    )]
    KeepAlive {
        /// `keep_alive_interval`.
        keep_alive: Duration,
        /// `idle_timeout`.
        idle: Duration,
    },
}

impl PoolConfig {
    /// Says what is wrong, where something is.
    pub fn validate(&self) -> Result<(), PoolConfigError> {
        let retry = &self.retry;
        let numbers = [
            ("max_connections_per_peer", self.max_connections_per_peer),
            ("max_total_connections", self.max_total_connections),
            ("max_waiters", self.max_waiters),
            (
                "references_per_connection",
                self.references_per_connection as usize,
            ),
            ("max_attempts", retry.max_attempts as usize),
        ];
        let times = [
            ("idle_timeout", self.idle_timeout),
            ("keep_alive_interval", self.keep_alive_interval),
            ("attempt_timeout", retry.attempt_timeout),
            ("base_delay", retry.base_delay),
            ("deadline", retry.deadline),
        ];
        if let Some((name, _)) = numbers.iter().find(|(_, value)| *value == 0) {
            return Err(PoolConfigError::Zero(name));
        }
        if let Some((name, _)) = times.iter().find(|(_, value)| value.is_zero()) {
            return Err(PoolConfigError::NoTime(name));
        }
        if retry.base_delay > retry.max_delay {
            return Err(PoolConfigError::Delays {
                base: retry.base_delay,
                max: retry.max_delay,
            });
        }
        if !(0.0..=1.0).contains(&retry.jitter) {
            return Err(PoolConfigError::Jitter(retry.jitter));
        }
        if self.keep_alive_interval > self.idle_timeout / 2 {
            return Err(PoolConfigError::KeepAlive {
                keep_alive: self.keep_alive_interval,
                idle: self.idle_timeout,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl FnOnce(&mut PoolConfig)) -> String {
        let mut config = PoolConfig::default();
        change(&mut config);
        config.validate().expect_err("it is wrong").to_string()
    }

    #[test]
    fn what_is_usual_is_right() {
        assert_eq!(PoolConfig::default().validate(), Ok(()));
    }

    #[test]
    fn an_error_names_the_value_and_the_rule() {
        let second = Duration::from_secs(1);
        assert_eq!(
            wrong(|config| config.retry.max_attempts = 0),
            "max_attempts is 0, it must be at least 1"
        );
        assert_eq!(
            wrong(|config| config.max_connections_per_peer = 0),
            "max_connections_per_peer is 0, it must be at least 1"
        );
        assert_eq!(
            wrong(|config| config.retry.deadline = Duration::ZERO),
            "deadline is no time at all, it must be longer"
        );
        assert_eq!(
            wrong(|config| config.retry.base_delay = 9 * second),
            "base_delay is 9s, it must not be longer than max_delay, which is 5s"
        );
        assert_eq!(
            wrong(|config| config.retry.jitter = f64::NAN),
            "jitter is NaN, it must be from 0 to 1"
        );
        assert_eq!(
            wrong(|config| config.idle_timeout = 19 * second),
            "keep_alive_interval is 10s, it must be at most half of idle_timeout, which is 19s"
        );
    }
}
