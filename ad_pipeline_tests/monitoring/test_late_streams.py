"""The streams that arms are replayed over are those of the label join, for made worlds and logs."""

import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.examples.strategies import among, rows_of_strategy
from ad_pipeline.learners.delayed.shown_examples import POSITIVE_KINDS
from ad_pipeline.monitoring.late_labels.log_stream import NothingToReplay, log_stream
from ad_pipeline.monitoring.late_labels.stream import LateStream, ages_of, without_anchors
from ad_pipeline.warehouse import Warehouse, rows_of
from ad_pipeline_tests.defs.markets import Market, make_market
from ad_pipeline_tests.monitoring.late_worlds import GOAL, small_stream, small_world


@pytest.fixture(scope="module")
def stream() -> LateStream:
    return small_stream()


def shown(stream: LateStream, strategy: str) -> list[tuple[int, int, int]]:
    """Return (moment, anchor, label) of what a strategy shows, in order."""
    rows = np.flatnonzero(rows_of_strategy(strategy, stream.goal, stream.emitted))  # pyright: ignore[reportArgumentType]
    positive = among(stream.emitted.kinds[rows], POSITIVE_KINDS)
    columns = (stream.emit_us[rows], stream.anchor[rows], positive.astype(int))
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_final_labels_are_the_world_s_own(stream: LateStream) -> None:
    world = small_world()
    within = (world.arrived_us >= 0) & (world.arrived_us - world.served_us <= GOAL.window_us)
    assert (stream.labels >= 0).all()
    assert np.array_equal(stream.labels == 1, within)
    assert np.array_equal(stream.arrived_us[within], world.arrived_us[within])
    assert (stream.matured_us >= stream.served_us + GOAL.window_us).all()


def test_the_immediate_strategy_shows_a_negative_at_once_and_every_positive_when_it_comes(
    stream: LateStream,
) -> None:
    world = small_world()
    expected = [(int(us), place, 0) for place, us in enumerate(world.served_us.tolist())]
    within = np.flatnonzero(stream.labels == 1)
    expected += [(int(world.arrived_us[place]), int(place), 1) for place in within]
    assert shown(stream, "immediate") == sorted(expected)


def test_the_windowed_strategy_shows_what_is_known_after_the_window_and_late_positives_again(
    stream: LateStream,
) -> None:
    world = small_world()
    expected = []
    for place, label in enumerate(stream.labels.tolist()):
        after_us = int(world.served_us[place]) + GOAL.observation_us
        came_us = int(world.arrived_us[place])
        timely = label == 1 and came_us <= after_us
        expected.append((after_us, place, int(timely)))
        if label == 1 and not timely:
            expected.append((came_us, place, 1))
    found = shown(stream, "windowed")
    assert [row[1:] for row in sorted(found, key=lambda row: (row[1], row[2]))] == [
        row[1:] for row in sorted(expected, key=lambda row: (row[1], row[2]))
    ]
    # A watermark is never before the window's end.
    moments = {(place, label): us for us, place, label in expected}
    assert all(us >= moments[place, label] for us, place, label in found)


def test_ages_run_from_the_first_row_of_each_code() -> None:
    ages = ages_of(np.array([7, 3, 7, 3, 7]), np.array([10, 20, 30, 50, 60]))
    assert ages.tolist() == [0, 0, 20, 30, 50]


def test_anchors_left_out_stay_to_be_scored_and_lose_their_examples(stream: LateStream) -> None:
    kept = np.arange(len(stream)) % 3 == 0
    part = without_anchors(stream, kept)
    assert len(part) == len(stream)
    assert kept[part.anchor].all()
    assert len(part.emit_us) == kept[stream.anchor].sum()


@pytest.mark.parametrize("goal", ["click", "purchase"])
def test_a_log_s_stream_has_the_labels_of_the_warehouse(late_market: Market, goal: str) -> None:
    deployment = late_market.deployment
    warehouse = Warehouse(deployment.warehouse)
    of_goal = {each.name: each for each in deployment.dataset.goals}[goal]
    found = log_stream(warehouse, deployment, of_goal, None)
    with warehouse.reader() as connection:
        kept = rows_of(
            connection,
            "SELECT label, matured_us, anchor_us, serving_us FROM examples.labelled_impressions "
            "WHERE goal = $goal",
            {"goal": goal},
        )
        (emitted,) = connection.execute(
            "SELECT count(*) FROM examples.training_examples WHERE goal = ?", [goal]
        ).fetchall()[0]
    known = found.labels >= 0
    columns = (found.labels, found.matured_us, found.anchor_us, found.served_us)
    ours = sorted(zip(*(column[known].tolist() for column in columns), strict=True))
    names = ("label", "matured_us", "anchor_us", "serving_us")
    assert ours == sorted(zip(*(kept.column(name).to_pylist() for name in names), strict=True))
    # The deployment's own strategies are among all of them.
    assert len(found.emit_us) >= emitted
    assert (np.diff(found.served_us) >= 0).all()
    assert (np.diff(found.emit_us) >= 0).all()
    assert (found.ad_age_us >= 0).all()


def test_a_sample_has_whole_anchors_as_the_log_has_them(late_market: Market) -> None:
    deployment = late_market.deployment
    warehouse = Warehouse(deployment.warehouse)
    goal = deployment.dataset.goals[0]
    whole = log_stream(warehouse, deployment, goal, None)
    part = log_stream(warehouse, deployment, goal, len(whole) // 4)
    assert len(part) == pytest.approx(len(whole) / 4, rel=0.1)
    by_draw = {draw: place for place, draw in enumerate(whole.draws.tolist())}
    places = np.array([by_draw[draw] for draw in part.draws.tolist()])
    for name in ("labels", "matured_us", "served_us", "arrived_us", "ad_age_us"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)[places])
    assert np.array_equal(part.slots, whole.slots[places])


def test_a_log_without_sealed_hours_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = make_market(tmp_path_factory.mktemp("empty"))
    deployment = empty.deployment
    warehouse = Warehouse(deployment.warehouse)
    with pytest.raises(NothingToReplay, match="no hour of market is sealed"):
        log_stream(warehouse, deployment, deployment.dataset.goals[0], None)


def test_the_end_of_a_world_cuts_what_arrives_later() -> None:
    stream = small_stream(2_000)
    assert (stream.emit_us < stream.end_us).all()
    assert stream.end_us % HOUR_US == 0
