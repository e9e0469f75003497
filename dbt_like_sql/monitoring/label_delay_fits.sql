-- When the distributions of delays that are in force within a range of moments were fitted.
-- grain: fit (of one goal)
-- key: fitted_us
-- clock: fitted_us
-- Not stored: estimates of performance read it. The fit in force at the first moment is older.
SELECT DISTINCT fitted_us
FROM examples.label_delays
WHERE goal = $goal
    AND fitted_us <= $last_us
    AND fitted_us >= (
        SELECT coalesce(max(earlier.fitted_us), 0)
        FROM examples.label_delays AS earlier
        WHERE earlier.goal = $goal AND earlier.fitted_us <= $first_us
    )
ORDER BY fitted_us
