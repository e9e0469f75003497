-- What a learner that runs alongside the stream may see of one goal, and when.
--
-- grain: one row per impression, kind, wait and source event; source_event_id is '' for negatives
-- key:   impression_id, goal, kind, wait_us, source_event_id
-- clock: emit_us; every fact in a row was received by its emit_us
--
-- One join of anchors and engagements feeds all strategies (ad_pipeline/examples/strategies.py);
-- the parameters say which of their rows are wanted.
--
-- For each of the waits an anchor gives one first emission when the wait is over: immediate_positive,
-- or negative. Later it may give delayed_positive (each at the engagement's received_us), and a
-- retraction of each emitted positive, however late. An engagement that was retracted by its
-- would-be emission never counts. For a goal without another one (a view-through goal: without
-- click), an engagement after one of the other goal is retracted as soon as our log had that.
-- Confirmed rows are the final labels, at maturity; their wait is
-- the whole horizon (window + lateness). A matched_negative is emitted as long after its anchor as a
-- positive's label takes: a draw from the delays of examples.label_delays in force when the anchor
-- was known.
--
-- A chain goal is anchored at its parent's first positive after the parent's own observation window,
-- known when that was emitted; the parent's hours up to the range's end, and this goal's hours
-- before its start, must be in the table already.
--
-- Negatives of all kinds are thinned (McMahan et al., KDD 2013, section 6.1): those of a request are
-- kept if the MD5 of the draw and the request's id, as text, is below the bound, and weigh the
-- inverse of the share that is kept. An impression without a request is drawn by its own id.
-- Hexadecimal texts of one length compare as the numbers they stand for, so that no engine needs 128
-- bits; ad_pipeline/examples/subsampling.py computes the same in Python. The place of a delay is
-- read off two hexadecimal digits.
--
-- Why the scans may be this short, with horizon = window + lateness: occurred_us <= received_us; an
-- engagement is never of an earlier log hour than its impression; a wait or a delay is at most the
-- horizon; and a child's horizon is at least its parent's. So an anchor that still emits in the range
-- was known less than a horizon before it, and what makes it and counts for it was received since
-- then. A parent's positives lie within one more horizon of each other: the first is sought among
-- all.
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
        AND emit_us >= $start_us - $window_us - $window_us - $lateness_us - $lateness_us
        AND emit_us < $end_us
),

anchors AS (
    SELECT
        impression_id,
        coalesce(nullif(request_id, ''), impression_id) AS drawn_id,
        CASE $delay_group
            WHEN 'ad_id' THEN ad_id
            WHEN 'campaign_id' THEN campaign_id
            WHEN 'advertiser_id' THEN advertiser_id
        END AS delay_group,
        occurred_us AS anchor_us,
        received_us AS known_us,
        received_us AS serving_us,
        greatest(occurred_us + $window_us + $lateness_us, received_us) AS matured_us
    FROM events.impressions
    WHERE $anchor_goal = 'impression'
        AND received_us >= $start_us - $window_us - $lateness_us
        AND received_us < $end_us
    UNION ALL
    SELECT
        parent.impression_id,
        coalesce(nullif(shown.request_id, ''), parent.impression_id) AS drawn_id,
        CASE $delay_group
            WHEN 'ad_id' THEN shown.ad_id
            WHEN 'campaign_id' THEN shown.campaign_id
            WHEN 'advertiser_id' THEN shown.advertiser_id
        END AS delay_group,
        engagement.occurred_us AS anchor_us,
        parent.known_us,
        parent.serving_us,
        greatest(engagement.occurred_us + $window_us + $lateness_us, parent.known_us) AS matured_us
    FROM parent_positives AS parent
    INNER JOIN events.engagements AS engagement
        ON engagement.event_id = parent.source_event_id
    LEFT JOIN events.impressions AS shown
        ON ($negative_rate < 1 OR $matched)
        AND shown.impression_id = parent.impression_id
        AND shown.received_us = parent.serving_us
    WHERE parent.place = 1
        AND parent.known_us >= $start_us - $window_us - $lateness_us
        AND engagement.received_us >= $start_us - $window_us - $lateness_us
        AND engagement.received_us < $end_us
),

waits AS (
    SELECT unnest(CAST($waits_us AS BIGINT[])) AS wait_us
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
        anchors.impression_id,
        waits.wait_us,
        anchors.anchor_us,
        anchors.serving_us,
        engagements.event_id,
        engagements.received_us AS arrived_us,
        first_retractions.retracted_us,
        engagements.received_us
        > greatest(anchors.anchor_us + waits.wait_us, anchors.known_us) AS is_delayed,
        greatest(
            engagements.received_us, anchors.anchor_us + waits.wait_us, anchors.known_us
        ) AS emit_us,
        row_number() OVER (
            PARTITION BY anchors.impression_id, waits.wait_us
            ORDER BY
                greatest(
                    engagements.received_us, anchors.anchor_us + waits.wait_us, anchors.known_us
                ),
                engagements.received_us,
                engagements.event_id
        ) AS place
    FROM events.engagements AS engagements
    INNER JOIN anchors
        ON anchors.impression_id = engagements.impression_id
    CROSS JOIN waits
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
            > greatest(engagements.received_us, anchors.anchor_us + waits.wait_us, anchors.known_us)
        )
),

