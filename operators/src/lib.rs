//! The operators of the decide stage, and the one harness that runs them on timely.

pub mod calendar;
pub mod when;
