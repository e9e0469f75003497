"""A poisoned hour is found, left out, and leaves no trace in what is learnt after it.

Labels of one hour of a simulated market are flipped where the learner reads them; the same market
without that hour's examples says what must come out.
"""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ad_pipeline.checkpoints import MissingCheckpoint, is_pointed, read_checkpoint, resolve
from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.learners.online.online_checkpoints import learnt_hours, pointer
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.learners.online.recovery import GUARD, begin, finish, recover, suspects
from ad_pipeline.learners.online.retention import prune
from ad_pipeline.learners.tables import GRID_PREDICTIONS, HOUR_GUARDS, QUARANTINED_HOURS
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import ready_market

POISONED = 20
"""Hour of the market whose labels are flipped; the guard judges from the twelfth on."""
AFTER = 6
"""Hours learnt after it."""
GOAL = "click"

FLIP = (
    "UPDATE examples.training_examples SET kind = CASE WHEN kind = 'negative' "
    "THEN 'immediate_positive' ELSE 'negative' END WHERE goal = 'click' "
    "AND kind IN ('negative', 'immediate_positive', 'delayed_positive')"
)
"""What a join on the wrong key or a changed sign does to labels."""
REMOVE = "DELETE FROM examples.training_examples WHERE goal = 'click'"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market that is ready to be learnt; tests copy it."""
    return ready_market(tmp_path_factory.mktemp("ready"))


@pytest.fixture(scope="module")
def learnt_poison(ready: Market, tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return the market after it has learnt an hour of flipped labels, and the hours after it."""
    market = ready.copied_to(tmp_path_factory.mktemp("learnt") / "poison")
    in_hour(market, FLIP, POISONED)
    learn(market, 0, POISONED + AFTER)
    return market


@pytest.fixture
def poisoned(learnt_poison: Market, tmp_path: Path) -> Market:
    """Return a copy of that market, which a test may recover."""
    return learnt_poison.copied_to(tmp_path / "poisoned")


