//! ChannelBind (RFC 8656 §12.2).
//!
//! Data flows on a channel until its binding ends, also where the permission that came with it has
//! ended before: see docs/decisions/0008-how-long-a-channel-carries-data.md.

use super::address::PeerAddr;
use super::channels::Channel;
use super::routes::RouteState;
use super::{CHANNEL_LIFETIME, unknown_attributes};
use crate::Timestamp;
use crate::auth::Authenticated;
use crate::relay::{Quota, Refusal, Relay, Request};
use crate::wire::Code;
use crate::wire::attribute::{ChannelNumberValue, XorPeerAddress};

impl Relay {
    pub(crate) fn channel_bind(&mut self, now: Timestamp, request: &Request<'_>) {
        self.act(now, request, |relay, sender| {
            relay.try_channel_bind(now, request, sender)
        });
    }

    fn try_channel_bind(
        &mut self,
        now: Timestamp,
        request: &Request<'_>,
        sender: &Authenticated,
    ) -> Result<(), Refusal> {
        let id = self.allocation_of(now, request, sender)?;
        let message = &request.message;
        let unknown = unknown_attributes(message);
        if !unknown.is_empty() {
            return Err(Refusal::Unknown(unknown));
        }
        // RFC 8656 §12.2: without CHANNEL-NUMBER or XOR-PEER-ADDRESS, or with a number that is no
        // channel's, 400.
        let number = message
            .get::<ChannelNumberValue>()
            .map_err(|_| Code::BAD_REQUEST)?;
        let peer = message
            .get::<XorPeerAddress>()
            .map_err(|_| Code::BAD_REQUEST)?;
        let (Some(ChannelNumberValue(number)), Some(XorPeerAddress(peer))) = (number, peer) else {
            return Err(Code::BAD_REQUEST.into());
        };
        if peer.port() == 0 {
            return Err(Code::BAD_REQUEST.into());
        }
        let own = self.judge_peer(id, peer.ip())?;
        if let Some(own) = own
            && !self.policy.is_own_port_open(own, peer, &self.shared)
        {
            return Err(Code::FORBIDDEN.into());
        }
        let limits = &self.config.limits;
        let (allocation, hasher) = self
            .allocations
            .get_mut(id)
            .ok_or(Code::ALLOCATION_MISMATCH)?;
        let peer = PeerAddr::new(peer);
        // RFC 8656 §12.2: "The channel number is not currently bound to a different transport
        // address", and "the transport address is not currently bound to a different channel number",
        // else 400.
        let by_number = allocation.channels.find(number, hasher);
        let by_peer = allocation.channels.find(peer, hasher);
        let taken = by_number.is_some_and(|known| known.peer() != peer && known.expires > now)
            || by_peer.is_some_and(|known| known.number != number && known.expires > now);
        if taken {
            return Err(Code::BAD_REQUEST.into());
        }
        let is_new = by_number.is_none_or(|known| known.peer() != peer);
        let full = allocation.channels.len() >= usize::from(limits.max_channels);
        if is_new && (full || by_number.is_some() || by_peer.is_some()) {
            allocation.sweep(now, hasher, &mut self.routes);
        }
        if is_new && allocation.channels.len() >= usize::from(limits.max_channels) {
            return Err(self.over_quota(Quota::Channels).into());
        }
        if !allocation.has_room_for(
            now,
            std::iter::once(peer.ip),
            limits.max_permissions,
            hasher,
            &mut self.routes,
        ) {
            return Err(self.over_quota(Quota::Permissions).into());
        }
        let pace = limits.new_peers.pace();
        if is_new && !allocation.details.destinations.admit(now, pace, 1) {
            return Err(self.over_quota(Quota::NewPeers).into());
        }
        // The same peer's: a binding of another one has been swept.
        let known = allocation.channels.find(number, hasher);
        let expires = now + CHANNEL_LIFETIME;
        let relayed_until = allocation.lifetimes().of(peer.ip);
        let mut channel = Channel {
            peer_ip: peer.ip,
            peer_port: peer.port,
            number,
            own,
            expires,
            route: known.map_or(RouteState::Absent, |known| known.route),
        };
        if let Some(known) = known {
            channel.compare_end(known.routed_until(relayed_until), relayed_until);
        }
        allocation.channels.insert(number, channel, hasher);
        // RFC 8656 §12.2: a ChannelBind also installs or refreshes a permission.
        allocation.permit(now, peer.ip, own, hasher);
        self.follow_routes(now, id);
        Ok(())
    }
}
