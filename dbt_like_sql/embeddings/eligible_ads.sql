-- The ads that were shown lately and whose campaign is not known to have spent its budget.
--
-- grain: one row per ad
-- key:   ad_id
-- clock: received_us of its newest impression
--
-- Not stored: candidates are kept to it. A campaign whose budget nobody told is eligible.
WITH shown AS (
    SELECT
        ad_id,
        arg_max(campaign_id, (received_us, impression_id)) AS campaign_id
    FROM events.impressions
    WHERE received_us >= $from_us
        AND received_us <= $as_of_us
        AND ad_id IS NOT NULL
    GROUP BY ad_id
),

budgets AS (
    SELECT
        campaign_id,
        arg_max(value, (received_us, event_id)) AS remaining
    FROM events.campaign_kpis
    WHERE metric = $budget_metric
        AND received_us <= $as_of_us
    GROUP BY campaign_id
)

SELECT
    shown.ad_id,
    shown.campaign_id,
    budgets.remaining
FROM shown
LEFT JOIN budgets
    ON budgets.campaign_id = shown.campaign_id
WHERE budgets.remaining IS NULL
    OR budgets.remaining > 0
ORDER BY shown.ad_id
