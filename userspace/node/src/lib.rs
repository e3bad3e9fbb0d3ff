//! What a node of a peer-to-peer network links.
#![forbid(unsafe_code)]

pub mod key_file;

pub use towpath_proto::identity::{Identity, PeerAddr, PeerId, SecretKey};
