-- What analysts ask. Every view is exact under repeats: it reads with FINAL, or counts distinct ids.

-- One line per delivery.
CREATE VIEW IF NOT EXISTS deliveries AS
SELECT
    concat('d_', lower(hex(delivery))) AS delivery_id,
    concat('n_', lower(hex(of_notification))) AS notification_id,
    of_user AS user_id,
    of_tenant AS tenant,
    of_type AS notification_type,
    of_category AS category,
    of_priority AS priority,
    of_channel AS channel,
    last_provider AS provider,
    last_code AS code,
    last_message_id AS message_id,
    first_created_at AS created_at,
    last_ready_at AS ready_at,
    sent_at,
    delivered_at,
    failed_at,
    opened_at,
    clicked_at,
    attempts,
    cost AS cost_microdollars
FROM
(
    SELECT
        delivery,
        any(notification) AS of_notification,
        any(user) AS of_user,
        any(tenant) AS of_tenant,
        any(type) AS of_type,
        any(category) AS of_category,
        any(priority) AS of_priority,
        any(channel) AS of_channel,
        argMaxIf(provider, at, provider != '') AS last_provider,
        argMaxIf(code, at, code != '') AS last_code,
        argMaxIf(message_id, at, message_id != '') AS last_message_id,
        min(lifecycle.created_at) AS first_created_at,
        max(lifecycle.ready_at) AS last_ready_at,
        minOrNullIf(at, has(states, 'sent')) AS sent_at,
        minOrNullIf(at, has(states, 'delivered')) AS delivered_at,
        minOrNullIf(at, has(states, 'failed')) AS failed_at,
        minOrNullIf(at, has(states, 'opened')) AS opened_at,
        minOrNullIf(at, has(states, 'clicked')) AS clicked_at,
        max(attempt) AS attempts,
        sum(lifecycle.cost_microdollars) AS cost
    FROM lifecycle FINAL
    WHERE unit = 'delivery'
    GROUP BY delivery
);

-- One line per delivery, in the words of the second seed; `delivered_at` is NULL until it is delivered.
CREATE VIEW IF NOT EXISTS notification_deliveries AS
SELECT notification_id, delivery_id, channel, priority, notification_type, created_at, ready_at, delivered_at
FROM deliveries;

-- One line per event of a channel, in the words of the second seed: states upper-case and unfolded,
-- `created_at` is the time of the event. What can be true of a delivery only once is there once
-- (one OPENED however often the mail was opened); RETRY and the like are there each time. A leg's
-- CREATED stands for its deliveries'. `day`, the day of the unit's creation, is for narrowing a query
-- to its partitions.
CREATE VIEW IF NOT EXISTS notification_events AS
SELECT day, upper(state) AS event, channel, type AS notification_type, priority, first_at AS created_at,
    concat('n_', lower(hex(notification))) AS notification_id,
    if(unit = 'leg', '', concat('d_', lower(hex(unit_id)))) AS delivery_id,
    first_user AS user_id, first_tenant AS tenant, first_category AS category, first_provider AS provider,
    first_code AS code, first_reason AS reason, first_attempt AS attempt
FROM
(
    SELECT day, state, unit, unit_id, notification, channel, type, priority,
        -- What can happen once is one group; what can happen again is a group for each row.
        if(state IN ('created', 'rendered', 'sent', 'delivered', 'failed', 'expired', 'suppressed', 'bounced',
            'complained', 'opened', 'clicked', 'dismissed', 'unsubscribed'), toFixedString('', 16), row_id) AS occasion,
        min(at) AS first_at,
        argMin(user, at) AS first_user,
        argMin(tenant, at) AS first_tenant,
        argMin(category, at) AS first_category,
        argMin(provider, at) AS first_provider,
        argMin(code, at) AS first_code,
        argMin(reason, at) AS first_reason,
        argMin(attempt, at) AS first_attempt
    FROM
    (
        SELECT day, arrayJoin(states) AS state, unit, if(unit = 'leg', leg, delivery) AS unit_id, row_id, notification, channel,
            type, priority, at, user, tenant, category, provider, code, reason, attempt
        FROM lifecycle FINAL
        WHERE unit != 'event' AND channel != ''
    )
    WHERE NOT (unit = 'delivery' AND state = 'created')
    GROUP BY day, state, unit, unit_id, notification, channel, type, priority, occasion
);

