"""What leaves the pipeline: experts, mixture, calibration and feature contract in one folder.

A bundle is a checkpoint (content-addressed, every file's SHA-256 in its manifest) that a process
with NumPy, Numba and Arrow can open and score with; it names the checkpoints it was made from and
proves itself by canary requests whose scores were computed when it was written. Requests, rate
snapshots and what stands in for what is missing belong to :mod:`ad_pipeline.serving.scorer`; which
bundle serves, to :mod:`ad_pipeline.serving.promotion`. Nothing here reads a clock.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ad_pipeline.checkpoints import (
    Checkpoint,
    CorruptCheckpoint,
    open_folder,
    read_checkpoint,
    write_checkpoint,
)
from ad_pipeline.features.encoding import (
    EntityCounts,
    FeatureContract,
    ReadColumns,
    category_hashes,
    dense,
    entity_hashes,
    read_columns,
    request_columns,
    slots,
)
from ad_pipeline.features.rates import RateSnapshot, counts_of
from ad_pipeline.learners.batch import BatchModel
from ad_pipeline.learners.ensemble import Ensemble, mixed_probabilities
from ad_pipeline.learners.ftrl_kernel import checked_slots, linear_logits
from ad_pipeline.learners.online import LinearWeights
from ad_pipeline.serving.decisions import features_json, logged_inputs

KIND = "serving.bundle"

ONLINE = "online"
BATCH = "batch"


class CorruptBundle(CorruptCheckpoint):
    """A bundle's bytes are not those its manifest names, or its canaries score otherwise."""


@dataclass(frozen=True)
class GoalModels:
    """Everything that scores one goal.

    Attributes
    ----------
    goal : str
    online : LinearWeights
        Of the online expert.
    online_checkpoint : str
        Where they came from.
    batch : BatchModel or None
        None while the goal is too young for one.
    batch_checkpoint : str or None
    ensemble : Ensemble or None
        Mixture and calibration; None before enough rows have matured to fit one.
    """

    goal: str
    online: LinearWeights
    online_checkpoint: str
    batch: BatchModel | None
    batch_checkpoint: str | None
    ensemble: Ensemble | None


