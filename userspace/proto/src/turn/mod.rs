//! TURN (RFC 8656): the client's side, and the rules of the [`relay`](crate::relay).

pub mod client;
pub(crate) mod server;
