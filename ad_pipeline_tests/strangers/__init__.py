"""Logs that the project did not write itself, in the formats in which they were published."""