@dataclass(frozen=True)
class Scores:
    """What a bundle says about n rows.

    Attributes
    ----------
    logits : dict of str to dict of str to ndarray of shape (n,), float64
        By goal and expert.
    probabilities : dict of str to ndarray of shape (n,), float64
        By goal.
    """

    logits: dict[str, dict[str, np.ndarray]]
    probabilities: dict[str, np.ndarray]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes
    ----------
    digest : str
    path : Path
    contract : FeatureContract
    goals : tuple of GoalModels
    dataset : str
    label_watermark_us : int
        Labels up to here were used, microseconds.
    fitted_ranges : dict
        Goal to named ranges of maturity time, as the exporter gave them.
    manifest : dict
    """

    digest: str
    path: Path
    contract: FeatureContract
    goals: tuple[GoalModels, ...]
    dataset: str
    label_watermark_us: int
    fitted_ranges: dict[str, Any]
    manifest: dict[str, Any]

    def score(self, read: ReadColumns, counts: EntityCounts) -> Scores:
        """Score rows; a row's scores do not depend on the others, to the bit.

        Parameters
        ----------
        read : ReadColumns of n rows
        counts : EntityCounts of n rows

        Returns
        -------
        Scores
        """
        hashed = checked_slots(slots(self.contract, read, counts), 1 << self.contract.bits)
        has_batch = any(models.batch is not None for models in self.goals)
        numbers = dense(self.contract, read, counts) if has_batch else np.empty((len(read), 0))
        categories = category_hashes(self.contract, read)
        logits: dict[str, dict[str, np.ndarray]] = {}
        probabilities: dict[str, np.ndarray] = {}
        for models in self.goals:
            online = np.empty(len(read))
            linear_logits(models.online.weights, hashed, online, models.online.intercept)
            experts = {ONLINE: online}
            if models.batch is not None:
                experts[BATCH] = models.batch.predict_logits(numbers, categories, online)
            logits[models.goal] = experts
            probabilities[models.goal] = mixed_probabilities(models.ensemble, experts, ONLINE)
        return Scores(logits, probabilities)

    def missing(self) -> tuple[str, ...]:
        """Return what this bundle lacks and what stands in for it, one sentence each."""
        found: list[str] = []
        for models in self.goals:
            if models.ensemble is None:
                found.append(f"no ensemble of {models.goal}: the online expert, not calibrated")
            elif models.batch is None and BATCH in models.ensemble.experts:
                found.append(f"no batch model of {models.goal}: the online expert, not calibrated")
            elif models.batch is None:
                found.append(f"no batch model of {models.goal}: the online expert alone")
        return tuple(found)


def export_bundle(
    root: Path,
    *,
    contract: FeatureContract,
    goals: Sequence[GoalModels],
    dataset: str,
    label_watermark_us: int,
    canaries: Sequence[Mapping[str, Any]],
    snapshot: RateSnapshot | None = None,
    fitted_ranges: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle, with the scores of its canaries; the same models give the same bytes.

    Parameters
    ----------
    root : Path
        Root of the bundles.
    contract : FeatureContract
    goals : sequence of GoalModels
        At least one.
    dataset : str
    label_watermark_us : int
        Labels up to here were used, microseconds.
    canaries : sequence of mappings
        A few real requests, each with all of ``contract.columns``.
    snapshot : RateSnapshot, optional
        Gives the canaries their counts; without it they have none.
    fitted_ranges : mapping, optional
        JSON-serialisable: for each goal, the ranges of maturity time that fitted what; those of the
        ensembles unless given.
    facts : mapping, optional
        More for the manifest: settings digest, code version.

    Returns
    -------
    Bundle
        Opened again from disk, so what is returned is what was written.

    Raises
    ------
    ValueError
        If there is no goal or no canary, two goals share a name, or the weights do not fit the
        contract's bits.
    """
    if not goals or not canaries:
        raise ValueError("a bundle needs at least one goal and one canary request")
    names = [models.goal for models in goals]
    if len(set(names)) < len(names):
        raise ValueError(f"goals named twice in {names}")
    for models in goals:
        if models.online.weights.shape != (1 << contract.bits,):
            raise ValueError(
                f"the weights of {models.goal} have shape {models.online.weights.shape}; the "
                f"feature contract has {1 << contract.bits} slots"
            )
    arrays: dict[str, np.ndarray] = {}
    files: dict[str, bytes] = {}
    described: list[dict[str, Any]] = []
    for models in goals:
        arrays[f"{models.goal}.weights"] = models.online.weights
        batch_manifest = None
        if models.batch is not None:
            batch_arrays, batch_manifest, batch_files = models.batch.to_checkpoint()
            arrays |= {f"{models.goal}.batch.{name}": array for name, array in batch_arrays.items()}
            files |= {f"{models.goal}.{name}": data for name, data in batch_files.items()}
        described.append(
            {
                "goal": models.goal,
                "online": {
                    "checkpoint": models.online_checkpoint,
                    "intercept": models.online.intercept,
                },
                "batch": None
                if batch_manifest is None
                else {"checkpoint": models.batch_checkpoint, "manifest": batch_manifest},
                "ensemble": None if models.ensemble is None else models.ensemble.to_json(),
            }
        )
    ranges = {m.goal: m.ensemble.ranges for m in goals if m.ensemble is not None}
    if fitted_ranges is not None:
        ranges = dict(fitted_ranges)
    draft = Bundle("", root, contract, tuple(goals), dataset, label_watermark_us, ranges, {})
    columns = request_columns(contract, canaries)
    read = read_columns(contract, columns)
    counts = (
        EntityCounts.nothing(contract, len(read))
        if snapshot is None or not contract.entities
        else counts_of(contract, snapshot, entity_hashes(contract, read))
    )
    manifest = {
        "contract": json.loads(contract.to_json()),
        "goals": described,
        "dataset": dataset,
        "label_watermark_us": label_watermark_us,
        "fitted_ranges": ranges,
        "snapshot_lag_hours": contract.rate_lag_hours,
        "facts": dict(facts or {}),
        "canaries": {
            "features": [json.loads(text) for text in features_json(contract, columns, counts)],
            "scores": _listed(draft.score(read, counts)),
        },
    }
    written = write_checkpoint(root, KIND, arrays, manifest, files)
    return open_bundle(root, written.digest)


