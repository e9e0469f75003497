-- Hours of a log table in which too many rows came after their own hour was sealed.
--
-- grain: log table, hour
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    'warn' AS severity,
    table_name || ', ' || strftime(make_timestamp(hour_us), '%Y-%m-%d-%H:00') AS subject,
    printf('%d of %d rows are late', CAST(late AS BIGINT), CAST(rows_in AS BIGINT)) AS found,
    hour_us AS since_us,
    'hand log files over sooner, or all of an hour together (whole_hours: true)' AS act
FROM events.accounting
WHERE hour_us >= $from_us
    AND rows_in >= $least_rows
    AND late > $late_share * rows_in
ORDER BY hour_us, table_name
