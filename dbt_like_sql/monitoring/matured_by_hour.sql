-- How many anchors of one goal matured in each of some hours.
-- grain: log hour with any
-- key: hour_us
-- clock: hour_us
SELECT
    matured_us - matured_us % $hour_length_us AS hour_us,
    count(*) AS matured
FROM examples.labelled_impressions
WHERE goal = $goal AND matured_us >= $start_us AND matured_us < $end_us
GROUP BY matured_us - matured_us % $hour_length_us
ORDER BY hour_us
