-- Roll-backs of the online model whose replay did not end well.
--
-- grain: goal, hour
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    'page' AS severity,
    goal || ', ' || strftime(make_timestamp(hour_us), '%Y-%m-%d-%H:00') AS subject,
    outcome AS found,
    hour_us AS since_us,
    'ad_pipeline recover --goal ' || goal || ' --hour '
    || strftime(make_timestamp(hour_us), '%Y-%m-%d-%H:00') AS act
FROM learners.recoveries
WHERE NOT succeeded
ORDER BY hour_us, goal
