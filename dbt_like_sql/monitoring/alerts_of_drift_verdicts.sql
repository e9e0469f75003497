-- What changed beside the distribution of the inputs, by the newest verdicts.
--
-- grain: kind of drift, subject
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    'warn' AS severity,
    kind || CASE subject WHEN '' THEN '' ELSE ' of ' || subject END AS subject,
    cause || printf(': %.3f, from %.3f on it counts', value, threshold) AS found,
    hour_us AS since_us,
    CASE actions
        WHEN '' THEN 'look at monitoring/drift_verdicts; no action fits, it is only told'
        ELSE 'the sensor drift_actions starts ' || actions || '; monitoring/actions says what came of it'
    END AS act
FROM monitoring.drift_verdicts
WHERE drifted
    AND kind <> 'inputs'
    AND hour_us = (SELECT max(hour_us) FROM monitoring.drift_verdicts)
ORDER BY kind, subject
