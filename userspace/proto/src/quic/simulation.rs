//! Handshakes that are not of TLS, for simulations of more nodes than there is time for cryptography. Only
//! there with the feature `simulation`, and only used by who asks for it by name
//! ([`Peer::without_cryptography`](crate::peer::Peer::without_cryptography)).

use std::any::Any;

use super::config::SecurityLevel;
pub use super::session::Sessions;
use super::session::{Handshake, HandshakeFailure};
use super::verifier::IdentityError;
use crate::identity::PeerId;

/// What a session has to give as the data of a handshake that is over: the other end is this peer.
pub fn proved(peer: PeerId) -> Box<dyn Any> {
    Box::new(Handshake {
        peer: Some(peer),
        security: Some(SecurityLevel::PostQuantum),
        failure: None,
    })
}

/// The same where this peer answered, and was not called.
pub fn refused(found: PeerId) -> Box<dyn Any> {
    Box::new(Handshake {
        peer: None,
        security: None,
        failure: Some(HandshakeFailure::Identity(IdentityError::WrongPeer(found))),
    })
}
