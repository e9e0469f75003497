-- What each expert said of the anchors of one goal, beside what was known of their labels and when.
-- grain: impression, expert, and whether the label is final (of one goal)
-- key: none
-- clock: none; every row says from when to when it holds
-- Not stored: performance is estimated from it. The relations it reads are the SELECTs
-- monitoring.label_arrivals_over_time and learners.predictions.
SELECT
    predictions.expert,
    predictions.logit,
    predictions.serving_us AS scored_us,
    arrivals.anchor_us,
    arrivals.serving_us,
    arrivals.known_us,
    arrivals.until_us,
    arrivals.matured,
    arrivals.arrived_us,
    arrivals.arrivals_us,
    arrivals.retractions_us,
    arrivals.delay_group
FROM arrivals
INNER JOIN predictions
    ON predictions.impression_id = arrivals.impression_id
WHERE predictions.goal = $goal
    AND predictions.serving_us >= $start_us
    AND predictions.serving_us < $end_us
    AND predictions.logit IS NOT NULL
ORDER BY arrivals.anchor_us, predictions.logit, arrivals.impression_id, predictions.expert
