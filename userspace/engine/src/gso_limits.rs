//! Remembers which destinations refuse UDP GSO, and from which datagram length on.
//!
//! A path may carry smaller datagrams only (`EINVAL`, `EMSGSIZE`: the refused length counts), or a
//! device cannot compute checksums (`EIO`: every length counts). What was learned is forgotten after
//! [`REMEMBERED`], because routes and devices change.
//!
//! The other way round, a destination that took a run is expected to take the next one of that
//! length, so that nobody has to wait for the kernel's answer.

use std::time::Duration;

use towpath_proto::Timestamp;

use crate::address::Name;

/// How long a refusal counts.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Destinations remembered at once. One that is pushed out is refused once more and learned again.
const PLACES: usize = 256;

#[derive(Clone, Copy)]
struct Limit {
    name: Name,
    refused_bytes: u16,
    until: Timestamp,
}

/// The destinations that refused.
#[derive(Default)]
pub(crate) struct GsoLimits {
    places: Vec<Option<Limit>>,
    /// Destinations that took a run, and its datagrams' length.
    taken: Vec<Option<(Name, u16)>>,
}

impl GsoLimits {
    /// Whether runs of datagrams of `bytes` to `name` would be refused.
    pub(crate) fn forbids(&self, now: Timestamp, name: &Name, bytes: u16) -> bool {
        if self.places.is_empty() {
            return false;
        }
        self.places[place(name)].is_some_and(|limit| {
            limit.name == *name && bytes >= limit.refused_bytes && now < limit.until
        })
    }

    /// Whether a run of datagrams of `bytes` to `name` was taken, and none refused since.
    pub(crate) fn is_proven(&self, name: &Name, bytes: u16) -> bool {
        !self.taken.is_empty()
            && self.taken[place(name)].is_some_and(|(of, taken)| of == *name && bytes <= taken)
    }

    /// Remembers that a run of datagrams of `bytes` to `name` was taken.
    pub(crate) fn prove(&mut self, name: &Name, bytes: u16) {
        if self.taken.is_empty() {
            self.taken = vec![None; PLACES];
        }
        self.taken[place(name)] = Some((*name, bytes));
    }

    /// Remembers that runs of datagrams of `bytes` to `name` were refused with `errno`.
    pub(crate) fn learn(&mut self, now: Timestamp, name: &Name, bytes: u16, errno: i32) {
        if self.places.is_empty() {
            self.places = vec![None; PLACES];
        }
        if let Some(taken) = self.taken.get_mut(place(name)) {
            *taken = None;
        }
        let place = &mut self.places[place(name)];
        let known = place.filter(|limit| limit.name == *name && now < limit.until);
        let refused = if errno == libc::EIO { 0 } else { bytes };
        let refused_bytes = known.map_or(refused, |limit| limit.refused_bytes.min(refused));
        *place = Some(Limit {
            name: *name,
            refused_bytes,
            until: now + REMEMBERED,
        });
    }
}

fn place(name: &Name) -> usize {
    let (words, _) = name.bytes().as_chunks::<4>();
    let mixed = words.iter().fold(0u64, |hash, &word| {
        (hash.rotate_left(5) ^ u64::from(u32::from_ne_bytes(word)))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    (mixed >> 56) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.parse().unwrap())
    }

    #[test]
    fn a_refused_length_forbids_longer_ones_to_that_destination_alone() {
        let mut limits = GsoLimits::default();
        let now = Timestamp::from_nanos(5);
        assert!(!limits.forbids(now, &name("192.0.2.1:9"), 1400));
        limits.learn(now, &name("192.0.2.1:9"), 1400, libc::EMSGSIZE);
        assert!(limits.forbids(now, &name("192.0.2.1:9"), 1400));
        assert!(limits.forbids(now, &name("192.0.2.1:9"), 1401));
        assert!(!limits.forbids(now, &name("192.0.2.1:9"), 1399));
        assert!(!limits.forbids(now, &name("192.0.2.1:10"), 1400));
    }

    #[test]
    fn a_taken_run_proves_its_destination_for_that_length_until_one_is_refused() {
        let mut limits = GsoLimits::default();
        assert!(!limits.is_proven(&name("192.0.2.1:9"), 1200));
        limits.prove(&name("192.0.2.1:9"), 1200);
        assert!(limits.is_proven(&name("192.0.2.1:9"), 1200));
        assert!(!limits.is_proven(&name("192.0.2.1:9"), 1201));
        assert!(!limits.is_proven(&name("192.0.2.1:10"), 1200));
        let now = Timestamp::from_nanos(5);
        limits.learn(now, &name("192.0.2.1:9"), 1200, libc::EMSGSIZE);
        assert!(!limits.is_proven(&name("192.0.2.1:9"), 1200));
    }

    #[test]
    fn a_device_without_checksums_forbids_every_length_until_it_is_forgotten() {
        let mut limits = GsoLimits::default();
        let now = Timestamp::from_nanos(5);
        limits.learn(now, &name("[2001:db8::1]:9"), 1400, libc::EIO);
        limits.learn(now, &name("[2001:db8::1]:9"), 1000, libc::EINVAL);
        assert!(limits.forbids(now, &name("[2001:db8::1]:9"), 1));
        assert!(!limits.forbids(now + REMEMBERED, &name("[2001:db8::1]:9"), 1));
    }
}
