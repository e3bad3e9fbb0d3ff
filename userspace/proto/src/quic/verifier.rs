//! Who is at the other end: the key in the certificate, and nothing else that it says.
//!
//! That the peer has the key is proved by the signature over the handshake, which rustls asks for.
//! The certificate's own signature proves less and is not looked at.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, PeerMisbehaved, SignatureScheme,
};

use super::certificate;
use crate::identity::PeerId;

/// Takes any peer that calls, and of those that are called the one that is meant: its name as a DNS
/// name of one label, which never leaves this process.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Why the other end is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum IdentityError {
    /// Somebody else answered.
    #[error("the peer is {0}")]
    WrongPeer(PeerId),
    /// The certificate is none, or of another kind of key.
    #[error("the certificate is not of an Ed25519 key")]
    NoIdentity,
}

impl From<IdentityError> for Error {
    fn from(error: IdentityError) -> Self {
        let other = OtherError(std::sync::Arc::new(error));
        Self::InvalidCertificate(CertificateError::Other(other))
    }
}

impl IdentityError {
    /// The reason inside an error of a handshake, where it was ours.
    pub(super) fn inside(error: &Error) -> Option<Self> {
        let Error::InvalidCertificate(CertificateError::Other(OtherError(other))) = error else {
            return None;
        };
        other.downcast_ref::<Self>().copied()
    }
}

/// The peer whose certificate this is.
pub(super) fn peer_of(certificate: &CertificateDer<'_>) -> Result<PeerId, IdentityError> {
    let parsed = ParsedCertificate::try_from(certificate).map_err(|_| IdentityError::NoIdentity)?;
    certificate::peer_of(&parsed.subject_public_key_info()).ok_or(IdentityError::NoIdentity)
}

impl PeerVerifier {
    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = peer_of(end_entity)?;
        let ServerName::DnsName(expected) = server_name else {
            return Err(IdentityError::WrongPeer(found).into());
        };
        if expected.as_ref().parse() != Ok(found) {
            return Err(IdentityError::WrongPeer(found).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // RFC 9001 §4.2: "Clients MUST NOT offer TLS versions older than 1.3."
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        peer_of(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
