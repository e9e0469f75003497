-- Hours whose examples the online model does not know, as somebody decided.
--
-- grain: goal, hour
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    'info' AS severity,
    goal || ', ' || strftime(make_timestamp(hour_us), '%Y-%m-%d-%H:00') AS subject,
    'left out, decided by ' || cause || ': ' || evidence AS found,
    hour_us AS since_us,
    'if its labels are sound: ad_pipeline recover --accept --goal ' || goal || ' --hour '
    || strftime(make_timestamp(hour_us), '%Y-%m-%d-%H:00') AS act
FROM learners.quarantined_hours
WHERE state = 'left_out'
    AND hour_us >= $from_us
ORDER BY hour_us, goal
