-- The decisions of some hours, as whoever served them logged them.
-- grain: decision
-- key: request_id
-- clock: received_us of the decision
-- Not stored: production parity checks them. In no order: a sort would carry the long texts through
-- its runs, and most rows lie in the log as they arrived; whoever reads them looks.
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
