-- How many positives were emitted before our log had the engagement that they rest on.
-- grain: one row
-- key: none
-- clock: none
SELECT count(*) AS ahead
FROM examples.training_examples AS examples
INNER JOIN events.engagements AS engagements
    ON engagements.event_id = examples.source_event_id
WHERE examples.kind IN ('immediate_positive', 'delayed_positive', 'confirmed_positive')
    AND engagements.received_us > examples.emit_us
