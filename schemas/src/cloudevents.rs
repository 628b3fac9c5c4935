//! CloudEvents.
use crate::event::{Event, InvalidEvent};
use bytes::Bytes;
/// Placeholder until merged.
pub fn parse_record(
    _: &[(String, Bytes)],
    _: Option<&str>,
    value: &[u8],
    unknown_to_data: bool,
) -> Result<Event, InvalidEvent> {
    Event::from_json(value, unknown_to_data)
}
