-- How many impressions our log received in some hours.
-- grain: one row
-- key: none
-- clock: none
SELECT count(*) AS impressions
FROM events.impressions
WHERE received_us >= $start_us AND received_us < $end_us
    AND list_contains($hours_us, received_us - received_us % 3600000000)
