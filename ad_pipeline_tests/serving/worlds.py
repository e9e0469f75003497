"""A small trained world for the tests of this room: requests, snapshots and a bundle."""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US, hour_start
from ad_pipeline.embeddings.published import PublishedVectors
from ad_pipeline.features.dictionary import new_tokens, standing_tokens
from ad_pipeline.features.encoding import (
    FeatureContract,
    RateGoal,
    VectorFeatures,
    category_hashes,
    dense,
    entity_hashes,
    read_columns,
    request_columns,
    slots,
    vector_hashes,
)
from ad_pipeline.features.rates import (
    RateSnapshot,
    advance,
    counts_of,
    hour_counts,
    write_snapshot,
)
from ad_pipeline.features.vectors import vector_numbers
from ad_pipeline.learners.batch.batch_model import BatchModel, train_batch_model
from ad_pipeline.learners.ensemble.ensemble import Ensemble, fit_ensemble
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights, SlotHistory
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.serving.audit import Audit
from ad_pipeline.serving.bundle import Bundle, GoalModels, export_bundle
from ad_pipeline.serving.proof import Sources
from ad_pipeline.serving.retrieval import PublishedIndex
from ad_pipeline.serving.scorer import PublishedSnapshot
from ad_pipeline.settings import BatchSettings, Configuration, EnsembleSettings
from ad_pipeline_tests.features.made_vectors import drawn, publish

START_US = hour_start("2026-11-02-05:00")
"""The snapshots count the hours from here; requests come three hours later."""

SERVED_US = START_US + 3 * HOUR_US
ROWS = 3000

CONTRACT = FeatureContract(
    categorical=("publisher", "creative"),
    numeric=("floor_price", "age"),
    crosses=(("publisher", "creative"),),
    entities=("publisher", "creative"),
    goals=(RateGoal("click", "impression"), RateGoal("purchase", "click")),
    rate_strength=20.0,
    rate_window_hours=24,
    rate_lag_hours=1,
    bits=10,
)


WITH_VECTORS = replace(CONTRACT, vectors=VectorFeatures(6, 1, user="creative", ad="publisher"))
"""The same contract with vectors: creatives stand for users, of whom this world knows nothing."""


@dataclass(frozen=True)
class World:
    """What :func:`build` made.

    Attributes
    ----------
    bundles, snapshots, serving : Path
    requests : list of dict
        Raw requests in the served hour.
    early, due : PublishedSnapshot
        Of the first hour and of the one that training would use for the served hour.
    vectors : tuple of PublishedVectors
        Of the same two hours; empty of a contract without vectors.
    models : tuple of GoalModels
    sources : dict of str to Sources
        What the models were made of, by goal.
    histories : dict of str to SlotHistory
        Of the exported slots, by goal; when they were learnt is made up.
    bundle : Bundle
    young : Bundle
        The same without batch models and ensembles.
    """

    bundles: Path
    snapshots: Path
    serving: Path
    requests: list[dict[str, Any]]
    early: PublishedSnapshot
    due: PublishedSnapshot
    vectors: tuple[PublishedVectors, ...]
    models: tuple[GoalModels, ...]
    sources: dict[str, Sources]
    histories: dict[str, SlotHistory]
    bundle: Bundle
    young: Bundle


def some_requests(rows: int, seed: int) -> list[dict[str, Any]]:
    """Draw raw requests with unknown values among them."""
    draw = np.random.default_rng(seed)
    return [
        {
            "request_id": f"request-{seed}-{row}",
            "impression_id": f"impression-{seed}-{row}",
            "occurred_us": SERVED_US + int(draw.integers(0, HOUR_US)),
            "publisher": None if draw.random() < 0.05 else f'p"{int(draw.zipf(1.5)) % 30}',
            "creative": f"künstler-{int(draw.integers(0, 12))}",
            "floor_price": None if draw.random() < 0.1 else float(draw.lognormal(3, 2)),
            "age": float(draw.integers(-1, 90)),
            "not_a_feature": "ignored",
        }
        for row in range(rows)
    ]


def request_table(requests: list[dict[str, Any]]) -> pa.Table:
    """Return requests as columns."""
    return pa.Table.from_pylist(requests)


def labels_of(requests: list[dict[str, Any]], seed: int) -> np.ndarray:
    """Draw labels whose rate depends on publisher, creative and price."""
    draw = np.random.default_rng(seed)
    logits = np.array(
        [
            -1.5
            + (len(str(r["publisher"])) - 3)
            + 0.2 * (hash_free(str(r["creative"])) % 5)
            - 0.2 * math.log1p(r["floor_price"] or 0.0)
            for r in requests
        ]
    )
    return (draw.random(len(requests)) < 1 / (1 + np.exp(-logits))).astype(np.uint8)


def hash_free(text: str) -> int:
    """Return a number for a text that does not depend on the interpreter's hash seed."""
    return sum(text.encode())


