-- How long the labels of one goal took: delays of positives that had matured by a fit.
--
-- grain: one row per goal, fit, group and place in the distribution
-- key:   goal, fitted_us, delay_group, place
-- clock: fitted_us; every label in a row had matured before it. In force until the next fit.
--
-- The delay runs from the anchor to when our log had the first engagement that counts, and is at most
-- the horizon (of an anchor that our log had later than that, it would be longer). The 256 places
-- are the mid-quantiles (place + 1/2) / 256: a place drawn at random is a delay drawn from the
-- empirical distribution. The group '' holds all positives; a campaign (or whatever $delay_group
-- names) has places of its own from $least_positives positives on. A fit without positives has no
-- row.
WITH fits AS (
    SELECT unnest(CAST($fits_us AS BIGINT[])) AS fitted_us
),

matured AS (
    SELECT
        fits.fitted_us,
        labelled.impression_id,
        CASE $delay_group
            WHEN 'ad_id' THEN shown.ad_id
            WHEN 'campaign_id' THEN shown.campaign_id
            WHEN 'advertiser_id' THEN shown.advertiser_id
        END AS delay_group,
        least(
            labelled.arrived_us - labelled.anchor_us, CAST($window_us AS BIGINT) + $lateness_us
        ) AS delay_us
    FROM examples.labelled_impressions AS labelled
    INNER JOIN events.impressions AS shown
        ON shown.impression_id = labelled.impression_id
        AND shown.received_us = labelled.serving_us
    INNER JOIN fits
        ON labelled.matured_us >= fits.fitted_us - $lookback_us
        AND labelled.matured_us < fits.fitted_us
    WHERE labelled.goal = $goal
        AND labelled.label = 1
        AND labelled.matured_us >= $start_us - $lookback_us
        AND labelled.matured_us < $end_us
),

grouped AS (
    SELECT
        fitted_us,
        '' AS delay_group,
        impression_id,
        delay_us
    FROM matured
    UNION ALL
    SELECT
        fitted_us,
        delay_group,
        impression_id,
        delay_us
    FROM matured
    WHERE delay_group <> ''
),

ranked AS (
    SELECT
        fitted_us,
        delay_group,
        delay_us,
        row_number() OVER (
            PARTITION BY fitted_us, delay_group ORDER BY delay_us, impression_id
        ) AS place_of_row,
        count(*) OVER (PARTITION BY fitted_us, delay_group) AS positives
    FROM grouped
),

places AS (
    SELECT unnest(range(256)) AS place
)

SELECT
    CAST($goal AS VARCHAR) AS goal,
    CAST(ranked.fitted_us AS BIGINT) AS fitted_us,
    ranked.delay_group,
    CAST(places.place AS SMALLINT) AS place,
    CAST(ranked.delay_us AS BIGINT) AS delay_us,
    CAST(ranked.positives AS BIGINT) AS positives
FROM ranked
INNER JOIN places
    ON ranked.place_of_row = (2 * places.place + 1) * ranked.positives // 512 + 1
WHERE ranked.delay_group = '' OR ranked.positives >= $least_positives
ORDER BY goal, fitted_us, delay_group, place
