"""What served when, and why, is read from files; a scorer that stays behind is told."""

from pathlib import Path

import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.serving.heartbeat import FOLDER, beat, heartbeats
from ad_pipeline.serving.pointers import NothingServed
from ad_pipeline.serving.production import (
    NothingServedThen,
    intervals,
    lagging,
    production_lines,
    served_at,
)
from ad_pipeline.serving.promotion import history, promote, rollback
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline_tests.serving import worlds

GRACE_US = HOUR_US


def two_moves_and_back(world: worlds.World, serving: Path) -> None:
    """Promote the young bundle, then the other one, and go back."""
    evidence = {"verdicts": {"click": {"reason": "better by far"}}}
    promote(serving, world.bundles, world.young.digest, evidence, watermark_us=10 * HOUR_US)
    promote(serving, world.bundles, world.bundle.digest, {}, watermark_us=20 * HOUR_US)
    why = {"why": "purchases collapsed", "by": "ana"}
    rollback(serving, world.bundles, why, watermark_us=30 * HOUR_US)


def test_each_interval_says_from_when_until_when_and_why(
    world: worlds.World, tmp_path: Path
) -> None:
    two_moves_and_back(world, tmp_path)
    first, second, third = intervals(tmp_path, world.bundles)
    assert (first.from_us, first.until_us) == (10 * HOUR_US, 20 * HOUR_US)
    assert (third.from_us, third.until_us) == (30 * HOUR_US, None)
    assert [each.why for each in (first, third)] == ["click: better by far", "purchases collapsed"]
    assert [each.decided_by for each in (first, third)] == ["promotion gate", "ana"]
    assert first.models["click"] == {"online": "a" * 64}
    assert second.models["click"] == {"online": "a" * 64, "batch": "b" * 64, "ensemble": "c" * 64}
    assert second.why == "no reason was given"
    assert "purchases collapsed" in "\n".join(production_lines([third]))


@pytest.mark.parametrize(("hour", "sequence"), [(10, 1), (19, 1), (20, 2), (29, 2), (30, 3)])
def test_the_bundle_of_a_moment_is_that_of_the_last_move_before_it(
    world: worlds.World, tmp_path: Path, hour: int, sequence: int
) -> None:
    two_moves_and_back(world, tmp_path)
    found = intervals(tmp_path, world.bundles)
    assert served_at(found, hour * HOUR_US).move.sequence == sequence


def test_before_the_first_promotion_nothing_served(world: worlds.World, tmp_path: Path) -> None:
    with pytest.raises(NothingServedThen, match="nor since"):
        served_at(intervals(tmp_path, world.bundles), 0)
    two_moves_and_back(world, tmp_path)
    with pytest.raises(NothingServedThen, match="first was promoted"):
        served_at(intervals(tmp_path, world.bundles), 10 * HOUR_US - 1)


def test_evidence_that_is_gone_is_named(world: worlds.World, tmp_path: Path) -> None:
    two_moves_and_back(world, tmp_path)
    gone = tmp_path / "evidence" / f"{history(tmp_path)[1].evidence}.json"
    gone.unlink()
    with pytest.raises(FileNotFoundError, match="evidence of move 2"):
        intervals(tmp_path, world.bundles)


def test_a_scorer_says_what_it_serves_and_since_when(world: worlds.World, tmp_path: Path) -> None:
    promote(tmp_path, world.bundles, world.young.digest, {}, watermark_us=1)
    scorer = Scorer.current(tmp_path, bundles=world.bundles, snapshots=world.snapshots)
    scorer.report(5 * HOUR_US, "bidder")
    promote(tmp_path, world.bundles, world.bundle.digest, {}, watermark_us=2)
    said = scorer.report(7 * HOUR_US, "bidder")
    assert (said.bundle_hash, said.since_us) == (world.young.digest, 5 * HOUR_US)
    scorer.refresh()
    said = scorer.report(8 * HOUR_US, "bidder")
    assert (said.bundle_hash, said.since_us) == (world.bundle.digest, 8 * HOUR_US)
    assert heartbeats(tmp_path) == [said]


def test_a_scorer_without_pointers_cannot_report(world: worlds.World) -> None:
    with pytest.raises(NothingServed):
        Scorer(world.bundle).report(1)


def test_a_scorer_that_never_refreshes_lags_after_the_grace_and_not_before(
    world: worlds.World, tmp_path: Path
) -> None:
    two_moves_and_back(world, tmp_path)
    moves = history(tmp_path)
    beat(tmp_path, "follows", moves[-1].digest, "", 99 * HOUR_US)
    beat(tmp_path, "stays", world.bundle.digest, "", 30 * HOUR_US + GRACE_US)
    assert lagging(heartbeats(tmp_path), moves, GRACE_US) == []
    beat(tmp_path, "stays", world.bundle.digest, "", 30 * HOUR_US + GRACE_US + 1)
    assert [each.scorer for each in lagging(heartbeats(tmp_path), moves, GRACE_US)] == ["stays"]
    assert lagging(heartbeats(tmp_path), [], GRACE_US) == []


def test_a_torn_report_is_named(tmp_path: Path) -> None:
    beat(tmp_path, "bidder", "a", "", 1)
    path = tmp_path / FOLDER / "bidder.json"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"bidder\.json is no report"):
        heartbeats(tmp_path)
