-- The append-only history of what was believed about the label of one goal, and since when.
--
-- grain: one row per goal, impression, state and source event ('' where no event made the state)
-- key:   goal, impression_id, state, source_event_id
-- clock: state_us; every fact in a row was received by its state_us
--
-- pending, then provisional_negative or immediate_positive, then perhaps delayed_positive, then
-- matured_negative or matured_positive; retracted whenever a retraction of an emitted positive is
-- known, also after maturity. The states up to maturity are those that the stream saw
-- (examples.training_examples), the matured ones the final labels (examples.labelled_impressions);
-- both must be in their tables up to the range's end, the parent's of a chain goal too. The two may
-- anchor a chain goal at different engagements (the first that was emitted, the first that stood at
-- maturity), so a retracted anchor can leave a history without maturity, or maturity without one.
-- Of a parent's positives the first is the anchor; it is sought a horizon (window + lateness) back,
-- within which all of them lie.
WITH parent_positives AS (
    SELECT
        impression_id,
        source_event_id,
        emit_us,
        row_number() OVER (
            PARTITION BY impression_id ORDER BY emit_us, source_event_id
        ) AS place
    FROM examples.training_examples
    WHERE $anchor_goal <> 'impression'
        AND goal = $anchor_goal
        AND kind IN ('immediate_positive', 'delayed_positive')
        AND emit_us >= $start_us - $window_us - $lateness_us
        AND emit_us < $end_us
),

states AS (
    SELECT
        impression_id,
        'pending' AS state,
        received_us AS state_us,
        '' AS source_event_id
    FROM events.impressions
    WHERE $anchor_goal = 'impression'
        AND received_us >= $start_us
        AND received_us < $end_us
    UNION ALL
    SELECT
        impression_id,
        'pending' AS state,
        emit_us AS state_us,
        source_event_id
    FROM parent_positives
    WHERE place = 1
        AND emit_us >= $start_us
    UNION ALL
    SELECT
        impression_id,
        CASE kind
            WHEN 'negative' THEN 'provisional_negative'
            WHEN 'retraction' THEN 'retracted'
            ELSE kind
        END AS state,
        emit_us AS state_us,
        source_event_id
    FROM examples.training_examples
    WHERE goal = $goal
        AND kind <> 'confirmed_negative'
        AND emit_us >= $start_us
        AND emit_us < $end_us
    UNION ALL
    SELECT
        impression_id,
        CASE WHEN label = 1 THEN 'matured_positive' ELSE 'matured_negative' END AS state,
        matured_us AS state_us,
        coalesce(engagement_event_id, '') AS source_event_id
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
    source_event_id
FROM states
ORDER BY state_us, impression_id, state, source_event_id
