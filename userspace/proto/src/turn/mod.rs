//! TURN (RFC 8656): the client's side. The server's is [`relay`](crate::relay).

pub mod client;
