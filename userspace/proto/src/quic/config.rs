//! What connections are made with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, NoneTokenStore, ServerConfig,
    TransportConfig, ValidationTokenConfig, VarInt,
};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::quic::Suite;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, NamedGroup};

use super::certificate;
use super::cid::{Issued, ShardCids};
use super::clock::Clock;
use super::confirmed::Confirming;
use super::session::{Callee, Caller, Sessions, Shared};
use super::verifier::PeerVerifier;
use crate::identity::Identity;
use crate::machine::{ShardId, TRANSMIT_BUFFER_BYTES};

/// QUIC version 1 (RFC 9000).
pub(super) const QUIC_VERSION: u32 = 1;
/// What is spoken above QUIC.
const ALPN: &[u8] = b"towpath/1";
/// RFC 9000 §14: "QUIC MUST NOT be used if the network path cannot support a maximum datagram size of
/// at least 1200 bytes." Every path carries that, relayed ones included.
const PATH_BYTES: u16 = 1200;
/// What an Ethernet carries over IPv6.
const ETHERNET_BYTES: u16 = 1452;
/// The longest datagram that a shell sends and is sure to receive.
const MOST_BYTES: u16 = TRANSMIT_BUFFER_BYTES as u16;
/// A retried handshake comes back within this time.
const RETRY_LIFETIME: Duration = Duration::from_secs(15);

/// Which key exchanges are allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SecurityPolicy {
    /// X25519MLKEM768 alone: what is recorded today stays secret when there are quantum computers.
    #[default]
    RequirePostQuantum,
    /// X25519 too, with peers that cannot do better.
    AllowClassical,
}

/// What a connection's keys rest upon.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SecurityLevel {
    /// X25519 and ML-KEM-768: both have to be broken.
    PostQuantum,
    /// X25519 alone.
    Classical,
}

/// What connections are made with.
#[derive(Clone)]
pub struct QuicConfig {
    /// Which key exchanges are allowed.
    pub security: SecurityPolicy,
    /// Who computes. Of its key exchanges those count that `security` allows.
    pub provider: Arc<CryptoProvider>,
    /// A connection on which nothing comes for so long is over.
    pub idle_timeout: Duration,
    /// So often something is sent on an idle connection; `None` for never.
    pub keep_alive: Option<Duration>,
    /// Streams of both kinds that a peer may have open at a time.
    pub max_streams: u32,
    /// Bytes of one stream that may wait to be read.
    pub stream_window_bytes: u32,
    /// Bytes of all streams of a connection that may wait to be read.
    pub receive_window_bytes: u32,
    /// Bytes of all streams of a connection that may wait to be acknowledged.
    pub send_window_bytes: u32,
    /// Bytes of datagrams that may wait, in each direction.
    pub datagram_buffer_bytes: u32,
    /// The longest datagrams that are tried, from 1,200 (none longer than that) to 2,048. Which lengths
    /// a path carries is found out where datagrams leave with the DF bit.
    pub max_mtu_bytes: u16,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            security: SecurityPolicy::default(),
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            idle_timeout: Duration::from_secs(30),
            keep_alive: None,
            max_streams: 128,
            stream_window_bytes: 1 << 20,
            receive_window_bytes: 8 << 20,
            send_window_bytes: 8 << 20,
            datagram_buffer_bytes: 1 << 18,
            max_mtu_bytes: ETHERNET_BYTES,
        }
    }
}

impl fmt::Debug for QuicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConfig")
            .field("security", &self.security)
            .field("idle_timeout", &self.idle_timeout)
            .finish_non_exhaustive()
    }
}

/// What is wrong with a [`QuicConfig`].
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum QuicConfigError {
    /// The provider has no key exchange that is allowed.
    #[error("the cryptography provider has no key exchange that the security policy allows")]
    NoKeyExchange,
    /// The provider has no cipher for QUIC's first packets.
    #[error("the cryptography provider lacks TLS_AES_128_GCM_SHA256, which QUIC begins with")]
    NoInitialSuite,
    /// The time is too long for QUIC.
    #[error("an idle timeout of {0:?} is too long")]
    IdleTimeout(Duration),
    /// QUIC needs more, or a shell carries less.
    #[error("datagrams of at most {0} bytes are not within 1200 and 2048")]
    Mtu(u16),
    /// TLS does not work with the provider.
    #[error("the cryptography provider cannot be used: {0}")]
    Provider(rustls::Error),
}

impl From<rustls::Error> for QuicConfigError {
    fn from(error: rustls::Error) -> Self {
        Self::Provider(error)
    }
}

/// Everything an endpoint is made of.
pub(super) struct Configs {
    pub(super) endpoint: Arc<EndpointConfig>,
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: ClientConfig,
    pub(super) issued: Issued,
}

