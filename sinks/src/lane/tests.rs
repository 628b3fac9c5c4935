//! Cases of the lane.
