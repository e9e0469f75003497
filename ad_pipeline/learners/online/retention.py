"""Which checkpoints of the online and the deep model are kept, and removing the others.

An hour's checkpoint is as large as what has been learnt, so that keeping all of them fills any
disk. Every hour of the last days is kept and one of each day before them; ages are counted back
from the newest hour in log time, never from the wall clock, so that the same log keeps the same
hours. Batch models and ensembles keep their pointers: they are few. What a bundle needs is for
:mod:`ad_pipeline.serving` to say.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ad_pipeline.checkpoints import Swept, sweep, unpoint
from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.learners.deep import deep_hours
from ad_pipeline.learners.online.online_checkpoints import KIND, learnt_hours, pointer
from ad_pipeline.settings import CheckpointSettings

DEEP = ", wide & deep"
"""Behind a goal's name: its hours of wide & deep."""


@dataclass(frozen=True)
class Pruned:
    """What retention kept and removed.

    Attributes
    ----------
    kept_us : dict of str to tuple of int
        By goal: starts of the hours whose online model is still there, microseconds, in order; by
        goal and :data:`DEEP`, those of wide & deep where it has any.
    removed_us : dict of str to tuple of int
        Likewise: those whose model is gone.
    swept : Swept
        Checkpoints and bytes.
    """

    kept_us: dict[str, tuple[int, ...]]
    removed_us: dict[str, tuple[int, ...]]
    swept: Swept

    @property
    def removed_hours(self) -> int:
        """Hours removed, over all goals."""
        return sum(map(len, self.removed_us.values()))


def kept_hours(hours_us: Iterable[int], settings: CheckpointSettings) -> set[int]:
    """Return those hours whose checkpoint is kept.

    Parameters
    ----------
    hours_us : iterable of int
        Starts of the hours that have one, microseconds.
    settings : CheckpointSettings

    Returns
    -------
    set of int
        Applying the rule to what it keeps removes nothing more.
    """
    hours = sorted(hours_us)
    if not hours:
        return set()
    newest_us = hours[-1]
    hourly = {us for us in hours if us > newest_us - settings.hourly_hours * HOUR_US}
    last_of_day = {us // DAY_US: us for us in hours}
    first_day = newest_us // DAY_US - settings.daily_days
    daily = {us for day, us in last_of_day.items() if day > first_day}
    return hourly | daily | set(hours[-settings.at_least :])


def prune(
    deployment: Deployment, needed: Collection[str] = (), needed_hours: Collection[int] = ()
) -> Pruned:
    """Remove the checkpoints that retention does not keep.

    The pointers go first, then what no pointer names: a process killed at any point leaves no
    pointer that names nothing, and the next call removes the rest.

    Parameters
    ----------
    deployment : Deployment
    needed : collection of str
        Digests that stay whatever their age, such as those that a bundle names.
    needed_hours : collection of int
        Starts of hours that stay whatever their age, such as the one that a run going on began at.

    Raises
    ------
    CheckpointsBusy
        If somebody goes on writing checkpoints.
    """
    kept: dict[str, tuple[int, ...]] = {}
    removed: dict[str, tuple[int, ...]] = {}
    for kind, pointer_of, suffix in (
        (KIND, pointer, ""),
        (deep_hours.KIND, deep_hours.pointer, DEEP),
    ):
        for goal in deployment.dataset.goal_names:
            hours_us = learnt_hours(deployment, goal, kind)
            if suffix and not hours_us:
                continue
            stay = kept_hours(hours_us, deployment.dataset.settings.checkpoints) | set(needed_hours)
            name = f"{goal}{suffix}"
            kept[name] = tuple(us for us in hours_us if us in stay)
            removed[name] = tuple(us for us in hours_us if us not in stay)
            for hour_us in removed[name]:
                unpoint(deployment.checkpoints, pointer_of(goal, hour_us))
    return Pruned(kept, removed, sweep(deployment.checkpoints, needed))
