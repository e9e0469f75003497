-- Parts of some hours of one goal that no learner is shown.
-- grain: hour, part (of one goal)
-- key: hour_us, slice_of, part
-- clock: hour_us
-- Not stored: learners leave these rows out when they read their examples. Whoever accepted an hour
-- accepted its parts.
SELECT
    slices.hour_us,
    slices.slice_of,
    slices.part
FROM learners.quarantined_slices AS slices
LEFT JOIN learners.quarantined_hours AS decided
    ON decided.goal = slices.goal
    AND decided.hour_us = slices.hour_us
    AND decided.state = 'accepted'
WHERE slices.goal = $goal
    AND slices.hour_us >= $start_us
    AND slices.hour_us < $end_us
    AND decided.hour_us IS NULL
ORDER BY slices.hour_us, slices.slice_of, slices.part