def build(root: Path, contract: FeatureContract = CONTRACT) -> World:
    """Train small models and write everything below ``root``."""
    requests = some_requests(ROWS, 1)
    columns = request_columns(contract, requests)
    read = read_columns(contract, columns)
    labels = {
        "click": labels_of(requests, 2),
        "purchase": labels_of(requests, 3) & labels_of(requests, 4),
    }
    snapshots = root / "snapshots"
    snapshot = RateSnapshot.empty(contract, START_US - HOUR_US)
    published: list[PublishedSnapshot] = []
    for hour in range(2):
        some = request_columns(contract, some_requests(400, 10 + hour))
        engaged = {name: column[: 60 - 20 * hour] for name, column in some.items()}
        delta = hour_counts(
            contract, START_US + hour * HOUR_US, some, {"click": engaged, "purchase": engaged}
        )
        snapshot = advance(snapshot, delta, None)
        published.append(PublishedSnapshot(write_snapshot(snapshots, snapshot).digest, snapshot))
    looked_up = counts_of(contract, snapshot, entity_hashes(contract, read))
    vectors: list[PublishedVectors] = []
    if contract.vectors is not None:
        vectors = [
            publish_drawn(root / "vectors", contract.vectors, requests, hour) for hour in range(2)
        ]
        looked_up.vectors[:] = vector_numbers(
            contract.vectors, vectors[-1], vector_hashes(contract, read)
        )
    hashed = slots(contract, read, looked_up)
    numbers, categories = dense(contract, read, looked_up), category_hashes(contract, read)
    train = np.arange(ROWS) < 2 * ROWS // 3
    settings = BatchSettings.model_validate(
        {
            "minimum_positives": 5,
            "minimum_leaf_rows": 5,
            "rounds": 30,
            "leaves": 15,
            "early_stopping_rounds": 10,
        }
    )
    models: list[GoalModels] = []
    sources: dict[str, Sources] = {}
    histories: dict[str, SlotHistory] = {}
    for goal, target in labels.items():
        expert = FTRLExpert(contract.bits, [Configuration(alpha=0.3, l1=0.05, l2=0.1)])
        online = expert.predict_then_learn(hashed, target)[:, 0]
        batch = train_batch_model(
            numbers, categories, online, target, train, ~train, contract.dense_names,
            contract.categorical, settings,
        )  # fmt: skip
        assert isinstance(batch, BatchModel)
        batch_logits = batch.predict_logits(numbers, categories, online)
        source = Sources(expert.linear_weights(), batch, mixture(online, batch_logits, target))
        sources[goal] = source
        weights = ExportedWeights.exact(source.online)
        kept = weights.slots
        histories[goal] = SlotHistory(
            expert.accumulated(0, kept), (START_US // HOUR_US + kept % 3).astype(np.int32)
        )
        models.append(
            GoalModels(
                goal=goal,
                online=weights,
                online_checkpoint="a" * 64,
                batch=batch.exported,
                batch_checkpoint="b" * 64,
                ensemble=source.ensemble,
                ensemble_checkpoint="c" * 64,
            )
        )
    young = [
        replace(model, batch=None, batch_checkpoint=None, ensemble=None, ensemble_checkpoint=None)
        for model in models
    ]
    audit = Audit.collect(
        {model.goal: model.online for model in models},
        histories,
        partial(tokens_of, columns, contract=contract),
        limit=10_000,
    )
    exported = partial(
        write,
        root / "bundles",
        requests=requests,
        snapshot=snapshot,
        contract=contract,
        vectors=vectors[-1] if vectors else None,
    )
    return World(
        bundles=root / "bundles",
        snapshots=snapshots,
        serving=root / "serving",
        requests=requests[:200],
        early=published[0],
        due=published[1],
        vectors=tuple(vectors),
        models=tuple(models),
        sources=sources,
        histories=histories,
        bundle=exported(models=tuple(models), audit=audit),
        young=exported(models=tuple(young)),
    )


def publish_drawn(
    root: Path, features: VectorFeatures, requests: list[dict[str, Any]], hour: int
) -> PublishedVectors:
    """Publish vectors of an hour, other ones in each; the first "user" and "ad" have none."""
    known = [
        sorted({request[name] for request in requests if request[name] is not None})[1:]
        for name in (features.user, features.ad)
    ]
    users, ads = (drawn(names, features.dimension, hour) for names in known)
    columns = features.user, features.ad
    return publish(root, START_US + hour * HOUR_US, users, ads, features.dimension, columns)


def write(
    bundles: Path,
    models: tuple[GoalModels, ...],
    requests: list[dict[str, Any]],
    snapshot: RateSnapshot | None,
    watermark_us: int = SERVED_US,
    audit: Audit | None = None,
    stale_hours: int | None = None,
    contract: FeatureContract = CONTRACT,
    vectors: PublishedVectors | None = None,
    candidate_index: PublishedIndex | None = None,
) -> Bundle:
    """Write a bundle of these models; another watermark is another bundle."""
    return export_bundle(
        bundles,
        contract=contract,
        goals=models,
        dataset="small_world",
        label_watermark_us=watermark_us,
        canaries=requests[:4],
        snapshot=snapshot,
        vectors=vectors,
        audit=audit,
        stale_hours=stale_hours,
        candidate_index=candidate_index,
    )


def tokens_of(
    columns: dict[str, pa.Array], slots: np.ndarray, contract: FeatureContract = CONTRACT
) -> pa.Table:
    """Return what falls into some slots, as the warehouse's inverse dictionary would say."""
    met = [
        new_tokens(contract, columns),
        standing_tokens(contract, START_US).drop_columns("first_hour_us"),
    ]
    every = pa.concat_tables(met).to_pylist()
    asked = set(slots.tolist())
    rows = sorted((row["slot"], row["feature"], row["value"]) for row in every)
    chosen = [row for row in rows if row[0] in asked]
    schema = met[0].schema
    return pa.table(
        [pa.array([row[place] for row in chosen], schema.types[place]) for place in range(3)],
        schema=schema,
    )


def mixture(online: np.ndarray, batch: np.ndarray, labels: np.ndarray) -> Ensemble:
    """Fit an ensemble to rows that matured one after another over a day."""
    hours = START_US + np.arange(len(labels)) * 24 * HOUR_US // len(labels)
    return fit_ensemble(
        {"online": online, "batch": batch},
        labels,
        hours,
        EnsembleSettings.model_validate({"folds": 2}),
    )