positives AS (
    SELECT
        impression_id,
        CASE WHEN is_delayed THEN 'delayed_positive' ELSE 'immediate_positive' END AS kind,
        wait_us,
        event_id AS source_event_id,
        retracted_us,
        anchor_us,
        arrived_us,
        emit_us,
        serving_us
    FROM counted
    WHERE (place = 1 OR ($counting = 'all' AND is_delayed))
        AND emit_us >= $start_us
        AND emit_us < $end_us
),

kept AS (
    SELECT
        impression_id,
        delay_group,
        anchor_us,
        known_us,
        serving_us
    FROM anchors
    WHERE $negative_rate >= 1 OR md5($draw || drawn_id) < $kept_below
),

drawn AS (
    SELECT
        impression_id,
        delay_group,
        anchor_us,
        known_us,
        serving_us,
        known_us - known_us % $refit_us AS fitted_us,
        16 * strpos('0123456789abcdef', substr(md5($delay_draw || impression_id), 1, 1))
        + strpos('0123456789abcdef', substr(md5($delay_draw || impression_id), 2, 1))
        - 17 AS place
    FROM kept
    WHERE $matched
),

matched AS (
    SELECT
        drawn.impression_id,
        drawn.anchor_us,
        greatest(
            drawn.anchor_us + coalesce(own.delay_us, overall.delay_us, 0), drawn.known_us
        ) AS emit_us,
        drawn.serving_us
    FROM drawn
    LEFT JOIN examples.label_delays AS own
        ON own.goal = $goal
        AND own.fitted_us = drawn.fitted_us
        AND own.delay_group = drawn.delay_group
        AND own.place = drawn.place
    LEFT JOIN examples.label_delays AS overall
        ON overall.goal = $goal
        AND overall.fitted_us = drawn.fitted_us
        AND overall.delay_group = ''
        AND overall.place = drawn.place
),

emissions AS (
    SELECT
        impression_id,
        kind,
        1 AS label,
        wait_us,
        source_event_id,
        anchor_us,
        arrived_us,
        emit_us,
        serving_us
    FROM positives
    UNION ALL
    SELECT
        kept.impression_id,
        'negative' AS kind,
        0 AS label,
        waits.wait_us,
        '' AS source_event_id,
        kept.anchor_us,
        NULL AS arrived_us,
        greatest(kept.anchor_us + waits.wait_us, kept.known_us) AS emit_us,
        kept.serving_us
    FROM kept
    CROSS JOIN waits
    LEFT JOIN counted
        ON counted.impression_id = kept.impression_id
        AND counted.wait_us = waits.wait_us
        AND counted.place = 1
        AND NOT counted.is_delayed
    WHERE counted.impression_id IS NULL
        AND kept.known_us >= $start_us - waits.wait_us
        AND greatest(kept.anchor_us + waits.wait_us, kept.known_us) >= $start_us
        AND greatest(kept.anchor_us + waits.wait_us, kept.known_us) < $end_us
    UNION ALL
    SELECT
        impression_id,
        'matched_negative' AS kind,
        0 AS label,
        0 AS wait_us,
        '' AS source_event_id,
        anchor_us,
        NULL AS arrived_us,
        emit_us,
        serving_us
    FROM matched
    WHERE emit_us >= $start_us
        AND emit_us < $end_us
    UNION ALL
    SELECT
        labelled.impression_id,
        CASE labelled.label WHEN 1 THEN 'confirmed_positive' ELSE 'confirmed_negative' END AS kind,
        labelled.label,
        CAST($window_us AS BIGINT) + $lateness_us AS wait_us,
        coalesce(labelled.engagement_event_id, '') AS source_event_id,
        labelled.anchor_us,
        labelled.arrived_us,
        labelled.matured_us AS emit_us,
        labelled.serving_us
    FROM examples.labelled_impressions AS labelled
    LEFT JOIN events.impressions AS shown
        ON $negative_rate < 1
        AND shown.impression_id = labelled.impression_id
        AND shown.received_us = labelled.serving_us
    WHERE $confirmed
        AND labelled.goal = $goal
        AND labelled.matured_us >= $start_us
        AND labelled.matured_us < $end_us
        AND (
            labelled.label = 1
            OR $negative_rate >= 1
            OR md5($draw || coalesce(nullif(shown.request_id, ''), labelled.impression_id))
            < $kept_below
        )
    UNION ALL
    SELECT
        impression_id,
        'retraction' AS kind,
        0 AS label,
        wait_us,
        source_event_id,
        anchor_us,
        arrived_us,
        retracted_us AS emit_us,
        serving_us
    FROM positives
    WHERE retracted_us IS NOT NULL
    UNION ALL
    SELECT
        emitted.impression_id,
        'retraction' AS kind,
        0 AS label,
        emitted.wait_us,
        emitted.source_event_id,
        emitted.anchor_us,
        emitted.arrived_us,
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
    CAST(wait_us AS BIGINT) AS wait_us,
    source_event_id,
    anchor_us,
    CAST(arrived_us AS BIGINT) AS arrived_us,
    emit_us,
    serving_us,
    CAST(
        CASE
            WHEN kind IN ('negative', 'matched_negative', 'confirmed_negative') THEN 1 / $negative_rate
            ELSE 1
        END AS DOUBLE
    ) AS weight
FROM emissions
ORDER BY emit_us, impression_id, kind, wait_us, source_event_id
