-- The training examples of one goal emitted in some hours, beside the features of their impression.
-- grain: impression, kind, source event (of one goal)
-- key: impression_id, kind, wait_us, source_event_id
-- clock: emit_us
-- Not stored: the online learner reads it in this order, which is part of its result. The join on
-- the hour of serving lets the engine skip every impression of another hour.
SELECT
    impressions.*,
    examples.kind,
    examples.wait_us,
    examples.source_event_id,
    examples.anchor_us,
    examples.arrived_us,
    examples.serving_us,
    examples.emit_us,
    examples.weight AS example_weight
FROM examples.training_examples AS examples
INNER JOIN events.impressions AS impressions
    ON impressions.impression_id = examples.impression_id
    AND impressions.received_us = examples.serving_us
WHERE examples.goal = $goal
    AND examples.emit_us >= $start_us AND examples.emit_us < $end_us
ORDER BY
    examples.emit_us,
    examples.impression_id,
    examples.kind,
    examples.wait_us,
    examples.source_event_id
