-- Rows of the log's campaign kpis that keep the contract and are no duplicates.
--
-- grain: one row per event_id, unless an id comes back more than a horizon later
-- key:   event_id
-- clock: received_us, for a late file the start of the first hour that was open when it appeared
--
-- landed_campaign_kpis holds the rows read from files, with the dataset file's columns; events.duplicates of
-- the same hours is computed first, as repeated.
SELECT landed.*
FROM landed_campaign_kpis AS landed
WHERE landed.landed_reason IS NULL
    AND NOT EXISTS (
        SELECT 1
        FROM repeated
        WHERE repeated.table_name = 'campaign_kpis'
            AND repeated.landed_id = landed.landed_id
    )
ORDER BY landed.received_us, landed.event_id, landed.logged_us
