"""A small simulated market with vectors of users: its log read, its labels joined, no learner."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings.encoder_hours import EncoderHour, train_hours
from ad_pipeline.embeddings.vector_hours import VectorHour, advance_hours
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.ledger import register_files
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.features import rates
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.settings import UserVectorSettings
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import TINY, Market, make_market, write_days

#: Sequences of one padded length, so that one program is compiled.
VECTORS: dict[str, Any] = {
    "encoder": {
        "modalities": [
            {"name": "ad_click", "tokens": 4, "longest": 8},
            {"name": "content_view", "tokens": 1, "longest": 8},
        ],
        "ad_columns": ["ad_id", "campaign_id", "advertiser_id", "category"],
        "bits": 10,
        "width": 8,
        "heads": 2,
        "dimension": 8,
        "tasks": ["click", "purchase"],
    },
    "training": {"batch_sequences": 16, "epochs": 1},
    "fewest_activities": 2,
    "minimum_positives": 20,
    "full_refresh_every_hours": 6,
    "retrain_every_hours": 12,
    "shard_bits": 1,
    "neighbours": 5,
    "next_actions": {"horizon_hours": 4},
}
FIRST_ENCODER = 11
"""The hour, from 0, after which the market's encoder is trained."""

HOURS = 15
"""Of the market, that are trained and published."""


def joined_market(folder: Path) -> Market:
    """Return a market of a day whose log is read and whose labels are joined."""
    spec = replace(TINY, impressions_per_day=3_000)
    spec = replace(spec, days=1)
    market = make_market(folder, spec, {"user_vectors": VECTORS}, purchase_observation="1h")
    write_days(market, range(1))
    deployment, span = market.deployment, (market.start_us, market.end_us)
    warehouse = Warehouse(deployment.warehouse)
    register_files(warehouse, deployment)
    ingest_hours(warehouse, deployment, *span)
    join_labels(warehouse, deployment.dataset, *span)
    return market


def hour_of(market: Market, number: int) -> int:
    """Return the start of an hour of the market's log, counted from 0."""
    return market.start_us + number * HOUR_US


def trained(market: Market, first: int, last: int) -> list[EncoderHour]:
    """Train the encoders of the hours ``[first, last)``."""
    span = hour_of(market, first), hour_of(market, last)
    return list(train_hours(warehouse_of(market), market.deployment, *span))


def advanced(market: Market, first: int, last: int) -> list[VectorHour]:
    """Publish the vectors of the hours ``[first, last)``."""
    span = hour_of(market, first), hour_of(market, last)
    return list(advance_hours(warehouse_of(market), market.deployment, *span))


def publish_rates(market: Market) -> None:
    """Publish the snapshots of rates of the whole log."""
    deployment, span = market.deployment, (market.start_us, market.end_us)
    contract = FeatureContract.from_dataset(deployment.dataset)
    root, dataset = deployment.snapshots, deployment.dataset
    for _ in rates.advance_hours(warehouse_of(market), root, contract, dataset, *span):
        pass


def warehouse_of(market: Market) -> Warehouse:
    return Warehouse(market.deployment.warehouse)


def vector_settings(market: Market) -> UserVectorSettings:
    found = market.deployment.dataset.settings.user_vectors
    assert found is not None
    return found


def with_settings(market: Market, folder: Path, **changes: Any) -> Market:
    """Return the market with other settings of its vectors."""
    written = yaml.safe_load(market.dataset_file.read_text())
    written["settings"]["user_vectors"] = {**written["settings"]["user_vectors"], **changes}
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return replace(market, dataset_file=path)
