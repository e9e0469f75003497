-- The anchors of one goal, with what was known of their labels and from when to when.
-- grain: impression, and whether the label is final (of one goal)
-- key: impression_id, matured
-- clock: known_us, from when on the row holds; until_us, when the final one takes its place
-- Not stored: estimates of performance read it as of every hour end from first_now_us to end_us, one
-- row in $one_in by a hash. Cut at a moment, it says what monitoring.label_arrivals says as of it
-- (a test compares them). A row that waits for its label has what counts for it, when our log had
-- each, and when each was taken back: it is positive at a moment that lies between the two.
WITH final AS (
    SELECT
        impression_id,
        anchor_us,
        serving_us,
        arrived_us,
        matured_us
    FROM examples.labelled_impressions
    WHERE goal = $goal
        AND serving_us >= $start_us
        AND serving_us < $end_us
        AND matured_us < $end_us
        AND md5_number_lower(impression_id) % $one_in = 0
),

waiting AS (
    SELECT
        states.impression_id,
        states.anchor_us,
        states.serving_us,
        states.state_us,
        final.matured_us
    FROM examples.label_states AS states
    LEFT JOIN final
        ON final.impression_id = states.impression_id
    WHERE states.goal = $goal
        AND states.state = 'pending'
        AND states.serving_us >= $start_us
        AND states.state_us < $end_us
        AND states.anchor_us >= $first_now_us - $window_us - $lateness_us
        AND (final.matured_us IS NULL OR final.matured_us >= $first_now_us)
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
        WHERE received_us < $end_us
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
            AND others.received_us < $end_us
    ) AS taken_back
    GROUP BY engagement_event_id
),

counted AS (
    SELECT
        waiting.impression_id,
        list(engagements.received_us ORDER BY engagements.event_id) AS arrivals_us,
        list(
            coalesce(first_retractions.retracted_us, $end_us) ORDER BY engagements.event_id
        ) AS retractions_us
    FROM events.engagements AS engagements
    INNER JOIN waiting
        ON waiting.impression_id = engagements.impression_id
    LEFT JOIN first_retractions
        ON first_retractions.engagement_event_id = engagements.event_id
    WHERE engagements.goal = $goal
        AND engagements.received_us >= $first_now_us - $window_us - $lateness_us
        AND engagements.received_us < $end_us
        AND engagements.occurred_us >= waiting.anchor_us
        AND engagements.occurred_us <= waiting.anchor_us + $window_us
    GROUP BY waiting.impression_id
),

anchors AS (
    SELECT
        impression_id,
        anchor_us,
        serving_us,
        matured_us AS known_us,
        $end_us AS until_us,
        TRUE AS matured,
        arrived_us,
        NULL AS arrivals_us,
        NULL AS retractions_us
    FROM final
    UNION ALL
    SELECT
        waiting.impression_id,
        waiting.anchor_us,
        waiting.serving_us,
        waiting.state_us AS known_us,
        coalesce(waiting.matured_us, $end_us) AS until_us,
        FALSE AS matured,
        NULL AS arrived_us,
        counted.arrivals_us,
        counted.retractions_us
    FROM waiting
    LEFT JOIN counted
        ON counted.impression_id = waiting.impression_id
)

SELECT
    anchors.impression_id,
    anchors.anchor_us,
    anchors.serving_us,
    anchors.known_us,
    anchors.until_us,
    anchors.matured,
    anchors.arrived_us,
    anchors.arrivals_us,
    anchors.retractions_us,
    CASE $delay_group
        WHEN 'ad_id' THEN shown.ad_id
        WHEN 'campaign_id' THEN shown.campaign_id
        WHEN 'advertiser_id' THEN shown.advertiser_id
    END AS delay_group
FROM anchors
LEFT JOIN events.impressions AS shown
    ON shown.impression_id = anchors.impression_id
    AND shown.received_us = anchors.serving_us
ORDER BY anchors.serving_us, anchors.impression_id, anchors.matured
