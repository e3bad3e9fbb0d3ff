//! The same settings for QUIC as it comes: an endpoint of quinn that meets ours on equal terms, to be
//! measured beside it.

use std::sync::Arc;

use quinn_proto::TransportConfig;

use super::config::{QuicConfig, QuicConfigError};
use crate::identity::Identity;

/// What an endpoint that is not ours needs to be like ours: certificates, who is believed, key
/// exchanges, and the transport's settings.
#[derive(Debug)]
pub struct StockConfigs {
    /// For calls. The name to call is the peer's id as text.
    pub client: Arc<rustls::ClientConfig>,
    /// For answers.
    pub server: Arc<rustls::ServerConfig>,
    /// For both.
    pub transport: TransportConfig,
}

impl QuicConfig {
    /// These settings for QUIC as it comes.
    pub fn stock(&self, identity: &Identity) -> Result<StockConfigs, QuicConfigError> {
        let (client, server) = self.tls(identity, &Arc::new(self.allowed()?))?;
        Ok(StockConfigs {
            client,
            server,
            transport: self.transport()?,
        })
    }
}
