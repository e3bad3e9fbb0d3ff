//! A TLS handshake as quinn-proto wants it.
//!
//! quinn-proto brings one along that hides two things which have to be known here: the key exchange
//! that both ends agreed upon, and why the other end was refused.

use std::any::Any;
use std::io::Cursor;
use std::sync::Arc;

use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::crypto::{
    ClientConfig, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig,
    Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::pki_types::ServerName;
use rustls::quic::{self, Connection, KeyChange, Secrets, Suite, Version};
use rustls::{Error, NamedGroup, PeerIncompatible};

use super::config::SecurityLevel;
use super::verifier::{self, IdentityError};
use crate::identity::PeerId;

/// What makes handshakes, for one node.
#[allow(unreachable_pub, reason = "public with the feature `simulation`")]
pub struct Sessions {
    /// Of calls. The name to call is the peer's id as text.
    pub client: Arc<dyn ClientConfig>,
    /// Of answers.
    pub server: Arc<dyn ServerConfig>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions(…)")
    }
}

/// What is known of a handshake; all of it once it is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Handshake {
    pub(super) peer: Option<PeerId>,
    pub(super) security: Option<SecurityLevel>,
    pub(super) failure: Option<HandshakeFailure>,
}

/// Why we broke a handshake off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HandshakeFailure {
    Identity(IdentityError),
    NoCommonKeyExchange,
}

/// What calls are made with.
pub(super) struct Caller {
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) shared: Shared,
}

/// What calls are answered with.
pub(super) struct Callee {
    pub(super) tls: Arc<rustls::ServerConfig>,
    pub(super) shared: Shared,
}

/// What both need.
#[derive(Clone)]
pub(super) struct Shared {
    /// Protects Initial packets.
    pub(super) initial: Suite,
    /// Makes the tags of Retry packets, whose keys are public.
    pub(super) retry: Arc<QuicServerConfig>,
}

impl ClientConfig for Caller {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        parameters: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let tls_version = tls_version(version)?;
        let invalid = || ConnectError::InvalidServerName(server_name.into());
        let name = ServerName::try_from(server_name.to_owned()).map_err(|_| invalid())?;
        let parameters = encode(parameters);
        let inner = quic::ClientConnection::new(self.tls.clone(), tls_version, name, parameters)
            .map_err(|_| ConnectError::EndpointStopping)?;
        let inner = Connection::Client(inner);
        Ok(Box::new(TlsSession::new(
            inner,
            version,
            tls_version,
            &self.shared,
        )))
    }
}

impl ServerConfig for Callee {
    fn initial_keys(&self, version: u32, id: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.shared.retry.initial_keys(version, id)
    }

    fn retry_tag(&self, version: u32, original: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.shared.retry.retry_tag(version, original, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        parameters: &TransportParameters,
    ) -> Box<dyn Session> {
        let tls_version = tls_version(version)
            .unwrap_or_else(|_| unreachable!("initial_keys refused other versions before"));
        let inner = quic::ServerConnection::new(self.tls.clone(), tls_version, encode(parameters))
            .expect("the configuration has a key exchange and suites for QUIC");
        let inner = Connection::Server(inner);
        Box::new(TlsSession::new(inner, version, tls_version, &self.shared))
    }
}

struct TlsSession {
    inner: Connection,
    version: u32,
    tls_version: Version,
    shared: Shared,
    next_secrets: Option<Secrets>,
    failure: Option<HandshakeFailure>,
}

impl TlsSession {
    fn new(inner: Connection, version: u32, tls_version: Version, shared: &Shared) -> Self {
        Self {
            inner,
            version,
            tls_version,
            shared: shared.clone(),
            next_secrets: None,
            failure: None,
        }
    }

    fn side(&self) -> Side {
        match self.inner {
            Connection::Client(_) => Side::Client,
            Connection::Server(_) => Side::Server,
        }
    }

    fn handshake(&self) -> Handshake {
        let certificate = self.inner.peer_certificates().and_then(<[_]>::first);
        let group = self.inner.negotiated_key_exchange_group();
        Handshake {
            peer: certificate.and_then(|certificate| verifier::peer_of(certificate).ok()),
            security: group.map(|group| match group.name() {
                NamedGroup::X25519MLKEM768 => SecurityLevel::PostQuantum,
                _ => SecurityLevel::Classical,
            }),
            failure: self.failure,
        }
    }

    fn failed(&mut self, error: &Error) -> TransportError {
        self.failure = match error {
            Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => {
                Some(HandshakeFailure::NoCommonKeyExchange)
            }
            other => IdentityError::inside(other).map(HandshakeFailure::Identity),
        };
        let alert = self.inner.alert();
        let code = alert.map(|alert| TransportErrorCode::crypto(alert.into()));
        TransportError {
            code: code.unwrap_or(TransportErrorCode::PROTOCOL_VIOLATION),
            frame: None,
            reason: error.to_string(),
        }
    }
}

impl Session for TlsSession {
    fn initial_keys(&self, id: &ConnectionId, side: Side) -> Keys {
        let side = match side {
            Side::Client => rustls::Side::Client,
            Side::Server => rustls::Side::Server,
        };
        keys(self.shared.initial.keys(id, side, self.tls_version))
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        Some(Box::new(self.handshake()))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        Some(Box::new(self.handshake().peer?))
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        match self.inner {
            Connection::Client(_) => Some(false),
            Connection::Server(_) => None,
        }
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    /// Never says that handshake data is ready: it is asked for when the connection stands or has
    /// failed.
    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        match self.inner.read_hs(bytes) {
            Ok(()) => Ok(false),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(bytes) = self.inner.quic_transport_parameters() else {
            return Ok(None);
        };
        let read = TransportParameters::read(self.side(), &mut Cursor::new(bytes))?;
        Ok(Some(read))
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        match self.inner.write_hs(buffer)? {
            KeyChange::Handshake { keys: new } => Some(keys(new)),
            KeyChange::OneRtt { keys: new, next } => {
                self.next_secrets = Some(next);
                Some(keys(new))
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let next = self.next_secrets.as_mut()?.next_packet_keys();
        Some(KeyPair {
            local: Box::new(next.local),
            remote: Box::new(next.remote),
        })
    }

    fn is_valid_retry(&self, original: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        let Some((payload, tag)) = payload.split_last_chunk::<16>() else {
            return false;
        };
        let packet = [header, payload].concat();
        self.shared.retry.retry_tag(self.version, original, &packet) == *tag
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner
            .export_keying_material(output, label, Some(context))
            .map(|_| ())
            .map_err(|_| ExportKeyingMaterialError)
    }
}

fn keys(keys: quic::Keys) -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(keys.local.header),
            remote: Box::new(keys.remote.header),
        },
        packet: KeyPair {
            local: Box::new(keys.local.packet),
            remote: Box::new(keys.remote.packet),
        },
    }
}

fn encode(parameters: &TransportParameters) -> Vec<u8> {
    let mut bytes = Vec::new();
    parameters.write(&mut bytes);
    bytes
}

/// Drafts are not spoken: `Endpoint` offers and takes version 1 alone.
fn tls_version(version: u32) -> Result<Version, UnsupportedVersion> {
    match version {
        super::config::QUIC_VERSION => Ok(Version::V1),
        _ => Err(UnsupportedVersion),
    }
}
