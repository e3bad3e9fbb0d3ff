//! What follows from an answer that was found to fit.

use std::net::SocketAddr;
use std::time::Duration;

use towpath_proto::Timestamp;

use super::requests::{algorithm, names_algorithm, wants_both};
use super::time::{CHANNEL_LIFETIME, PERMISSION_LIFETIME};
use super::{Address, Allocation, Flow, Issued, Model, Opening, Reservation, is_answer};
use crate::stun::{Parsed, attribute, kind};

impl Model {
    /// `closes` says whether ports were closed with it.
    pub(super) fn succeeded(
        &mut self,
        now: Timestamp,
        flow: Flow,
        request: &Parsed,
        bytes: &[u8],
        closes: bool,
    ) {
        let answer = is_answer(bytes, request, kind::SUCCESS).expect("it was found to be one");
        if request.kind == kind::BINDING {
            assert_eq!(
                answer.address(attribute::XOR_MAPPED_ADDRESS),
                Some(flow.client)
            );
            // What has to be said is 32 bytes over IPv4 and 44 over IPv6.
            let tenths = if flow.client.is_ipv4() { 16 } else { 22 };
            assert!(
                bytes.len() * 10 <= request.len() * tenths,
                "{} bytes",
                bytes.len()
            );
            return;
        }
        self.check_protection(request, &answer);
        match request.kind {
            kind::ALLOCATE => self.allocated(now, flow, request, &answer, bytes),
            kind::REFRESH => match request.find(attribute::MOBILITY_TICKET) {
                Some(ticket) => self.resumed(now, flow, request, &answer, ticket, closes),
                None => {
                    assert_eq!(answer.find(attribute::MOBILITY_TICKET), None);
                    self.refreshed(now, (flow, flow), request, &answer, closes);
                }
            },
            kind::CREATE_PERMISSION => {
                let allocation = self.allocations.get_mut(&flow);
                let allocation = allocation.expect("the request was found to fit an allocation");
                for peer in request
                    .addresses(attribute::XOR_PEER_ADDRESS)
                    .iter()
                    .flatten()
                {
                    allocation
                        .permissions
                        .insert(peer.ip(), now + PERMISSION_LIFETIME);
                }
            }
            _ => {
                let allocation = self.allocations.get_mut(&flow);
                let allocation = allocation.expect("the request was found to fit an allocation");
                let number = request
                    .find(attribute::CHANNEL_NUMBER)
                    .expect("it is there");
                let number = u16::from_be_bytes([number[0], number[1]]);
                let peer = request
                    .address(attribute::XOR_PEER_ADDRESS)
                    .expect("it is there");
                // What the new binding collides with has expired, else it would be refused.
                allocation.channels.retain(|_, (bound, _)| *bound != peer);
                allocation
                    .channels
                    .insert(number, (peer, now + CHANNEL_LIFETIME));
                // RFC 8656 §12: "installs or refreshes a permission".
                allocation
                    .permissions
                    .insert(peer.ip(), now + PERMISSION_LIFETIME);
            }
        }
    }

    fn allocated(
        &mut self,
        now: Timestamp,
        flow: Flow,
        request: &Parsed,
        answer: &Parsed,
        bytes: &[u8],
    ) {
        assert_eq!(
            answer.address(attribute::XOR_MAPPED_ADDRESS),
            Some(flow.client)
        );
        if let Some(allocation) = self.allocations.get(&flow) {
            // Where it has moved, it has another ticket.
            let same = allocation.answer == bytes || allocation.answer.is_empty();
            assert!(
                same || allocation.is_less,
                "a retransmission is answered the same"
            );
            return;
        }
        let opened = self.ports.iter().filter(|(_, other)| **other == flow);
        let opened: Vec<SocketAddr> = opened.map(|(local, _)| *local).collect();
        self.check_addresses(now, flow, request, answer, &opened);
        let claim = self.rules.claim(request).expect("it was authenticated");
        let user = claim.user;
        let reserves = request
            .find(attribute::EVEN_PORT)
            .is_some_and(|value| value[0] & 0x80 != 0);
        let token = answer.find(attribute::RESERVATION_TOKEN);
        assert_eq!(
            token.is_some(),
            reserves,
            "a token is given to who asks for one"
        );
        // The reservation begins with the request, as the lifetime does.
        let opening = self.opening.remove(&flow);
        let Opening { since, client, .. } = opening.expect("its port was being opened");
        if let Some(token) = token {
            let local = SocketAddr::new(opened[0].ip(), opened[0].port() + 1);
            let reservation = Reservation {
                local,
                user: user.clone(),
                client: flow.client.ip(),
                made: since,
            };
            self.reservations.insert(token.to_vec(), reservation);
        }
        let lifetime = self.granted(since, request);
        assert_eq!(answer.number(attribute::LIFETIME), Some(seconds(lifetime)));
        let time_limit = self.rules.time_limit(request);
        if time_limit.is_some() {
            self.count("time-limited allocation");
        }
        if wants_both(request) {
            self.count(["one family of two", "dual"][opened.len() - 1]);
        }
        let address = |local| Address {
            local,
            expires: since + lifetime,
            deleted: false,
        };
        let allocation = Allocation {
            client,
            user,
            addresses: opened.iter().copied().map(address).collect(),
            permissions: Default::default(),
            channels: Default::default(),
            made_by: request.id,
            time_limit,
            answer: bytes.to_vec(),
            is_less: false,
        };
        self.allocations.insert(flow, allocation);
        self.given_ticket(opened[0], request, answer);
    }

