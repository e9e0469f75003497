-- Slots of the hashed linear learner that more than one value falls into, fullest first.
-- grain: slot
-- key: slot
-- clock: none
SELECT
    slot,
    COUNT(*) AS tokens,
    LIST(feature || '=' || value ORDER BY feature, value) AS meanings
FROM features.inverse_dictionary
GROUP BY slot
HAVING COUNT(*) > 1
ORDER BY tokens DESC, slot
