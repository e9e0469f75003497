-- The impressions that occurred in some time, in the order in which their requests came.
-- grain: impression_id
-- key: impression_id
-- clock: occurred_us
-- Not stored: the stress of serving replays them.
SELECT *
FROM events.impressions
WHERE occurred_us >= $start_us
    AND occurred_us < $end_us
ORDER BY occurred_us, impression_id
