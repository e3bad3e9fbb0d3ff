//! Sending clients to another server (RFC 8489 §10): while this one drains, or has no capacity.
//!
//! Only who has authenticated is sent on, and the answer is signed. ALTERNATE-DOMAIN names a certificate
//! to expect; over UDP there is none.

use std::net::SocketAddr;

use crate::relay::{Refusal, Relay};
use crate::wire::Code;

impl Relay {
    /// A refusal for want of capacity as a redirection, where there is another server; others as they
    /// are. Another server knows nothing of a port that was `reserved` here.
    pub(super) fn or_alternate(
        &mut self,
        refusal: Refusal,
        client: SocketAddr,
        reserved: bool,
    ) -> Refusal {
        if refusal != Refusal::Code(Code::INSUFFICIENT_CAPACITY) || reserved {
            return refusal;
        }
        // RFC 8489 §14.15: "The IP address family MUST be identical to that of the source IP address of
        // the request."
        let servers = self.config.alternate_servers.iter();
        let of_family = servers.filter(|server| server.is_ipv4() == client.is_ipv4());
        let count = of_family.clone().count();
        if count == 0 {
            return refusal;
        }
        let chosen = of_family.copied().nth(self.next_alternate % count);
        self.next_alternate = self.next_alternate.wrapping_add(1);
        chosen.map_or(refusal, Refusal::Alternate)
    }
}
