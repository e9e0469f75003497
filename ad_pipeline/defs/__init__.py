"""The rooms as Dagster sees them, and the only code that imports Dagster or opens the warehouse."""
