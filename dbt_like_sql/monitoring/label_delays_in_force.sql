-- The distributions of delays of one goal that were in force at some moment.
-- grain: group of delays and place in its distribution
-- key: delay_group, place
-- clock: fitted_us
-- Not stored: labels that matured later are held against them.
SELECT
    delay_group,
    delay_us,
    positives
FROM examples.label_delays
WHERE goal = $goal
    AND fitted_us = (
        SELECT max(fitted_us)
        FROM examples.label_delays
        WHERE goal = $goal AND fitted_us <= $at_us
    )
ORDER BY delay_group, delay_us
