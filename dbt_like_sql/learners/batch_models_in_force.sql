-- Which batch model scored one goal's impressions in each hour of serving.
-- grain: hour of serving, model (of one goal)
-- key: hour_us, model_hash
-- clock: hour_us
-- Not stored: evaluation reads off it how old a model was when it scored. A model is in force for
-- whole hours, so there is one an hour.
SELECT
    serving_us - serving_us % 3600000000 AS hour_us,
    model_hash
FROM learners.batch_predictions
WHERE goal = $goal
    AND serving_us >= $start_us AND serving_us < $end_us
GROUP BY ALL
ORDER BY ALL
