-- Roll-backs whose replay has not been looked at yet, beside what was decided and what became of it.
-- grain: goal, hour
-- key: goal, hour_us
-- clock: hour_us
-- Not stored: the end of a recovery fills in the rest of these rows.
SELECT
    recoveries.goal,
    recoveries.hour_us,
    recoveries.rolled_back_to,
    recoveries.start_us,
    recoveries.end_us,
    decided.state AS decision,
    guards.state,
    guards.examples
FROM learners.recoveries AS recoveries
INNER JOIN learners.quarantined_hours AS decided
    ON decided.goal = recoveries.goal
    AND decided.hour_us = recoveries.hour_us
LEFT JOIN learners.hour_guards AS guards
    ON guards.goal = recoveries.goal
    AND guards.hour_us = recoveries.hour_us
WHERE recoveries.succeeded IS NULL
ORDER BY recoveries.hour_us, recoveries.goal
