//! STUN (RFC 8489): the client's side of a request, and how the relay answers Binding.

pub(crate) mod behavior;
mod classic;
mod client;
mod retransmission;
pub(crate) mod server;

pub use behavior::{BehaviorAddressError, BehaviorAddresses};
pub use client::{Binding, BindingClient, BindingError};
pub use retransmission::{Due, Retransmission, Schedule, ScheduleError};
