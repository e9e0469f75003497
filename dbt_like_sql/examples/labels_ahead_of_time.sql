-- How many labels rest on an engagement that our log had only after they matured.
-- grain: one row
-- key: none
-- clock: none
SELECT count(*) AS ahead
FROM examples.labelled_impressions AS labelled
INNER JOIN events.engagements AS engagements
    ON engagements.event_id = labelled.engagement_event_id
WHERE engagements.received_us > labelled.matured_us
    OR engagements.occurred_us < labelled.anchor_us
