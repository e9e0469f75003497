-- The impression that each decision of some hours led to, as our log has it.
-- grain: decision
-- key: request_id
-- clock: received_us of the decision
-- Not stored: production parity recomputes features from its columns. impression_id is null where
-- our log has no impression of the request. Apart from decisions_to_check, whose long texts a join
-- would carry through its hash table.
SELECT
    impressions.* EXCLUDE (request_id, occurred_us, received_us, logged_us),
    decisions.request_id
FROM events.decisions AS decisions
LEFT JOIN events.impressions AS impressions
    ON impressions.request_id = decisions.request_id
WHERE decisions.received_us >= $start_us AND decisions.received_us < $end_us
ORDER BY decisions.received_us, decisions.request_id
