//! Following a server to another one (RFC 8489 §10).

use std::net::SocketAddr;

use super::error::Ignored;
use super::transaction::{Request, Transaction};
use super::{Client, Event};
use crate::Timestamp;
use crate::wire::Message;
use crate::wire::attribute::AlternateServer;

/// How often one allocation is sent on.
const MAX_REDIRECTIONS: usize = 3;

/// The servers that were asked for one allocation; the last is the one to talk to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Servers {
    asked: [SocketAddr; MAX_REDIRECTIONS + 1],
    last: usize,
}

impl Servers {
    pub(super) fn new(first: SocketAddr) -> Self {
        Self {
            asked: [first; MAX_REDIRECTIONS + 1],
            last: 0,
        }
    }

    pub(super) fn current(&self) -> SocketAddr {
        self.asked[self.last]
    }

    /// Goes on to `next`; false where that must not be.
    fn follow(&mut self, next: SocketAddr) -> bool {
        // RFC 8489 §10: "If a client has been redirected to a server to which it has already sent this
        // request within the last five minutes, it MUST ignore the redirection and consider the
        // transaction to have failed."
        let asked_before = self.asked[..=self.last].contains(&next);
        // RFC 8489 §14.15: the address is of the family that the request came from.
        let other_family = next.is_ipv4() != self.current().is_ipv4();
        let ip = next.ip();
        let unusable = next.port() == 0 || ip.is_unspecified() || ip.is_multicast();
        if asked_before || other_family || unusable || self.last == MAX_REDIRECTIONS {
            return false;
        }
        self.last += 1;
        self.asked[self.last] = next;
        true
    }
}

impl Client {
    /// What a 300 makes of a transaction: the same request to another server, or `None` where it has
    /// failed.
    pub(super) fn redirected(
        &mut self,
        now: Timestamp,
        transaction: &Transaction,
        message: &Message<'_>,
    ) -> Result<Option<Transaction>, Ignored> {
        // RFC 8489 §9.2.5: to a request with credentials only a signed answer is the server's own. An
        // unsigned one is told as a refusal, as others are, and not followed.
        if transaction.is_signed && !message.has_integrity() && !message.has_integrity_sha256() {
            return Ok(None);
        }
        self.check_signature(message, false)?;
        // Only an allocation can be had elsewhere; what belongs to one that there is cannot.
        let Request::Allocate { .. } = transaction.request else {
            return Ok(None);
        };
        let Ok(Some(AlternateServer(next))) = message.get() else {
            return Ok(None);
        };
        if !self.servers.follow(next) {
            return Ok(None);
        }
        // RFC 8489 §10: the request there "MUST utilize the same credentials": name and password. Realm
        // and nonce are the other server's to give.
        self.session = None;
        self.push_event(Event::Redirected(next));
        let id = self.transaction_id();
        let mut again = transaction.restarted(now, id, self.config.schedule);
        again.challenges = 0;
        Ok(Some(again))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn no_server_is_asked_twice_and_not_many_are_asked() {
        let mut servers = Servers::new(server("192.0.2.1:3478"));
        assert!(!servers.follow(server("192.0.2.1:3478")));
        for port in 1..=MAX_REDIRECTIONS as u16 {
            let next = SocketAddr::from(([192, 0, 2, 2], port));
            assert!(servers.follow(next));
            assert_eq!(servers.current(), next);
            assert!(!servers.follow(server("192.0.2.1:3478")));
            assert!(!servers.follow(next));
        }
        assert!(!servers.follow(server("192.0.2.3:3478")));
    }

    #[test]
    fn what_can_be_no_server_of_this_family_is_not_followed() {
        let mut servers = Servers::new(server("192.0.2.1:3478"));
        for useless in [
            "192.0.2.2:0",
            "0.0.0.0:3478",
            "224.0.0.1:3478",
            "[2001:db8::1]:3478",
        ] {
            assert!(!servers.follow(server(useless)), "{useless}");
        }
        assert_eq!(servers.current(), server("192.0.2.1:3478"));
    }
}
