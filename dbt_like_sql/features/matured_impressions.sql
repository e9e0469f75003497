-- The final labels of one goal that matured in some hours, for fitting what stands in for a score.
-- grain: impression_id (of one goal)
-- key: impression_id
-- clock: matured_us
-- Not stored: the defaults fitted on them are written into the bundle.
SELECT
    impression_id,
    serving_us,
    label
FROM examples.labelled_impressions
WHERE goal = $goal
    AND matured_us >= $start_us
    AND matured_us < $end_us
ORDER BY matured_us, impression_id
