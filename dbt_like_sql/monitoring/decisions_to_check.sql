-- The decisions of some hours, as whoever served them logged them.
-- grain: decision
-- key: request_id
-- clock: received_us of the decision
-- Not stored: production parity checks them. impressions_to_check has as many rows in this order.
SELECT
    request_id,
    received_us,
    occurred_us,
    bundle_hash,
    snapshot_hash,
    features,
    ages_us,
    fallbacks,
    scores
FROM events.decisions
WHERE received_us >= $start_us AND received_us < $end_us
ORDER BY received_us, request_id
