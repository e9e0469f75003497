-- What each expert said of the anchors of one goal when they were served, beside their final labels.
-- grain: impression, expert (of one goal)
-- key: impression_id, expert
-- clock: none; of the labels that were final before the moment now_us, which is log time
-- Not stored: the delay report measures it by the age of the ad.
SELECT
    predictions.expert,
    predictions.logit,
    labelled.label,
    labelled.serving_us,
    shown.ad_id
FROM examples.labelled_impressions AS labelled
INNER JOIN learners.predictions AS predictions
    ON predictions.impression_id = labelled.impression_id
    AND predictions.goal = labelled.goal
INNER JOIN events.impressions AS shown
    ON shown.impression_id = labelled.impression_id
    AND shown.received_us = labelled.serving_us
WHERE labelled.goal = $goal
    AND labelled.serving_us >= $start_us
    AND labelled.serving_us < $now_us
    AND labelled.matured_us < $now_us
    AND predictions.serving_us >= $start_us
    AND predictions.serving_us < $now_us
ORDER BY predictions.expert, labelled.serving_us, labelled.impression_id
