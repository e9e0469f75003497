-- How many impressions that matured before the last sealed hour do not have exactly one label.
-- grain: one row
-- key: none
-- clock: none
-- For a goal anchored on impressions; an anchor matures $horizon_us after it, or when it was received.
WITH sealed AS (
    SELECT max(hour_us) + 3600000000 AS end_us
    FROM events.accounting
),

due AS (
    SELECT impressions.impression_id
    FROM events.impressions AS impressions
    CROSS JOIN sealed
    WHERE impressions.occurred_us + $horizon_us < sealed.end_us
),

labelled AS (
    SELECT
        impression_id,
        count(*) AS labels
    FROM examples.labelled_impressions
    WHERE goal = $goal
    GROUP BY impression_id
)

SELECT count(*) AS wrong
FROM due
FULL OUTER JOIN labelled
    ON labelled.impression_id = due.impression_id
WHERE due.impression_id IS NULL
    OR labelled.impression_id IS NULL
    OR labelled.labels <> 1
