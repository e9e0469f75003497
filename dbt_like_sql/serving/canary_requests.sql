-- A few impressions of the log's last hour, as raw requests for a bundle to prove itself on.
-- grain: impression
-- key: impression_id
-- clock: received_us
-- Not stored: their features and scores are written into the bundle's manifest.
SELECT *
FROM events.impressions
WHERE received_us >= (SELECT max(latest.received_us) - 3600000000 FROM events.impressions AS latest)
ORDER BY received_us, impression_id
LIMIT $count
