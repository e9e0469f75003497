"""How long the re-check of served decisions takes beside scoring them, and what logging them costs.

- one scoring pass over the requests: columns in, probabilities out, one hour at a time;
- the re-check of the same requests from the warehouse: features are looked up again in the
  snapshots and compared with the logged texts, scored by the bundle, and the scores compared;
- writing the serving log, whole and of a sampled share, as a share of that scoring pass.

The bundle's linear weights are drawn and its trees, as many and as large as the settings' defaults
allow, are grown on drawn labels; the same beside a bundle without trees is told apart. Times are
CPU seconds of all threads, the least of the runs: on a shared machine the clock on the wall
measures its neighbours, who also take the caches away, and what runs on two cores at once gets no
credit here. ``--rows 1000000`` is the figure of a larger
exchange's day; ``--linear`` measures half the rows, too.

    python -m benchmarks.speed.parity [--json] [--runs 3] [--rows 200000] [--linear]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import resolve
from ad_pipeline.datasets import Deployment
from ad_pipeline.events.contract import event_tables
from ad_pipeline.features.encoding import category_hashes, dense, read_columns
from ad_pipeline.features.rates import pointer, snapshot_hour
from ad_pipeline.learners.batch.batch_model import TooFewPositives, train_batch_model
from ad_pipeline.monitoring.parity.recheck import recheck_decisions
from ad_pipeline.serving.bundle import ONLINE, Bundle, export_bundle
from ad_pipeline.serving.scorer import PublishedSnapshot, Scorer
from ad_pipeline.settings import BatchSettings
from ad_pipeline.simulation.marketplace import Marketplace
from ad_pipeline.warehouse import Warehouse
from benchmarks.figures import Figure, print_figures
from benchmarks.served_hours import SERVED_DAY, SPEC, counted_market, drawn_bundle, hours_of_days

ROWS = 200_000
RATIO = 3.0
LOG_SHARE = 0.05
"""What writing the log may take of the scoring pass."""

SAMPLED = 0.02

Hours = list[tuple[Scorer, pa.Table]]


def served_hours(market: Deployment, bundle: Bundle, rows: int) -> Hours:
    """Return the requests of each hour of a day of so many rows, and the scorer that is due."""
    larger = Marketplace(replace(SPEC, impressions_per_day=rows))
    hours: Hours = []
    for hour in range(24 * SERVED_DAY, 24 * (SERVED_DAY + 1)):
        due_us = snapshot_hour(bundle.contract, SPEC.hour_start_us(hour))
        digest = resolve(market.snapshots, pointer(due_us))
        snapshot = PublishedSnapshot.read(market.snapshots, digest)
        hours.append((Scorer(bundle, snapshot), larger.requests(hour)))
    return hours


def grown_bundle(market: Deployment, linear: Bundle) -> Bundle:
    """Return the bundle with trees for every goal, grown on the labels that its own scores draw."""
    scorer, requests = served_hours(market, linear, SPEC.impressions_per_day)[12]
    contract = linear.contract
    decided = scorer.score_many(requests)
    read = read_columns(contract, decided.columns)
    numbers, categories = dense(contract, read, decided.counts), category_hashes(contract, read)
    rng = np.random.default_rng(SPEC.seed)
    train = rng.random(len(read)) < 0.85
    settings = BatchSettings(early_stopping_rounds=200, minimum_positives=5, minimum_leaf_rows=5)
    goals = []
    for models in linear.goals:
        online = decided.logits[models.goal][ONLINE]
        labels = (rng.random(len(read)) < 0.3).astype(np.int8)
        grown = train_batch_model(
            numbers, categories, online, labels, train, ~train, contract.dense_names,
            contract.categorical, settings,
        )  # fmt: skip
        if isinstance(grown, TooFewPositives):
            raise ValueError(f"no trees of {models.goal}: {grown}")
        goals.append(replace(models, batch=grown.exported, batch_checkpoint="grown"))
    return export_bundle(
        market.bundles,
        contract=contract,
        goals=goals,
        dataset=linear.dataset,
        label_watermark_us=linear.label_watermark_us,
        canaries=requests.slice(0, 3).to_pylist(),
    )


def logged_warehouse(path: Path, market: Deployment, hours: Hours) -> Warehouse:
    """Return a warehouse that holds the decisions of all hours and their impressions."""
    warehouse = Warehouse(path)
    tables = event_tables(market.dataset)
    wanted = ("decisions", "impressions")
    with_columns = tables["impressions"].column_names
    warehouse.create(tuple(tables[name] for name in wanted))
    with warehouse.writer() as connection:
        for scorer, requests in hours:
            received = requests.append_column("received_us", requests["occurred_us"])
            impressions = received.select([n for n in received.column_names if n in with_columns])
            decisions = scorer.score_many(requests).to_log()
            decisions = decisions.append_column("received_us", requests["occurred_us"])
            for name, rows in zip(wanted, (decisions, impressions), strict=True):
                connection.register("arrived", rows)
                connection.execute(f"INSERT INTO events.{name} BY NAME SELECT * FROM arrived")
    return warehouse


def least_seconds(work: Callable[[], object], runs: int) -> float:
    """Return the least CPU time of some work, all threads, after one run that warms it up."""
    work()
    taken = []
    for _ in range(runs):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def seconds_of(
    market: Deployment, bundle: Bundle, rows: int, runs: int, folder: Path
) -> tuple[float, float, int]:
    """Return the seconds of a scoring pass and of the re-check, and the decisions of both."""
    hours = served_hours(market, bundle, rows)
    warehouse = logged_warehouse(folder / f"{rows}.duckdb", market, hours)
    span = hours_of_days(market, range(SERVED_DAY, SERVED_DAY + 1))

    def score() -> None:
        for scorer, requests in hours:
            scorer.score_many(requests)

    def recheck() -> None:
        found = list(recheck_decisions(warehouse, market, *span))
        if any(hour.state != "passed" for hour in found):
            raise ValueError("the re-check of sound decisions failed: nothing here is comparable")

    scored = least_seconds(score, runs)
    return scored, least_seconds(recheck, runs), sum(len(requests) for _, requests in hours)


def log_seconds(hours: Hours, share: float, runs: int) -> float:
    """Return the seconds that writing a share of the decisions takes, scoring left out."""
    scored = [replace(scorer.score_many(requests), log_share=share) for scorer, requests in hours]
    # A hundredth of a second is more easily disturbed than the others' half.
    return least_seconds(lambda: [decisions.to_log() for decisions in scored], 10 * runs)


def figures(rows: int, runs: int, *, linear: bool) -> list[Figure]:
    """Measure everything on one market."""
    with tempfile.TemporaryDirectory(prefix="parity-speed-") as scratch:
        folder = Path(scratch)
        market = counted_market(folder / "market", SPEC)
        linear_bundle = drawn_bundle(market, SPEC)
        bundle = grown_bundle(market, linear_bundle)
        scored, rechecked, decisions = seconds_of(market, bundle, rows, runs, folder)
        alone = least_seconds(
            lambda: [
                scorer.score_many(r) for scorer, r in served_hours(market, linear_bundle, rows)
            ],
            runs,
        )
        hours = served_hours(market, bundle, rows)
        whole, sampled = (log_seconds(hours, share, runs) for share in (1.0, SAMPLED))
        found = [
            Figure(
                "parity_ratio",
                rechecked / scored,
                f"re-check of {decisions:,} logged decisions beside one scoring pass over them",
                RATIO,
                "lower",
                "reading the texts from the warehouse takes as long as scoring; scoring again, "
                "writing the recomputed features and looking them up are the rest",
            ),
            Figure(
                "log_sampled_share",
                sampled / scored,
                f"writing the log of {SAMPLED:.0%} of the requests, of the scoring pass",
                LOG_SHARE,
                "lower",
                f"drawing by the request's id and {SAMPLED:.0%} of the texts",
            ),
            Figure(
                "log_whole_share",
                whole / scored,
                "writing the log of every request, of the scoring pass: above the same "
                f"{LOG_SHARE:.0%}, so that a busy scorer must sample",
                better="lower",
            ),
            Figure(
                "parity_ratio_linear",
                rechecked / alone,
                "the same re-check beside the scoring pass of a bundle without trees",
                better="lower",
            ),
            Figure(
                "scoring_us_per_row", 1e6 * scored / decisions, "the scoring pass", better="lower"
            ),
            Figure(
                "parity_us_per_row", 1e6 * rechecked / decisions, "the re-check", better="lower"
            ),
        ]
        if linear:
            _, half, fewer = seconds_of(market, bundle, rows // 2, runs, folder)
            found.append(
                Figure(
                    "parity_growth",
                    (rechecked / decisions) / (half / fewer),
                    "a row's re-check beside a row's on half of them: 1 is linear",
                    better="lower",
                )
            )
    return found


def main() -> None:
    """Print a table, then one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS, help="requests of the day")
    parser.add_argument("--linear", action="store_true", help="measure half the rows, too")
    asked = parser.parse_args()
    print_figures(figures(asked.rows, asked.runs, linear=asked.linear), as_json=asked.json)


if __name__ == "__main__":
    main()
