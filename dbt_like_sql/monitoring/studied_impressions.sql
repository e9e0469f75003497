-- The impressions of a range whose label of one goal had matured by a moment, for the study of
-- user vectors.
-- grain: impression_id (of one goal)
-- key: impression_id
-- clock: matured_us
-- Not stored: rankers with and without vectors learn it and are tested on it. An impression without
-- an ad is left out: nothing could be compared with it.
SELECT
    impressions.*,
    labelled.label,
    labelled.matured_us
FROM examples.labelled_impressions AS labelled
INNER JOIN events.impressions AS impressions
    ON impressions.impression_id = labelled.impression_id
    AND impressions.received_us = labelled.serving_us
WHERE labelled.goal = $goal
    AND labelled.matured_us > $from_us
    AND labelled.matured_us <= $as_of_us
    AND impressions.occurred_us >= $from_us
    AND impressions.ad_id IS NOT NULL
ORDER BY impressions.occurred_us, impressions.impression_id
