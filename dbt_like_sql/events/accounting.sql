-- Where every row went, by hour: held before + rows_in = kept + duplicates + quarantined + held after.
--
-- grain: one row per log table and hour, also when nothing came
-- key:   table_name, hour_us
-- clock: hour_us, start of the log hour; a row here seals the hour
WITH counted AS (
    SELECT
        table_name,
        received_us AS at_us,
        1 AS rows_in,
        0 AS kept,
        0 AS duplicates,
        0 AS entered_hold,
        0 AS left_hold,
        0 AS released,
        0 AS quarantined,
        CASE WHEN logged_us < received_us THEN 1 ELSE 0 END AS late,
        0 AS outside_window
    FROM landed_rows
    UNION ALL
    SELECT table_name, received_us, 0, 1, 0, 0, 0, 0, 0, 0, 0 FROM kept_rows
    UNION ALL
    SELECT table_name, received_us, 0, 0, 1, 0, 0, 0, 0, 0, 0 FROM repeated
    UNION ALL
    SELECT table_name, received_us, 0, 0, 0, 0, 0, 0, 1, 0, 0 FROM refused_rows
    UNION ALL
    SELECT 'engagements', read_us, 0, 0, 0, 1, 0, 0, 0, 0, 0
    FROM engagement_outcomes
    WHERE left_its_hour
        AND NOT was_held
    UNION ALL
    SELECT
        'engagements', resolved_us, 0, 0, 0, 0, 1, CASE WHEN outcome = 'kept' THEN 1 ELSE 0 END, 0, 0, 0
    FROM engagement_outcomes
    WHERE left_its_hour
        AND resolved_us < $end_us
    UNION ALL
    SELECT 'engagements', resolved_us, 0, 0, 0, 0, 0, 0, 0, 0, 1
    FROM engagement_outcomes
    WHERE outside_window
),

hourly AS (
    SELECT
        hours.table_name,
        hours.hour_us,
        coalesce(sum(counted.rows_in), 0) AS rows_in,
        coalesce(sum(counted.kept), 0) AS kept,
        coalesce(sum(counted.duplicates), 0) AS duplicates,
        coalesce(sum(counted.entered_hold - counted.left_hold), 0) AS held_change,
        coalesce(sum(counted.released), 0) AS released,
        coalesce(sum(counted.quarantined), 0) AS quarantined,
        coalesce(sum(counted.late), 0) AS late,
        coalesce(sum(counted.outside_window), 0) AS outside_window
    FROM hours
    LEFT JOIN counted
        ON counted.table_name = hours.table_name
        AND counted.at_us - counted.at_us % 3600000000 = hours.hour_us
    GROUP BY hours.table_name, hours.hour_us
),

held_before AS (
    SELECT count(*) AS held
    FROM engagement_outcomes
    WHERE was_held
)

SELECT
    hourly.table_name,
    hourly.hour_us,
    hourly.rows_in,
    hourly.kept,
    hourly.duplicates,
    CASE WHEN hourly.table_name = 'engagements' THEN held_before.held ELSE 0 END
    + sum(hourly.held_change) OVER (
        PARTITION BY hourly.table_name
        ORDER BY hourly.hour_us
        ROWS UNBOUNDED PRECEDING
    ) AS held,
    hourly.released,
    hourly.quarantined,
    hourly.late,
    hourly.outside_window
FROM hourly
CROSS JOIN held_before
ORDER BY hourly.hour_us, hourly.table_name
