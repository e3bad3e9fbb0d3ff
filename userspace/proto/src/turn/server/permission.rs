//! CreatePermission (RFC 8656 §10), and what becomes of permissions when the rules change.

use ahash::RandomState;

use super::address::CompactIp;
use super::allocation::{Allocation, State};
use super::permissions::Permission;
use super::routes::Routes;
use super::{PERMISSION_LIFETIME, unknown_attributes};
use crate::Timestamp;
use crate::access::{OwnAddress, Verdict};
use crate::auth::Authenticated;
use crate::machine::PortId;
use crate::relay::{EndReason, Quota, Refusal, Relay, Request};
use crate::wire::Code;
use crate::wire::attribute::{Family, XorPeerAddress};

impl Relay {
    pub(crate) fn create_permission(&mut self, now: Timestamp, request: &Request<'_>) {
        self.act(now, request, |relay, sender| {
            relay.try_create_permission(now, request, sender)
        });
    }

    /// RFC 8656 §10.2: all addresses of the request get a permission, or none does.
    fn try_create_permission(
        &mut self,
        now: Timestamp,
        request: &Request<'_>,
        sender: &Authenticated,
    ) -> Result<(), Refusal> {
        let id = self.allocation_of(now, request, sender)?;
        let unknown = unknown_attributes(&request.message);
        if !unknown.is_empty() {
            return Err(Refusal::Unknown(unknown));
        }
        let mut peers = Vec::new();
        for peer in request.message.get_all::<XorPeerAddress>() {
            let XorPeerAddress(peer) = peer.map_err(|_| Code::BAD_REQUEST)?;
            let own = self.judge_peer(id, peer.ip())?;
            let ip = CompactIp::new(peer.ip());
            if !peers.iter().any(|(known, _)| *known == ip) {
                peers.push((ip, own));
            }
        }
        // RFC 8656 §10.2: at least one XOR-PEER-ADDRESS, else 400.
        if peers.is_empty() {
            return Err(Code::BAD_REQUEST.into());
        }
        let most = self.config.limits.max_permissions;
        let (allocation, hasher) = self
            .allocations
            .get_mut(id)
            .ok_or(Code::ALLOCATION_MISMATCH)?;
        if !allocation.has_room_for(
            now,
            peers.iter().map(|(ip, _)| *ip),
            most,
            hasher,
            &mut self.routes,
        ) {
            return Err(self.over_quota(Quota::Permissions).into());
        }
        let new = peers
            .iter()
            .filter(|(ip, _)| allocation.permissions.find(*ip, hasher).is_none());
        let new = u32::try_from(new.count()).unwrap_or(u32::MAX);
        let pace = self.config.limits.new_peers.pace();
        if !allocation.details.destinations.admit(now, pace, new) {
            return Err(self.over_quota(Quota::NewPeers).into());
        }
        for (ip, own) in peers {
            allocation.permit(now, ip, own, hasher);
        }
        self.follow_routes(now, id);
        Ok(())
    }

    /// Whether an allocation may have a peer at this address at all.
    pub(super) fn judge_peer(
        &self,
        id: PortId,
        ip: std::net::IpAddr,
    ) -> Result<Option<OwnAddress>, Code> {
        let allocation = self.allocations.get(id).ok_or(Code::ALLOCATION_MISMATCH)?;
        // RFC 8656 §10.2: a peer of another family than the relayed address is refused with 443.
        let relayed = allocation
            .relayed_in(Family::of(ip))
            .ok_or(Code::PEER_ADDRESS_FAMILY_MISMATCH)?;
        // RFC 8656 §10.2: "The server MAY impose restrictions on the IP address …: 403 (Forbidden)".
        let local = self.config.relay_addresses[usize::from(relayed.address)].local;
        match self.policy.judge_from(local, ip) {
            Verdict::Allowed => Ok(None),
            Verdict::Own(own) => Ok(Some(own)),
            Verdict::Denied(_) => Err(Code::FORBIDDEN),
        }
    }

    /// Applies rules that changed since an allocation was last looked at. One comparison unless they
    /// did.
    #[inline]
    pub(crate) fn judge_again(&mut self, id: PortId, now: Timestamp) {
        let version = self.policy_version;
        if self
            .allocations
            .get(id)
            .is_some_and(|known| known.policy_version != version)
        {
            self.apply_rules(id, now);
        }
    }

    /// Ends the allocation if its user is gone, or when the credential ends that it was refreshed with,
    /// else its permissions and channels that the rules deny.
    #[cold]
    fn apply_rules(&mut self, id: PortId, now: Timestamp) {
        let Some((allocation, hasher)) = self.allocations.get_mut(id) else {
            return;
        };
        if matches!(allocation.state, State::Opening { .. }) {
            return;
        }
        allocation.policy_version = self.policy_version;
        let Some(user) = self.config.users.keep(&allocation.details.user) else {
            self.end(now, id, EndReason::UserRemoved);
            return;
        };
        let ends = user.ends(self.clock);
        allocation.details.user = user;
        let mut sooner = false;
        for relayed in allocation.relayed() {
            sooner |= relayed.expires > ends && allocation.set_expires(Some(relayed.family), ends);
        }
        let policy = &self.policy;
        let local_in = |family| {
            let relayed = allocation.relayed_in(family)?;
            Some(self.config.relay_addresses[usize::from(relayed.address)].local)
        };
        let (v4, v6) = (local_in(Family::V4), local_in(Family::V6));
        let judge = |ip: CompactIp| {
            let ip = ip.ip();
            match policy.judge_from(if ip.is_ipv4() { v4? } else { v6? }, ip) {
                Verdict::Allowed => Some(None),
                Verdict::Own(own) => Some(Some(own)),
                Verdict::Denied(_) => None,
            }
        };
        allocation
            .permissions
            .retain(hasher, |permission| match judge(permission.ip) {
                Some(own) => {
                    permission.own = own;
                    permission.expires > now
                }
                None => false,
            });
        let ends = self.routes.ends(allocation);
        let routes = &mut self.routes;
        allocation.channels.retain(hasher, |channel| {
            let verdict = judge(channel.peer_ip);
            if let Some(own) = verdict {
                channel.own = own;
            }
            let keep = verdict.is_some() && channel.expires > now;
            if !keep {
                routes.remove(&ends, channel);
            }
            keep
        });
        self.follow_routes(now, id);
        if sooner {
            self.allocation_timer(now, id);
        }
    }
}

impl Allocation {
    /// Whether permissions for these addresses fit, once expired ones are gone.
    pub(super) fn has_room_for(
        &mut self,
        now: Timestamp,
        ips: impl Iterator<Item = CompactIp> + Clone,
        most: u16,
        hasher: &RandomState,
        routes: &mut Routes,
    ) -> bool {
        let missing = |allocation: &Self| {
            ips.clone()
                .filter(|ip| allocation.permissions.find(*ip, hasher).is_none())
                .count()
        };
        if self.permissions.len() + missing(self) > usize::from(most) {
            self.sweep(now, hasher, routes);
        }
        self.permissions.len() + missing(self) <= usize::from(most)
    }

    /// Installs or refreshes a permission.
    pub(super) fn permit(
        &mut self,
        now: Timestamp,
        ip: CompactIp,
        own: Option<OwnAddress>,
        hasher: &RandomState,
    ) {
        let expires = now + PERMISSION_LIFETIME;
        self.permissions
            .insert(ip, Permission { ip, own, expires }, hasher);
    }
}
