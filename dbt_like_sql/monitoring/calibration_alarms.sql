-- What of one goal's calibration had drifted by the newest verdicts before each of some hours.
-- grain: hour that is asked for, kind of drift, subject
-- key: asked_us, kind, subject
-- clock: hour_us of the verdicts
-- Not stored: estimates of performance are withdrawn while it lasts. Verdicts as old as $lasting_us are
-- no longer news.
WITH judged AS (
    SELECT DISTINCT hour_us
    FROM monitoring.drift_verdicts
),

newest AS (
    SELECT
        asked.hour_us AS asked_us,
        max(judged.hour_us) AS hour_us
    FROM (SELECT unnest($hours_us) AS hour_us) AS asked
    INNER JOIN judged
        ON judged.hour_us >= asked.hour_us - $lasting_us
        AND judged.hour_us < asked.hour_us
    GROUP BY asked.hour_us
)

SELECT
    newest.asked_us,
    verdicts.kind,
    verdicts.subject,
    verdicts.cause
FROM monitoring.drift_verdicts AS verdicts
INNER JOIN newest
    ON newest.hour_us = verdicts.hour_us
WHERE verdicts.drifted
    AND verdicts.kind IN ('calibration', 'concept', 'label_delay')
    AND (verdicts.subject = $goal OR starts_with(verdicts.subject, $goal || ', '))
ORDER BY newest.asked_us, verdicts.kind, verdicts.subject
