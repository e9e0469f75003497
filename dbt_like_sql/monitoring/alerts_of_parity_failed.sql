-- Features and scores of logged decisions that could not be given again, by hour.
--
-- grain: hour, feature or goal
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    'page' AS severity,
    comparison || ' of ' || name || ', '
    || strftime(make_timestamp(hour_us), '%Y-%m-%d-%H:00') AS subject,
    printf(
        '%d of %d decisions differ, first %s',
        CAST(sum(rows - equal) AS BIGINT),
        CAST(sum(rows) AS BIGINT),
        min(first_offending)
    ) AS found,
    hour_us AS since_us,
    'look at monitoring/production_parity; if scores differ: ad_pipeline rollback' AS act
FROM monitoring.production_parity
WHERE hour_us >= $from_us
    AND rows > equal
GROUP BY hour_us, comparison, name
ORDER BY hour_us, comparison, name
