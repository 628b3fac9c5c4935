//! Legs for tests.

use std::collections::BTreeMap;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{EventId, GroupId, LegId, NotificationId};
use tidings_schemas::lane::{LANE_VERSION, LaneRecord, Request};
use tidings_schemas::time::Instant;

/// A leg of `u1`, created at 0, fresh until 2096.
pub(crate) fn leg(channel: Channel, priority: Priority) -> LaneRecord {
    let event = EventId::new("medium", 0, 1);
    let notification = NotificationId::new("validate", "u1", b"", &mut [event]);
    LaneRecord {
        v: LANE_VERSION,
        notification,
        leg: LegId::new(notification, channel.as_str(), 0),
        group: GroupId::default(),
        event,
        user: "u1".into(),
        tenant: String::new(),
        event_type: "like".into(),
        category: "social".into(),
        priority,
        channel,
        silent: false,
        template_id: None,
        locale: None,
        data: BTreeMap::new(),
        actors: vec!["Bob".into()],
        actors_count: 1,
        activities: 1,
        object: None,
        members: vec![event],
        request: Request::default(),
        struck: Vec::new(),
        returns: 0,
        created_at: Instant(0),
        ready_at: Instant(0),
        expires_at: None,
        fresh_until: Instant(4_000_000_000_000),
        fallback_channels: Vec::new(),
        replay: 0,
        only_address: None,
    }
}
