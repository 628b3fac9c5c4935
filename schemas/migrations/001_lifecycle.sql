-- The record: one row says what happened to one unit at one instant, and why.
--
-- Columns and their order are those of a lifecycle block (`tidings_schemas::block::COLUMNS`).
-- Words are LowCardinality(String), not Enum8: a word that a younger build adds must not stop the
-- record. Ids are their sixteen bytes; `history` and the other views show them as text.
--
-- Repeats. A row's id names what it says, and `day` is the day of its unit's `created_at`, so that a
-- repeat meets its twin in the same partition; the earlier telling stays (`earliness`). Until parts
-- are merged repeats are still there: read with FINAL, or count distinct ids.
--
-- Keeping. 30 days by `day`, whole parts at a time. A unit that lives longer (an event scheduled
-- further ahead) loses its first rows: raise the TTL beyond the longest schedule. With a storage
-- policy that has a volume `cold`, keep a year there instead of deleting:
--   ALTER TABLE lifecycle MODIFY SETTING storage_policy = 'hot_cold';
--   ALTER TABLE lifecycle MODIFY TTL day + INTERVAL 30 DAY TO VOLUME 'cold', day + INTERVAL 1 YEAR DELETE;
-- An insert is synced before it is answered, because the log's offset is committed after it: a server
-- that loses power would otherwise lose rows that nobody says again.
-- On a cluster, create the tables beforehand as ReplicatedReplacingMergeTree and
-- ReplicatedAggregatingMergeTree with the same columns: these statements then leave them as they are.
CREATE TABLE IF NOT EXISTS lifecycle
(
    `row_id` FixedString(16) COMMENT 'names what the row says: a repeat has the same',
    `day` Date COMMENT 'UTC day of created_at: all rows of a unit are in one partition',
    `at` DateTime64(3, 'UTC') COMMENT 'when it happened: stream time in decide, the wall clock elsewhere',
    `epoch` UInt64 COMMENT 'epoch of the dataflow; 0 outside decide',
    `stage` LowCardinality(String) COMMENT 'who wrote it: decide, critical, deliver',
    `states` Array(LowCardinality(String)) COMMENT 'what happened, in order',
    `unit` LowCardinality(String) COMMENT 'what it happened to: event, leg, delivery',
    `event` FixedString(16) COMMENT 'the event (e_); on other units'' rows the first member',
    `intent` FixedString(16) COMMENT 'the intent (i_) of an event: what producers and callers hold',
    `notification` FixedString(16) COMMENT 'the notification (n_); zero while there is none',
    `group` FixedString(16) COMMENT 'the group (g_) it was merged into or came from; zero if none',
    `leg` FixedString(16) COMMENT 'the leg (l_); zero while there is none',
    `silent` Bool COMMENT 'whether the leg is the silent in-app one',
    `delivery` FixedString(16) COMMENT 'the delivery (d_); zero while there is none',
    `user` String COMMENT 'who is to be told',
    `tenant` LowCardinality(String) COMMENT 'the tenant',
    `type` LowCardinality(String) COMMENT 'the event''s type',
    `category` LowCardinality(String) COMMENT 'security, transactional, social, marketing, …',
    `priority` LowCardinality(String) COMMENT 'critical, high, medium, low; empty while not known',
    `channel` LowCardinality(String) COMMENT 'push, email, sms, in_app, webhook; empty while not known',
    `provider` LowCardinality(String) COMMENT 'who carries it',
    `code` LowCardinality(String) COMMENT 'the provider''s own answer: status and reason',
    `message_id` String COMMENT 'the provider''s id of the message',
    `operator` LowCardinality(String) COMMENT 'id of the operator or sink in the topology',
    `reason` LowCardinality(String) COMMENT 'why',
    `attempt` UInt32 COMMENT 'which attempt, from 1; 0 where there is none',
    `until` Nullable(DateTime64(3, 'UTC')) COMMENT 'until when it is parked or put off',
    `cost_microdollars` UInt64 COMMENT 'what it cost, in millionths of a US dollar',
    `created_at` DateTime64(3, 'UTC') COMMENT 'when the unit''s oldest event was accepted',
    `ready_at` Nullable(DateTime64(3, 'UTC')) COMMENT 'when it was last released from being parked',
    `caused_by` String COMMENT 'what caused it, in words',
    `earliness` UInt64 MATERIALIZED toUInt64(9223372036854775807 - toUnixTimestamp64Milli(at))
        COMMENT 'of exact repeats the earliest stays',
    INDEX at_range at TYPE minmax GRANULARITY 1,
    INDEX epoch_range epoch TYPE minmax GRANULARITY 1,
    INDEX event_bloom event TYPE bloom_filter GRANULARITY 1,
    INDEX intent_bloom intent TYPE bloom_filter GRANULARITY 1,
    INDEX notification_bloom notification TYPE bloom_filter GRANULARITY 1,
    INDEX group_bloom `group` TYPE bloom_filter GRANULARITY 1,
    INDEX leg_bloom leg TYPE bloom_filter GRANULARITY 1,
    INDEX delivery_bloom delivery TYPE bloom_filter GRANULARITY 1
)
ENGINE = ReplacingMergeTree(earliness)
PARTITION BY day
ORDER BY (user, notification, row_id)
TTL day + INTERVAL 30 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
    non_replicated_deduplication_window = 10000
COMMENT 'every step of every event, leg and delivery';

-- One row per block of decide: enough to say which epochs the record has in full, without counting
-- their rows. Kept longer than the log keeps blocks (8 days): older epochs can no longer be missing.
CREATE TABLE IF NOT EXISTS lifecycle_blocks
(
    `epoch` UInt64 COMMENT 'the epoch',
    `closed` Bool COMMENT 'false: a block of rows; true: the word that the epoch is complete',
    `partition` UInt32 COMMENT 'the log''s partition',
    `checksum` UInt32 COMMENT 'the block''s own: a repeated block has the same',
    `rows` UInt64 COMMENT 'rows in the block; where closed, rows of the whole epoch',
    `written_at` DateTime('UTC') DEFAULT now() COMMENT 'when the record got it'
)
ENGINE = ReplacingMergeTree
ORDER BY (epoch, closed, partition, checksum)
TTL written_at + INTERVAL 12 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 10000
COMMENT 'which epochs are complete';

-- The newest epoch up to which nothing is missing; NULL while there is none. Epochs have no gaps, so
-- a missing number is a missing epoch.
CREATE VIEW IF NOT EXISTS closed_epoch AS
WITH epochs AS
(
    SELECT
        epoch,
        max(closed) AS is_closed,
        sumIf(rows, NOT closed) AS found,
        maxIf(rows, closed) AS expected,
        max(written_at) AS newest_at
    FROM lifecycle_blocks FINAL
    GROUP BY epoch
),
judged AS
(
    SELECT
        epoch,
        newest_at,
        is_closed AND found >= expected AS complete,
        lagInFrame(toInt64(epoch), 1, toInt64(epoch) - 1) OVER (ORDER BY epoch ASC ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS before
    FROM epochs
),
faults AS
(
    SELECT if(before + 1 != epoch, before, toInt64(epoch) - 1) AS sound
    FROM judged
    WHERE (NOT complete OR before + 1 != epoch)
        AND newest_at > (SELECT max(written_at) - INTERVAL 9 DAY FROM lifecycle_blocks)
)
SELECT maxOrNull(judged.epoch) AS epoch
FROM judged
WHERE judged.complete AND ((SELECT count() FROM faults) = 0 OR judged.epoch <= (SELECT min(sound) FROM faults));
