-- The matured anchors of one goal beside the features of their impression, and whether a positive
-- came after the observation window.
-- grain: impression (of one goal)
-- key: impression_id
-- clock: matured_us
-- Not stored: models of delay are fitted to it. Of negatives those are kept whose impression's MD5 is
-- below the bound, as hexadecimal text; all positives are.
SELECT
    impressions.*,
    labelled.label,
    labelled.matured_us,
    labelled.anchor_us,
    labelled.arrived_us,
    CAST(
        labelled.label = 1
        AND labelled.arrived_us
        > greatest(labelled.anchor_us + $observation_us, labelled.serving_us) AS BOOLEAN
    ) AS is_late
FROM examples.labelled_impressions AS labelled
INNER JOIN events.impressions AS impressions
    ON impressions.impression_id = labelled.impression_id
    AND impressions.received_us = labelled.serving_us
WHERE labelled.goal = $goal
    AND labelled.matured_us >= $start_us AND labelled.matured_us < $end_us
    AND (labelled.label = 1 OR md5($draw || labelled.impression_id) < $kept_below)
ORDER BY labelled.matured_us, labelled.impression_id
