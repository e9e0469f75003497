-- The impressions that our log received in a range of hours, in log order.
-- grain: impression_id
-- key: impression_id
-- clock: received_us
SELECT *
FROM events.impressions
WHERE received_us >= $start_us
  AND received_us < $end_us
ORDER BY received_us, impression_id
