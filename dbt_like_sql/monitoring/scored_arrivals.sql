-- What each expert said of the anchors of one goal, beside what was known of their labels at a moment.
-- grain: impression, expert (of one goal)
-- key: none
-- clock: none; every fact in a row was received before the moment now_us, which is log time
-- Not stored: performance is estimated from it. The relations it reads are the SELECTs
-- monitoring.label_arrivals and learners.predictions.
SELECT
    predictions.expert,
    predictions.logit,
    arrivals.anchor_us,
    arrivals.serving_us,
    arrivals.arrived_us,
    arrivals.matured,
    arrivals.delay_group
FROM arrivals
INNER JOIN predictions
    ON predictions.impression_id = arrivals.impression_id
WHERE predictions.goal = $goal
    AND predictions.serving_us >= $start_us
    AND predictions.serving_us < $now_us
    AND predictions.logit IS NOT NULL
ORDER BY arrivals.anchor_us, predictions.logit, arrivals.arrived_us, predictions.expert
