-- Where everything went: three sums, each unit in exactly one fate, as of the newest closed epoch.
-- `SELECT * FROM fates` shows them all and whether they add up. `sinks::record::fates` in the code
-- computes the same from files; a test holds the two together.
--
-- A unit counts once its `created` is there. Its fate is the last of its states that is a fate (by
-- time, then stage, then row id): parked and then queued is queued, queued and then returned is
-- returned. `unaccounted` should be 0: a unit that was created and then not heard of again; so should
-- `orphans`: units that were heard of and never created.

-- The rows that count: decide's up to the newest closed epoch, all of the other stages.
CREATE VIEW IF NOT EXISTS lifecycle_counted AS
SELECT *, indexOf(['decide', 'critical', 'deliver'], stage) AS stage_order
FROM lifecycle FINAL
WHERE stage != 'decide' OR epoch <= (SELECT epoch FROM closed_epoch);

CREATE VIEW IF NOT EXISTS leg_fates AS
SELECT leg, of_event AS event, of_notification AS notification, alone, is_silent AS silent, first_at, is_created,
    by_decider,
    -- Parked is one fate whatever it waits for.
    multiIf(last_fate = '', 'unaccounted',
        last_fate IN ('parked', 'deferred', 'rate_limited', 'digested', 'scheduled'), 'parked', last_fate) AS fate
FROM
(
    SELECT
        leg,
        max(opens) AS is_created,
        max(stage != 'deliver') AS by_decider,
        argMinIf(event, (at, row_id), opens) AS of_event,
        argMinIf(notification, (at, row_id), opens) AS of_notification,
        -- A notification that merged others carries its group from the start.
        argMinIf(`group`, (at, row_id), opens) = toFixedString('', 16) AS alone,
        max(silent) AS is_silent,
        minIf(at, opens) AS first_at,
        argMaxIf(row_fate, (at, stage_order, row_id), row_fate != '') AS last_fate
    FROM
    (
        SELECT leg, event, notification, `group`, silent, stage, stage_order, at, row_id, has(states, 'created') AS opens,
            arrayLast(s -> s IN ('queued', 'merged', 'suppressed', 'expired', 'cancelled', 'retracted', 'returned',
                'parked', 'deferred', 'rate_limited', 'digested', 'scheduled'), states) AS row_fate
        FROM lifecycle_counted
        WHERE unit = 'leg'
    )
    GROUP BY leg
);

-- Delivered, else unknown if any attempt was, else dead-lettered, else failed; or suppressed, expired,
-- or still in flight.
CREATE VIEW IF NOT EXISTS delivery_fates AS
SELECT
    delivery,
    max(has(states, 'created')) AS is_created,
    multiIf(
        max(has(states, 'delivered')), 'delivered',
        max(has(states, 'unknown')), 'unknown',
        max(has(states, 'dlq')), 'dead_lettered',
        max(has(states, 'failed')), 'failed',
        max(has(states, 'suppressed')), 'suppressed',
        max(has(states, 'expired')), 'expired',
        'in_flight') AS fate
FROM lifecycle_counted
WHERE unit = 'delivery'
GROUP BY delivery;

