"""Which hours' models stay, that nothing in use goes, and what a pruned hour says."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import (
    MissingCheckpoint,
    open_folder,
    point,
    pointed_names,
    resolve,
    write_checkpoint,
)
from ad_pipeline.clocks import DAY_US, HOUR_US, hour_key, hour_of
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.learners.online.online_checkpoints import digest_before, learnt_hours, pointer
from ad_pipeline.learners.online.retention import kept_hours, prune
from ad_pipeline.settings import CheckpointSettings

RULE = CheckpointSettings(hourly_hours=6, daily_days=3, at_least=2)
DAYS = 5


def deployment_of(folder: Path) -> Deployment:
    """Return a deployment whose retention is the rule of these tests."""
    dataset = load_dataset(DATA_FOLDER / "open_bandit" / "dataset.yaml")
    settings = dataset.settings.model_copy(update={"checkpoints": RULE})
    return Deployment(dataset.model_copy(update={"settings": settings}), folder)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """Return a deployment that has learnt five days and a half, an hour a checkpoint."""
    found = deployment_of(tmp_path)
    for hour_us in range(start_of(found), start_of(found) + DAYS * DAY_US + DAY_US // 2, HOUR_US):
        for goal in found.dataset.goal_names:
            written = write_checkpoint(
                found.checkpoints, "test", {"w": np.full(50, hour_us)}, {"goal": goal}
            )
            point(found.checkpoints, pointer(goal, hour_us), written.digest)
    return found


def start_of(deployment: Deployment) -> int:
    return hour_of(deployment.dataset.start_us)


def test_the_last_hours_and_one_of_each_day_before_them_are_kept():
    hours = [n * HOUR_US for n in range(5 * 24 + 12)]
    kept = {us // HOUR_US for us in kept_hours(hours, RULE)}
    assert kept == {*range(126, 132), 119, 95}  # the last three days: today, yesterday, the other
    assert kept_hours(kept_hours(hours, RULE), RULE) == kept_hours(hours, RULE)
    assert kept_hours([], RULE) == set()


def test_hour_by_hour_and_all_at_once_keep_the_same():
    """Else what is there would depend on how often somebody pruned."""
    there: set[int] = set()
    for number in range(DAYS * 24 + 7):
        there = kept_hours({*there, number * HOUR_US}, RULE)
    assert there == kept_hours((n * HOUR_US for n in range(DAYS * 24 + 7)), RULE)


def test_a_few_are_kept_however_old_they_are():
    hours = [0, HOUR_US, 90 * DAY_US]
    assert kept_hours(hours, RULE) == {HOUR_US, 90 * DAY_US}


def test_what_is_not_kept_is_gone_from_the_disk(deployment: Deployment):
    (goal, *_) = deployment.dataset.goal_names
    before = sum(path.stat().st_size for path in deployment.checkpoints.rglob("*.npy"))
    pruned = prune(deployment)
    assert learnt_hours(deployment, goal) == list(pruned.kept_us[goal])
    assert len(pruned.kept_us[goal]) == 8
    assert pruned.removed_hours == (DAYS * 24 + 12 - 8) * len(deployment.dataset.goal_names)
    after = sum(path.stat().st_size for path in deployment.checkpoints.rglob("*.npy"))
    assert after < before / 10
    for name in pointed_names(deployment.checkpoints, ""):
        digest = resolve(deployment.checkpoints, name)
        open_folder(deployment.checkpoints / "objects" / digest)
    assert prune(deployment).removed_hours == 0


def test_what_something_else_needs_stays(deployment: Deployment):
    """A bundle names checkpoints, a run that goes on needs the hour that it began at."""
    (goal, *_) = deployment.dataset.goal_names
    first_us = start_of(deployment)
    of_a_bundle = resolve(deployment.checkpoints, pointer(goal, first_us))
    batch = write_checkpoint(deployment.checkpoints, "batch", {}, {"a": 1})
    point(deployment.checkpoints, f"learners.batch_model/{goal}/2019-11-24-0000", batch.digest)
    prune(deployment, {of_a_bundle}, [first_us + 30 * HOUR_US])
    objects = {path.name for path in (deployment.checkpoints / "objects").iterdir()}
    assert {of_a_bundle, batch.digest} <= objects
    assert first_us not in learnt_hours(deployment, goal)
    assert first_us + 30 * HOUR_US in learnt_hours(deployment, goal)


def test_a_pruned_hour_says_from_which_hour_to_run(deployment: Deployment):
    (goal, *_) = deployment.dataset.goal_names
    prune(deployment)
    kept_us = learnt_hours(deployment, goal)
    assert digest_before(deployment, goal, kept_us[1] + HOUR_US)
    with pytest.raises(MissingCheckpoint, match="is not kept any more") as caught:
        digest_before(deployment, goal, kept_us[1] + 5 * HOUR_US)
    assert f"run from {hour_key(kept_us[1] + HOUR_US)}" in str(caught.value)
    with pytest.raises(MissingCheckpoint, match="run from the log's start") as caught:
        digest_before(deployment, goal, start_of(deployment) + 2 * HOUR_US)
    assert hour_key(start_of(deployment)) in str(caught.value)
    with pytest.raises(MissingCheckpoint, match="has not been learnt"):
        digest_before(deployment, goal, kept_us[-1] + 3 * HOUR_US)
    assert digest_before(deployment, goal, start_of(deployment)) is None


@pytest.mark.parametrize(("call", "number"), [("unlink", 1), ("unlink", 40), ("rename", 3)])
def test_a_prune_that_is_killed_leaves_a_whole_store_and_the_next_one_ends_it(
    deployment: Deployment, call: str, number: int
):
    """The process really dies: first among the pointers, then among what they named."""
    script = textwrap.dedent(f"""
        import os, pathlib, signal, sys
        from ad_pipeline.learners.online.retention import prune
        from ad_pipeline_tests.learners.test_retention import deployment_of
        true_call, left = os.{call}, {number}
        def deadly(*args, **kwargs):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return true_call(*args, **kwargs)
        os.{call} = deadly
        prune(deployment_of(pathlib.Path(sys.argv[1])))
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(deployment.home)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (goal, *_) = deployment.dataset.goal_names
    assert len(list((deployment.checkpoints / "objects").iterdir())) > 16
    for name in pointed_names(deployment.checkpoints, ""):
        digest = resolve(deployment.checkpoints, name)
        open_folder(deployment.checkpoints / "objects" / digest)
    kept = prune(deployment)
    assert len(kept.kept_us[goal]) == 8
    assert kept.swept.kept == len(list((deployment.checkpoints / "objects").iterdir()))
