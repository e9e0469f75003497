-- The final labels of one goal beside the places that its anchors have in a stream.
-- grain: anchor
-- key: place
-- clock: matured_us
-- Not stored: the benchmark of late labels reads it from tables in memory. The relation places gives
-- every anchor its place, in order of serving.
SELECT
    places.place,
    labelled.matured_us,
    labelled.label,
    labelled.arrived_us
FROM examples.labelled_impressions AS labelled
INNER JOIN places
    ON places.impression_id = labelled.impression_id
WHERE labelled.goal = $goal
