-- Counts of one rate snapshot, from scratch: an independent recount for parity.
-- The window ends with the given hour and is measured by the log's clock.
-- A goal's anchors are impressions, or the engagements of the goal that it is anchored on;
-- the lists of goals and of anchors are in the same order.
-- grain: entity, value, goal
-- key: entity, value, goal
-- clock: received_us
WITH happened AS (
    SELECT 'impression' AS what, i.impression_id
    FROM events.impressions AS i
    WHERE i.received_us < $hour_us + 3600000000
      AND i.received_us >= $hour_us + 3600000000 - $window_us
    UNION ALL
    SELECT e.goal AS what, e.impression_id
    FROM events.engagements AS e
    WHERE e.received_us < $hour_us + 3600000000
      AND e.received_us >= $hour_us + 3600000000 - $window_us
),
by_impression AS (
    SELECT h.impression_id, h.what, COUNT(*) AS times
    FROM happened AS h
    GROUP BY h.impression_id, h.what
),
described AS (
    SELECT b.what, b.times, to_json(i) AS impression
    FROM by_impression AS b
    INNER JOIN events.impressions AS i ON i.impression_id = b.impression_id
),
entities AS (
    SELECT unnest($entities) AS entity
),
goals AS (
    SELECT unnest($goals) AS goal, unnest($anchors) AS anchor
),
by_value AS (
    SELECT
        n.entity,
        json_extract_string(d.impression, '$."' || n.entity || '"') AS value,
        d.what,
        SUM(d.times) AS times
    FROM described AS d
    CROSS JOIN entities AS n
    GROUP BY n.entity, value, d.what
)
SELECT
    v.entity,
    v.value,
    g.goal,
    CAST(SUM(CASE WHEN v.what = g.anchor THEN v.times ELSE 0 END) AS BIGINT) AS anchors,
    CAST(SUM(CASE WHEN v.what = g.goal THEN v.times ELSE 0 END) AS BIGINT) AS engagements
FROM by_value AS v
INNER JOIN goals AS g ON v.what = g.anchor OR v.what = g.goal
GROUP BY v.entity, v.value, g.goal
