-- The engagements that our log received in a range of hours, each beside its impression.
-- goal_number is the goal's place in the given list, from 1; impression_id is null for an orphan.
-- grain: event_id
-- key: event_id
-- clock: engaged_us
SELECT
    e.event_id,
    e.received_us AS engaged_us,
    CAST(list_position($goals, e.goal) AS BIGINT) AS goal_number,
    i.*
FROM events.engagements AS e
LEFT JOIN events.impressions AS i ON i.impression_id = e.impression_id
WHERE e.received_us >= $start_us
  AND e.received_us < $end_us
  AND list_contains($goals, e.goal)
