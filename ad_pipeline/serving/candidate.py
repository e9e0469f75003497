"""The candidate bundle: what it is made of, and how it compares with what serves.

It is assembled from the newest checkpoints of the learners and pointed at as ``candidate``. The
comparison reads rows that had matured and that neither side was fitted on: the candidate's lineage
by the scores it gave at serving time, mixed as the candidate mixes; the serving bundle by scoring
the same rows itself, only rows served after its labels ended. Whether the candidate replays to the
bit is another question, asked in ``monitoring``; moving the pointer is :mod:`.promotion`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import MissingCheckpoint, point, resolve
from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.datasets import Deployment
from ad_pipeline.evaluation.held_out import BASE_RATE, ENSEMBLE, HeldOut
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.features.rates import pointer as snapshot_pointer
from ad_pipeline.features.rates import read_snapshot
from ad_pipeline.hashing import uniform
from ad_pipeline.learners import batch_hours, online_hours
from ad_pipeline.learners.ensembles import held_out_forecasts, open_ensemble
from ad_pipeline.serving.bundle import Bundle, GoalModels, export_bundle, open_bundle
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.serving.promotion import PromotionVerdict, verdict
from ad_pipeline.warehouse import Warehouse

CANDIDATE = "candidate"
CANARIES = 16
COMPARED_ROWS = 120_000
"""Rows a goal's comparison reads at most, drawn by hash: an interval of hours needs no more."""


class UnservableExpert(ValueError):
    """An online expert has no linear form, so that a scorer could not carry it."""


@dataclass(frozen=True)
class JudgedCandidate:
    """A candidate beside what serves.

    Attributes
    ----------
    digest : str
    watermark_us : int
        Labels up to here were used, microseconds.
    verdicts : dict of str to PromotionVerdict
        By goal; a goal without matured rows has none.
    """

    digest: str
    watermark_us: int
    verdicts: dict[str, PromotionVerdict]

    def evidence(self) -> dict[str, Any]:
        """Return what the decision rests on, as JSON takes it (NaN as None)."""
        return {
            "candidate": self.digest,
            "verdicts": {
                goal: {
                    name: None if isinstance(value, float) and value != value else value
                    for name, value in asdict(found).items()
                }
                for goal, found in self.verdicts.items()
            },
        }


def build_candidate(warehouse: Warehouse, deployment: Deployment) -> Bundle:
    """Write the newest state of every goal as a bundle and point ``candidate`` at it.

    Parameters
    ----------
    warehouse : Warehouse
        Gives the canary requests.
    deployment : Deployment

    Raises
    ------
    MissingCheckpoint
        If no hour has been learnt yet.
    UnservableExpert
        If an online expert has no linear form, so that a scorer could not carry it.
    """
    dataset = deployment.dataset
    contract = FeatureContract.from_dataset(dataset)
    hour_us = _last_learnt_hour(warehouse)
    models: list[GoalModels] = []
    ranges: dict[str, Any] = {}
    for goal in dataset.goals_in_chain_order():
        online_digest = resolve(
            deployment.checkpoints, online_hours.pointer(goal.name, hour_us)
        )
        linear = online_hours.open_expert(deployment.checkpoints, online_digest).linear_weights()
        if linear is None:
            raise UnservableExpert(
                f"the online expert of {goal.name} ({dataset.settings.online.estimator}) has no "
                "linear weights to export; it stays an expert of the predictions only"
            )
        batch_digest = batch_hours.digest_after(deployment, goal.name, hour_us)
        fitted = open_ensemble(deployment, goal.name)
        ranges[goal.name] = fitted.ranges if fitted else {}
        models.append(
            GoalModels(
                goal=goal.name,
                online=linear,
                online_checkpoint=online_digest,
                batch=(
                    None
                    if batch_digest is None
                    else batch_hours.open_batch_model(deployment, batch_digest)
                ),
                batch_checkpoint=batch_digest,
                ensemble=fitted.ensemble if fitted else None,
            )
        )
    snapshot_digest = resolve(deployment.snapshots, snapshot_pointer(hour_us))
    built = export_bundle(
        deployment.bundles,
        contract=contract,
        goals=models,
        dataset=dataset.name,
        label_watermark_us=hour_us + HOUR_US,
        fitted_ranges=ranges,
        canaries=_canaries(warehouse, contract),
        snapshot=read_snapshot(deployment.snapshots, snapshot_digest),
        facts={"settings": dataset.settings.digest(), "hour": hour_key(hour_us)},
    )
    point(deployment.bundles, CANDIDATE, built.digest)
    return built


