-- The append-only history of what was believed about the label of one goal, and since when.
--
-- grain: one row per goal, impression, state and source event ('' where no event made the state)
-- key:   goal, impression_id, state, source_event_id
-- clock: state_us; every fact in a row was received by its state_us
--
-- pending, then provisional_negative or immediate_positive, then perhaps delayed_positive, then
-- matured_negative or matured_positive; retracted whenever a retraction of an emitted positive is
-- known, also after maturity. The positive states up to maturity are the emissions of the stream
-- that waits for the goal's own observation window (examples.training_examples), the matured ones the final labels (examples.labelled_impressions);
-- both must be in their tables up to the range's end, the parent's of a chain goal too. The two may
-- anchor a chain goal at different engagements (the first that was emitted, the first that stood at
-- maturity), so a retracted anchor can leave a history without maturity, or maturity without one.
--
-- Negatives are thinned among the examples, never here: an anchor is a provisional negative at its
-- first emission unless an immediate positive was emitted then, whether or not the learner saw it.
-- Of a parent's positives the first is the anchor; it is sought a horizon (window + lateness) before
-- the first hour that matters, within which all of them lie.
WITH parent_positives AS (
    SELECT
        impression_id,
        source_event_id,
        emit_us AS known_us,
        serving_us,
        row_number() OVER (
            PARTITION BY impression_id ORDER BY emit_us, source_event_id
        ) AS place
    FROM examples.training_examples
    WHERE $anchor_goal <> 'impression'
        AND goal = $anchor_goal
        AND kind IN ('immediate_positive', 'delayed_positive')
        AND wait_us = $anchor_observation_us
        AND emit_us >= $start_us - $observation_us - $window_us - $lateness_us
        AND emit_us < $end_us
),

anchors AS (
    SELECT
        impression_id,
        '' AS source_event_id,
        occurred_us AS anchor_us,
        received_us AS known_us,
        greatest(occurred_us + $observation_us, received_us) AS first_emit_us,
        received_us AS serving_us
    FROM events.impressions
    WHERE $anchor_goal = 'impression'
        AND received_us >= $start_us - $observation_us
        AND received_us < $end_us
    UNION ALL
    SELECT
        parent.impression_id,
        parent.source_event_id,
        engagement.occurred_us AS anchor_us,
        parent.known_us,
        greatest(engagement.occurred_us + $observation_us, parent.known_us) AS first_emit_us,
        parent.serving_us
    FROM parent_positives AS parent
    INNER JOIN events.engagements AS engagement
        ON engagement.event_id = parent.source_event_id
    WHERE parent.place = 1
        AND parent.known_us >= $start_us - $observation_us
        AND engagement.received_us >= $start_us - $window_us - $lateness_us
        AND engagement.received_us < $end_us
),

emitted AS (
    SELECT
        impression_id,
        kind,
        source_event_id,
        anchor_us,
        emit_us,
        serving_us
    FROM examples.training_examples
    WHERE goal = $goal
        AND kind IN ('immediate_positive', 'delayed_positive', 'retraction')
        AND wait_us = $observation_us
        AND emit_us >= $start_us
        AND emit_us < $end_us
),

states AS (
    SELECT
        impression_id,
        'pending' AS state,
        known_us AS state_us,
        source_event_id,
        anchor_us,
        serving_us
    FROM anchors
    WHERE known_us >= $start_us
    UNION ALL
    SELECT
        anchors.impression_id,
        'provisional_negative' AS state,
        anchors.first_emit_us AS state_us,
        '' AS source_event_id,
        anchors.anchor_us,
        anchors.serving_us
    FROM anchors
    LEFT JOIN emitted
        ON emitted.impression_id = anchors.impression_id
        AND emitted.kind = 'immediate_positive'
    WHERE emitted.impression_id IS NULL
        AND anchors.first_emit_us >= $start_us
        AND anchors.first_emit_us < $end_us
    UNION ALL
    SELECT
        impression_id,
        CASE kind WHEN 'retraction' THEN 'retracted' ELSE kind END AS state,
        emit_us AS state_us,
        source_event_id,
        anchor_us,
        serving_us
    FROM emitted
    UNION ALL
    SELECT
        impression_id,
        CASE WHEN label = 1 THEN 'matured_positive' ELSE 'matured_negative' END AS state,
        matured_us AS state_us,
        coalesce(engagement_event_id, '') AS source_event_id,
        anchor_us,
        serving_us
    FROM examples.labelled_impressions
    WHERE goal = $goal
        AND matured_us >= $start_us
        AND matured_us < $end_us
)

SELECT
    CAST($goal AS VARCHAR) AS goal,
    impression_id,
    state,
    state_us,
    source_event_id,
    anchor_us,
    serving_us
FROM states
ORDER BY state_us, impression_id, state, source_event_id
