-- When each interval's bundle really decided: the first and last logged decision, and how many.
--
-- grain: interval with at least one decision
-- key:   sequence
-- clock: first_served_us
-- Not stored by itself: part of monitoring.production. A decision belongs to the newest interval of
-- its bundle that had begun, also while scorers have not followed the pointer yet.
WITH begun AS (
    SELECT
        sequence,
        bundle_hash,
        from_us,
        lead(from_us) OVER (PARTITION BY bundle_hash ORDER BY sequence) AS again_us
    FROM served_bundles
)

SELECT
    begun.sequence,
    count(*) AS decisions,
    min(decisions.occurred_us) AS first_served_us,
    max(decisions.occurred_us) AS last_served_us
FROM events.decisions AS decisions
INNER JOIN begun
    ON begun.bundle_hash = decisions.bundle_hash
    AND decisions.occurred_us >= begun.from_us
    AND (begun.again_us IS NULL OR decisions.occurred_us < begun.again_us)
GROUP BY begun.sequence
ORDER BY begun.sequence
