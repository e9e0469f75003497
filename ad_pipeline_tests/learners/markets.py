"""Small simulated markets up to where the online learner begins: labels joined, rates published."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ad_pipeline.datasets import Deployment
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.ledger import register_files
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.features.rates import advance_hours
from ad_pipeline.learners.online.online_checkpoints import KIND
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.left_behind import LeftBehind, left_behind
from ad_pipeline_tests.defs.markets import TINY, Market, make_market, write_days

LEARNT = ("table learners.", f"checkpoints/pointers/{KIND}", "checkpoints/objects/")

LATE_LOSSES = {
    "delays": {"refit_every_hours": 6, "lookback_hours": 24, "least_positives": 50},
    "online": {
        "bits": 14,
        "micro_batch_minutes": 20,
        "loss": "es_dfm",
        "grid": [{"loss": "hazard"}, {"loss": "delayed_feedback"}],
    },
}
"""Of a market whose learners read models of delay, fitted every few hours."""


def ready_market(
    folder: Path,
    seed: int = TINY.seed,
    days: int = TINY.days,
    settings: Mapping[str, Any] | None = None,
    spec: MarketplaceSpec = TINY,
    purchase_observation: str | None = None,
) -> Market:
    """Return a market whose hours are ready to be learnt.

    Parameters
    ----------
    folder : Path
    seed, days : int
        Of the market.
    settings : mapping, optional
        Laid over those of a small market.
    spec : MarketplaceSpec
    purchase_observation : str, optional
        See :func:`ad_pipeline_tests.defs.markets.make_market`.
    """
    spec = replace(spec, seed=seed, days=days)
    market = make_market(folder, spec, settings, purchase_observation)
    write_days(market, range(days))
    deployment = market.deployment
    dataset, warehouse = deployment.dataset, Warehouse(deployment.warehouse)
    span = (market.start_us, market.end_us)
    register_files(warehouse, deployment)
    ingest_hours(warehouse, deployment, *span)
    join_labels(warehouse, dataset, *span)
    contract = FeatureContract.from_dataset(dataset)
    for _ in advance_hours(warehouse, deployment.snapshots, contract, dataset, *span):
        pass
    return market


def with_settings(market: Market, **groups: Mapping[str, Any]) -> Market:
    """Return the market with other settings, laid over its own in a dataset file beside its home.

    What was made of the market so far stays: the settings must be of what comes after.
    """
    written = yaml.safe_load(market.dataset_file.read_text())
    for group, changes in groups.items():
        written["settings"][group] = {**written["settings"].get(group, {}), **changes}
    path = market.root / f"dataset-{len(list(market.root.glob('dataset-*.yaml')))}.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return replace(market, dataset_file=path)


def learnt(deployment: Deployment) -> LeftBehind:
    """Return what the online learner left: its tables, and every checkpoint that is pointed at."""
    return {
        name: digest for name, digest in left_behind(deployment).items() if name.startswith(LEARNT)
    }
