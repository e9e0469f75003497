-- The score of every impression by the configuration of the grid that served it.
-- grain: goal, impression
-- key: goal, impression_id
-- clock: serving_us; the configuration was chosen by the end of the hour before
SELECT
    scored.goal,
    scored.impression_id,
    'online' AS expert,
    list_extract(scored.logits, coalesce(chosen.configuration, 0) + 1) AS logit,
    scored.model_hash,
    scored.micro_batch,
    scored.serving_us
FROM learners.grid_predictions AS scored
LEFT JOIN learners.grid_selection AS chosen
    ON chosen.goal = scored.goal
    AND chosen.hour_us = scored.serving_us - scored.serving_us % $hour_us - $hour_us
    AND chosen.chosen
WHERE scored.serving_us >= $start_us AND scored.serving_us < $end_us
