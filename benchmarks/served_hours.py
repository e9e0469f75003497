"""A small market whose second day is served hour by hour, rightly or with planted faults.

Parity is about inputs and bits, not about how good a model is, so the bundle's weights are drawn
and nothing is trained: a run is the log, the rates, the scorer and the re-check. The study of
served parity and its speed benchmark both begin here.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.datasets import DATA_FOLDER, Dataset, Deployment, load_dataset
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.ledger import register_files
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.features.rates import advance_hours
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights
from ad_pipeline.learners.ftrl.ftrl_expert import LinearWeights
from ad_pipeline.serving.bundle import Bundle, GoalModels, export_bundle
from ad_pipeline.simulation.driver import DECISIONS, serve_day
from ad_pipeline.simulation.faulty_scorer import HourlyScorer, ServingFault
from ad_pipeline.simulation.marketplace import Marketplace, simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.warehouse import Warehouse

SPEC = MarketplaceSpec(
    days=2,
    impressions_per_day=10_000,
    users=300,
    advertisers=4,
    campaigns=8,
    ads=40,
    publishers=8,
    segments=3,
    click_rate=0.3,
    purchase_rate=0.4,
    purchase_window_us=6 * HOUR_US,
)
SERVED_DAY = 1
BITS = 14


def served_dataset() -> Dataset:
    """Return the marketplace's dataset for two days."""
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    online = dataset.settings.online.model_copy(update={"bits": BITS})
    settings = dataset.settings.model_copy(update={"online": online})
    end_us = dataset.start_us + SPEC.days * DAY_US
    return dataset.model_copy(update={"end_us": end_us, "settings": settings})


def counted_market(home: Path, spec: MarketplaceSpec) -> Deployment:
    """Simulate a market, ingest its log and publish the rates of every hour."""
    deployment = Deployment(served_dataset(), home)
    simulate_days(spec, deployment.logs, deployment.truth, range(spec.days))
    _ingest(deployment, spec)
    contract = FeatureContract.from_dataset(deployment.dataset)
    for _ in advance_hours(
        Warehouse(deployment.warehouse),
        deployment.snapshots,
        contract,
        deployment.dataset,
        *hours_of_days(deployment, range(spec.days)),
    ):
        pass
    return deployment


def drawn_bundle(deployment: Deployment, spec: MarketplaceSpec) -> Bundle:
    """Write a bundle of drawn weights for every goal of the dataset."""
    contract = FeatureContract.from_dataset(deployment.dataset)
    rng = np.random.default_rng(spec.seed)
    goals = [
        GoalModels(
            goal=goal.name,
            online=ExportedWeights.exact(
                LinearWeights(rng.normal(0.0, 0.1, 1 << contract.bits), -2.0)
            ),
            online_checkpoint="drawn",
            batch=None,
            batch_checkpoint=None,
            ensemble=None,
        )
        for goal in deployment.dataset.goals
    ]
    return export_bundle(
        deployment.bundles,
        contract=contract,
        goals=goals,
        dataset=deployment.dataset.name,
        label_watermark_us=spec.hour_start_us(24 * SERVED_DAY),
        canaries=Marketplace(spec).requests(24 * SERVED_DAY).slice(0, 3).to_pylist(),
    )


def serve(
    market: Deployment,
    home: Path,
    spec: MarketplaceSpec,
    bundle: Bundle,
    faults: Mapping[int, ServingFault],
) -> Deployment:
    """Serve the second day of a counted market and ingest its whole log in a home of its own.

    Parameters
    ----------
    market : Deployment
        From :func:`counted_market`; its vectors too, if its settings ask for them.
    home : Path
        Where the served day is ingested: the bidder needs the rates of hours that the log of its
        decisions comes before.
    spec : MarketplaceSpec
    bundle : Bundle
    faults : mapping of int to ServingFault
        By hour of the world.
    """
    served = Deployment(market.dataset, home)
    for folder in (market.logs, market.snapshots, market.vectors, market.bundles):
        if folder.is_dir():
            shutil.copytree(folder, home / folder.relative_to(market.home))
    by_moment = {spec.hour_start_us(hour): fault for hour, fault in faults.items()}
    scorer = HourlyScorer(bundle, market.snapshots, by_moment, market.vectors)
    hours: list[pa.Table] = []
    serve_day(spec, SERVED_DAY, scorer, hours.append)
    target = served.logs / DECISIONS / f"day={SERVED_DAY}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(hours), target)
    _ingest(served, spec)
    return served


def hours_of_days(deployment: Deployment, days: range) -> tuple[int, int]:
    """Return the log hours of some days, microseconds, the end excluded."""
    start_us = deployment.dataset.start_us
    return start_us + days.start * DAY_US, start_us + days.stop * DAY_US


def seeded(seed: int) -> MarketplaceSpec:
    """Return the market of a seed."""
    return replace(SPEC, seed=seed)


def _ingest(deployment: Deployment, spec: MarketplaceSpec) -> None:
    warehouse = Warehouse(deployment.warehouse)
    register_files(warehouse, deployment)
    ingest_hours(warehouse, deployment, *hours_of_days(deployment, range(spec.days)))
