-- Hours of a log table in which too many rows broke the contract.
--
-- grain: log table, hour
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    'warn' AS severity,
    table_name || ', ' || strftime(make_timestamp(hour_us), '%Y-%m-%d-%H:00') AS subject,
    printf(
        '%d of %d rows are quarantined',
        CAST(quarantined AS BIGINT),
        CAST(kept + quarantined AS BIGINT)
    ) AS found,
    hour_us AS since_us,
    'look at the reasons in events.quarantine, and mend the writer of the log' AS act
FROM events.accounting
WHERE hour_us >= $from_us
    AND kept + quarantined >= $least_rows
    AND quarantined > $quarantined_share * (kept + quarantined)
ORDER BY hour_us, table_name
