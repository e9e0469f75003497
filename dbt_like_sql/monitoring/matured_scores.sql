-- What one expert said of impressions of a goal when they were served, beside their final labels.
-- grain: impression (of one goal and expert)
-- key: impression_id
-- clock: matured_us
-- Not stored: the detectors of drift replay the hours in Python, because sums of floats in SQL differ
-- between runs at two threads. One row in $one_in, chosen by a hash that no version changes.
SELECT
    labelled.matured_us,
    labelled.serving_us,
    labelled.label,
    predictions.logit
FROM examples.labelled_impressions AS labelled
INNER JOIN learners.predictions AS predictions
    ON predictions.impression_id = labelled.impression_id
    AND predictions.goal = labelled.goal
WHERE labelled.goal = $goal
    AND predictions.expert = $expert
    AND labelled.matured_us >= $start_us
    AND labelled.matured_us < $end_us
    AND predictions.serving_us >= $start_us - $horizon_us
    AND predictions.serving_us < $end_us
    AND predictions.logit IS NOT NULL
    AND md5_number_lower(labelled.impression_id) % $one_in = 0
ORDER BY labelled.matured_us, labelled.impression_id