def judge_candidate(warehouse: Warehouse, deployment: Deployment) -> JudgedCandidate:
    """Compare the candidate with the serving bundle on matured rows, goal by goal.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment

    Raises
    ------
    MissingCheckpoint
        If there is no candidate.
    CorruptBundle
        If the candidate or the serving bundle is not intact.
    """
    digest = resolve(deployment.bundles, CANDIDATE)
    candidate = open_bundle(deployment.bundles, digest)
    pointer = read_pointer(deployment.serving, CURRENT)
    serving = None if pointer is None else open_bundle(deployment.bundles, pointer.digest)
    verdicts = {
        held_out.goal: judge_goal(warehouse, deployment, held_out, serving)
        for held_out in held_out_forecasts(warehouse, deployment)
    }
    return JudgedCandidate(digest, candidate.label_watermark_us, verdicts)


def judge_goal(
    warehouse: Warehouse, deployment: Deployment, held_out: HeldOut, serving: Bundle | None
) -> PromotionVerdict:
    """Compare one goal's ensemble with the serving bundle, or with the base rate if none serves.

    Parameters
    ----------
    warehouse : Warehouse
        Gives the raw columns that the serving bundle scores.
    deployment : Deployment
    held_out : HeldOut
    serving : Bundle or None
    """
    settings = deployment.dataset.settings
    name = ENSEMBLE if ENSEMBLE in held_out.probabilities else "online"
    forecast = held_out.probabilities[name]
    rules = {
        "tolerance": settings.promotion.tolerance,
        "seed": settings.seed,
        "replicates": settings.evaluation.replicates,
        "level": settings.evaluation.level,
    }
    if serving is None:
        base_rate = float(held_out.probabilities[BASE_RATE][0]) if len(forecast) else None
        return verdict(
            held_out.labels, forecast, None, held_out.hours_us, base_rate=base_rate, **rules
        )
    # What the serving bundle was fitted on says nothing about it.
    fair = held_out.serving_us >= serving.label_watermark_us
    chosen = np.flatnonzero(fair)
    if len(chosen) > COMPARED_ROWS:
        ids = held_out.impression_ids.take(pa.array(chosen))
        draws = uniform(settings.seed, ids, "promotion")
        chosen = chosen[draws < COMPARED_ROWS / len(chosen)]
    scored = _scored_by(warehouse, deployment, serving, held_out, chosen)
    return verdict(
        held_out.labels[chosen], forecast[chosen], scored, held_out.hours_us[chosen], **rules
    )


def _scored_by(
    warehouse: Warehouse,
    deployment: Deployment,
    bundle: Bundle,
    held_out: HeldOut,
    chosen: np.ndarray,
) -> np.ndarray:
    """Let a bundle score some of the rows with the counts that were published when they occurred."""
    asked = pa.table(
        {
            "impression_id": held_out.impression_ids.take(pa.array(chosen)),
            "serving_us": held_out.serving_us[chosen],
            "place": np.arange(len(chosen)),
        }
    )
    with warehouse.reader() as connection:
        connection.register("asked", asked)
        rows = connection.execute(
            "SELECT impressions.* FROM asked INNER JOIN events.impressions AS impressions "
            "ON impressions.impression_id = asked.impression_id "
            "AND impressions.received_us = asked.serving_us ORDER BY asked.place"
        ).to_arrow_table()
    read, counts = read_as_served(deployment, bundle.contract, rows)
    return bundle.score(read, counts).probabilities[held_out.goal]


def _last_learnt_hour(warehouse: Warehouse) -> int:
    with warehouse.reader() as connection:
        found = connection.execute("SELECT max(hour_us) FROM events.accounting").fetchone()
    if found is None or found[0] is None:
        raise MissingCheckpoint("no log hour is sealed yet; materialize the events first")
    return int(found[0])


def _canaries(warehouse: Warehouse, contract: FeatureContract) -> list[Mapping[str, Any]]:
    """Return the first impressions of the log's last hour that had any, as raw requests."""
    columns = ", ".join(f'"{name}"' for name in contract.columns)
    with warehouse.reader() as connection:
        return (
            connection.execute(
                f"SELECT {columns} FROM events.impressions WHERE received_us >= "
                "(SELECT max(received_us) - 3600000000 FROM events.impressions) "
                "ORDER BY received_us, impression_id LIMIT $count",
                {"count": CANARIES},
            )
            .to_arrow_table()
            .to_pylist()
        )
