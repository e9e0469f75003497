-- One impression in $one_in of some hours, chosen by a hash of its key that no version changes.
-- grain: impression
-- key: impression_id
-- clock: received_us
-- Not stored: a drift verdict draws its fixed sample from these rows.
SELECT *
FROM events.impressions
WHERE received_us >= $start_us AND received_us < $end_us
    AND list_contains($hours_us, received_us - received_us % 3600000000)
    AND md5_number_lower(impression_id) % $one_in = 0
ORDER BY received_us, impression_id
