-- How the configurations of one goal's grid did in some hours, and which of them was chosen.
-- grain: hour, configuration (of one goal)
-- key: hour_us, configuration
-- clock: hour_us
-- Not stored: the selection of later hours looks back on it.
SELECT
    hour_us,
    configuration,
    chosen,
    rows,
    positives,
    loss,
    excess_losses
FROM learners.grid_selection
WHERE goal = $goal
    AND hour_us >= $start_us AND hour_us < $end_us
ORDER BY hour_us, configuration
