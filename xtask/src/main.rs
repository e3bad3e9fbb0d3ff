//! Binary root.
fn main() {}
