"""A learner that dies inside an hour goes on where it was, and ends where it would have ended.

Compared is all that it leaves: predictions, guards and moves in the warehouse, every checkpoint and
pointer. The hundred kills are SIGKILLs of real processes at drawn instants; the quick tests break
off inside this process.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ad_pipeline.checkpoints import pointed_names, read_checkpoint, resolve, sweep
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.online import within_hour
from ad_pipeline.learners.online.online_checkpoints import OtherLearner, learnt_hours, pointer
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.learners.online.within_hour import WithinHour
from ad_pipeline.warehouse import Warehouse, one_row
from ad_pipeline_tests.defs.left_behind import LeftBehind, differences
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import learnt, ready_market, with_settings

ONLINE = {"bits": 14, "micro_batch_minutes": 10, "checkpoint_micro_batches": 1}
SEED = 20261125
KILLS = 100
KILLS_A_HOME = 10
"""On average: instants are drawn so that a home takes about so many before it has learnt all."""
AT_ONCE = 2


class BrokenOff(Exception):
    """Raised in the place of a death."""


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market that is ready to be learnt, with checkpoints inside its hours."""
    return ready_market(tmp_path_factory.mktemp("ready"), days=1, settings={"online": ONLINE})


@pytest.fixture(scope="module")
def undisturbed(
    ready: Market, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LeftBehind, float]:
    """Return what a learner leaves that nobody disturbed, and the seconds it took."""
    market = ready.copied_to(tmp_path_factory.mktemp("undisturbed") / "home")
    process = started(market)
    began = time.monotonic()
    process.communicate()
    seconds = time.monotonic() - began
    assert process.returncode == 0
    assert pointed_names(market.deployment.checkpoints, within_hour.KIND) == []
    return ended(market), seconds


@pytest.fixture(scope="module")
def whole(ready: Market, tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return the market after four hours that nobody broke off; tests only read it."""
    market = ready.copied_to(tmp_path_factory.mktemp("whole") / "home")
    learn(market)
    return market


def ended(market: Market) -> LeftBehind:
    """Return what was learnt, without checkpoints that a death left and that nothing names."""
    sweep(market.deployment.checkpoints)
    return learnt(market.deployment)


def started(market: Market, *fault: str) -> subprocess.Popen[str]:
    """Start a learner in a process of its own and wait until it begins to learn."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ad_pipeline_tests.learners.killed_learner",
         str(market.dataset_file), str(market.deployment.home), *fault],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith("begins"), said + process.stdout.read()
    return process


def learn(market: Market, first: int = 0, hours: int = 4) -> None:
    deployment = market.deployment
    start_us = market.start_us + first * HOUR_US
    for _ in learn_hours(
        Warehouse(deployment.warehouse), deployment, start_us, start_us + hours * HOUR_US
    ):
        pass


