-- The final labels of one goal whose anchors occurred in some time.
-- grain: impression_id (of one goal)
-- key: impression_id
-- clock: none
-- Not stored: the stress of serving judges its scores by them.
SELECT
    impression_id,
    label
FROM examples.labelled_impressions
WHERE goal = $goal
    AND anchor_us >= $start_us
    AND anchor_us < $end_us
