-- Rows of the log's retractions that keep the contract and are no duplicates.
--
-- grain: one row per event_id, unless an id comes back more than a horizon later
-- key:   event_id
-- clock: received_us, for a late file the start of the first hour that was open when it appeared
--
-- landed_retractions holds the rows read from files, with the dataset file's columns; events.duplicates of
-- the same hours is computed first, as repeated.
SELECT landed.*
FROM landed_retractions AS landed
WHERE landed.landed_reason IS NULL
    AND NOT EXISTS (
        SELECT 1
        FROM repeated
        WHERE repeated.table_name = 'retractions'
            AND repeated.landed_id = landed.landed_id
    )
ORDER BY landed.received_us, landed.event_id, landed.logged_us
