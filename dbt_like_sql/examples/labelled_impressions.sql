-- The anchors of one goal that matured in the range, each once, with their final label.
--
-- grain: one row per goal and anchor, of which an impression has at most one
-- key:   goal, impression_id
-- clock: matured_us = window + lateness after the anchor, or when the log had the anchor if that
--        was later; every fact in a row was received by its matured_us
--
-- A counted engagement occurred within the attribution window, was received by maturity and was not
-- retracted by maturity; the first by occurred_us (then event_id) gives delay and identity, so that
-- the label does not depend on the order in which the log received things. Later retractions are
-- states, never rewrites. A chain goal is anchored at the first counted engagement of its parent's
-- final label. As a child's window + lateness is at least its parent's, that label is final by the
-- time the child's is; the parent's hours must be in the table already.
--
-- Why the scans may be this short, with horizon = window + lateness: occurred_us <= received_us, and
-- an engagement is never of an earlier log hour than its impression. So an anchor that matures in
-- the range was known less than a horizon before it, and what counts for it was received since then.
WITH anchors AS (
    SELECT
        impression_id,
        occurred_us AS anchor_us,
        received_us AS serving_us,
        greatest(occurred_us + $window_us + $lateness_us, received_us) AS matured_us
    FROM events.impressions
    WHERE $anchor_goal = 'impression'
        AND received_us >= $start_us - $window_us - $lateness_us
        AND received_us < $end_us
        AND occurred_us < $end_us - $window_us - $lateness_us
    UNION ALL
    SELECT
        impression_id,
        engaged_us AS anchor_us,
        serving_us,
        greatest(engaged_us + $window_us + $lateness_us, matured_us) AS matured_us
    FROM examples.labelled_impressions
    WHERE $anchor_goal <> 'impression'
        AND goal = $anchor_goal
        AND label = 1
        AND matured_us >= $start_us - $window_us - $lateness_us
        AND matured_us < $end_us
        AND engaged_us < $end_us - $window_us - $lateness_us
),

maturing AS (
    SELECT
        impression_id,
        anchor_us,
        serving_us,
        matured_us
    FROM anchors
    WHERE matured_us >= $start_us
        AND matured_us < $end_us
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
        maturing.impression_id,
        engagements.event_id,
        engagements.occurred_us,
        min(engagements.received_us) OVER (PARTITION BY maturing.impression_id) AS arrived_us,
        row_number() OVER (
            PARTITION BY maturing.impression_id
            ORDER BY engagements.occurred_us, engagements.event_id
        ) AS place,
        count(*) OVER (PARTITION BY maturing.impression_id) AS engagements
    FROM events.engagements AS engagements
    INNER JOIN maturing
        ON maturing.impression_id = engagements.impression_id
    LEFT JOIN first_retractions
        ON first_retractions.engagement_event_id = engagements.event_id
    WHERE engagements.goal = $goal
        AND engagements.received_us >= $start_us - $window_us - $lateness_us
        AND engagements.received_us < $end_us
        AND engagements.occurred_us >= maturing.anchor_us
        AND engagements.occurred_us <= maturing.anchor_us + $window_us
        AND engagements.received_us <= maturing.matured_us
        AND (
            first_retractions.retracted_us IS NULL
            OR first_retractions.retracted_us > maturing.matured_us
        )
)

SELECT
    CAST($goal AS VARCHAR) AS goal,
    maturing.impression_id,
    maturing.anchor_us,
    maturing.matured_us,
    CAST(CASE WHEN counted.event_id IS NULL THEN 0 ELSE 1 END AS TINYINT) AS label,
    counted.occurred_us - maturing.anchor_us AS delay_us,
    CAST(
        CASE
            WHEN counted.event_id IS NULL THEN 0
            WHEN $counting = 'all' THEN counted.engagements
            ELSE 1
        END AS BIGINT
    ) AS engagements,
    counted.event_id AS engagement_event_id,
    counted.occurred_us AS engaged_us,
    counted.arrived_us,
    maturing.serving_us,
    maturing.serving_us - maturing.serving_us % 3600000000 AS serving_hour_us
FROM maturing
LEFT JOIN counted
    ON counted.impression_id = maturing.impression_id
    AND counted.place = 1
ORDER BY maturing.matured_us, maturing.impression_id
