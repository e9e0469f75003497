"""Simulated markets as a study of user vectors reads them: ranker rows, activities, true tastes.

A market goes through the product's own path as far as a ranker's inputs need it (events, label
join, rates, online learner) once a seed; what a ranker is given of each impression, when its label
matured, what users did, and what only a simulator knows (the true probability, and the user's taste
for the ad's category) is kept under ``.ad_pipeline/evidence``, out of git. Nothing here knows an
encoder or trains a ranker.
"""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.clocks import DAY_US
from ad_pipeline.datasets import DATA_FOLDER, Dataset, Deployment, load_dataset
from ad_pipeline.evaluation.truth import read_truth
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.ledger import register_files
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract, category_hashes, dense
from ad_pipeline.features.rates import advance_hours
from ad_pipeline.learners.delayed.delay_model_hours import fit_hours
from ad_pipeline.learners.online import online_hours
from ad_pipeline.learners.online.grid_hours import select_hours
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.simulation.world import CATEGORIES, build_world
from ad_pipeline.warehouse import Warehouse, rows_of, select
from benchmarks.studies import Shared

KEPT = Path(__file__).resolve().parents[1] / ".ad_pipeline" / "evidence"
VERSION = 1
"""Raise when the same settings would give other rows."""

SECONDS = 150.0
"""What one seed takes on a quiet core."""

SPEC = MarketplaceSpec(
    days=10,
    impressions_per_day=60_000,
    users=12_000,
    ads=400,
    click_rate=0.08,
    purchase_rate=0.25,
    organic_views=1.0,
    drift=False,
)
"""Long enough for vectors that are a week old; as many clicks an impression as the markets of the
other studies, and people read as many articles as they see ads, so that there is something to
encode. It has no drift: what a vector loses with age is what the user did since, not a taste that
changed."""

GOALS = ("click", "purchase")
AD_COLUMNS = ("ad_id", "campaign_id", "category", "advertiser_id")


@dataclass(frozen=True)
class RankerRows:
    """The matured rows of one goal, as the batch ranker is given them, by time of impression.

    Attributes
    ----------
    users : pa.StringArray of length n
    ads : pa.Table of n rows
        :data:`AD_COLUMNS`.
    context : pa.Table of n rows
        What a request tells of a user nobody knows: country, device, publisher_id.
    occurred_us, matured_us : ndarray of shape (n,), int64
    labels : ndarray of shape (n,), int8
    truth : ndarray of shape (n,), float64
        The true probability.
    taste : ndarray of shape (n, categories), float32
        The user's true tastes, log odds.
    taste_of_ad : ndarray of shape (n,), float32
        The one that this ad meets.
    dense : ndarray of shape (n, D), float64
    categories : ndarray of shape (n, C), uint64
    online_logit : ndarray of shape (n,), float64
    dense_names, category_names : tuple of str
    """

    users: pa.Array
    ads: pa.Table
    context: pa.Table
    occurred_us: np.ndarray
    matured_us: np.ndarray
    labels: np.ndarray
    truth: np.ndarray
    taste: np.ndarray
    taste_of_ad: np.ndarray
    dense: np.ndarray
    categories: np.ndarray
    online_logit: np.ndarray
    dense_names: tuple[str, ...]
    category_names: tuple[str, ...]


@dataclass(frozen=True)
class VectorWorld:
    """One market.

    Attributes
    ----------
    start_us : int
        Start of its first day.
    rows : dict of str to RankerRows
        By goal.
    activities : pa.Table
        user_id, modality, content_id, occurred_us, received_us.
    ads : pa.Table
        :data:`AD_COLUMNS` of each ad once.
    """

    start_us: int
    rows: dict[str, RankerRows]
    activities: pa.Table
    ads: pa.Table


def settings(spec: MarketplaceSpec = SPEC) -> dict[str, object]:
    """Return all that a world follows from besides its seed."""
    return {
        "version": VERSION,
        "online": online_hours.CODE_VERSION,
        "spec": {key: value for key, value in asdict(spec).items() if key != "seed"},
        "settings": _dataset(spec).settings.digest(),
    }


def shared(seed: int) -> Shared:
    """Return the cost of a seed's world, for a study's budget."""
    return Shared(f"vector world {seed}", SECONDS, _kept(SPEC, seed).exists())


def vector_world(seed: int, spec: MarketplaceSpec = SPEC) -> VectorWorld:
    """Return a seed's market; the path is run unless it is kept already."""
    folder = _kept(spec, seed)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as scratch:
            draft = Path(scratch) / "world"
            draft.mkdir()
            _run_path(replace(spec, seed=seed), Path(scratch) / "home", draft)
            draft.rename(folder)
    ads = pq.read_table(folder / "ads.parquet")
    rows = {goal: _ranker_rows(folder, goal, replace(spec, seed=seed)) for goal in GOALS}
    return VectorWorld(spec.start_us, rows, pq.read_table(folder / "activities.parquet"), ads)