    /// The addresses that a success tells are those of the ports that were opened, and of two families
    /// the one that is missing is told with its reason.
    fn check_addresses(
        &self,
        now: Timestamp,
        flow: Flow,
        request: &Parsed,
        answer: &Parsed,
        opened: &[SocketAddr],
    ) {
        let told = answer.addresses(attribute::XOR_RELAYED_ADDRESS);
        assert_eq!(told.len(), opened.len(), "all ports are told: {answer:?}");
        for (local, relayed) in opened.iter().zip(told) {
            let relayed = relayed.expect("it is an address");
            if request.find(attribute::RESERVATION_TOKEN).is_none() {
                let (ip, _) = self
                    .relay_address_for(flow, local.is_ipv4())
                    .expect("else it is 440");
                assert_eq!(
                    local.ip(),
                    ip,
                    "the address of the flow or of the family is used"
                );
            }
            let addresses = &self.rules.relay_addresses;
            let public = addresses
                .iter()
                .find(|(ip, _)| *ip == local.ip())
                .map(|pair| pair.1);
            assert_eq!(Some(relayed.ip()), public, "the public address is told");
            assert_eq!(
                relayed.port(),
                local.port(),
                "the port that was opened is told"
            );
            if request.find(attribute::EVEN_PORT).is_some() {
                assert_eq!(relayed.port() % 2, 0, "an even port was asked for");
            }
        }
        let v4 = match request.find(attribute::REQUESTED_ADDRESS_FAMILY) {
            _ if wants_both(request) || request.find(attribute::RESERVATION_TOKEN).is_some() => {
                None
            }
            Some([2, ..]) => Some(false),
            _ => Some(true),
        };
        assert!(
            v4.is_none_or(|v4| opened.iter().all(|local| local.is_ipv4() == v4)),
            "{opened:?} are not of the family asked for"
        );
        // RFC 8656 §7.2: ADDRESS-ERROR-CODE with 440 or 508, for one of two families.
        let missing = [true, false]
            .into_iter()
            .find(|v4| wants_both(request) && opened.iter().all(|local| local.is_ipv4() != *v4));
        let refused = answer.find(attribute::ADDRESS_ERROR_CODE);
        let expected = missing.map(|v4| {
            let family = if v4 { 1 } else { 2 };
            let Some((local, _)) = self.relay_address_for(flow, v4) else {
                return [family, 0, 4, 40];
            };
            let even = request.find(attribute::EVEN_PORT).is_some();
            assert!(
                self.pool_may_be_empty(now, flow, local, even),
                "{local} has free ports: {answer:?}"
            );
            [family, 0, 5, 8]
        });
        assert_eq!(refused, expected.as_ref().map(|value| &value[..]));
    }

    /// A Refresh for the allocation at `at` was answered with success at `flow`. Returns whether it
    /// has a new lifetime.
    pub(super) fn refreshed(
        &mut self,
        now: Timestamp,
        (at, flow): (Flow, Flow),
        request: &Parsed,
        answer: &Parsed,
        closes: bool,
    ) -> bool {
        let lifetime = self.granted(now, request);
        let time_limit = self.rules.time_limit(request);
        let told = answer.number(attribute::LIFETIME);
        let again = self.deleted.contains(&(flow, request.id)) && !closes;
        let Some(allocation) = self.allocations.get_mut(&at).filter(|_| !again) else {
            assert_eq!(told, Some(0), "a deletion may be confirmed twice");
            return false;
        };
        let family = request.find(attribute::REQUESTED_ADDRESS_FAMILY);
        let v4 = family.map(|value| value[0] == 1);
        let addresses = allocation.addresses.iter_mut();
        let addresses = addresses.filter(|a| v4.is_none_or(|v4| a.local.is_ipv4() == v4));
        if request.number(attribute::LIFETIME) == Some(0) {
            assert_eq!(told, Some(0));
            addresses.for_each(|address| address.deleted = true);
            self.deleted.insert((flow, request.id));
            return false;
        }
        assert_eq!(told, Some(seconds(lifetime)));
        // What has expired is not brought back.
        let addresses = addresses.filter(|address| address.expires > now);
        addresses.for_each(|address| address.expires = now + lifetime);
        allocation.time_limit = time_limit;
        true
    }

