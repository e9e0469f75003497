"""Where Dagster enters: everything under `defs/`, collected. Nothing is defined here."""

from pathlib import Path

import dagster as dg  # noqa: TID251 - the one module beside defs/ that Dagster itself loads


@dg.definitions
def defs() -> dg.Definitions:
    """Collect the assets, checks, jobs, schedules, sensors and resources of `defs/`."""
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
