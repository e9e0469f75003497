-- Estimates of loss and calibration that were withdrawn in the newest hour.
--
-- grain: goal, expert
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    'warn' AS severity,
    goal || ', ' || expert AS subject,
    'its loss and calibration cannot be told before labels mature: ' || reason AS found,
    hour_us AS since_us,
    'look at monitoring/drift_verdicts; it comes back by itself once final labels are of the new kind'
        AS act
FROM monitoring.performance_estimate
WHERE state = 'withdrawn'
    AND hour_us = (SELECT max(hour_us) FROM monitoring.performance_estimate)
ORDER BY goal, expert