def open_bundle(root: Path, digest: str) -> Bundle:
    """Open a bundle after verifying every file's SHA-256 and every canary's scores.

    Parameters
    ----------
    root : Path
        Root of the bundles.
    digest : str

    Raises
    ------
    MissingCheckpoint
        If there is no such bundle.
    CorruptBundle
        If a file has other bytes, is missing or does not belong; names it. Also if a canary scores
        otherwise than when the bundle was written.
    """
    try:
        checkpoint = read_checkpoint(root, digest)
    except CorruptCheckpoint as error:
        raise CorruptBundle(str(error)) from error
    return _opened(checkpoint)


def open_bundle_folder(folder: Path) -> Bundle:
    """Open a bundle by its folder, wherever it was copied to; see :func:`open_bundle`."""
    try:
        checkpoint = open_folder(folder)
    except CorruptCheckpoint as error:
        raise CorruptBundle(str(error)) from error
    return _opened(checkpoint)


def _opened(checkpoint: Checkpoint) -> Bundle:
    manifest = checkpoint.manifest
    if manifest["kind"] != KIND:
        raise CorruptBundle(f"{checkpoint.path} is a {manifest['kind']}, not a {KIND}")
    contract = FeatureContract.from_json(json.dumps(manifest["contract"]))
    bundle = Bundle(
        digest=checkpoint.digest,
        path=checkpoint.path,
        contract=contract,
        goals=tuple(_goal_models(checkpoint, described) for described in manifest["goals"]),
        dataset=manifest["dataset"],
        label_watermark_us=manifest["label_watermark_us"],
        fitted_ranges=manifest["fitted_ranges"],
        manifest=manifest,
    )
    canaries = manifest["canaries"]
    columns, counts = logged_inputs(contract, canaries["features"])
    scored = _listed(bundle.score(read_columns(contract, columns), counts))
    if scored != canaries["scores"]:
        raise CorruptBundle(
            f"{checkpoint.path / 'manifest.json'}: canary requests score {scored}, the bundle says "
            f"{canaries['scores']}; it was written by other code or for another machine: export it "
            "again here"
        )
    return bundle


def _goal_models(checkpoint: Checkpoint, described: Mapping[str, Any]) -> GoalModels:
    goal = described["goal"]
    batch, batch_checkpoint = None, None
    if described["batch"] is not None:
        batch_checkpoint = described["batch"]["checkpoint"]
        prefix = f"{goal}."
        batch = BatchModel.from_checkpoint(
            {
                name.removeprefix(f"{prefix}batch."): array
                for name, array in checkpoint.arrays.items()
                if name.startswith(f"{prefix}batch.")
            },
            described["batch"]["manifest"],
            {
                name.removeprefix(prefix): path
                for name, path in checkpoint.files.items()
                if name.startswith(prefix)
            },
        )
    ensemble = described["ensemble"]
    return GoalModels(
        goal=goal,
        online=LinearWeights(
            np.asarray(checkpoint.arrays[f"{goal}.weights"]),
            described["online"]["intercept"],
        ),
        online_checkpoint=described["online"]["checkpoint"],
        batch=batch,
        batch_checkpoint=batch_checkpoint,
        ensemble=None if ensemble is None else Ensemble.from_json(ensemble),
    )


def _listed(scores: Scores) -> dict[str, Any]:
    """Return scores as JSON, whose floats read back to the same bits."""
    return {
        "logits": {
            goal: {expert: logits.tolist() for expert, logits in experts.items()}
            for goal, experts in scores.logits.items()
        },
        "probabilities": {goal: p.tolist() for goal, p in scores.probabilities.items()},
    }
