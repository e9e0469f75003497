-- The first of so many minutes in a row in which most impressions occurred.
-- grain: one row, none in an empty log
-- key: start_us
-- clock: none
-- Not stored: the stress of serving replays what occurred in them.
WITH minutes AS (
    SELECT
        occurred_us // 60000000 AS minute,
        count(*) AS requests
    FROM events.impressions
    GROUP BY occurred_us // 60000000
),

spans AS (
    SELECT
        first.minute,
        sum(others.requests) AS requests
    FROM minutes AS first
    INNER JOIN minutes AS others
        ON others.minute >= first.minute
        AND others.minute < first.minute + $minutes
    GROUP BY first.minute
)

SELECT minute * 60000000 AS start_us
FROM spans
ORDER BY requests DESC, minute
LIMIT 1