def break_off(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the number-th checkpoint inside an hour be the last that is written."""
    sound, left = WithinHour.keep, number

    def keep(self: WithinHour, *arguments) -> None:
        nonlocal left
        sound(self, *arguments)
        left -= 1
        if not left:
            raise BrokenOff

    monkeypatch.setattr(WithinHour, "keep", keep)


def positions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that gets the slice and the examples at which a learner resumes."""
    found: list[tuple[int, int]] = []
    sound = WithinHour.resume

    def resume(self: WithinHour):
        resumed = sound(self)
        if resumed is not None:
            found.append((resumed.position.next_slice, resumed.position.examples))
        return resumed

    monkeypatch.setattr(WithinHour, "resume", resume)
    return found


@pytest.mark.parametrize("number", [1, 4, 5, 6, 13])
def test_a_learner_that_broke_off_resumes_at_its_slice_and_ends_alike(
    ready: Market, whole: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    market = ready.copied_to(tmp_path / "broken off")
    with monkeypatch.context() as patched:
        break_off(patched, number)
        with pytest.raises(BrokenOff):
            learn(market)
    resumed = positions(monkeypatch)
    whole_hours = len(learnt_hours(market.deployment, "click"))
    assert whole_hours == (number - 1) // 10  # five an hour, of each of two goals
    learn(market, whole_hours, 4 - whole_hours)
    next_slice, examples = resumed[-1]
    assert next_slice == (number - 1) % 5 + 1  # of six slices the last has the hour's own
    assert examples > 0 or number < 10  # nothing is emitted when a log begins
    assert differences(ended(whole), ended(market)) == []
    assert pointed_names(market.deployment.checkpoints, within_hour.KIND) == []


def test_checkpoints_inside_hours_change_nothing_that_is_learnt(
    ready: Market, whole: Market, tmp_path: Path
):
    plain = ready.copied_to(tmp_path / "plain")
    plain = with_settings(plain, online={"checkpoint_micro_batches": None})
    learn(plain)
    for goal in plain.deployment.dataset.goal_names:
        arrays = [
            {name: array.tobytes() for name, array in _model(market, goal, 3).arrays.items()}
            for market in (whole, plain)
        ]
        assert arrays[0] == arrays[1]


def test_what_was_kept_of_another_input_is_not_resumed(
    ready: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A late file may change an hour that was broken off: it is learnt from its start."""
    market = ready.copied_to(tmp_path / "changed")
    with monkeypatch.context() as patched:
        break_off(patched, 4)
        with pytest.raises(BrokenOff):
            learn(market)
    changed = "DELETE FROM examples.training_examples WHERE emit_us < $end_us AND rowid % 2 = 0"
    with Warehouse(market.deployment.warehouse).writer() as connection:
        connection.execute(changed, {"end_us": market.start_us + HOUR_US})
    expected = market.copied_to(tmp_path / "expected")
    for name in pointed_names(expected.deployment.checkpoints, within_hour.KIND):
        (expected.deployment.checkpoints / "pointers" / f"{name}.json").unlink()
    learn(expected)
    resumed = positions(monkeypatch)
    learn(market)
    assert resumed == []
    assert differences(ended(expected), ended(market)) == []


def test_another_learner_may_not_go_on_where_this_one_stopped(whole: Market, tmp_path: Path):
    """Else a changed setting would do nothing, or half of something, without a word."""
    market = whole.copied_to(tmp_path / "home")
    for change, said in (
        ({"alpha": 0.05}, r"alpha is 0\.05 and was 0\.1"),
        ({"l1": 2.0}, r"l1 is 2\.0 and was 0\.5"),
        ({"grid": [{"alpha": 0.3}]}, r"grid\[0\]\.alpha is 0\.3 and was None"),
    ):
        other = with_settings(market, online=change)
        with pytest.raises(OtherLearner, match=said) as caught:
            learn(other, 4)
        assert "run all hours again" in str(caught.value)
    slower = with_settings(market, online={"micro_batch_minutes": 20, "kind_weights": {
        "immediate_positive": 1.0, "negative": 0.5, "delayed_positive": 1.0,
        "confirmed_negative": 0.0, "retraction": 0.0,
    }})  # fmt: skip
    learn(slower, 4, 1)  # steps and weights act from the hour on in which they change


def test_a_checkpoint_of_other_code_is_not_continued(
    whole: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    market = whole.copied_to(tmp_path / "home")
    monkeypatch.setattr("ad_pipeline.learners.online.online_hours.CODE_VERSION", 99)
    with pytest.raises(OtherLearner, match="this is version 99, which learns otherwise"):
        learn(market, 4)
    learn(market, 0)  # from the log's start it may


@pytest.mark.parametrize("fault", ["repeat", "skip"])
def test_the_comparison_finds_a_resume_at_the_wrong_slice(
    ready: Market, whole: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    """The negative control of the kills: one slice learnt twice, or never."""
    market = ready.copied_to(tmp_path / "broken off")
    with monkeypatch.context() as patched:
        break_off(patched, 3)
        with pytest.raises(BrokenOff):
            learn(market)
    from ad_pipeline_tests.learners import killed_learner

    monkeypatch.setattr(WithinHour, "resume", WithinHour.resume)
    killed_learner.plant(fault)
    learn(market)
    found = differences(ended(whole), ended(market))
    assert "table learners.grid_predictions differs" in found
    assert any(name.startswith("checkpoints/pointers/learners.online_model/") for name in found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_leave_what_no_kill_leaves(
    ready: Market, undisturbed: tuple[LeftBehind, float], tmp_path: Path
):
    """And no event is learnt twice: each hour's position counts what was emitted before its end."""
    expected, seconds = undisturbed
    longest = 2 * seconds / KILLS_A_HOME
    kills = 0
    lock = threading.Lock()

    def until_enough(worker: int) -> Iterator[tuple[Market, int, int]]:
        nonlocal kills
        number = 0
        while kills < KILLS:
            draws = random.Random(f"{SEED}/{worker}/{number}")  # noqa: S311 - no secret
            market = ready.copied_to(tmp_path / f"{worker}-{number}")
            here, inside = 0, 0
            while (process := started(market)) and not _ended_within(
                process, draws.uniform(0.0, longest)
            ):
                here += 1
                inside += bool(pointed_names(market.deployment.checkpoints, within_hour.KIND))
                with lock:
                    kills += 1
            yield market, here, inside
            number += 1

    def survived(worker: int) -> list[tuple[int, int]]:
        counts = []
        for market, here, inside in until_enough(worker):
            assert differences(expected, ended(market)) == []
            _no_event_was_learnt_twice(market)
            counts.append((here, inside))
        return counts

    with ThreadPoolExecutor(AT_ONCE) as pool:
        homes = [counts for found in pool.map(survived, range(AT_ONCE)) for counts in found]
    assert sum(here for here, _ in homes) >= KILLS
    assert sum(inside for _, inside in homes) > KILLS / 4  # else the kills missed what they test


def _ended_within(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kill a process so many seconds on; return whether it had ended by itself before."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if process.returncode == -signal.SIGKILL:
        return False
    assert process.returncode == 0
    return True


def _no_event_was_learnt_twice(market: Market) -> None:
    for goal in market.deployment.dataset.goal_names:
        for hour_us in learnt_hours(market.deployment, goal):
            found = _model(market, goal, (hour_us - market.start_us) // HOUR_US)
            with Warehouse(market.deployment.warehouse).reader() as connection:
                (emitted,) = one_row(
                    connection,
                    "SELECT count(*) FROM examples.training_examples "
                    "WHERE goal = $goal AND emit_us < $end_us",
                    {"goal": goal, "end_us": hour_us + HOUR_US},
                )
            assert found.manifest["stream_position"]["examples"] == emitted


def _model(market: Market, goal: str, hour: int):
    root = market.deployment.checkpoints
    return read_checkpoint(root, resolve(root, pointer(goal, market.start_us + hour * HOUR_US)))
