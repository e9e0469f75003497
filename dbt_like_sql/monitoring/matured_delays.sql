-- How long the labels of one goal took, of positives that matured in some hours.
-- grain: impression (of one goal)
-- key: none
-- clock: matured_us
-- Not stored: label delays of the last hours are compared with those before. One row in $one_in.
SELECT matured_us, delay_us
FROM examples.labelled_impressions
WHERE goal = $goal
    AND label = 1
    AND matured_us >= $start_us
    AND matured_us < $end_us
    AND md5_number_lower(impression_id) % $one_in = 0
ORDER BY matured_us, impression_id
