-- The last impression of each user that our log had within a range.
-- grain: user_id
-- key: user_id
-- clock: received_us
-- Not stored: says which segment a user is of, for the prior of cold starts.
SELECT *
FROM events.impressions
WHERE received_us > $from_us
    AND received_us <= $as_of_us
    AND user_id IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY received_us DESC, impression_id DESC) = 1
ORDER BY user_id
