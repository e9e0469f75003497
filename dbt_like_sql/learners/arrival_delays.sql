-- How long after their anchor the labels of matured anchors of one goal could be seen: a histogram.
-- grain: delay
-- key: delay_us
-- clock: none; of the anchors that matured in [start_us, end_us), and nothing after their maturity
-- Not stored: the ensemble corrects provisional labels by it. ``emitted`` counts the final positives
-- by the delay of their first emission, whatever it said: from then on they are provisional rows.
-- ``observed`` counts the first positive of an anchor by the delay of its emission, and takes it off
-- again at the delay of its retraction; positives that were not final are in it, because they are in
-- provisional labels too. The horizon parameter reaches from maturity back to serving. All of it is
-- read off the label states: the training examples of negatives may be thinned.
WITH matured AS (
    SELECT
        impression_id,
        label,
        matured_us
    FROM examples.labelled_impressions
    WHERE goal = $goal
        AND matured_us >= $start_us
        AND matured_us < $end_us
),

emitted AS (
    SELECT
        states.impression_id,
        states.state,
        states.source_event_id,
        states.state_us - states.anchor_us AS delay_us,
        matured.label
    FROM examples.label_states AS states
    INNER JOIN matured
        ON matured.impression_id = states.impression_id
    WHERE states.goal = $goal
        AND states.state IN (
            'provisional_negative', 'immediate_positive', 'delayed_positive', 'retracted'
        )
        AND states.state_us >= $start_us - $horizon_us
        AND states.state_us < $end_us
        AND states.state_us <= matured.matured_us
),

positives AS (
    SELECT
        impression_id,
        source_event_id,
        delay_us,
        row_number() OVER (
            PARTITION BY impression_id ORDER BY delay_us, source_event_id
        ) AS place
    FROM emitted
    WHERE state IN ('immediate_positive', 'delayed_positive')
),

changes AS (
    SELECT
        delay_us,
        0 AS observed,
        1 AS emitted
    FROM emitted
    WHERE state IN ('immediate_positive', 'provisional_negative')
        AND label = 1
    UNION ALL
    SELECT
        delay_us,
        1 AS observed,
        0 AS emitted
    FROM positives
    WHERE place = 1
    UNION ALL
    SELECT
        retractions.delay_us,
        -1 AS observed,
        0 AS emitted
    FROM emitted AS retractions
    INNER JOIN positives
        ON positives.source_event_id = retractions.source_event_id
    WHERE retractions.state = 'retracted'
        AND positives.place = 1
)

SELECT
    delay_us,
    CAST(sum(observed) AS BIGINT) AS observed,
    CAST(sum(emitted) AS BIGINT) AS emitted
FROM changes
GROUP BY delay_us
ORDER BY delay_us
