-- The clicks of a log with their first conversion and when it was taken back, in order of serving.
-- grain: one row per click
-- key: impression_id
-- clock: received_us
-- Not stored: the published protocols read it from the rows of log files in memory, before any
-- ingest. The relations landed_<table> hold those rows, with the reason why one was refused. A share
-- of the clicks is kept, by the hash of their id.
WITH first_conversions AS (
    SELECT
        impression_id,
        min(received_us) AS arrived_us,
        arg_min(event_id, occurred_us) AS event_id
    FROM landed_engagements
    WHERE landed_reason IS NULL
        AND goal = $goal
    GROUP BY impression_id
),

first_retractions AS (
    SELECT
        engagement_event_id,
        min(received_us) AS retracted_us
    FROM landed_retractions
    WHERE landed_reason IS NULL
    GROUP BY engagement_event_id
)

SELECT
    clicks.*,
    first_conversions.arrived_us,
    first_retractions.retracted_us
FROM landed_impressions AS clicks
LEFT JOIN first_conversions
    ON first_conversions.impression_id = clicks.impression_id
LEFT JOIN first_retractions
    ON first_retractions.engagement_event_id = first_conversions.event_id
WHERE clicks.landed_reason IS NULL
    AND md5($draw || clicks.impression_id) < $kept_below
ORDER BY clicks.received_us, clicks.impression_id