    /// RFC 8656 §7.2: what was asked for, between the default and the longest; and no longer than the
    /// credential lasts.
    pub(super) fn granted(&self, now: Timestamp, request: &Parsed) -> Duration {
        let asked = request.number(attribute::LIFETIME).map(u64::from);
        let asked = asked.map_or(Duration::ZERO, Duration::from_secs);
        let lifetime = asked.clamp(self.rules.default_lifetime, self.rules.max_lifetime);
        self.rules.within(now, request, lifetime)
    }

    pub(super) fn failed(
        &mut self,
        now: Timestamp,
        code: u16,
        flow: Flow,
        request: &Parsed,
        bytes: &[u8],
    ) {
        let answer = is_answer(bytes, request, kind::ERROR).expect("it was found to be one");
        if code == 300 {
            let server = answer.find(attribute::ALTERNATE_SERVER);
            let servers = self.rules.alternate_servers.iter();
            let mut of_family = servers.filter(|s| s.is_ipv4() == flow.client.is_ipv4());
            let told = |s: &SocketAddr| server == Some(&super::classic::plain_address(*s)[..]);
            assert!(of_family.any(told), "{answer:?}");
            assert!(answer.is_protected(), "{answer:?}");
        }
        if matches!(code, 300 | 508)
            && self
                .opening
                .get(&flow)
                .is_some_and(|o| o.request.id == request.id)
        {
            self.opening.remove(&flow);
        }
        if answer.is_protected() {
            self.check_protection(request, &answer);
        }
        let challenge = matches!(code, 401 | 438);
        assert_eq!(
            answer.find(attribute::NONCE).is_some(),
            challenge,
            "{answer:?}"
        );
        if challenge {
            assert_eq!(
                answer.find(attribute::REALM),
                Some(self.rules.realm.as_bytes())
            );
            assert!(
                bytes.len() <= 200 && bytes.len() <= 3 * request.len(),
                "{} bytes to a stranger who sent {}",
                bytes.len(),
                request.len()
            );
        }
        if let Some(nonce) = answer.find(attribute::NONCE) {
            let list = answer.find(attribute::PASSWORD_ALGORITHMS);
            self.check_offer(request, nonce, list);
            let issued = Issued {
                at: now,
                algorithms: list.map(<[u8]>::to_vec),
            };
            self.nonces.insert((flow.client, nonce.to_vec()), issued);
        }
    }

    /// RFC 8489 §9.2: what a challenge offers is said again in its nonce; nothing is offered only where
    /// there is no room for it.
    fn check_offer(&self, request: &Parsed, nonce: &[u8], list: Option<&[u8]>) {
        let cookie: &[u8] = if self.rules.secrets.is_empty() {
            b"obMatJos2wAAA"
        } else {
            b"obMatJos2gAAA"
        };
        let offers: [(&[u8], Option<&[u8]>); 2] =
            [(cookie, Some(&[0, 2, 0, 0, 0, 1, 0, 0])), (b"", None)];
        let (cookie, expected) = offers[usize::from(!nonce.starts_with(b"obMatJos2"))];
        assert_eq!(list, expected, "{request:?}");
        assert!(nonce.starts_with(cookie), "{nonce:?}");
        let padded = |len: usize| len.next_multiple_of(4);
        let with_all = 20 + 8 + 4 + padded(self.rules.realm.len()) + 4 + 24 + 4 + 8;
        let with_all = with_all + request.fingerprint.map_or(0, |_| 8);
        assert_eq!(list.is_none(), with_all > 3 * request.len(), "{request:?}");
    }

    /// RFC 8489 §9.2.4: a response to an authenticated request is protected by the same key.
    fn check_protection(&self, request: &Parsed, answer: &Parsed) {
        let claim = self.rules.claim(request).expect("it was authenticated");
        let as_due = answer.integrity_sha256.is_some() == names_algorithm(request);
        assert!(as_due, "the answer is protected in another way: {answer:?}");
        let (realm, with) = (&self.rules.realm, algorithm(request));
        assert!(claim.signed(answer, with, realm), "{answer:?}");
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).expect("lifetimes fit into LIFETIME")
}
