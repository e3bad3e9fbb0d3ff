//! STUN (RFC 8489): the client's side of a request.

mod client;
mod retransmission;

pub use client::{Binding, BindingClient, BindingError};
pub use retransmission::{Due, Retransmission, Schedule, ScheduleError};
