//! The reference.
pub mod special_use;
