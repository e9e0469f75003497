"""A study that costs nothing, and a program that runs it slowly enough to be killed."""

import sys
import time
from pathlib import Path

from benchmarks.studies import Study, Values, run_studies

SEEDS = (1, 2, 3, 4)


def run(arm: str, seed: int) -> Values:
    """Give numbers that follow from arm and seed alone."""
    return {"value": seed * (10.0 if arm == "ten" else 1.0)}


def slow_run(arm: str, seed: int) -> Values:
    """Do the same, a while later."""
    time.sleep(0.3)
    return run(arm, seed)


def toy(settings: int = 1, *, slow: bool = False) -> Study:
    """Return the study under some settings."""
    return Study(
        name="toy",
        settings={"version": settings},
        seeds={"one": SEEDS, "ten": SEEDS},
        run=slow_run if slow else run,
        seconds=2.0,
    )


if __name__ == "__main__":
    run_studies([toy(slow=True)], Path(sys.argv[1]))
