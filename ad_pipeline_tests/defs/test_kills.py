"""A run that is killed and run again ends where an undisturbed one ends, to the last byte.

Two ranges are killed: the log's first day, from nothing to the first promotion, and a later day
that was served through ``serving/current``, with decisions to re-check and a bundle to compare
with. Twenty SIGKILLs fall at instants drawn over the whole of both, the others are planted at the
steps that must be atomic. Each works in a home of its own and hits the whole process group; nothing
in the pipeline knows about it. Two kills run beside each other.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from ad_pipeline.checkpoints import is_pointed, resolve
from ad_pipeline.clocks import DAY_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.serving.promotion import HISTORY, history
from ad_pipeline_tests.defs.left_behind import (
    LeftBehind,
    differences,
    left_behind,
    rows_of_one,
    unfinished_writes,
)
from ad_pipeline_tests.defs.markets import (
    Market,
    drive,
    make_market,
    materialize,
    run,
    write_days,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SEED = 20261125
RANDOM_KILLS = 10
"""In each of the two ranges."""
AT_ONCE = 2

FIRST, LATER = "first", "later"


@dataclass(frozen=True)
class Undisturbed:
    """A range that was run without a kill.

    Attributes
    ----------
    before : Market
        The home as it was before the run: each kill gets a copy.
    after : Market
        The home as the run left it.
    start_us, end_us : int
        The log hours.
    ended : LeftBehind
    lines : tuple of float
        Seconds at which each line of its output came.
    first, last : int
        Lines at which its first step began and its last one ended.
    """

    before: Market
    after: Market
    start_us: int
    end_us: int
    ended: LeftBehind
    lines: tuple[float, ...]
    first: int
    last: int

    def instant(self, share: float) -> tuple[int, float]:
        """Return a moment of the run's steps as a line of output and the seconds after it.

        In lines, because a run beside others is slower than this one was.
        """
        seconds = self.lines[self.first] * (1 - share) + self.lines[self.last] * share
        line = max(i for i in range(self.first, self.last + 1) if self.lines[i] <= seconds)
        return line, seconds - self.lines[line]


@dataclass(frozen=True)
class Kill:
    """One SIGKILL.

    Attributes
    ----------
    name : str
    stage : {"first", "later"}
    share : float
        When, as a share of the undisturbed run; if nothing is planted.
    moment : str
        What to plant; see ``planted_kill.py``.
    """

    name: str
    stage: str
    share: float = 0.0
    moment: str = ""


@dataclass(frozen=True)
class Aftermath:
    """What a kill and the run after it left.

    Attributes
    ----------
    right_after : list of str
        Differences from the undisturbed end before the re-run.
    witnessed : dict of str to bool or int
        What the killed home looked like, if the kill was planted; see :func:`_witnessed`.
    in_the_end : list of str
        Differences after the re-run, with a few rows of tables that differ.
    """

    right_after: list[str]
    witnessed: dict[str, bool | int]
    in_the_end: list[str]


def _drawn(stage: str, number: int) -> Kill:
    """Draw one instant from the number-th tenth of a stage, so that they spread over all of it."""
    within = random.Random(f"{SEED}/{stage}/{number}").random()  # noqa: S311 - no secret
    return Kill(f"{stage}-{number}", stage, share=(number + within) / RANDOM_KILLS)


DRAWN = [_drawn(stage, number) for stage in (FIRST, LATER) for number in range(RANDOM_KILLS)]

PLANTED = {
    Kill("before the commit of the events", FIRST, moment="commit:before:1:events.impressions"): {
        "impressions": 0,
    },
    Kill("before the second commit of predictions", LATER,
         moment="commit:before:2:learners.online_predictions"): {"log_to_merge": False},
    Kill("after the commit of the labels", FIRST,
         moment="commit:after:1:examples.labelled_impressions"): {"log_to_merge": True},
    Kill("before the rename of a checkpoint", LATER,
         moment="rename:before:20:/checkpoints/objects/"): {"unfinished": 1},
    Kill("after the rename of a checkpoint", FIRST,
         moment="rename:after:20:/checkpoints/objects/"): {"unfinished": 0},
    Kill("before the rename of a bundle", LATER, moment="rename:before:1:/bundles/objects/"): {
        "bundles": 1, "unfinished": 1,
    },
    Kill("after the rename of a bundle", FIRST, moment="rename:after:1:/bundles/objects/"): {
        "bundles": 1, "candidate": False,
    },
    Kill("before serving/current moves", LATER, moment="replace:before:1:/serving/current$"): {
        "moves": 2, "served": 1,
    },
    Kill("after serving/current moved", LATER, moment="replace:after:1:/serving/current$"): {
        "moves": 2, "served": 2,
    },
}  # fmt: skip
"""Each with what its home must look like right after it, so that a kill that hit nothing shows."""

KILLS = {kill.name: kill for kill in [*DRAWN, *PLANTED]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    """Run both ranges without a kill, and keep the home before and after each."""
    folder = tmp_path_factory.mktemp("undisturbed")
    market = make_market(folder)
    write_days(market, range(1))
    served_us = market.start_us + DAY_US
    found = {FIRST: _run_watched(market, folder / FIRST, market.start_us, served_us)}
    drive(market, 1)
    found[LATER] = _run_watched(market, folder / LATER, served_us, market.end_us)
    return found


@pytest.fixture(scope="module")
def aftermaths(
    undisturbed: dict[str, Undisturbed],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[dict[str, Future[Aftermath]]]:
    """Start the kills that were asked for, a few at once; each test waits for its own."""
    asked = {item.callspec.params["name"] for item in request.session.items
             if isinstance(item, pytest.Function) and item.module is request.module
             and "aftermaths" in item.fixturenames}  # fmt: skip
    folder = tmp_path_factory.mktemp("killed")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        started = {
            name: pool.submit(_killed_and_run_again, undisturbed[kill.stage], kill, folder / str(i))
            for i, (name, kill) in enumerate(KILLS.items())
            if name in asked
        }
        yield started
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", [kill.name for kill in DRAWN])
def test_a_kill_at_any_moment_and_a_rerun_end_like_an_undisturbed_run(
    name: str, aftermaths: dict[str, Future[Aftermath]]
) -> None:
    aftermath = aftermaths[name].result()
    if KILLS[name].share < 0.9:  # of the last steps, promotion may have been the last to write
        assert aftermath.right_after != []
    assert aftermath.in_the_end == []


@pytest.mark.parametrize("name", [kill.name for kill in PLANTED])
def test_a_kill_inside_an_atomic_step_and_a_rerun_end_like_an_undisturbed_run(
    name: str, aftermaths: dict[str, Future[Aftermath]]
) -> None:
    aftermath = aftermaths[name].result()
    expected = PLANTED[KILLS[name]]
    assert {fact: aftermath.witnessed[fact] for fact in expected} == expected
    assert aftermath.in_the_end == []


def test_the_ends_of_the_two_ranges_differ(undisturbed: dict[str, Undisturbed]) -> None:
    first, later = undisturbed[FIRST].ended, undisturbed[LATER].ended
    found = differences(first, later)
    assert "table events.impressions differs" in found
    assert "serving/history.jsonl differs" in found
    assert len(differences(first, {})) == len(first)


def test_two_promotions_stand_in_the_history(undisturbed: dict[str, Undisturbed]) -> None:
    """Else the kills around the pointer would hit nothing."""
    deployment = undisturbed[LATER].after.deployment
    moves = history(deployment.serving)
    assert [move.action for move in moves] == ["promote", "promote"]
    assert moves[-1].digest == resolve(deployment.bundles, CANDIDATE)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events.impressions SET bid_price = bid_price + 1 WHERE impression_id = "
        "(SELECT min(impression_id) FROM events.impressions)",
        "UPDATE learners.online_predictions SET logit = nextafter(logit, CAST(9 AS DOUBLE)) "
        "WHERE goal = 'click' AND impression_id = "
        "(SELECT min(impression_id) FROM learners.online_predictions)",
        "DELETE FROM examples.label_states WHERE rowid = 0",
        "INSERT INTO monitoring.candidate_replay SELECT * FROM monitoring.candidate_replay LIMIT 1",
    ],
    ids=["changed", "changed in the last bit", "lost", "doubled"],
)
def test_the_comparison_catches_one_row(
    statement: str, undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    reference = undisturbed[FIRST]
    market = reference.after.copied_to(tmp_path / "home")
    assert differences(reference.ended, left_behind(market.deployment)) == []
    with duckdb.connect(str(market.deployment.warehouse)) as connection:
        changed = connection.execute(statement).fetchone()
    assert changed == (1,)
    table = next(word for word in statement.split() if "." in word)
    found = differences(reference.ended, left_behind(market.deployment))
    assert found == [f"table {table} differs"]


def test_the_comparison_catches_one_byte(
    undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    reference = undisturbed[FIRST]
    market = reference.after.copied_to(tmp_path / "home")
    deployment = market.deployment
    checkpoint = deployment.checkpoints / "objects"
    damaged = [
        next(path for path in sorted(checkpoint.rglob("*.npy")) if path.stat().st_size > 128),
        next(iter(sorted((deployment.bundles / "objects").rglob("*.npy")))),
        next(iter(sorted((deployment.snapshots / "pointers").rglob("*.json")))),
        deployment.serving / CURRENT,
    ]
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with (deployment.serving / HISTORY).open("ab") as file:
        file.write(b"\n")
    lost = next(iter(sorted((deployment.checkpoints / "pointers").rglob("*.json"))))
    lost.unlink()
    names = [path.relative_to(deployment.home).as_posix() for path in damaged]
    assert differences(reference.ended, left_behind(deployment)) == sorted(
        [f"{name} differs" for name in [*names, "serving/history.jsonl"]]
        + [f"{lost.relative_to(deployment.home).as_posix()} is missing"]
    )


def _run_watched(market: Market, before: Path, start_us: int, end_us: int) -> Undisturbed:
    """Run a range to its end and note when each line of its output came."""
    copied = market.copied_to(before)
    process = _start(market, ["-m", *materialize(start_us, end_us)])
    started = time.monotonic()
    lines, texts = [], []
    for text in process.stdout or ():
        lines.append(time.monotonic() - started)
        texts.append(text)
    if process.wait() != 0:
        raise AssertionError("the undisturbed run failed:\n" + "".join(texts[-60:]))
    steps = [i for i, text in enumerate(texts) if " STEP_" in text]
    kept = market.copied_to(before.with_name(f"{before.name}-ended"))
    ended = left_behind(market.deployment)
    assert unfinished_writes(market.deployment) == []
    return Undisturbed(copied, kept, start_us, end_us, ended, tuple(lines), steps[0], steps[-1])


def _killed_and_run_again(reference: Undisturbed, kill: Kill, root: Path) -> Aftermath:
    market = reference.before.copied_to(root)
    command = materialize(reference.start_us, reference.end_us)
    if kill.moment:
        launcher = "ad_pipeline_tests.defs.planted_kill"
        process = _start(market, ["-m", launcher, kill.moment, "-m", *command])
        output, _ = process.communicate()
        _must_be_killed(process, output)
    else:
        line, seconds = reference.instant(kill.share)
        _kill_after(_start(market, ["-m", *command]), line, seconds)
    witnessed = _witnessed(market.deployment) if kill.moment else {}
    right_after = differences(reference.ended, left_behind(market.deployment))
    run(market, reference.start_us, reference.end_us)
    found = differences(reference.ended, left_behind(market.deployment))
    for table in [name.split()[1] for name in found if name.startswith("table ")]:
        for one, other in ((reference.after, market), (market, reference.after)):
            rows = rows_of_one(one.deployment, other.deployment, table)
            found += [f"only in {one.root}: {table} {row}" for row in rows]
    if not found:
        shutil.rmtree(root)
    return Aftermath(right_after, witnessed, found)


def _start(market: Market, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start Python in a process group of its own; stdout holds both streams."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=market.environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _kill_after(process: subprocess.Popen[str], line: int, seconds: float) -> None:
    """Kill a process group so many seconds after a line of its output."""
    seen: list[str] = []
    for text in process.stdout or ():
        seen.append(text)
        if len(seen) > line:
            break
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    _must_be_killed(process, "".join(seen) + rest)


def _must_be_killed(process: subprocess.Popen[str], output: str) -> None:
    if process.returncode != -signal.SIGKILL:
        end = "\n".join(output.splitlines()[-60:])
        raise AssertionError(f"ended with {process.returncode} instead of being killed:\n{end}")


def _witnessed(deployment: Deployment) -> dict[str, bool | int]:
    """Return what a kill left, before anything opens the warehouse for writing."""
    log_to_merge = deployment.warehouse.with_name(f"{deployment.warehouse.name}.wal").exists()
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"ATTACH '{deployment.warehouse}' AS warehouse (READ_ONLY)")
        counted = connection.execute("SELECT count(*) FROM warehouse.events.impressions").fetchone()
    served = read_pointer(deployment.serving, CURRENT)
    lines = deployment.serving / HISTORY
    return {
        "impressions": counted[0] if counted else 0,
        "log_to_merge": log_to_merge,
        "unfinished": len(unfinished_writes(deployment)),
        "bundles": len(list((deployment.bundles / "objects").glob("[!.]*"))),
        "candidate": is_pointed(deployment.bundles, CANDIDATE),
        "moves": len(lines.read_text().splitlines()) if lines.exists() else 0,
        "served": 0 if served is None else served.position,
    }
