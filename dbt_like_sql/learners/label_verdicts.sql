-- What was said of the labels of some hours, as far as anything follows from it.
-- grain: hour, goal, part
-- key: hour_us, goal, slice_of, part
-- clock: hour_us
-- Not stored: read before the hours are learnt.
SELECT
    hour_us,
    goal,
    slice_of,
    part,
    verdict,
    reason
FROM monitoring.label_quality
WHERE hour_us >= $start_us
    AND hour_us < $end_us
    AND (slice_of = 'all' OR verdict IN ('stalled', 'jumped', 'late'))
ORDER BY hour_us, goal, slice_of, part
