-- What a learner that runs alongside the stream may see of one goal, and when.
--
-- grain: one row per impression, kind and source event; source_event_id is '' for negatives
-- key:   impression_id, goal, kind, wait_us, source_event_id
-- clock: emit_us; every fact in a row was received by its emit_us
--
-- An anchor gives one first emission, an observation window after it: immediate_positive, or
-- negative. Later it may give delayed_positive (each at the engagement's received_us), a
-- confirmed_negative at maturity if no positive was ever emitted, and a retraction of each emitted
-- positive, however late. An engagement that was retracted by its would-be emission never counts.
-- A chain goal is anchored at its parent's first positive, known when that was emitted; the parent's
-- hours up to the range's end, and this goal's hours before its start, must be in the table already.
--
-- Negatives and confirmed negatives are thinned (McMahan et al., KDD 2013, section 6.1): those of a
-- request are kept if the MD5 of the draw and the request's id, as text, is below the bound, and
-- weigh the inverse of the share that is kept. An impression without a request is drawn by its own
-- id. Hexadecimal texts of one length compare as the numbers they stand for, so that no engine needs
-- 128 bits; ad_pipeline/examples/subsampling.py computes the same in Python.
--
-- Why the scans may be this short, with horizon = window + lateness: occurred_us <= received_us; an
-- engagement is never of an earlier log hour than its impression; observation <= horizon; and a
-- child's horizon is at least its parent's. So an anchor that still emits in the range was known
-- less than a horizon before it, and what makes it and counts for it was received since then. A
-- parent's positives lie within one more horizon of each other: the first is sought among all.
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
        AND emit_us >= $start_us - $window_us - $window_us - $lateness_us - $lateness_us
        AND emit_us < $end_us
),

anchors AS (
    SELECT
        impression_id,
        coalesce(nullif(request_id, ''), impression_id) AS drawn_id,
        occurred_us AS anchor_us,
        received_us AS known_us,
        received_us AS serving_us,
        greatest(occurred_us + $observation_us, received_us) AS first_emit_us,
        greatest(occurred_us + $window_us + $lateness_us, received_us) AS matured_us
    FROM events.impressions
    WHERE $anchor_goal = 'impression'
        AND received_us >= $start_us - $window_us - $lateness_us
        AND received_us < $end_us
    UNION ALL
    SELECT
        parent.impression_id,
        coalesce(nullif(shown.request_id, ''), parent.impression_id) AS drawn_id,
        engagement.occurred_us AS anchor_us,
        parent.known_us,
        parent.serving_us,
        greatest(engagement.occurred_us + $observation_us, parent.known_us) AS first_emit_us,
        greatest(engagement.occurred_us + $window_us + $lateness_us, parent.known_us) AS matured_us
    FROM parent_positives AS parent
    INNER JOIN events.engagements AS engagement
        ON engagement.event_id = parent.source_event_id
    LEFT JOIN events.impressions AS shown
        ON $negative_rate < 1
        AND shown.impression_id = parent.impression_id
        AND shown.received_us = parent.serving_us
    WHERE parent.place = 1
        AND parent.known_us >= $start_us - $window_us - $lateness_us
        AND engagement.received_us >= $start_us - $window_us - $lateness_us
        AND engagement.received_us < $end_us
),

first_retractions AS (
    SELECT
        engagement_event_id,
        min(received_us) AS retracted_us
    FROM events.retractions
    WHERE received_us < $end_us
    GROUP BY engagement_event_id
),

