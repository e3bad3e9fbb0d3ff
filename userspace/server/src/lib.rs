//! Placeholder crate root; see the crate's owner.
