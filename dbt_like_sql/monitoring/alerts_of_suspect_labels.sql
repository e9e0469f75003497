-- Labels of an hour that are not what was due, of a goal or of a part of its anchors.
--
-- grain: hour, goal, part
-- key:   subject
-- clock: since_us
-- Not stored by itself: one source of monitoring.alerts.
SELECT
    CASE slice_of WHEN 'all' THEN 'page' ELSE 'warn' END AS severity,
    goal || CASE slice_of WHEN 'all' THEN '' ELSE ', ' || slice_of || ' ' || part END
    || ', ' || strftime(make_timestamp(hour_us), '%Y-%m-%d-%H:00') AS subject,
    verdict || ': ' || reason AS found,
    hour_us AS since_us,
    'ask whoever sends these labels; settings.label_quality.act leaves such hours out by itself' AS act
FROM monitoring.label_quality
WHERE hour_us >= $from_us
    AND verdict IN ('stalled', 'jumped', 'late', 'retracted a lot')
ORDER BY hour_us, goal, slice_of, part