counted AS (
    SELECT
        anchors.impression_id,
        anchors.anchor_us,
        anchors.serving_us,
        engagements.event_id,
        first_retractions.retracted_us,
        engagements.received_us > anchors.first_emit_us AS is_delayed,
        greatest(engagements.received_us, anchors.first_emit_us) AS emit_us,
        row_number() OVER (
            PARTITION BY anchors.impression_id
            ORDER BY
                greatest(engagements.received_us, anchors.first_emit_us),
                engagements.received_us,
                engagements.event_id
        ) AS place
    FROM events.engagements AS engagements
    INNER JOIN anchors
        ON anchors.impression_id = engagements.impression_id
    LEFT JOIN first_retractions
        ON first_retractions.engagement_event_id = engagements.event_id
    WHERE engagements.goal = $goal
        AND engagements.received_us >= $start_us - $window_us - $lateness_us
        AND engagements.received_us < $end_us
        AND engagements.occurred_us >= anchors.anchor_us
        AND engagements.occurred_us <= anchors.anchor_us + $window_us
        AND engagements.received_us <= anchors.matured_us
        AND (
            first_retractions.retracted_us IS NULL
            OR first_retractions.retracted_us
            > greatest(engagements.received_us, anchors.first_emit_us)
        )
),

positives AS (
    SELECT
        impression_id,
        CASE WHEN is_delayed THEN 'delayed_positive' ELSE 'immediate_positive' END AS kind,
        event_id AS source_event_id,
        retracted_us,
        anchor_us,
        emit_us,
        serving_us
    FROM counted
    WHERE (place = 1 OR ($counting = 'all' AND is_delayed))
        AND emit_us >= $start_us
        AND emit_us < $end_us
),

emissions AS (
    SELECT
        impression_id,
        kind,
        1 AS label,
        source_event_id,
        anchor_us,
        emit_us,
        serving_us
    FROM positives
    UNION ALL
    SELECT
        anchors.impression_id,
        'negative' AS kind,
        0 AS label,
        '' AS source_event_id,
        anchors.anchor_us,
        anchors.first_emit_us AS emit_us,
        anchors.serving_us
    FROM anchors
    LEFT JOIN counted
        ON counted.impression_id = anchors.impression_id
        AND counted.place = 1
        AND NOT counted.is_delayed
    WHERE counted.impression_id IS NULL
        AND anchors.known_us >= $start_us - $observation_us
        AND anchors.first_emit_us >= $start_us
        AND anchors.first_emit_us < $end_us
        AND ($negative_rate >= 1 OR md5($draw || anchors.drawn_id) < $kept_below)
    UNION ALL
    SELECT
        anchors.impression_id,
        'confirmed_negative' AS kind,
        0 AS label,
        '' AS source_event_id,
        anchors.anchor_us,
        anchors.matured_us AS emit_us,
        anchors.serving_us
    FROM anchors
    LEFT JOIN counted
        ON counted.impression_id = anchors.impression_id
        AND counted.place = 1
    WHERE counted.impression_id IS NULL
        AND anchors.anchor_us < $end_us - $window_us - $lateness_us
        AND anchors.matured_us >= $start_us
        AND anchors.matured_us < $end_us
        AND ($negative_rate >= 1 OR md5($draw || anchors.drawn_id) < $kept_below)
    UNION ALL
    SELECT
        impression_id,
        'retraction' AS kind,
        0 AS label,
        source_event_id,
        anchor_us,
        retracted_us AS emit_us,
        serving_us
    FROM positives
    WHERE retracted_us IS NOT NULL
    UNION ALL
    SELECT
        emitted.impression_id,
        'retraction' AS kind,
        0 AS label,
        emitted.source_event_id,
        emitted.anchor_us,
        first_retractions.retracted_us AS emit_us,
        emitted.serving_us
    FROM first_retractions
    INNER JOIN examples.training_examples AS emitted
        ON emitted.source_event_id = first_retractions.engagement_event_id
    WHERE first_retractions.retracted_us >= $start_us
        AND emitted.goal = $goal
        AND emitted.kind IN ('immediate_positive', 'delayed_positive')
        AND emitted.emit_us < $start_us
)

SELECT
    CAST($goal AS VARCHAR) AS goal,
    impression_id,
    kind,
    CAST(label AS TINYINT) AS label,
    CAST($observation_us AS BIGINT) AS wait_us,
    source_event_id,
    anchor_us,
    emit_us,
    serving_us,
    CAST(
        CASE WHEN kind IN ('negative', 'confirmed_negative') THEN 1 / $negative_rate ELSE 1 END
        AS DOUBLE
    ) AS weight
FROM emissions
ORDER BY emit_us, impression_id, kind, source_event_id
