-- What became of each engagement that was read in these hours or still held before them. No table:
-- events.engagements, held_engagements, quarantine and accounting are read from it.
--
-- grain: one row per engagement that keeps the contract and is no duplicate
-- key:   event_id, read_us
-- clock: read_us when it was read, resolved_us when it was settled (null: not before the range ends)
--
-- An engagement waits for its impression until due_us, a horizon after it happened: an impression
-- that arrives later than that happened later or is itself too late. Everything here follows from
-- the row and from when the first impression of that id was received, so neither the split of the
-- hours nor the order of reading can change it.
WITH waiting AS (
    SELECT
        landed.event_id,
        landed.impression_id,
        landed.goal,
        landed.value,
        landed.occurred_us,
        landed.received_us AS read_us,
        landed.logged_us,
        landed.occurred_us + $horizon_us AS due_us,
        landed.landed_file AS file,
        FALSE AS was_held
    FROM landed_engagements AS landed
    WHERE landed.landed_reason IS NULL
        AND NOT EXISTS (
            SELECT 1
            FROM repeated
            WHERE repeated.table_name = 'engagements'
                AND repeated.landed_id = landed.landed_id
        )
    UNION ALL
    SELECT
        event_id,
        impression_id,
        goal,
        value,
        occurred_us,
        received_us AS read_us,
        logged_us,
        due_us,
        file,
        TRUE AS was_held
    FROM events.held_engagements
    WHERE received_us >= $start_us - $horizon_us
        AND received_us < $start_us
        AND due_us >= $start_us
),

known_impressions AS (
    SELECT
        impression_id,
        occurred_us,
        received_us
    FROM events.impressions
    WHERE received_us < $start_us
        AND impression_id IN (SELECT impression_id FROM waiting)
    UNION ALL
    SELECT
        impression_id,
        occurred_us,
        received_us
    FROM kept_impressions
    WHERE impression_id IN (SELECT impression_id FROM waiting)
),

first_impressions AS (
    SELECT
        impression_id,
        occurred_us,
        received_us
    FROM (
        SELECT
            *,
            row_number() OVER (
                PARTITION BY impression_id ORDER BY received_us, occurred_us
            ) AS place
        FROM known_impressions
    ) AS in_order
    WHERE place = 1
),

settled AS (
    SELECT
        waiting.*,
        first_impressions.occurred_us AS impression_occurred_us,
        CASE
            WHEN first_impressions.received_us <= waiting.due_us
                THEN greatest(waiting.read_us, first_impressions.received_us)
            WHEN waiting.due_us < $end_us
                THEN waiting.due_us
        END AS resolved_us,
        CASE
            WHEN first_impressions.received_us <= waiting.due_us
                AND waiting.occurred_us < first_impressions.occurred_us
                THEN 'before its impression'
            WHEN first_impressions.received_us <= waiting.due_us
                THEN 'kept'
            WHEN waiting.due_us < $end_us
                THEN 'orphan'
            ELSE 'held'
        END AS outcome
    FROM waiting
    LEFT JOIN first_impressions
        ON first_impressions.impression_id = waiting.impression_id
)

SELECT
    settled.event_id,
    settled.impression_id,
    settled.goal,
    settled.value,
    settled.occurred_us,
    settled.read_us,
    settled.logged_us,
    settled.due_us,
    settled.file,
    settled.was_held,
    settled.outcome,
    settled.resolved_us,
    settled.resolved_us IS NULL
    OR settled.resolved_us >= settled.read_us - settled.read_us % 3600000000 + 3600000000
    AS left_its_hour,
    settled.outcome = 'kept'
    AND settled.occurred_us - settled.impression_occurred_us > goals.chain_window_us
    AS outside_window
FROM settled
INNER JOIN goals
    ON goals.goal = settled.goal
WHERE settled.resolved_us IS NULL
    OR settled.resolved_us >= $start_us