impl QuicConfig {
    /// The configurations of a shard's endpoint; what is random in it follows from `rng`.
    pub(super) fn build(
        &self,
        identity: &Identity,
        shard: ShardId,
        clock: &Clock,
        rng: &mut ChaCha12Rng,
        sessions: Sessions,
    ) -> Result<Configs, QuicConfigError> {
        let transport = Arc::new(self.transport()?);
        // Derived from the identity, both are the same after a restart: a peer whose connection the
        // restart has ended is told so.
        let secret = identity.secret();
        let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &secret.derive("quic stateless reset"));
        let token_key =
            hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&secret.derive("quic retry token"));

        let mut server = ServerConfig::new(sessions.server, Arc::new(token_key));
        let mut no_tokens = ValidationTokenConfig::default();
        no_tokens.sent(0);
        server
            .transport_config(transport.clone())
            .validation_token_config(no_tokens)
            .retry_token_lifetime(RETRY_LIFETIME)
            .time_source(clock.of_tokens())
            // What arrives is decided upon before the next datagram is looked at.
            .max_incoming(1)
            // The address that QUIC sees of a peer never changes.
            .migration(false);
        let mut client = ClientConfig::new(sessions.client);
        client
            .version(QUIC_VERSION)
            .transport_config(transport)
            .token_store(Arc::new(NoneTokenStore));

        let issued = Issued::default();
        let endpoint = self.endpoint(shard, reset_key, issued.clone(), rng)?;
        Ok(Configs {
            endpoint: Arc::new(endpoint),
            server: Arc::new(server),
            client,
            issued,
        })
    }

    /// Handshakes of TLS.
    pub(super) fn sessions(&self, identity: &Identity) -> Result<Sessions, QuicConfigError> {
        let provider = Arc::new(self.allowed()?);
        let tls = self.tls(identity, &provider)?;
        let shared = Shared {
            initial: initial_suite(&provider).ok_or(QuicConfigError::NoInitialSuite)?,
            retry: Arc::new(
                QuicServerConfig::try_from(tls.1.clone())
                    .map_err(|_| QuicConfigError::NoInitialSuite)?,
            ),
        };
        let callee = Callee {
            tls: tls.1,
            shared: shared.clone(),
        };
        let caller = Caller { tls: tls.0, shared };
        Ok(Sessions {
            client: Arc::new(caller),
            server: Arc::new(callee),
        })
    }

    fn endpoint(
        &self,
        shard: ShardId,
        reset_key: hmac::Key,
        issued: Issued,
        rng: &mut ChaCha12Rng,
    ) -> Result<EndpointConfig, QuicConfigError> {
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        let cids = ChaCha12Rng::from_seed(seed(rng));
        config
            .supported_versions(vec![QUIC_VERSION])
            // RFC 9443 tells protocols apart by the bit that greasing it would take away.
            .grease_quic_bit(false)
            .rng_seed(Some(seed(rng)))
            .cid_generator(move || {
                Box::new(ShardCids {
                    shard,
                    rng: cids.clone(),
                    issued: issued.clone(),
                })
            });
        let most = self
            .max_mtu_bytes
            .max(config.get_max_udp_payload_size() as u16);
        config
            .max_udp_payload_size(most)
            .map_err(|_| QuicConfigError::Mtu(most))?;
        Ok(config)
    }

    pub(super) fn transport(&self) -> Result<TransportConfig, QuicConfigError> {
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .map_err(|_| QuicConfigError::IdleTimeout(self.idle_timeout))?;
        if !(PATH_BYTES..=MOST_BYTES).contains(&self.max_mtu_bytes) {
            return Err(QuicConfigError::Mtu(self.max_mtu_bytes));
        }
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.max_mtu_bytes);
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(self.keep_alive)
            .max_concurrent_bidi_streams(self.max_streams.into())
            .max_concurrent_uni_streams(self.max_streams.into())
            .stream_receive_window(self.stream_window_bytes.into())
            .receive_window(VarInt::from_u32(self.receive_window_bytes))
            .send_window(self.send_window_bytes.into())
            .datagram_receive_buffer_size(Some(self.datagram_buffer_bytes as usize))
            .datagram_send_buffer_size(self.datagram_buffer_bytes as usize)
            .initial_mtu(PATH_BYTES)
            .min_mtu(PATH_BYTES)
            .mtu_discovery_config((self.max_mtu_bytes > PATH_BYTES).then_some(discovery))
            // The shell does not have to know: what is built at once is given to it one by one.
            .enable_segmentation_offload(true)
            .congestion_controller_factory(Arc::new(Confirming::default()));
        Ok(transport)
    }

    /// The provider with the key exchanges that are allowed, the best first.
    pub(super) fn allowed(&self) -> Result<CryptoProvider, QuicConfigError> {
        let groups: &[NamedGroup] = match self.security {
            SecurityPolicy::RequirePostQuantum => &[NamedGroup::X25519MLKEM768],
            SecurityPolicy::AllowClassical => &[NamedGroup::X25519MLKEM768, NamedGroup::X25519],
        };
        let mut provider = CryptoProvider::clone(&self.provider);
        let find = |name: &NamedGroup| -> Option<&'static dyn SupportedKxGroup> {
            let mut all = self.provider.kx_groups.iter();
            all.find(|group| group.name() == *name).copied()
        };
        provider.kx_groups = groups.iter().filter_map(find).collect();
        if provider.kx_groups.is_empty() {
            return Err(QuicConfigError::NoKeyExchange);
        }
        Ok(provider)
    }

    pub(super) fn tls(
        &self,
        identity: &Identity,
        provider: &Arc<CryptoProvider>,
    ) -> Result<(Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>), QuicConfigError> {
        let key = PrivatePkcs8KeyDer::from(certificate::private_key(identity));
        let key = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&key)?;
        let chain = vec![CertificateDer::from(certificate::certificate(identity))];
        let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
        let verifier = Arc::new(PeerVerifier {
            algorithms: provider.signature_verification_algorithms,
        });
        let versions = &[&rustls::version::TLS13];

        let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(shown.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        // Its name is the peer's, and no business of who listens.
        client.enable_sni = false;

        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(shown);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        Ok((Arc::new(client), Arc::new(server)))
    }
}

/// RFC 9001 §5.2: "Initial packets use AEAD_AES_128_GCM".
fn initial_suite(provider: &CryptoProvider) -> Option<Suite> {
    let suite = provider
        .cipher_suites
        .iter()
        .find(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256)?;
    suite.tls13()?.quic_suite()
}

fn seed(rng: &mut ChaCha12Rng) -> [u8; 32] {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    seed
}
