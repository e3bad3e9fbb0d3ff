//! Binding: telling clients their own address (RFC 8489 §2).
//!
//! Binding is not authenticated, so its answer carries XOR-MAPPED-ADDRESS and nothing else: over IPv4
//! at most 1.6 times the request.

use crate::Timestamp;
use crate::auth::BINDING_TENTHS;
use crate::relay::{Envelope, Refusal, Relay, Request};
use crate::wire::AttributeType;
use crate::wire::attribute::XorMappedAddress;

impl Relay {
    pub(crate) fn binding(&mut self, now: Timestamp, request: &Request<'_>) {
        if !self.admits_stranger(now, request.from) {
            return;
        }
        let len = request.message.as_bytes().len();
        let unknown = request.message.unknown_required(is_known);
        let envelope = request.stranger_envelope();
        if !unknown.is_empty() {
            // RFC 8489 §6.3.1: unknown comprehension-required attributes are answered with 420.
            let limit = (len * BINDING_TENTHS / 10).min(envelope.limit);
            self.refuse(&Envelope { limit, ..envelope }, Refusal::Unknown(unknown));
            return;
        }
        self.succeed(&envelope, |writer| {
            writer.put(&XorMappedAddress(request.from.client))?;
            Ok(())
        });
    }
}

/// What a Binding request may carry without effect: credentials are not asked for.
fn is_known(kind: AttributeType) -> bool {
    matches!(
        kind,
        AttributeType::USERNAME
            | AttributeType::USERHASH
            | AttributeType::REALM
            | AttributeType::NONCE
            | AttributeType::PASSWORD_ALGORITHM
    )
}
