-- When each ad was shown for the first and for the last time, as known at a moment.
-- grain: ad
-- key: ad_id
-- clock: none; of the impressions received before the moment now_us, which is log time
-- Not stored: the delay report reads it. Of the whole log, since an ad's first impression is its birth.
SELECT
    ad_id,
    min(received_us) AS first_us,
    max(received_us) AS last_us,
    count(*) AS impressions
FROM events.impressions
WHERE received_us < $now_us
    AND ad_id IS NOT NULL
GROUP BY ad_id
ORDER BY ad_id
