-- What of one goal's and expert's calibration had drifted by the newest verdicts before an hour.
-- grain: kind of drift, subject
-- key: kind, subject
-- clock: hour_us
-- Not stored: estimates of performance are withdrawn while it lasts. Verdicts older than $since_us are
-- no longer news.
SELECT
    kind,
    subject,
    cause
FROM monitoring.drift_verdicts
WHERE drifted
    AND kind IN ('calibration', 'concept', 'label_delay')
    AND subject IN ($goal, $goal || ', ' || $expert)
    AND hour_us = (
        SELECT max(hour_us)
        FROM monitoring.drift_verdicts
        WHERE hour_us >= $since_us AND hour_us < $hour_us
    )
ORDER BY kind, subject
