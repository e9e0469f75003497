-- How many anchors of one goal matured in some hours.
-- grain: one row
-- key: none
-- clock: none
SELECT count(*) AS matured
FROM examples.labelled_impressions
WHERE goal = $goal AND matured_us >= $start_us AND matured_us < $end_us