-- An event's own end, where it has one (a merge into a notification of several is one); else what
-- became of the legs of the notification that it makes alone: one that is not silent queued, one
-- parked or returned, one merged, the silent one queued, else the fate of the first. The critical
-- path remembers no repeats: a repeat says the legs of the first again (they have the same ids, so the
-- first one's stay) and has none; by its notification, which another's legs carry, it is deduplicated.
CREATE VIEW IF NOT EXISTS event_fates AS
WITH
    own AS
    (
        SELECT
            event,
            max(opens) AS is_created,
            argMaxIf(row_fate, (at, stage_order, row_id), row_fate != '') AS last_fate
        FROM
        (
            SELECT event, stage_order, at, row_id, has(states, 'created') AS opens,
                arrayLast(s -> s IN ('rejected', 'deduplicated', 'retracted', 'cancelled', 'expired', 'suppressed',
                    'merged', 'lost', 'parked', 'deferred', 'rate_limited', 'digested', 'scheduled'), states) AS row_fate
            FROM lifecycle_counted
            WHERE unit = 'event'
        )
        GROUP BY event
    ),
    legs AS
    (
        SELECT
            event,
            groupArray((silent, first_at, leg, fate, alone)) AS every,
            arraySort(if(arrayExists(l -> l.5, every), arrayFilter(l -> l.5, every), every)) AS legs
        FROM leg_fates
        WHERE is_created
        GROUP BY event
    )
SELECT
    own.event AS event,
    own.is_created AS is_created,
    multiIf(
        last_fate IN ('rejected', 'deduplicated', 'retracted', 'cancelled', 'expired', 'suppressed', 'merged', 'lost'),
            last_fate,
        arrayExists(l -> l.4 = 'queued' AND NOT l.1, legs), 'notified',
        arrayExists(l -> l.4 IN ('parked', 'returned'), legs), 'parked',
        arrayExists(l -> l.4 = 'merged', legs), 'merged',
        arrayExists(l -> l.4 = 'queued', legs), 'notified',
        notEmpty(legs), (legs[1]).4,
        last_fate != '', 'parked',
        own.event IN
        (
            SELECT event
            FROM lifecycle_counted
            WHERE unit = 'event' AND stage = 'critical' AND notification != toFixedString('', 16)
                AND notification IN (SELECT notification FROM leg_fates WHERE is_created)
        ), 'deduplicated',
        'unaccounted') AS fate
FROM own
LEFT JOIN legs ON own.event = legs.event;

CREATE VIEW IF NOT EXISTS sum_events AS
SELECT
    countIf(is_created) AS created,
    countIf(is_created AND fate = 'rejected') AS rejected,
    countIf(is_created AND fate = 'deduplicated') AS deduplicated,
    countIf(is_created AND fate = 'retracted') AS retracted,
    countIf(is_created AND fate = 'cancelled') AS cancelled,
    countIf(is_created AND fate = 'expired') AS expired,
    countIf(is_created AND fate = 'suppressed') AS suppressed,
    countIf(is_created AND fate = 'merged') AS merged,
    countIf(is_created AND fate = 'parked') AS parked,
    countIf(is_created AND fate = 'notified') AS notified,
    countIf(is_created AND fate = 'lost') AS lost,
    countIf(is_created AND fate = 'unaccounted') AS unaccounted,
    countIf(NOT is_created) AS orphans,
    created = rejected + deduplicated + retracted + cancelled + expired + suppressed + merged + parked + notified + lost
        AND orphans = 0 AS adds_up
FROM event_fates;

-- A leg that only deliver has spoken of yet waits for its epoch to close and is no orphan.
CREATE VIEW IF NOT EXISTS sum_legs AS
SELECT
    countIf(is_created) AS created,
    countIf(is_created AND fate = 'queued') AS queued,
    countIf(is_created AND fate = 'merged') AS merged,
    countIf(is_created AND fate = 'suppressed') AS suppressed,
    countIf(is_created AND fate = 'expired') AS expired,
    countIf(is_created AND fate = 'cancelled') AS cancelled,
    countIf(is_created AND fate = 'retracted') AS retracted,
    countIf(is_created AND fate = 'parked') AS parked,
    countIf(is_created AND fate = 'returned') AS returned,
    countIf(is_created AND fate = 'unaccounted') AS unaccounted,
    countIf(NOT is_created AND by_decider) AS orphans,
    created = queued + merged + suppressed + expired + cancelled + retracted + parked + returned
        AND orphans = 0 AS adds_up
FROM leg_fates;

CREATE VIEW IF NOT EXISTS sum_deliveries AS
SELECT
    countIf(is_created) AS created,
    countIf(is_created AND fate = 'delivered') AS delivered,
    countIf(is_created AND fate = 'failed') AS failed,
    countIf(is_created AND fate = 'suppressed') AS suppressed,
    countIf(is_created AND fate = 'expired') AS expired,
    countIf(is_created AND fate = 'dead_lettered') AS dead_lettered,
    countIf(is_created AND fate = 'unknown') AS unknown,
    countIf(is_created AND fate = 'in_flight') AS in_flight,
    countIf(NOT is_created) AS orphans,
    created = delivered + failed + suppressed + expired + dead_lettered + unknown + in_flight
        AND orphans = 0 AS adds_up
FROM delivery_fates;

-- The fates add up, by one query.
CREATE VIEW IF NOT EXISTS fates AS
SELECT unit, line.1 AS fate, line.2 AS units, created, adds_up
FROM
(
    SELECT 'event' AS unit, created, adds_up, arrayJoin([('rejected', rejected), ('deduplicated', deduplicated),
        ('retracted', retracted), ('cancelled', cancelled), ('expired', expired), ('suppressed', suppressed),
        ('merged', merged), ('parked', parked), ('notified', notified), ('lost', lost),
        ('unaccounted', unaccounted), ('orphans', orphans)]) AS line
    FROM sum_events
    UNION ALL
    SELECT 'leg' AS unit, created, adds_up, arrayJoin([('queued', queued), ('merged', merged),
        ('suppressed', suppressed), ('expired', expired), ('cancelled', cancelled), ('retracted', retracted),
        ('parked', parked), ('returned', returned), ('unaccounted', unaccounted), ('orphans', orphans)]) AS line
    FROM sum_legs
    UNION ALL
    SELECT 'delivery' AS unit, created, adds_up, arrayJoin([('delivered', delivered), ('failed', failed),
        ('suppressed', suppressed), ('expired', expired), ('dead_lettered', dead_lettered), ('unknown', unknown),
        ('in_flight', in_flight), ('orphans', orphans)]) AS line
    FROM sum_deliveries
);
