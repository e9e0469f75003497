-- How many pairs of impression and goal do not have exactly one score of the online expert.
-- grain: one row
-- key: none
-- clock: none
WITH wanted AS (
    SELECT
        impressions.impression_id,
        goals.goal
    FROM events.impressions AS impressions
    CROSS JOIN (SELECT unnest($goals) AS goal) AS goals
),

scored AS (
    SELECT
        impression_id,
        goal,
        count(*) AS scores
    FROM learners.online_predictions
    GROUP BY impression_id, goal
)

SELECT count(*) AS wrong
FROM wanted
FULL OUTER JOIN scored
    ON scored.impression_id = wanted.impression_id
    AND scored.goal = wanted.goal
WHERE wanted.impression_id IS NULL
    OR scored.impression_id IS NULL
    OR scored.scores <> 1
