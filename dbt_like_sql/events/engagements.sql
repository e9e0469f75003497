-- Engagements on a known impression that keep the contract and are no duplicates.
--
-- grain: one row per engagement, unless an id comes back more than a horizon later
-- key:   event_id
-- clock: received_us, not before its impression's: it enters in the hour that has both
--
-- One outside its window stays: whether it counts is the label's question.
SELECT
    event_id,
    impression_id,
    goal,
    value,
    occurred_us,
    resolved_us AS received_us,
    logged_us,
    read_us
FROM engagement_outcomes
WHERE outcome = 'kept'
ORDER BY resolved_us, event_id, read_us
