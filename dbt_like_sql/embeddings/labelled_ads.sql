-- The impressions of which a label of some goal matured within a range, each with those labels.
--
-- grain: one row per impression
-- key:   impression_id
-- clock: matured_us, of the newest of its labels
--
-- Not stored: an encoder is trained on it. goal_numbers are places in the given list, from 1, beside
-- the labels of those goals; a goal that is not there has no label yet, or none in the range.
WITH matured AS (
    SELECT
        impression_id,
        serving_us,
        max(matured_us) AS matured_us,
        list(list_position($goals, goal) ORDER BY goal) AS goal_numbers,
        list(label ORDER BY goal) AS labels
    FROM examples.labelled_impressions
    WHERE matured_us >= $from_us
        AND matured_us <= $as_of_us
        AND list_contains($goals, goal)
    GROUP BY impression_id, serving_us
)

SELECT
    impressions.*,
    matured.matured_us,
    matured.goal_numbers,
    matured.labels
FROM matured
INNER JOIN events.impressions AS impressions
    ON impressions.impression_id = matured.impression_id
    AND impressions.received_us = matured.serving_us
WHERE impressions.user_id IS NOT NULL
ORDER BY impressions.received_us, impressions.impression_id
