-- Rows that break the contract, with the reason.
--
-- grain: one row per row of a log file
-- key:   table_name, file, row_json, reason, received_us, read_us, copy
-- clock: received_us, when it was quarantined: for an orphan when its time was up, for an engagement
--        before its impression when both were there
WITH refused AS (
    SELECT
        table_name,
        key,
        reason,
        row_json,
        file,
        occurred_us,
        received_us,
        logged_us,
        received_us AS read_us,
        CAST(NULL AS VARCHAR) AS content_md5
    FROM landed_rows
    WHERE reason IS NOT NULL
    UNION ALL
    SELECT
        'engagements' AS table_name,
        event_id AS key,
        outcome AS reason,
        row_json,
        file,
        occurred_us,
        resolved_us AS received_us,
        logged_us,
        read_us,
        content_md5
    FROM engagement_outcomes
    WHERE outcome IN ('orphan', 'before its impression')
)

SELECT
    *,
    row_number() OVER (
        PARTITION BY table_name, file, row_json, reason, received_us, read_us
        ORDER BY key
    ) AS copy
FROM refused
ORDER BY received_us, table_name, file, key, row_json, copy
