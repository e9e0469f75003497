"""Where the online model of an hour is found, and whether an hour may continue from it.

Names of pointers, the hours that have one, and what must be equal for a learner to go on where
another one stopped. What is inside a checkpoint is written and read by
:mod:`ad_pipeline.learners.online.online_hours`; how long it stays is :mod:`.retention`'s to say.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ad_pipeline.checkpoints import MissingCheckpoint, is_pointed, pointed_names, resolve
from ad_pipeline.clocks import HOUR_US, PARTITION_KEY_FORMAT, hour_key, hour_of, microseconds
from ad_pipeline.datasets import Deployment
from ad_pipeline.settings import OnlineSettings

KIND = "learners.online_model"


class OtherLearner(ValueError):
    """A checkpoint was left by a learner with other features, parameters or code."""


def pointer(goal: str, hour_us: int) -> str:
    """Return the name of the checkpoint that an hour left for a goal."""
    return f"{KIND}/{goal}/{hour_key(hour_us)}"


def learnt_hours(deployment: Deployment, goal: str, kind: str = KIND) -> list[int]:
    """Return the starts of the hours whose model of a kind is there, microseconds, in order."""
    form = PARTITION_KEY_FORMAT.replace(":", "")  # as pointers are filed
    names = pointed_names(deployment.checkpoints, f"{kind}/{goal}")
    return sorted(
        microseconds(datetime.strptime(name.rpartition("/")[2], form).replace(tzinfo=UTC))
        for name in names
    )


def digest_before(deployment: Deployment, goal: str, start_us: int) -> str | None:
    """Return the checkpoint that an hour continues from, None at the log's start.

    Parameters
    ----------
    deployment : Deployment
    goal : str
    start_us : int
        Start of the hour, microseconds.

    Raises
    ------
    MissingCheckpoint
        If the hour before has none; the message names the hour to run from.
    """
    name = pointer(goal, start_us - HOUR_US)
    if is_pointed(deployment.checkpoints, name):
        return resolve(deployment.checkpoints, name)
    first_us = hour_of(deployment.dataset.start_us)
    if start_us <= first_us:
        return None
    hours_us = learnt_hours(deployment, goal)
    earlier = [us for us in hours_us if us < start_us]
    was_there = any(us >= start_us for us in hours_us)
    why = "is not kept any more" if was_there else "has not been learnt"
    begin = (
        f"the nearest one before it is that of {hour_key(earlier[-1])}: run from "
        f"{hour_key(earlier[-1] + HOUR_US)}"
        if earlier
        else f"there is none before it: run from the log's start, {hour_key(first_us)}"
    )
    raise MissingCheckpoint(
        f"the online model of {goal} after {hour_key(start_us - HOUR_US)} {why} "
        f"(settings.checkpoints); {begin}"
    )


def learner_of(settings: OnlineSettings) -> dict[str, Any]:
    """Return what makes a learner: a chain of hours has one, from its first to its last.

    The length of a slice and the weights of examples are not in it: they act from the hour on in
    which they are changed.
    """
    if settings.estimator != "ftrl":
        parts = settings.model_dump(mode="json", include={"estimator", "estimator_parameters"})
        return parts | {"bits": settings.bits}
    configurations = [each.model_dump(mode="json") for each in settings.configurations()]
    return {
        "estimator": "ftrl",
        "bits": settings.bits,
        "dtype": settings.dtype,
        "configurations": configurations,
    }


def must_continue(
    manifest: Mapping[str, Any],
    goal: str,
    expected: Mapping[str, Any],
    start_us: int,
    expert: str = "online",
) -> None:
    """Refuse a checkpoint that the learner of today may not go on from.

    Parameters
    ----------
    manifest : mapping
        Of the checkpoint.
    goal : str
    expected : mapping
        ``contract``, ``learner`` (:func:`learner_of`) and ``code_version`` of today.
    start_us : int
        Start of the hour that wants to continue, microseconds.
    expert : str
        Whose model it is: also the name of its settings.

    Raises
    ------
    OtherLearner
        Naming what differs and what to do.
    """
    before = hour_key(start_us - HOUR_US)
    if manifest["contract"] != expected["contract"]:
        raise OtherLearner(
            f"the {expert} model of {goal} after {before} was trained on other features; run from "
            "the log's start, or undo the change of the dataset file"
        )
    was, is_now = _flat(manifest["learner"]), _flat(expected["learner"])
    changed = [
        f"{name} is {is_now.get(name)!r} and was {was.get(name)!r}"
        for name in sorted(was.keys() | is_now.keys())
        if was.get(name) != is_now.get(name)
    ]
    if changed:
        raise OtherLearner(
            f"the {expert} model of {goal} after {before} has another learner: "
            f"{'; '.join(changed)}. Such a setting of settings.{expert} acts from the log's start "
            "only: run all hours again, or undo the change of the dataset file"
        )
    if manifest["code_version"] != expected["code_version"]:
        raise OtherLearner(
            f"the {expert} model of {goal} after {before} was learnt by version "
            f"{manifest['code_version']} of the code, and this is version "
            f"{expected['code_version']}, which learns otherwise; run all hours again, or go on "
            "with the version that began"
        )


def _flat(learner: Mapping[str, Any]) -> dict[str, Any]:
    """Return a learner's parameters by one name each, those of configuration 0 by their own."""
    flat = {name: value for name, value in learner.items() if name != "configurations"}
    for place, configuration in enumerate(learner.get("configurations", ())):
        prefix = f"grid[{place - 1}]." if place else ""
        flat |= {
            f"{prefix}{name}": value
            for name, value in configuration.items()
            if place or name not in flat
        }
    return flat
