-- What users did and our log had within a range: activities, and engagements with ads.
--
-- grain: one row per event_id of events.user_activities or events.engagements
-- key:   event_id
-- clock: received_us
--
-- Not stored: sequences are laid out from it. An engagement is of the modality ad_<goal> and has its
-- impression's columns, which say what the ad is; activities of a name like that would say the same
-- twice and are left out. An engagement that was taken back later stays: the user did it.
SELECT
    activities.event_id,
    activities.user_id,
    activities.modality,
    activities.content_id,
    activities.occurred_us,
    activities.received_us
FROM events.user_activities AS activities
WHERE activities.received_us >= $from_us
    AND activities.received_us <= $as_of_us
    AND activities.user_id IS NOT NULL
    AND list_contains($modalities, activities.modality)
    AND NOT list_contains($ad_modalities, activities.modality)
UNION ALL BY NAME
SELECT
    engagements.event_id,
    impressions.* EXCLUDE (occurred_us, received_us),
    'ad_' || engagements.goal AS modality,
    engagements.occurred_us,
    engagements.received_us
FROM events.engagements AS engagements
INNER JOIN events.impressions AS impressions
    ON impressions.impression_id = engagements.impression_id
WHERE engagements.received_us >= $from_us
    AND engagements.received_us <= $as_of_us
    AND impressions.user_id IS NOT NULL
    AND list_contains($ad_modalities, 'ad_' || engagements.goal)
