-- How many keys of training examples occur more than once.
-- grain: one row
-- key: none
-- clock: none
SELECT count(*) AS repeated
FROM (
    SELECT
        impression_id,
        goal,
        kind,
        wait_us,
        source_event_id
    FROM examples.training_examples
    GROUP BY
        impression_id,
        goal,
        kind,
        wait_us,
        source_event_id
    HAVING count(*) > 1
) AS keys
