-- Every matured impression and goal of some hours beside the score each expert gave when it was served.
-- grain: goal, impression
-- key: goal, impression_id
-- clock: matured_us
-- Not stored: evaluation groups the rows in Python, because a mean of floats in SQL differs between
-- runs at two threads. The order makes the sums there the same on every run.
-- A null logit means that the expert did not score that impression; it is counted, never dropped.
-- The horizon parameter bounds the scan of the predictions and must reach from maturity back to
-- serving: for a goal anchored on another goal, all windows along the chain plus its lateness.
SELECT
    labelled.goal,
    labelled.impression_id,
    labelled.serving_us,
    labelled.matured_us,
    labelled.label,
    online.logit AS online_logit,
    batch.logit AS batch_logit,
    deep.logit AS deep_logit
FROM examples.labelled_impressions AS labelled
LEFT JOIN (
    SELECT goal, impression_id, logit
    FROM learners.online_predictions
    WHERE serving_us >= $start_us - $horizon_us AND serving_us < $end_us
        AND list_contains($goals, goal)
) AS online
    ON online.impression_id = labelled.impression_id AND online.goal = labelled.goal
LEFT JOIN (
    SELECT goal, impression_id, logit
    FROM learners.batch_predictions
    WHERE serving_us >= $start_us - $horizon_us AND serving_us < $end_us
        AND list_contains($goals, goal)
) AS batch
    ON batch.impression_id = labelled.impression_id AND batch.goal = labelled.goal
LEFT JOIN (
    SELECT goal, impression_id, logit
    FROM learners.deep_predictions
    WHERE serving_us >= $start_us - $horizon_us AND serving_us < $end_us
        AND list_contains($goals, goal)
) AS deep
    ON deep.impression_id = labelled.impression_id AND deep.goal = labelled.goal
WHERE labelled.matured_us >= $start_us AND labelled.matured_us < $end_us
    AND list_contains($goals, labelled.goal)
ORDER BY labelled.matured_us, labelled.goal, labelled.impression_id
