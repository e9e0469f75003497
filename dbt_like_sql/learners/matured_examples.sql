-- The matured rows of one goal beside the features of their impression and the online logit it got.
-- grain: impression (of one goal)
-- key: impression_id
-- clock: matured_us
-- Not stored: the batch learner reads it at a retrain. The online logit is the one given at serving
-- time, so that a row's own label cannot have shaped its feature.
SELECT
    impressions.*,
    labelled.label,
    labelled.matured_us,
    online.logit AS online_logit
FROM examples.labelled_impressions AS labelled
INNER JOIN events.impressions AS impressions
    ON impressions.impression_id = labelled.impression_id
    AND impressions.received_us = labelled.serving_us
INNER JOIN learners.online_predictions AS online
    ON online.impression_id = labelled.impression_id
    AND online.goal = labelled.goal
    AND online.serving_us = labelled.serving_us
WHERE labelled.goal = $goal
    AND labelled.matured_us >= $start_us AND labelled.matured_us < $end_us
ORDER BY labelled.matured_us, labelled.impression_id
