-- The anchors of one goal that were served in a range, with what was known of their labels at a moment.
-- grain: impression (of one goal)
-- key: impression_id
-- clock: none; every fact in a row was received before the moment now_us, which is log time
-- Not stored: the delay report and estimates of performance read it, one row in $one_in by a hash. A matured anchor has its final label. One that has not matured
-- is positive if an engagement that counts so far was received and not retracted by the moment, by the
-- conditions of the final label; it may still be retracted. Anchors of a chain goal that have not
-- matured are those that were emitted as pending; one whose parent was taken back never matures, and
-- is left out once it would have.
-- An anchor that matures at or after the moment lies less than window + lateness before it, and what
-- counts for it was received since then.
WITH matured AS (
    SELECT
        impression_id,
        anchor_us,
        serving_us,
        arrived_us,
        TRUE AS matured
    FROM examples.labelled_impressions
    WHERE goal = $goal
        AND serving_us >= $start_us
        AND serving_us < $now_us
        AND matured_us < $now_us
        AND md5_number_lower(impression_id) % $one_in = 0
),

waiting AS (
    SELECT
        states.impression_id,
        states.anchor_us,
        states.serving_us
    FROM examples.label_states AS states
    LEFT JOIN matured
        ON matured.impression_id = states.impression_id
    WHERE states.goal = $goal
        AND states.state = 'pending'
        AND states.serving_us >= $start_us
        AND states.state_us < $now_us
        AND states.anchor_us >= $now_us - $window_us - $lateness_us
        AND matured.impression_id IS NULL
        AND md5_number_lower(states.impression_id) % $one_in = 0
),

first_retractions AS (
    SELECT
        engagement_event_id,
        min(received_us) AS retracted_us
    FROM (
        SELECT
            engagement_event_id,
            received_us
        FROM events.retractions
        WHERE received_us < $now_us
        UNION ALL
        SELECT
            credited.event_id AS engagement_event_id,
            others.received_us
        FROM events.engagements AS credited
        INNER JOIN events.engagements AS others
            ON others.impression_id = credited.impression_id
            AND others.occurred_us <= credited.occurred_us
        WHERE $without_goal <> ''
            AND credited.goal = $goal
            AND others.goal = $without_goal
            AND others.received_us < $now_us
    ) AS taken_back
    GROUP BY engagement_event_id
),

arrived AS (
    SELECT
        waiting.impression_id,
        min(engagements.received_us) AS arrived_us
    FROM events.engagements AS engagements
    INNER JOIN waiting
        ON waiting.impression_id = engagements.impression_id
    LEFT JOIN first_retractions
        ON first_retractions.engagement_event_id = engagements.event_id
    WHERE engagements.goal = $goal
        AND engagements.received_us >= $now_us - $window_us - $lateness_us
        AND engagements.received_us < $now_us
        AND engagements.occurred_us >= waiting.anchor_us
        AND engagements.occurred_us <= waiting.anchor_us + $window_us
        AND first_retractions.engagement_event_id IS NULL
    GROUP BY waiting.impression_id
),

anchors AS (
    SELECT
        impression_id,
        anchor_us,
        serving_us,
        arrived_us,
        matured
    FROM matured
    UNION ALL
    SELECT
        waiting.impression_id,
        waiting.anchor_us,
        waiting.serving_us,
        arrived.arrived_us,
        FALSE AS matured
    FROM waiting
    LEFT JOIN arrived
        ON arrived.impression_id = waiting.impression_id
)

SELECT
    anchors.impression_id,
    anchors.anchor_us,
    anchors.serving_us,
    anchors.arrived_us,
    anchors.matured,
    shown.ad_id,
    CASE $delay_group
        WHEN 'ad_id' THEN shown.ad_id
        WHEN 'campaign_id' THEN shown.campaign_id
        WHEN 'advertiser_id' THEN shown.advertiser_id
    END AS delay_group
FROM anchors
LEFT JOIN events.impressions AS shown
    ON shown.impression_id = anchors.impression_id
    AND shown.received_us = anchors.serving_us
ORDER BY anchors.serving_us, anchors.impression_id
