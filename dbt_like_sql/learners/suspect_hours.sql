-- Hours whose guard tripped and that nobody decided about, and those not run since the decision.
-- grain: goal, hour
-- key: goal, hour_us
-- clock: hour_us
-- Not stored: a check, a sensor and the command line ask it. An hour that is run after a decision
-- about it has the decision for its guard's state.
SELECT
    guards.goal,
    guards.hour_us,
    guards.reason,
    decided.state AS decision
FROM learners.hour_guards AS guards
LEFT JOIN learners.quarantined_hours AS decided
    ON decided.goal = guards.goal
    AND decided.hour_us = guards.hour_us
WHERE (decided.state IS NULL AND guards.state = 'tripped')
    OR decided.state <> guards.state
ORDER BY guards.hour_us, guards.goal
