"""A worse bundle is refused, and a kill at any point of a move leaves one bundle serving."""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ad_pipeline import checkpoints
from ad_pipeline.serving import promotion
from ad_pipeline.serving.bundle import CorruptBundle
from ad_pipeline.serving.pointers import Pointer, read_pointer
from ad_pipeline.serving.promotion import (
    NothingToRollBackTo,
    decide,
    history,
    promote,
    rollback,
    settle,
    verdict,
)
from ad_pipeline_tests.serving import worlds

BLOCKS = 60


def _rows(seed: int = 0, rows: int = 30_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw true probabilities, labels and hours."""
    draw = np.random.default_rng(seed)
    truth = 1 / (1 + np.exp(-draw.normal(-3, 1, rows)))
    labels = (draw.random(rows) < truth).astype(np.int8)
    return truth, labels, np.sort(draw.integers(0, BLOCKS, rows))


def _shifted(probabilities: np.ndarray, by: float) -> np.ndarray:
    logits = np.log(probabilities / (1 - probabilities)) + by
    return 1 / (1 + np.exp(-logits))


def test_a_worse_candidate_is_refused() -> None:
    truth, labels, hours = _rows()
    found = verdict(labels, _shifted(truth, 0.5), truth, hours)
    assert not found.promote
    assert found.low > 0
    assert "wholly above zero" in found.reason


def test_a_better_candidate_is_accepted() -> None:
    truth, labels, hours = _rows()
    found = verdict(labels, truth, _shifted(truth, 0.5), hours)
    assert found.promote
    assert found.high < 0
    assert found.reason.endswith("better")


def test_a_tie_is_accepted() -> None:
    truth, labels, hours = _rows()
    same = verdict(labels, truth, truth, hours)
    assert same.promote
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    noise = 0.01 * np.random.default_rng(1).standard_normal(len(truth))
    other = 1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + noise)))
    near = verdict(labels, other, truth, hours)
    assert near.promote
    assert near.reason.endswith("a tie")


def test_certainly_worse_is_refused_however_little() -> None:
    truth, labels, hours = _rows()
    worse = np.where(labels == 1, truth * 0.9999, truth * 1.0001)
    found = verdict(labels, worse, truth, hours)
    assert found.difference < 0.01 * promotion.MARGIN
    assert not found.promote


def test_a_candidate_that_may_be_much_worse_is_refused_though_the_interval_holds_zero() -> None:
    truth, labels, hours = _rows(rows=600)
    noise = np.random.default_rng(5).standard_normal(len(truth))
    for size in np.linspace(0.05, 1.5, 60):
        other = 1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + size * noise)))
        found = verdict(labels, other, truth, hours)
        if found.low <= 0 and found.high > promotion.MARGIN:
            assert not found.promote
            assert "too few rows" in found.reason
            assert verdict(labels, other, truth, hours, margin=1.0).promote
            return
    pytest.fail("no candidate landed between the two rules; the test needs other noise")


def test_without_a_current_bundle_the_base_rate_is_to_be_beaten() -> None:
    truth, labels, hours = _rows()
    good = verdict(labels, truth, None, hours)
    assert (good.promote, good.against) == (True, "base rate")
    assert not verdict(labels, _shifted(truth, 3.0), None, hours).promote
    known = verdict(labels, truth, None, hours, base_rate=0.5)
    assert known.difference < good.difference


def test_nothing_shown_is_a_refusal() -> None:
    truth, labels, _ = _rows(rows=500)
    one_block = verdict(labels, truth, _shifted(truth, 1.0), np.zeros(500, np.int64))
    assert not one_block.promote
    assert "no interval" in one_block.reason
    nothing = verdict([], [], [], [])
    assert not nothing.promote
    assert "no matured rows" in nothing.reason
    assert not verdict([], [], None, []).promote


def test_a_score_that_is_no_probability_is_an_error_not_a_verdict() -> None:
    truth, labels, hours = _rows(rows=500)
    spoilt = truth.copy()
    spoilt[7] = np.nan
    with pytest.raises(ValueError, match="probabilit"):
        verdict(labels, spoilt, truth, hours)


def test_every_goal_must_allow_a_bundle_to_serve() -> None:
    truth, labels, hours = _rows()
    good = verdict(labels, truth, truth, hours)
    bad = verdict(labels, _shifted(truth, 1.0), truth, hours)
    assert decide({"click": good})[0]
    promotes, reason = decide({"click": good, "purchase": bad})
    assert not promotes
    assert "purchase" in reason
    assert not decide({})[0]


def _served(serving: Path) -> str | None:
    pointer = read_pointer(serving, "current")
    return None if pointer is None else pointer.digest


def test_promotion_writes_history_and_moves_the_pointer_once(
    world: worlds.World, tmp_path: Path
) -> None:
    first = promote(tmp_path, world.bundles, world.young.digest, {"why": "first"}, watermark_us=5)
    again = promote(tmp_path, world.bundles, world.young.digest, {"why": "again"}, watermark_us=6)
    assert again == first
    second = promote(
        tmp_path, world.bundles, world.bundle.digest, {"why": "better"}, watermark_us=7
    )
    assert history(tmp_path) == [first, second]
    assert (second.sequence, second.previous) == (2, world.young.digest)
    assert read_pointer(tmp_path, "current") == Pointer(world.bundle.digest, 2)
    assert (tmp_path / "evidence" / f"{second.evidence}.json").read_text() == '{"why":"better"}'


def test_a_damaged_or_absent_bundle_is_not_promoted(
    world: worlds.World, own_bundles: Path, tmp_path: Path
) -> None:
    serving = tmp_path / "serving"
    path = own_bundles / "objects" / world.bundle.digest / "click.batch.leaves.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptBundle, match=r"click\.batch\.leaves\.npy"):
        promote(serving, own_bundles, world.bundle.digest, {}, watermark_us=1)
    with pytest.raises(checkpoints.MissingCheckpoint):
        promote(serving, own_bundles, "0" * 64, {}, watermark_us=1)
    assert _served(serving) is None
    assert history(serving) == []


def test_rollback_restores_what_served_before_and_walks_back_further(
    world: worlds.World, tmp_path: Path
) -> None:
    third = worlds.write(world.bundles, world.models, world.requests, None, watermark_us=99)
    digests = [world.young.digest, world.bundle.digest, third.digest]
    with pytest.raises(NothingToRollBackTo):
        rollback(tmp_path, world.bundles)
    for place, digest in enumerate(digests):
        promote(tmp_path, world.bundles, digest, {}, watermark_us=place)
    assert rollback(tmp_path, world.bundles, {"why": "alarm"}).digest == digests[1]
    assert _served(tmp_path) == digests[1]
    assert rollback(tmp_path, world.bundles).digest == digests[0]
    with pytest.raises(NothingToRollBackTo):
        rollback(tmp_path, world.bundles)
    assert _served(tmp_path) == digests[0]
    promote(tmp_path, world.bundles, digests[2], {}, watermark_us=4)
    assert rollback(tmp_path, world.bundles).digest == digests[0]
    assert [move.sequence for move in history(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_rollback_that_names_what_to_leave_may_be_repeated(
    world: worlds.World, tmp_path: Path
) -> None:
    promote(tmp_path, world.bundles, world.young.digest, {}, watermark_us=1)
    promote(tmp_path, world.bundles, world.bundle.digest, {}, watermark_us=2)
    left = rollback(tmp_path, world.bundles, away_from=world.bundle.digest)
    assert rollback(tmp_path, world.bundles, away_from=world.bundle.digest) == left
    assert _served(tmp_path) == world.young.digest


def _killed_at(call: int, action: Callable[[], Any], *, torn: bool) -> bool:
    """Run an action in a child that kills itself before its ``call``-th durable step.

    Parameters
    ----------
    call : int
        Counts write, fsync, replace and rename, from 0.
    action : callable
    torn : bool
        Let a write put down half of its bytes first.

    Returns
    -------
    bool
        Whether the child was killed; it ended by itself otherwise.
    """
    child = os.fork()
    if child == 0:
        try:
            seen = 0

            def armed(step: Callable[..., Any], name: str) -> Callable[..., Any]:
                def run(*arguments: Any, **options: Any) -> Any:
                    nonlocal seen
                    if seen == call:
                        if torn and name == "write":
                            step(arguments[0], arguments[1][: len(arguments[1]) // 2])
                        os.kill(os.getpid(), signal.SIGKILL)
                    seen += 1
                    return step(*arguments, **options)

                return run

            for name in ("write", "fsync", "replace", "rename"):
                setattr(os, name, armed(getattr(os, name), name))
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _content(serving: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(serving)): path.read_bytes()
        for path in serving.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("torn", [False, True], ids=["clean", "torn"])
@pytest.mark.parametrize("what", ["promote", "rollback"])
def test_a_kill_at_any_step_of_a_move_leaves_one_bundle_and_the_rerun_ends_the_same(
    world: worlds.World, tmp_path: Path, what: str, torn: bool
) -> None:
    old, new = world.young.digest, world.bundle.digest

    def prepared(name: str) -> Path:
        serving = tmp_path / name
        promote(serving, world.bundles, old, {"n": 1}, watermark_us=1)
        if what == "rollback":
            promote(serving, world.bundles, new, {"n": 2}, watermark_us=2)
        return serving

    def move(serving: Path) -> None:
        if what == "promote":
            promote(serving, world.bundles, new, {"n": 2}, watermark_us=2)
        else:
            rollback(serving, world.bundles, {"n": 3}, away_from=new)

    undisturbed = prepared("undisturbed")
    move(undisturbed)
    expected = _content(undisturbed)
    seen: set[str | None] = set()
    kills = 0
    while True:
        serving = prepared(f"kill-{kills}")
        was_killed = _killed_at(kills, lambda serving=serving: move(serving), torn=torn)
        seen.add(_served(serving))
        assert _served(serving) in (old, new)
        lines = len(expected["history.jsonl"].splitlines())
        assert len(history(serving)) in (lines - 1, lines)
        move(serving)
        assert _content(serving) == expected
        if not was_killed:
            break
        kills += 1
    # Evidence: fsync, replace, fsync (its write is buffered). Line: write, fsync. Pointer: three.
    assert kills >= 8
    assert seen == {old, new}


def test_a_move_written_down_but_not_done_is_done_by_the_next_call(
    world: worlds.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(tmp_path, world.bundles, world.young.digest, {}, watermark_us=1)

    def dies(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "move_pointer", dies)
        with pytest.raises(KeyboardInterrupt):
            promote(tmp_path, world.bundles, world.bundle.digest, {}, watermark_us=2)
    assert _served(tmp_path) == world.young.digest
    moved = settle(tmp_path)
    assert moved is not None
    assert _served(tmp_path) == moved.digest == world.bundle.digest
    assert settle(tmp_path) == moved


def test_a_half_written_line_is_dropped_and_a_gap_is_refused(
    world: worlds.World, tmp_path: Path
) -> None:
    promote(tmp_path, world.bundles, world.young.digest, {}, watermark_us=1)
    path = tmp_path / "history.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"sequence": 2, "act')
    assert len(history(tmp_path)) == 1
    settle(tmp_path)
    assert path.read_bytes() == whole
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="sequence number"):
        history(tmp_path)


def test_readers_never_see_half_a_pointer_while_it_moves(
    world: worlds.World, tmp_path: Path
) -> None:
    """A child moves the pointer to and fro until it is killed; every read in between is whole."""
    digests = (world.young.digest, world.bundle.digest)
    promote(tmp_path, world.bundles, digests[0], {}, watermark_us=0)
    child = os.fork()
    if child == 0:
        turn = 0
        while True:
            turn += 1
            with promotion.only_mover(tmp_path):
                promotion.move_pointer(tmp_path, "current", Pointer(digests[turn % 2], turn))
    try:
        seen = {_served(tmp_path) for _ in range(3000)}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert seen <= set(digests)
    # The dead child's lock is free.
    promote(tmp_path, world.bundles, digests[1], {}, watermark_us=1)
    assert _served(tmp_path) == digests[1]
