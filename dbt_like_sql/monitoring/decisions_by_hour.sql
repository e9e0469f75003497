-- How many decisions each hour of the log has, so that whoever reads them reads no more at a time
-- than fits.
-- grain: hour with decisions
-- key: hour_us
-- clock: received_us of the decision
-- Not stored: production parity asks for it.
SELECT
    $start_us + (received_us - $start_us) // 3600000000 * 3600000000 AS hour_us,
    count(*) AS decisions
FROM events.decisions
WHERE received_us >= $start_us AND received_us < $end_us
GROUP BY ALL
ORDER BY hour_us
