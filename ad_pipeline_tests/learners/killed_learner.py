"""The online learner as a process of its own, to be killed: `killed_learner.py <file> <home>`.

It learns every hour that has no model yet, as the sensor of closed hours would have it, and says
when it begins. A third argument plants a fault: ``repeat`` lets what resumes inside an hour learn
the last slice again, ``skip`` lets it leave one out.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ad_pipeline.clocks import HOUR_US, hours_between
from ad_pipeline.datasets import Deployment, load_dataset
from ad_pipeline.learners.online.online_checkpoints import learnt_hours
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.learners.online.within_hour import Resumed, WithinHour
from ad_pipeline.warehouse import Warehouse

FAULTS = {"repeat": -1, "skip": 1}


def plant(fault: str) -> None:
    """Let a resumed learner begin a slice too early or too late."""
    sound: Callable[[WithinHour], Resumed | None] = WithinHour.resume

    def resume(self: WithinHour) -> Resumed | None:
        found = sound(self)
        if found is None:
            return None
        next_slice = max(0, found.position.next_slice + FAULTS[fault])
        return replace(found, position=replace(found.position, next_slice=next_slice))

    WithinHour.resume = resume


def main() -> None:
    """Learn the hours that are missing."""
    dataset = load_dataset(Path(sys.argv[1]))
    deployment = Deployment(dataset, Path(sys.argv[2]))
    if len(sys.argv) > 3:
        plant(sys.argv[3])
    end_us = dataset.last_hour_end_us
    if end_us is None:
        raise ValueError("the log has to be closed")
    learnt = set.intersection(*(set(learnt_hours(deployment, g)) for g in dataset.goal_names))
    missing = [us for us in hours_between(dataset.start_us, end_us) if us not in learnt]
    sys.stdout.write(f"begins, {len(missing)} hours\n")
    sys.stdout.flush()
    if missing:
        for hour in learn_hours(
            Warehouse(deployment.warehouse), deployment, missing[0], missing[-1] + HOUR_US
        ):
            sys.stdout.write(f"{hour.goal} {hour.hour_us}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
