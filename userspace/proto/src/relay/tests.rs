//! The relay's rules, one test each, over the messages clients send.

mod allocate;
mod alternate;
mod ancillary;
mod authentication;
mod behavior;
mod bindings;
mod classic;
mod dual;
mod forwarding;
mod lab;
mod metering;
mod mobility;
mod quotas;
mod routes;
mod time_limited;
