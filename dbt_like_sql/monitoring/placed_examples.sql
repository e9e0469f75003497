-- All emitted examples of one goal, each with the place that its anchor has in a stream.
-- grain: one row per anchor, kind, wait and source event
-- key: place, kind, wait_us, source_event_id
-- clock: emit_us
-- Not stored: the benchmark of late labels reads it from tables in memory, for all strategies at
-- once. The relation places gives every anchor its place, in order of serving.
SELECT
    places.place,
    examples.kind,
    examples.wait_us,
    examples.anchor_us,
    examples.serving_us,
    examples.arrived_us,
    examples.emit_us,
    examples.weight
FROM examples.training_examples AS examples
INNER JOIN places
    ON places.impression_id = examples.impression_id
WHERE examples.goal = $goal
ORDER BY examples.emit_us, places.place, examples.kind, examples.wait_us, examples.source_event_id
