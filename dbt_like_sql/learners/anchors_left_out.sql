-- Anchors of one goal some of whose labels became known in hours left out because of their labels.
-- grain: anchor, slice
-- key: impression_id, slice_of, part
-- clock: none
-- Not stored: the batch learner leaves the matured rows of these anchors out, those of a slice if they
-- belong to the part; '' is the whole hour. Whoever accepted an hour accepted its parts.
WITH left_out AS (
    SELECT
        hour_us,
        '' AS slice_of,
        '' AS part
    FROM learners.quarantined_hours
    WHERE goal = $goal
        AND state = 'left_out'
        AND cause = $cause
    UNION ALL
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
        AND decided.hour_us IS NULL
)

SELECT DISTINCT
    states.impression_id,
    left_out.slice_of,
    left_out.part
FROM left_out
INNER JOIN examples.label_states AS states
    ON states.state_us >= left_out.hour_us
    AND states.state_us < left_out.hour_us + 3600000000
WHERE states.goal = $goal
    AND states.state IN ('provisional_negative', 'immediate_positive', 'delayed_positive')
ORDER BY states.impression_id, left_out.slice_of, left_out.part
