-- What served decisions got wrong, with its cause, by hour.
--
-- grain: hour, bundle, feature, goal or measure
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    CASE severity WHEN 'severe' THEN 'page' ELSE 'warn' END AS severity,
    comparison || ' of ' || name || ', '
    || strftime(make_timestamp(hour_us), '%Y-%m-%d-%H:00')
    || ', bundle ' || left(bundle_hash, 12) AS subject,
    cause || printf(': %d of %d decisions (', offending, rows) || evidence || ')' AS found,
    hour_us AS since_us,
    act
FROM monitoring.parity_findings
WHERE hour_us >= $from_us
ORDER BY hour_us, bundle_hash, comparison, name
