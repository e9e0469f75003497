-- Engagements that ended the hour they were read in without their impression.
--
-- grain: one row per such engagement, written once
-- key:   event_id, received_us
-- clock: received_us, when it was read
SELECT
    event_id,
    impression_id,
    goal,
    value,
    occurred_us,
    read_us AS received_us,
    logged_us,
    due_us,
    file,
    content_md5
FROM engagement_outcomes
WHERE left_its_hour
    AND NOT was_held
ORDER BY read_us, event_id
