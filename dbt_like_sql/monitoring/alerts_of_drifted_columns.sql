-- Columns that drifted, by the newest verdict.
--
-- grain: column
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    'warn' AS severity,
    column_name AS subject,
    printf('population stability index %.3f, alarm from %.3f', psi, threshold) AS found,
    current_start_us AS since_us,
    'reports/drift.html shows what moved; the sensor drift_actions starts the job retrain' AS act
FROM monitoring.drift
WHERE drifted
    AND current_end_us = (SELECT max(current_end_us) FROM monitoring.drift)
ORDER BY psi DESC, column_name
