//! Cryptography from a seed, so that a run of nodes is the same to the last byte.
//!
//! Two things of a handshake are random: what rustls draws itself, and the key exchange. The first
//! comes from the seed here; the second is a stand-in that has X25519MLKEM768's number and sizes and no
//! secrets, since aws-lc takes its randomness from the system alone. Signatures (Ed25519) and packet
//! protection are the real ones and have no randomness. With the real key exchange the bytes of a run
//! differ every time, and nothing else does: sizes, times and order do not depend on keys.

use std::cell::RefCell;
use std::sync::Arc;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rustls::crypto::{
    ActiveKeyExchange, CompletedKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom,
    SharedSecret, SupportedKxGroup,
};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved, ProtocolVersion};
use sha2::{Digest, Sha256};

/// Lengths of the shares of X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem §4).
const CLIENT_SHARE_BYTES: usize = 1184 + 32;
const SERVER_SHARE_BYTES: usize = 1088 + 32;

thread_local! {
    /// A run is one thread.
    static RNG: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(0));
}

/// A provider for this thread's next run, all of whose randomness follows from the seed.
pub fn seeded(seed: u64) -> Arc<CryptoProvider> {
    RNG.with_borrow_mut(|rng| *rng = ChaCha8Rng::seed_from_u64(seed));
    Arc::new(CryptoProvider {
        kx_groups: vec![&StandIn],
        secure_random: &Seeded,
        ..real()
    })
}

/// The provider that nodes have.
pub fn real() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

fn bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    RNG.with_borrow_mut(|rng| rng.fill_bytes(&mut bytes));
    bytes
}

#[derive(Debug)]
struct Seeded;

impl SecureRandom for Seeded {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
        RNG.with_borrow_mut(|rng| rng.fill_bytes(buffer));
        Ok(())
    }
}

#[derive(Debug)]
struct StandIn;

impl SupportedKxGroup for StandIn {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Started(bytes(CLIENT_SHARE_BYTES))))
    }

    fn start_and_complete(&self, client_share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let share = bytes(SERVER_SHARE_BYTES);
        Ok(CompletedKeyExchange {
            group: self.name(),
            secret: secret(client_share, &share)?,
            pub_key: share,
        })
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

struct Started(Vec<u8>);

impl ActiveKeyExchange for Started {
    fn complete(self: Box<Self>, server_share: &[u8]) -> Result<SharedSecret, Error> {
        secret(&self.0, server_share)
    }

    fn pub_key(&self) -> &[u8] {
        &self.0
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

fn secret(client_share: &[u8], server_share: &[u8]) -> Result<SharedSecret, Error> {
    if client_share.len() != CLIENT_SHARE_BYTES || server_share.len() != SERVER_SHARE_BYTES {
        return Err(PeerMisbehaved::InvalidKeyShare.into());
    }
    let digest = Sha256::new()
        .chain_update(client_share)
        .chain_update(server_share)
        .finalize();
    Ok(SharedSecret::from(&digest[..]))
}
