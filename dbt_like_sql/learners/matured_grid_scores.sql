-- The impressions of one goal that matured in some hours, beside what each configuration of the
-- online expert said of them when they were served.
-- grain: impression (of one goal)
-- key: impression_id
-- clock: matured_us
-- Not stored: the selection of the grid sums losses in Python, in this order. The horizon parameter
-- reaches from maturity back to serving.
SELECT
    labelled.impression_id,
    labelled.matured_us,
    labelled.label,
    scored.logits
FROM examples.labelled_impressions AS labelled
INNER JOIN learners.grid_predictions AS scored
    ON scored.impression_id = labelled.impression_id
    AND scored.goal = labelled.goal
WHERE labelled.goal = $goal
    AND labelled.matured_us >= $start_us AND labelled.matured_us < $end_us
    AND scored.serving_us >= $start_us - $horizon_us AND scored.serving_us < $end_us
ORDER BY labelled.matured_us, labelled.impression_id
