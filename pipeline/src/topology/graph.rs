//! x
/// x
pub fn dot() {}
/// x
pub fn mermaid() {}
/// x
pub fn svg() {}