-- Deliveries by the hour of their creation, kept up to date by each insert. A materialized view does
-- not see that a row is a repeat, so the states hold delivery ids, not counts: a repeat adds nothing.
CREATE TABLE IF NOT EXISTS delivery_hours
(
    `hour` DateTime('UTC') COMMENT 'hour of created_at: the same for all rows of a delivery',
    `tenant` LowCardinality(String),
    `channel` LowCardinality(String),
    `type` LowCardinality(String),
    `category` LowCardinality(String),
    `priority` LowCardinality(String),
    `provider` LowCardinality(String),
    `sent_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `delivered_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `failed_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `ended_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `opened_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `clicked_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `dismissed_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `unsubscribed_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `bounced_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `hard_bounced_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `complained_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8),
    `dlq_ids` AggregateFunction(uniqExactIf, FixedString(16), UInt8)
)
ENGINE = AggregatingMergeTree
PARTITION BY toDate(hour)
ORDER BY (hour, tenant, channel, type, category, priority, provider)
TTL toDate(hour) + INTERVAL 30 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
    non_replicated_deduplication_window = 10000
COMMENT 'distinct deliveries per hour and what became of them';

CREATE MATERIALIZED VIEW IF NOT EXISTS delivery_hours_filled TO delivery_hours AS
SELECT
    toStartOfHour(toDateTime(created_at, 'UTC')) AS hour,
    tenant, channel, type, category, priority, provider,
    uniqExactIfState(delivery, has(states, 'sent')) AS sent_ids,
    uniqExactIfState(delivery, has(states, 'delivered')) AS delivered_ids,
    uniqExactIfState(delivery, has(states, 'failed')) AS failed_ids,
    uniqExactIfState(delivery, has(states, 'delivered') OR has(states, 'failed')) AS ended_ids,
    uniqExactIfState(delivery, has(states, 'opened')) AS opened_ids,
    uniqExactIfState(delivery, has(states, 'clicked')) AS clicked_ids,
    uniqExactIfState(delivery, has(states, 'dismissed')) AS dismissed_ids,
    uniqExactIfState(delivery, has(states, 'unsubscribed')) AS unsubscribed_ids,
    uniqExactIfState(delivery, has(states, 'bounced')) AS bounced_ids,
    uniqExactIfState(delivery, has(states, 'bounced') AND reason = 'invalid_address') AS hard_bounced_ids,
    uniqExactIfState(delivery, has(states, 'complained')) AS complained_ids,
    uniqExactIfState(delivery, has(states, 'dlq')) AS dlq_ids
FROM lifecycle
WHERE unit = 'delivery'
GROUP BY hour, tenant, channel, type, category, priority, provider;

-- sent = delivered + failed + open, by day of creation.
CREATE VIEW IF NOT EXISTS delivery_rate AS
SELECT
    toDate(hour) AS day,
    channel,
    priority,
    uniqExactIfMerge(sent_ids) AS sent,
    uniqExactIfMerge(delivered_ids) AS delivered,
    uniqExactIfMerge(failed_ids) AS failed,
    sent - uniqExactIfMerge(ended_ids) AS open,
    if(sent = 0, NULL, round(delivered / sent * 100, 2)) AS delivery_rate_pct
FROM delivery_hours
GROUP BY day, channel, priority;

CREATE VIEW IF NOT EXISTS engagement AS
SELECT
    toDate(hour) AS day,
    channel,
    type AS notification_type,
    uniqExactIfMerge(delivered_ids) AS delivered,
    uniqExactIfMerge(opened_ids) AS opened,
    uniqExactIfMerge(clicked_ids) AS clicked,
    uniqExactIfMerge(dismissed_ids) AS dismissed,
    uniqExactIfMerge(unsubscribed_ids) AS unsubscribed,
    if(delivered = 0, NULL, round(opened / delivered * 100, 2)) AS open_rate_pct,
    if(opened = 0, NULL, round(clicked / opened * 100, 2)) AS click_rate_pct
FROM delivery_hours
GROUP BY day, channel, notification_type;

-- The first seed's seven metrics, by hour, type, priority and channel: send rate (legs handed to a
-- lane, by the hour they were), then of the deliveries created in that hour the rates of delivery,
-- opening, clicking through, unsubscribing, bouncing (hard: the address is dead) and giving up.
CREATE VIEW IF NOT EXISTS key_metrics AS
SELECT hour, channel, notification_type, priority,
    sum(queued_) AS queued,
    round(queued / 3600, 3) AS queued_per_second,
    sum(sent_) AS sent,
    sum(delivered_) AS delivered,
    if(sent = 0, NULL, round(delivered / sent * 100, 2)) AS delivery_rate_pct,
    if(delivered = 0, NULL, round(sum(opened_) / delivered * 100, 2)) AS open_rate_pct,
    if(sum(opened_) = 0, NULL, round(sum(clicked_) / sum(opened_) * 100, 2)) AS click_through_pct,
    if(delivered = 0, NULL, round(sum(unsubscribed_) / delivered * 100, 2)) AS unsubscribe_rate_pct,
    sum(hard_bounced_) AS hard_bounced,
    sum(bounced_) - hard_bounced AS soft_bounced,
    if(sent = 0, NULL, round(sum(bounced_) / sent * 100, 2)) AS bounce_rate_pct,
    if(sent = 0, NULL, round(sum(dlq_) / sent * 100, 2)) AS dlq_pct
FROM
(
    SELECT toStartOfHour(toDateTime(at, 'UTC')) AS hour, channel, type AS notification_type, priority,
        uniqExact(leg) AS queued_, 0 AS sent_, 0 AS delivered_, 0 AS opened_, 0 AS clicked_, 0 AS unsubscribed_,
        0 AS bounced_, 0 AS hard_bounced_, 0 AS dlq_
    FROM lifecycle
    WHERE unit = 'leg' AND has(states, 'queued')
    GROUP BY hour, channel, notification_type, priority
    UNION ALL
    SELECT hour, channel, type AS notification_type, priority, 0, uniqExactIfMerge(sent_ids),
        uniqExactIfMerge(delivered_ids), uniqExactIfMerge(opened_ids), uniqExactIfMerge(clicked_ids),
        uniqExactIfMerge(unsubscribed_ids), uniqExactIfMerge(bounced_ids), uniqExactIfMerge(hard_bounced_ids),
        uniqExactIfMerge(dlq_ids)
    FROM delivery_hours
    GROUP BY hour, channel, notification_type, priority
)
GROUP BY hour, channel, notification_type, priority;

-- A sender's standing with its providers. Bounces: 5 % is a warning, 10 % is critical. Complaints:
-- 0.1 % a warning, 0.3 % critical, from 0.5 % providers stop the sender.
CREATE VIEW IF NOT EXISTS reputation AS
SELECT
    toDate(hour) AS day,
    tenant,
    channel,
    provider,
    uniqExactIfMerge(sent_ids) AS sent,
    uniqExactIfMerge(bounced_ids) AS bounced,
    uniqExactIfMerge(complained_ids) AS complained,
    if(sent = 0, NULL, round(bounced / sent * 100, 3)) AS bounce_pct,
    if(sent = 0, NULL, round(complained / sent * 100, 3)) AS complaint_pct,
    multiIf(complaint_pct >= 0.5, 'stop', bounce_pct >= 10 OR complaint_pct >= 0.3, 'critical',
        bounce_pct >= 5 OR complaint_pct >= 0.1, 'warning', 'good') AS standing
FROM delivery_hours
WHERE provider != ''
GROUP BY day, tenant, channel, provider;

-- Latency from creation includes quiet hours and windows; from `ready_at`, the last release, it is
-- what the system itself took. By day of delivery.
CREATE VIEW IF NOT EXISTS latency_quantiles AS
SELECT
    toDate(delivered_at) AS day,
    channel,
    priority,
    count() AS delivered,
    quantileExact(0.50)(since_created) AS created_p50_ms,
    quantileExact(0.95)(since_created) AS created_p95_ms,
    quantileExact(0.99)(since_created) AS created_p99_ms,
    quantileExact(0.50)(since_ready) AS ready_p50_ms,
    quantileExact(0.95)(since_ready) AS ready_p95_ms,
    quantileExact(0.99)(since_ready) AS ready_p99_ms
FROM
(
    SELECT channel, priority, assumeNotNull(deliveries.delivered_at) AS delivered_at,
        dateDiff('millisecond', created_at, assumeNotNull(deliveries.delivered_at)) AS since_created,
        dateDiff('millisecond', ifNull(ready_at, created_at), assumeNotNull(deliveries.delivered_at)) AS since_ready
    FROM deliveries
    WHERE deliveries.delivered_at IS NOT NULL
)
GROUP BY day, channel, priority;

-- Why things are not said: distinct units per reason, by day of creation.
CREATE VIEW IF NOT EXISTS suppression_reasons AS
SELECT day, unit, channel, category, operator, reason,
    uniqExact(multiIf(unit = 'event', event, unit = 'leg', leg, delivery)) AS units
FROM lifecycle
WHERE has(states, 'suppressed')
GROUP BY day, unit, channel, category, operator, reason;

-- Where it went and why: SELECT * FROM history(id = 'e_…') takes any id with its prefix and gives, in
-- order, its own rows and those of the legs and deliveries that came of it.
CREATE VIEW IF NOT EXISTS history AS
WITH
    toFixedString(unhex(substring({id:String}, 3)), 16) AS wanted,
    toFixedString('', 16) AS nothing,
    hits AS
    (
        SELECT DISTINCT notification, `group`
        FROM lifecycle
        WHERE event = wanted OR intent = wanted OR notification = wanted OR `group` = wanted OR leg = wanted
            OR delivery = wanted
    )
SELECT
    at,
    epoch,
    stage,
    unit,
    arrayStringConcat(states, ' ') AS happened,
    concat('e_', lower(hex(event))) AS event_id,
    if(intent = nothing, '', concat('i_', lower(hex(intent)))) AS intent_id,
    if(notification = nothing, '', concat('n_', lower(hex(notification)))) AS notification_id,
    if(`group` = nothing, '', concat('g_', lower(hex(`group`)))) AS group_id,
    if(leg = nothing, '', concat('l_', lower(hex(leg)))) AS leg_id,
    if(delivery = nothing, '', concat('d_', lower(hex(delivery)))) AS delivery_id,
    user AS user_id, tenant, type AS notification_type, category, priority, channel, provider, code, message_id,
    operator, reason, attempt, until, cost_microdollars, created_at, ready_at, caused_by
FROM lifecycle FINAL
WHERE event = wanted OR intent = wanted OR notification = wanted OR `group` = wanted OR leg = wanted
    OR delivery = wanted
    OR (unit != 'event' AND notification IN (SELECT notification FROM hits WHERE notification != nothing))
    OR (unit != 'event' AND `group` IN (SELECT `group` FROM hits WHERE `group` != nothing))
ORDER BY at, indexOf(['decide', 'critical', 'deliver'], stage), indexOf(['event', 'leg', 'delivery'], unit), attempt, row_id;
