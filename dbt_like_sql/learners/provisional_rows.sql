-- The anchors of one goal whose first example was emitted and whose label is not final by a moment.
-- grain: impression (of one goal)
-- key: impression_id
-- clock: none; every fact in a row was received before the moment now_us, which is log time
-- Not stored: the ensemble compares its mixtures on it between maturities. The label is 1 while the
-- first positive of the anchor has been emitted and not been retracted; arrival_delays counts the
-- same thing on matured rows. Logits are those given at serving time; null where there was none.
-- Read off the label states, which hold the first emission of every anchor; the training examples
-- of negatives may be thinned.
-- An anchor that matures at or after the moment lies less than window + lateness before it, and all
-- of its emissions lie between the two. The horizon parameter reaches from maturity back to serving.
-- A chain goal's final label may hang on another engagement of the parent than the one that was
-- emitted first, and so be final already: such impressions are left out.
WITH emitted AS (
    SELECT
        impression_id,
        state,
        source_event_id,
        anchor_us,
        state_us,
        serving_us
    FROM examples.label_states
    WHERE goal = $goal
        AND state IN (
            'provisional_negative', 'immediate_positive', 'delayed_positive', 'retracted'
        )
        AND anchor_us >= $now_us - $window_us - $lateness_us
        AND state_us >= $now_us - $window_us - $lateness_us
        AND state_us < $now_us
),

positives AS (
    SELECT
        impression_id,
        source_event_id,
        row_number() OVER (
            PARTITION BY impression_id ORDER BY state_us, source_event_id
        ) AS place
    FROM emitted
    WHERE state IN ('immediate_positive', 'delayed_positive')
),

standing AS (
    SELECT positives.impression_id
    FROM positives
    LEFT JOIN emitted AS retractions
        ON retractions.source_event_id = positives.source_event_id
        AND retractions.state = 'retracted'
    WHERE positives.place = 1
        AND retractions.source_event_id IS NULL
),

final AS (
    SELECT impression_id
    FROM examples.labelled_impressions
    WHERE goal = $goal
        AND matured_us >= $now_us - $horizon_us
)

SELECT
    anchors.impression_id,
    anchors.anchor_us,
    anchors.serving_us,
    CAST(CASE WHEN standing.impression_id IS NULL THEN 0 ELSE 1 END AS TINYINT) AS label,
    online.logit AS online_logit,
    batch.logit AS batch_logit,
    deep.logit AS deep_logit
FROM emitted AS anchors
LEFT JOIN standing
    ON standing.impression_id = anchors.impression_id
LEFT JOIN final
    ON final.impression_id = anchors.impression_id
LEFT JOIN (
    SELECT impression_id, logit
    FROM learners.online_predictions
    WHERE goal = $goal AND serving_us >= $now_us - $horizon_us AND serving_us < $now_us
) AS online
    ON online.impression_id = anchors.impression_id
LEFT JOIN (
    SELECT impression_id, logit
    FROM learners.batch_predictions
    WHERE goal = $goal AND serving_us >= $now_us - $horizon_us AND serving_us < $now_us
) AS batch
    ON batch.impression_id = anchors.impression_id
LEFT JOIN (
    SELECT impression_id, logit
    FROM learners.deep_predictions
    WHERE goal = $goal AND serving_us >= $now_us - $horizon_us AND serving_us < $now_us
) AS deep
    ON deep.impression_id = anchors.impression_id
WHERE anchors.state IN ('immediate_positive', 'provisional_negative')
    AND final.impression_id IS NULL
ORDER BY anchors.serving_us, anchors.impression_id
