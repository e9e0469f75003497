"""Learning from a tenth of the negatives, each weighing ten: the predictions are those of all."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.clocks import DAY_US
from ad_pipeline.datasets import DATA_FOLDER, Dataset, Deployment, load_dataset
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.ledger import register_files
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.features.rates import advance_hours
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.learners.tables import TABLES
from ad_pipeline.settings import ExampleSettings
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.warehouse import Warehouse, rows_of, select

RATE = 0.1
GOAL = "click"


def market(folder: Path, impressions_per_day: int, days: int) -> Deployment:
    """Return a simulated market whose hours are read and counted, and not yet joined."""
    spec = MarketplaceSpec(
        seed=11, days=days, impressions_per_day=impressions_per_day, users=8_000, drift=False
    )
    whole = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    update = {"end_us": whole.start_us + days * DAY_US, "goals": (whole.goal(GOAL),)}
    deployment = Deployment(whole.model_copy(update=update), folder / "read")
    simulate_days(spec, deployment.logs, deployment.truth, range(days))
    warehouse, span = Warehouse(deployment.warehouse), hours_of(deployment.dataset)
    register_files(warehouse, deployment)
    ingest_hours(warehouse, deployment, *span)
    contract = FeatureContract.from_dataset(deployment.dataset)
    for _ in advance_hours(warehouse, deployment.snapshots, contract, deployment.dataset, *span):
        pass
    return deployment


def hours_of(dataset: Dataset) -> tuple[int, int]:
    """Return the hours in which the log has impressions."""
    assert dataset.end_us is not None
    return dataset.start_us, dataset.end_us


def joined(read: Deployment, rate: float, name: str) -> Deployment:
    """Join the labels of a market in a home of its own."""
    examples = ExampleSettings(negative_rate=rate)
    settings = read.dataset.settings.model_copy(update={"examples": examples})
    dataset = read.dataset.model_copy(update={"settings": settings})
    deployment = replace(read, dataset=dataset, home=read.home.with_name(name))
    shutil.copytree(read.home, deployment.home)
    join_labels(Warehouse(deployment.warehouse), dataset, *hours_of(dataset))
    return deployment


def probabilities(deployment: Deployment) -> np.ndarray:
    """Learn all hours, and return what was said of every impression before it was learnt."""
    warehouse = Warehouse(deployment.warehouse)
    for _ in learn_hours(warehouse, deployment, *hours_of(deployment.dataset)):
        pass
    with warehouse.reader() as connection:
        rows = rows_of(
            connection,
            "SELECT logits[1] AS logit FROM learners.grid_predictions "
            "ORDER BY serving_us, impression_id",
        )
    return 1 / (1 + np.exp(-rows.column("logit").to_numpy()))


def forgotten_weights(deployment: Deployment) -> Deployment:
    """Plant the fault: every kept negative stands for itself only."""
    with Warehouse(deployment.warehouse).writer() as connection:
        connection.execute("UPDATE examples.training_examples SET weight = 1")
    return deployment


def three_runs(folder: Path, impressions_per_day: int, days: int) -> tuple[np.ndarray, ...]:
    """Return the predictions on all negatives, on a tenth of them, and on a tenth unweighted."""
    read = market(folder, impressions_per_day, days)
    return (
        probabilities(joined(read, 1.0, "whole")),
        probabilities(joined(read, RATE, "thinned")),
        probabilities(forgotten_weights(joined(read, RATE, "unweighted"))),
    )


def test_predictions_of_a_small_thinned_market_are_within_the_draws_own_noise(
    tmp_path: Path,
) -> None:
    """Calibration on n rows moves by the noise of the drawn negatives' summed probability.

    Its relative variance is (1 - r) / r * sum(p^2) / sum(p)^2.
    """
    whole, thinned, unweighted = three_runs(tmp_path, 40_000, 1)
    assert len(whole) == len(thinned) > 38_000
    noise = np.sqrt((1 - RATE) / RATE * (whole**2).sum()) / whole.sum()
    assert noise < 0.06
    assert abs(thinned.mean() / whole.mean() - 1) < 4 * noise
    assert abs(unweighted.mean() / whole.mean() - 1) > 4 * noise


@pytest.mark.slow
def test_a_tenth_of_the_negatives_weighing_ten_moves_the_mean_prediction_by_less_than_1_percent(
    tmp_path: Path,
) -> None:
    """So many rows that 1 % is three standard deviations of the draw."""
    whole, thinned, unweighted = three_runs(tmp_path, 800_000, 3)
    noise = np.sqrt((1 - RATE) / RATE * (whole**2).sum()) / whole.sum()
    assert noise < 0.01 / 3
    moved, unweighted_moved = (abs(p.mean() / whole.mean() - 1) for p in (thinned, unweighted))
    assert moved < 0.01
    assert unweighted_moved > 0.01


def test_thinning_leaves_labels_states_and_what_the_ensemble_reads_as_they_were(
    tmp_path: Path,
) -> None:
    read = market(tmp_path, 15_000, 1)
    homes = [joined(read, rate, f"at {rate}") for rate in (1.0, RATE)]
    goal, (start_us, end_us) = read.dataset.goal(GOAL), hours_of(read.dataset)
    parameters = {
        "goal": GOAL,
        "window_us": goal.window_us,
        "lateness_us": goal.lateness_us,
        "horizon_us": read.dataset.maturity_us,
        "start_us": start_us,
        "end_us": end_us,
        "now_us": end_us,
    }
    found = []
    for home in homes:
        warehouse = Warehouse(home.warehouse)
        warehouse.create(TABLES)
        with warehouse.reader() as connection:
            provisional = rows_of(connection, select("learners.provisional_rows"), parameters)
            found.append(
                (
                    rows_of(connection, "FROM examples.labelled_impressions ORDER BY ALL"),
                    rows_of(connection, "FROM examples.label_states ORDER BY ALL"),
                    rows_of(connection, select("learners.arrival_delays"), parameters),
                    provisional.select(["impression_id", "anchor_us", "serving_us", "label"]),
                )
            )
            kinds = rows_of(
                connection,
                "SELECT kind, count(*) AS rows, sum(weight) AS weight "
                "FROM examples.training_examples GROUP BY kind",
            ).to_pylist()
        if home is homes[1]:
            by_kind = {row["kind"]: row for row in kinds}
            assert by_kind["negative"]["rows"] < 0.12 * 15_000
            assert by_kind["negative"]["weight"] == by_kind["negative"]["rows"] / RATE
            assert by_kind["immediate_positive"]["weight"] == by_kind["immediate_positive"]["rows"]
    for whole, thinned in zip(*found, strict=True):
        assert whole.num_rows > 10
        assert whole.equals(thinned)
