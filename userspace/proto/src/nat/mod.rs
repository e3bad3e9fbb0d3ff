//! What stands between a node and its peers, and how to get through it.

mod behavior;

pub use behavior::{
    Behavior, BehaviorClient, BehaviorConfig, BehaviorError, Filtering, Mapping, NatType, TestError,
};
