-- The anchors of one goal as they were served, with the age of their ad, for the benchmark.
-- grain: anchor
-- key: impression_id
-- clock: serving_us
-- Not stored: read once from tables in memory. Every anchor gives one first emission without a wait.
-- The relation first_seen says when each ad was first received, over the whole log and not over a
-- sample of it.
SELECT
    impressions.*,
    emitted.anchor_us,
    emitted.serving_us,
    emitted.serving_us - first_seen.first_us AS ad_age_us
FROM examples.training_examples AS emitted
INNER JOIN events.impressions AS impressions
    ON impressions.impression_id = emitted.impression_id
    AND impressions.received_us = emitted.serving_us
LEFT JOIN first_seen
    ON first_seen.ad_id = impressions.ad_id
WHERE emitted.goal = $goal
    AND emitted.wait_us = 0
    AND emitted.kind IN ('negative', 'immediate_positive')
ORDER BY emitted.serving_us, emitted.impression_id
