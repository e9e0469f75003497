-- Rows dropped because one with the same key came at most a horizon before.
--
-- grain: one row per dropped copy
-- key:   table_name, key, received_us, copy
-- clock: received_us of the dropped copy
--
-- Copies stand in the order of receipt; content and file only break ties, and rows that tie in all
-- of them are equal. A copy is dropped if the one before it, kept or dropped itself, came within the
-- horizon: so the answer needs no more of the past than one horizon, and is the same however the
-- hours are split. landed_copies are the rows of these hours whose key occurs again, seen_rows those
-- of the horizon before them.
WITH copies AS (
    SELECT
        table_name,
        key,
        received_us,
        logged_us,
        content_md5,
        file,
        landed_id
    FROM landed_copies
    UNION ALL
    SELECT
        table_name,
        key,
        received_us,
        logged_us,
        content_md5,
        '' AS file,
        CAST(NULL AS BIGINT) AS landed_id
    FROM seen_rows
),

in_order AS (
    SELECT
        *,
        lag(received_us) OVER (
            PARTITION BY table_name, key
            ORDER BY received_us, logged_us, content_md5, file, landed_id
        ) AS since_us,
        lag(content_md5) OVER (
            PARTITION BY table_name, key
            ORDER BY received_us, logged_us, content_md5, file, landed_id
        ) AS content_before
    FROM copies
)

SELECT
    table_name,
    key,
    received_us,
    logged_us,
    since_us,
    content_md5 = content_before AS same_content,
    content_md5,
    row_number() OVER (
        PARTITION BY table_name, key, received_us
        ORDER BY logged_us, content_md5, file, landed_id
    ) AS copy,
    landed_id
FROM in_order
WHERE landed_id IS NOT NULL
    AND since_us >= received_us - $horizon_us
ORDER BY received_us, table_name, key, copy