@pytest.fixture(scope="module")
def never_saw(ready: Market, tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return the market as it is learnt when the hour never had any examples."""
    market = ready.copied_to(tmp_path_factory.mktemp("never") / "saw")
    in_hour(market, REMOVE, POISONED)
    learn(market, 0, POISONED + AFTER)
    return market


def warehouse_of(market: Market) -> Warehouse:
    return Warehouse(market.deployment.warehouse)


def at(market: Market, hour: int) -> int:
    return market.start_us + hour * HOUR_US


def in_hour(market: Market, statement: str, hour: int) -> None:
    span = {"start_us": at(market, hour), "end_us": at(market, hour + 1)}
    with warehouse_of(market).writer() as connection:
        condition = " AND emit_us >= $start_us AND emit_us < $end_us"
        (changed,) = connection.execute(statement + condition, span).fetchone() or (0,)
    assert changed > 50


def learn(market: Market, first: int, last: int) -> None:
    span = (at(market, first), at(market, last))
    hours = list(learn_hours(warehouse_of(market), market.deployment, *span))
    assert len(hours) == (last - first) * len(market.deployment.dataset.goal_names)


def models(market: Market, first: int, last: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the arrays of every model of some hours, by goal and hour."""
    root = market.deployment.checkpoints
    for goal in market.deployment.dataset.goal_names:
        for hour in range(first, last):
            found = read_checkpoint(root, resolve(root, pointer(goal, at(market, hour))))
            yield f"{goal} {hour}", {name: a.tobytes() for name, a in found.arrays.items()}


def predictions(market: Market, first: int, last: int) -> list[tuple]:
    with warehouse_of(market).reader() as connection:
        return connection.execute(
            f"SELECT goal, impression_id, logits, micro_batch FROM {GRID_PREDICTIONS.name} "
            "WHERE serving_us >= $start_us AND serving_us < $end_us ORDER BY ALL",
            {"start_us": at(market, first), "end_us": at(market, last)},
        ).fetchall()


def states(market: Market, goal: str = GOAL) -> list[str]:
    with warehouse_of(market).reader() as connection:
        found = connection.execute(
            f"SELECT state FROM {HOUR_GUARDS.name} WHERE goal = $goal ORDER BY hour_us",
            {"goal": goal},
        ).fetchall()
    return [state for (state,) in found]


def recover_from(market: Market, hour: int = POISONED, goal: str = GOAL):
    (found,) = recover(
        warehouse_of(market), market.deployment, {goal: at(market, hour)}, GUARD, {"why": "a test"}
    )
    return found


def test_a_poisoned_hour_trips_the_guard_in_that_hour(poisoned: Market):
    assert states(poisoned)[POISONED] == "tripped"
    assert "tripped" not in states(poisoned)[:POISONED]
    assert set(states(poisoned, "purchase")) <= {"warming_up", "passed", "too_few"}
    found = suspects(warehouse_of(poisoned), poisoned.deployment)
    assert found.automatic == {GOAL: at(poisoned, POISONED)}
    assert hour_key(at(poisoned, POISONED)) in found.described()


def test_the_replay_is_what_a_learner_that_never_saw_the_hour_would_have_learnt(
    poisoned: Market, never_saw: Market
):
    """To the bit: every array of every hour since, and every score given since."""
    end = POISONED + AFTER
    before = dict(models(poisoned, POISONED, end))
    expected = dict(models(never_saw, POISONED, end))
    assert all(before[name] != expected[name] for name in before if name.startswith(GOAL))
    recovered = recover_from(poisoned)
    assert recovered.succeeded, recovered.outcome
    assert recovered.left_out_examples > 50
    assert dict(models(poisoned, 0, end)) == dict(models(never_saw, 0, end))
    assert predictions(poisoned, 0, end) == predictions(never_saw, 0, end)
    assert states(poisoned)[POISONED] == "left_out"
    assert suspects(warehouse_of(poisoned), poisoned.deployment).hours_us == {}
    learn(poisoned, end, end + 2)
    learn(never_saw, end, end + 2)
    assert dict(models(poisoned, end, end + 2)) == dict(models(never_saw, end, end + 2))


def test_the_comparison_sees_an_hour_that_was_not_left_out(poisoned: Market, never_saw: Market):
    """The negative control: a replay that learns the hour again changes nothing."""
    before = dict(models(poisoned, POISONED, POISONED + AFTER))
    warehouse = warehouse_of(poisoned)
    hours_us = {GOAL: at(poisoned, POISONED)}
    begun = begin(warehouse, poisoned.deployment, hours_us, GUARD, {})
    with warehouse.writer() as connection:
        connection.execute(f"DELETE FROM {QUARANTINED_HOURS.name}")
    learn(poisoned, POISONED, POISONED + AFTER)
    assert begun[0].digest is not None
    assert dict(models(poisoned, POISONED, POISONED + AFTER)) == before
    assert before != dict(models(never_saw, POISONED, POISONED + AFTER))


@pytest.mark.parametrize(
    "seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 4))]
)
def test_a_clean_log_trips_nothing(seed: int, tmp_path: Path):
    """The negative control: both goals, from the first hour to the last late label."""
    market = ready_market(tmp_path, seed)
    hours = (market.end_us - market.start_us) // HOUR_US
    learn(market, 0, hours)
    for goal in market.deployment.dataset.goal_names:
        found = states(market, goal)
        assert len(found) == hours
        assert set(found) <= {"warming_up", "passed", "too_few"}
        assert found.count("passed") >= 12


def test_a_recovery_is_a_row_with_its_time_and_outcome(poisoned: Market):
    recover_from(poisoned)
    with warehouse_of(poisoned).reader() as connection:
        (row,) = connection.execute(
            "SELECT goal, cause, replayed_hours, succeeded, outcome, seconds "
            "FROM learners.recoveries"
        ).fetchall()
    assert row[:4] == (GOAL, GUARD, AFTER, True)
    assert "no guard trips" in row[4]
    assert 0 < row[5] < 30


def test_a_person_may_accept_what_the_guard_suspects(poisoned: Market, never_saw: Market):
    """The world may have changed: the hour is learnt, and nobody is asked about it again."""
    before = dict(models(poisoned, POISONED, POISONED + 1))
    (found,) = recover(
        warehouse_of(poisoned), poisoned.deployment, {GOAL: at(poisoned, POISONED)},
        "a person", {}, "accepted",
    )  # fmt: skip
    assert found.left_out_examples == 0
    assert states(poisoned)[POISONED] == "accepted"
    assert dict(models(poisoned, POISONED, POISONED + 1)) == before
    assert (
        at(poisoned, POISONED)
        not in suspects(warehouse_of(poisoned), poisoned.deployment).hours_us.values()
    )


def test_after_a_few_in_a_row_a_person_has_to_decide(ready: Market, tmp_path: Path):
    """Else a change of the world would be left out for ever, hour by hour."""
    market = ready.copied_to(tmp_path / "changed")
    for hour in range(POISONED, POISONED + 4):
        in_hour(market, FLIP, hour)
    learn(market, 0, POISONED + 4)
    limit = market.deployment.dataset.settings.guard.automatic_recoveries
    for number in range(limit):
        found = suspects(warehouse_of(market), market.deployment)
        assert found.automatic == {GOAL: at(market, POISONED + number)}
        recovered = recover_from(market, POISONED + number)
        assert not recovered.succeeded
        assert "the guard trips in" in recovered.outcome
    found = suspects(warehouse_of(market), market.deployment)
    assert found.automatic == {}
    assert found.hours_us == {GOAL: at(market, POISONED + limit)}
    assert "--accept" in found.described()


def test_a_recovery_goes_back_further_if_the_hour_before_was_pruned(
    poisoned: Market, never_saw: Market
):
    root = poisoned.deployment.checkpoints
    for goal in poisoned.deployment.dataset.goal_names:
        for hour in range(POISONED - 3, POISONED):
            path = root / "pointers" / f"{pointer(goal, at(poisoned, hour)).replace(':', '')}.json"
            path.unlink()
    prune(poisoned.deployment)
    recovered = recover_from(poisoned)
    assert recovered.rolled_back.start_us == at(poisoned, POISONED - 3)
    assert recovered.succeeded, recovered.outcome
    assert dict(models(poisoned, POISONED - 3, POISONED + AFTER)) == dict(
        models(never_saw, POISONED - 3, POISONED + AFTER)
    )


def test_an_hour_that_was_not_learnt_cannot_be_gone_back_from(poisoned: Market):
    with pytest.raises(MissingCheckpoint, match="has learnt"):
        recover_from(poisoned, POISONED + AFTER + 1)
    with pytest.raises(MissingCheckpoint, match="has learnt"):
        recover_from(poisoned, goal="nonsense")
    assert len(learnt_hours(poisoned.deployment, GOAL)) == POISONED + AFTER


def test_hours_that_do_not_cover_the_replay_are_refused(poisoned: Market):
    span = (at(poisoned, POISONED + 1), at(poisoned, POISONED + AFTER))
    with pytest.raises(ValueError, match="choose those partitions"):
        begin(
            warehouse_of(poisoned), poisoned.deployment, {GOAL: at(poisoned, POISONED)}, GUARD, {},
            run_us=span,
        )  # fmt: skip
    assert len(learnt_hours(poisoned.deployment, GOAL)) == POISONED + AFTER


@pytest.mark.parametrize(("call", "number"), [("unlink", 1), ("unlink", 5), ("replace", 3)])
def test_a_recovery_that_is_killed_is_ended_by_whoever_runs_the_hours_without_a_model(
    poisoned: Market, never_saw: Market, call: str, number: int
):
    """The process really dies: among the pointers that it takes away, or among those it sets."""
    script = textwrap.dedent(f"""
        import os, pathlib, signal, sys
        from ad_pipeline.datasets import Deployment, load_dataset
        from ad_pipeline.learners.online.recovery import recover
        from ad_pipeline.warehouse import Warehouse
        dataset = load_dataset(pathlib.Path(sys.argv[1]))
        deployment = Deployment(dataset, pathlib.Path(sys.argv[2]))
        true_call, left = os.{call}, {number}
        def deadly(*args, **kwargs):
            global left
            left -= "pointers" in str(args[0])
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return true_call(*args, **kwargs)
        os.{call} = deadly
        hours_us = {{"click": int(sys.argv[3])}}
        recover(Warehouse(deployment.warehouse), deployment, hours_us, "guard", {{}})
    """)
    deployment = poisoned.deployment
    arguments = [str(poisoned.dataset_file), str(deployment.home), str(at(poisoned, POISONED))]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    missing = [
        hour
        for hour in range(POISONED, POISONED + AFTER)
        if not is_pointed(deployment.checkpoints, pointer(GOAL, at(poisoned, hour)))
    ]
    if suspects(warehouse_of(poisoned), deployment).automatic:  # decided, and not run again yet
        recover_from(poisoned)
    else:
        learn(poisoned, missing[0], POISONED + AFTER)
        (ended,) = finish(warehouse_of(poisoned), deployment)
        assert ended.succeeded, ended.outcome
        assert ended.seconds is None
    assert dict(models(poisoned, 0, POISONED + AFTER)) == dict(
        models(never_saw, 0, POISONED + AFTER)
    )
