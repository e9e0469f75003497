-- Every expert's score of every impression at serving time, never a re-score by a newer model.
-- grain: goal, impression, expert
-- key: goal, impression_id, expert
-- clock: serving_us
SELECT goal, impression_id, expert, logit, model_hash, micro_batch, serving_us
FROM learners.online_predictions
UNION ALL
SELECT goal, impression_id, expert, logit, model_hash, micro_batch, serving_us
FROM learners.batch_predictions
UNION ALL
SELECT goal, impression_id, expert, logit, model_hash, micro_batch, serving_us
FROM learners.deep_predictions