def _ranker_rows(folder: Path, goal: str, spec: MarketplaceSpec) -> RankerRows:
    table = pq.read_table(folder / f"{goal}.parquet")
    arrays = dict(np.load(folder / f"{goal}.npz"))
    names = json.loads((folder / f"{goal}.json").read_text())
    # A user's id tells his place in the world, and only the simulator may read it.
    user = np.array([int(text[1:]) for text in table["user_id"].to_pylist()])
    taste = build_world(spec).users.taste[user]
    category = np.searchsorted(CATEGORIES, table["category"].to_pylist())
    return RankerRows(
        users=table["user_id"].combine_chunks(),
        ads=table.select(AD_COLUMNS),
        context=table.select(["country", "device", "publisher_id"]),
        taste=taste,
        taste_of_ad=taste[np.arange(len(user)), category],
        dense_names=tuple(names["dense"]),
        category_names=tuple(names["categories"]),
        **arrays,
    )


def _dataset(spec: MarketplaceSpec) -> Dataset:
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    return dataset.model_copy(update={"end_us": spec.start_us + spec.days * DAY_US})


def _kept(spec: MarketplaceSpec, seed: int) -> Path:
    canonical = json.dumps(settings(spec), sort_keys=True).encode()
    return KEPT / hashlib.sha256(canonical).hexdigest()[:16] / f"vectors-{seed}"


def _run_path(spec: MarketplaceSpec, home: Path, target: Path) -> None:
    deployment = Deployment(_dataset(spec), home)
    simulate_days(spec, deployment.logs, deployment.truth, range(spec.days))
    warehouse, dataset = Warehouse(deployment.warehouse), deployment.dataset
    contract = FeatureContract.from_dataset(dataset)
    end_us = dataset.last_hour_end_us
    if end_us is None:
        raise ValueError(f"dataset {dataset.name} has no end")
    span = (dataset.start_us, end_us)
    register_files(warehouse, deployment)
    ingest_hours(warehouse, deployment, *span)
    join_labels(warehouse, dataset, *span)
    for _ in advance_hours(warehouse, deployment.snapshots, contract, dataset, *span):
        pass
    for _ in fit_hours(warehouse, deployment, *span):
        pass
    for _ in learn_hours(warehouse, deployment, *span):
        pass
    for _ in select_hours(warehouse, deployment, *span):
        pass
    activities = "SELECT user_id, modality, content_id, occurred_us, received_us FROM "
    columns = ", ".join(AD_COLUMNS)
    with warehouse.reader() as connection:
        told = rows_of(connection, activities + "events.user_activities", {})
        ads = rows_of(
            connection, f"SELECT DISTINCT {columns} FROM events.impressions ORDER BY ad_id", {}
        )
    pq.write_table(told, target / "activities.parquet", compression="zstd")
    pq.write_table(ads, target / "ads.parquet")
    for goal in GOALS:
        _write_rows(warehouse, deployment, contract, goal, end_us, target)


def _write_rows(
    warehouse: Warehouse,
    deployment: Deployment,
    contract: FeatureContract,
    goal: str,
    end_us: int,
    target: Path,
) -> None:
    span = {"goal": goal, "start_us": deployment.dataset.start_us, "end_us": end_us + 3 * DAY_US}
    with warehouse.reader() as connection:
        rows = rows_of(connection, select("learners.matured_examples"), span)
    truth = read_truth(deployment.truth, goal).select(["impression_id", "probability"])
    rows = rows.join(
        truth.cast(pa.schema([("impression_id", pa.string()), ("probability", pa.float64())])),
        "impression_id",
        join_type="inner",
    ).sort_by([("occurred_us", "ascending"), ("impression_id", "ascending")])
    read, counts = read_as_served(deployment, contract, rows)
    arrays = {
        "occurred_us": rows["occurred_us"].to_numpy(),
        "matured_us": rows["matured_us"].to_numpy(),
        "labels": rows["label"].to_numpy().astype(np.int8),
        "truth": rows["probability"].to_numpy(),
        "dense": dense(contract, read, counts),
        "categories": category_hashes(contract, read),
        "online_logit": rows["online_logit"].to_numpy(),
    }
    np.savez(target / f"{goal}.npz", **arrays)
    texts = [*AD_COLUMNS, "user_id", "country", "device", "publisher_id"]
    pq.write_table(rows.select(texts), target / f"{goal}.parquet", compression="zstd")
    names = {"dense": contract.dense_names, "categories": contract.categorical}
    (target / f"{goal}.json").write_text(json.dumps(names))
