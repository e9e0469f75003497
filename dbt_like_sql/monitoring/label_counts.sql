-- What became known of one goal's labels in some hours, by parts of its anchors.
-- grain: hour, part, state, lag
-- key: hour_us, part, state, lag_hours
-- clock: hour_us
-- Not stored: the quality of labels is judged by it. The relation sliced says which part an
-- impression belongs to. The lag of a late positive is counted in whole hours of log from its
-- anchor's first emission, which lies less than a horizon before it; other states have none. Too late
-- is an engagement inside its window that our log had after the label was final.
WITH states AS (
    SELECT
        impression_id,
        state,
        state_us,
        serving_us
    FROM examples.label_states
    WHERE goal = $goal
        AND state IN (
            'pending', 'provisional_negative', 'immediate_positive', 'delayed_positive', 'retracted'
        )
        AND state_us >= $start_us
        AND state_us < $end_us
),

firsts AS (
    SELECT
        impression_id,
        state_us AS first_us
    FROM examples.label_states
    WHERE goal = $goal
        AND state = 'provisional_negative'
        AND state_us >= $start_us - $horizon_us
        AND state_us < $end_us
),

counted AS (
    SELECT
        states.impression_id,
        states.serving_us,
        states.state,
        states.state_us,
        CASE
            WHEN states.state = 'delayed_positive' AND firsts.first_us IS NOT NULL
                THEN states.state_us // 3600000000 - firsts.first_us // 3600000000
            ELSE 0
        END AS lag_hours
    FROM states
    LEFT JOIN firsts
        ON firsts.impression_id = states.impression_id
        AND states.state = 'delayed_positive'
    UNION ALL
    SELECT
        labelled.impression_id,
        labelled.serving_us,
        'too_late' AS state,
        engagements.received_us AS state_us,
        0 AS lag_hours
    FROM events.engagements AS engagements
    INNER JOIN examples.labelled_impressions AS labelled
        ON labelled.goal = engagements.goal
        AND labelled.impression_id = engagements.impression_id
    WHERE engagements.goal = $goal
        AND engagements.received_us >= $start_us
        AND engagements.received_us < $end_us
        AND engagements.received_us > labelled.matured_us
        AND engagements.occurred_us >= labelled.anchor_us
        AND engagements.occurred_us <= labelled.anchor_us + $window_us
)

SELECT
    counted.state_us - counted.state_us % 3600000000 AS hour_us,
    sliced.part,
    counted.state,
    counted.lag_hours,
    count(*) AS rows
FROM counted
LEFT JOIN sliced
    ON sliced.impression_id = counted.impression_id
    AND sliced.received_us = counted.serving_us
GROUP BY ALL
ORDER BY ALL
