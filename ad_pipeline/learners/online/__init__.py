"""The online expert over log hours: score, then learn; its grid, lanes, guard and recovery."""
