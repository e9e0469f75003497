-- How many of the newest hours with decisions failed score parity, and the last that did.
-- grain: one row
-- key: none
-- clock: none
-- Not stored: promotion asks for it.
WITH newest AS (
    SELECT
        hour_us,
        bool_or(state = 'failed') AS failed
    FROM monitoring.parity
    WHERE bundle_hash <> '' AND comparison = 'scores'
    GROUP BY hour_us
    ORDER BY hour_us DESC
    LIMIT $hours
)

SELECT
    count(*) FILTER (WHERE failed) AS failed_hours,
    max(hour_us) FILTER (WHERE failed) AS last_hour_us
FROM newest
