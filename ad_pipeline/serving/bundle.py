"""What leaves the pipeline: experts, mixture, calibration and feature contract in one folder.

A bundle is a checkpoint (content-addressed, every file's SHA-256 in its manifest) that a process
with NumPy, Numba and Arrow can open and score with; it names the checkpoints it was made from and
proves itself by canary requests whose scores were computed when it was written. Requests, rate
snapshots and what stands in for what is missing belong to :mod:`ad_pipeline.serving.scorer`; which
bundle serves, to :mod:`ad_pipeline.serving.promotion`. Nothing here reads a clock.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import (
    Checkpoint,
    CorruptCheckpoint,
    open_folder,
    read_checkpoint,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings.published import PublishedVectors
from ad_pipeline.features.encoding import (
    VECTORS_USED,
    FeatureContract,
    LookedUp,
    ReadColumns,
    category_hashes,
    dense,
    entity_hashes,
    read_columns,
    request_columns,
    slots,
    text_hashes,
    vector_hashes,
)
from ad_pipeline.features.rates import RateSnapshot, counts_of
from ad_pipeline.features.vectors import vector_numbers
from ad_pipeline.hashing import string_array
from ad_pipeline.learners.batch.batch_model import ExportedBatch
from ad_pipeline.learners.deep.exported_deep import ExportedDeep
from ad_pipeline.learners.ensemble.ensemble import Ensemble, mixed_probabilities
from ad_pipeline.learners.ensemble.exported_mixture import ExportedMixture
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights
from ad_pipeline.learners.ftrl.ftrl_kernel import checked_slots
from ad_pipeline.serving.audit import Audit, OpenedAudit, is_audit_file
from ad_pipeline.serving.decisions import features_json, logged_inputs
from ad_pipeline.serving.ladder import Ladder
from ad_pipeline.serving.retrieval import (
    PART,
    DifferentCandidates,
    PublishedIndex,
    carried_index,
    carried_parts,
)

KIND = "serving.bundle"

ONLINE = "online"
BATCH = "batch"
DEEP = "deep"
ENSEMBLE = "ensemble"
LADDER = "ladder"


class CorruptBundle(CorruptCheckpoint):
    """A bundle's bytes are not those its manifest names, or its canaries are answered otherwise."""


@dataclass(frozen=True)
class GoalModels:
    """Everything that scores one goal.

    Attributes
    ----------
    goal : str
    online : ExportedWeights
        Of the online expert.
    online_checkpoint : str
        Where they came from.
    batch : ExportedBatch or None
        None while the goal is too young for one.
    batch_checkpoint : str or None
    ensemble : Ensemble or None
        Mixture and calibration; None before enough rows have matured to fit one.
    ensemble_checkpoint : str or None
    configuration : int
        Which of the online checkpoint's configurations is served.
    deep : ExportedDeep or None
        None without a wide & deep expert.
    deep_checkpoint : str or None
    mixture : ExportedMixture or None
        The ensemble as mapped arrays, in an opened bundle; it is what scores there.
    ladder : Ladder or None
        What answers where inputs are missing; None: the mixture, whatever is missing.
    ladder_checkpoint : str or None
    """

    goal: str
    online: ExportedWeights
    online_checkpoint: str
    batch: ExportedBatch | None
    batch_checkpoint: str | None
    ensemble: Ensemble | None
    ensemble_checkpoint: str | None = None
    configuration: int = 0
    deep: ExportedDeep | None = None
    deep_checkpoint: str | None = None
    mixture: ExportedMixture | None = None
    ladder: Ladder | None = None
    ladder_checkpoint: str | None = None

    @property
    def sliced_by(self) -> str | None:
        """The text feature by which the calibration differs; None if it does not."""
        return None if self.ensemble is None else self.ensemble.sliced_by

    def mixes(self, logits: Collection[str]) -> bool:
        """Tell whether the mixture reads only experts that are there; else online speaks alone."""
        return self.ensemble is not None and set(self.ensemble.experts) <= set(logits)


@dataclass(frozen=True)
class Scores:
    """What a bundle says about n rows.

    Attributes
    ----------
    logits : dict of str to dict of str to ndarray of shape (n,), float64
        By goal and expert.
    probabilities : dict of str to ndarray of shape (n,), float64
        By goal.
    rungs : dict of str to ndarray of shape (n,), uint8
        Which rung of the ladder answered, by goal; see :data:`ad_pipeline.serving.ladder.RUNGS`. A
        goal without a ladder is not there.
    """

    logits: dict[str, dict[str, np.ndarray]]
    probabilities: dict[str, np.ndarray]
    rungs: dict[str, np.ndarray] = field(default_factory=dict)


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
    candidate_index : PublishedIndex or None
        What answers which ads there are for a user; None of a deployment without such.
    """

    digest: str
    path: Path
    contract: FeatureContract
    goals: tuple[GoalModels, ...]
    dataset: str
    label_watermark_us: int
    fitted_ranges: dict[str, Any]
    manifest: dict[str, Any]
    candidate_index: PublishedIndex | None = None

    def score(self, read: ReadColumns, looked_up: LookedUp) -> Scores:
        """Score rows; a row's scores do not depend on the others, to the bit.

        Parameters
        ----------
        read : ReadColumns of n rows
        looked_up : LookedUp of n rows

        Returns
        -------
        Scores
        """
        hashed = checked_slots(slots(self.contract, read, looked_up), 1 << self.contract.bits)
        has_batch = any(models.batch is not None for models in self.goals)
        numbers = dense(self.contract, read, looked_up) if has_batch else np.empty((len(read), 0))
        categories = category_hashes(self.contract, read)
        logits: dict[str, dict[str, np.ndarray]] = {}
        probabilities: dict[str, np.ndarray] = {}
        rungs: dict[str, np.ndarray] = {}
        for models in self.goals:
            online = models.online.logits(hashed)
            experts = {ONLINE: online}
            if models.batch is not None:
                experts[BATCH] = models.batch.predict_logits(numbers, categories, online)
            if models.deep is not None:
                experts[DEEP] = models.deep.logits(hashed)
            logits[models.goal] = experts
            mixed = mixed_probabilities(
                models.mixture or models.ensemble,
                experts,
                ONLINE,
                text_hashes(self.contract, read, models.sliced_by),
            )
            if models.ladder is not None:
                rungs[models.goal] = models.ladder.rungs(read, looked_up)
                mixed = models.ladder.answers(rungs[models.goal], read, mixed)
            probabilities[models.goal] = mixed
        return Scores(logits, probabilities, rungs)

    @property
    def log_share(self) -> float:
        """Share of the requests whose decision a scorer logs."""
        return self.manifest.get("log_share", 1.0)

    def too_old(self, end_us: np.ndarray | int, occurred_us: np.ndarray) -> np.ndarray:
        """Tell which requests take no counts because those at hand are too old, bool (n,).

        Parameters
        ----------
        end_us : int, or ndarray of shape (n,), int64
            End of the counted hours, microseconds.
        occurred_us : ndarray of shape (n,), int64
            When each request was made, microseconds.
        """
        hours = self.manifest.get("stale_hours")
        if hours is None:
            return np.zeros(len(occurred_us), np.bool_)
        return occurred_us - end_us > (hours + self.contract.rate_lag_hours) * HOUR_US

    @property
    def audit(self) -> OpenedAudit:
        """What the bundle carries for people; its files are opened when they are asked for."""
        return OpenedAudit(self.path, self.manifest)

    def missing(self) -> tuple[str, ...]:
        """Return what this bundle lacks and what stands in for it, one sentence each."""
        found: list[str] = []
        for models in self.goals:
            if models.ensemble is None:
                found.append(f"no ensemble of {models.goal}: the online expert, not calibrated")
                continue
            if models.batch is None and BATCH in models.ensemble.experts:
                found.append(f"no batch model of {models.goal}: the online expert, not calibrated")
            elif models.batch is None:
                alone = "the online expert alone" if models.deep is None else "mixed without it"
                found.append(f"no batch model of {models.goal}: {alone}")
            if models.deep is None and DEEP in models.ensemble.experts:
                found.append(f"no deep model of {models.goal}: the online expert, not calibrated")
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
    vectors: PublishedVectors | None = None,
    fitted_ranges: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    audit: Audit | None = None,
    log_share: float = 1.0,
    stale_hours: int | None = None,
    candidate_index: PublishedIndex | None = None,
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
    vectors : PublishedVectors, optional
        Gives them the numbers of their users' vectors.
    fitted_ranges : mapping, optional
        JSON-serialisable: for each goal, the ranges of maturity time that fitted what; those of the
        ensembles unless given.
    facts : mapping, optional
        More for the manifest: settings digest, code version.
    audit : Audit, optional
        What people need to read a score; without it slots have neither names nor histories.
    log_share : float
        Share of the requests whose decision a scorer logs.
    stale_hours : int, optional
        By which counts may be older than those due, beyond which a scorer takes none.
    candidate_index : PublishedIndex, optional
        Copied into the bundle, with what it answers to canary users.

    Returns
    -------
    Bundle
        Opened again from disk, so what is returned is what was written.

    Raises
    ------
    ValueError
        If there is no goal or no canary, two goals share a name, or an expert's weights do not fit
        the contract's slots.
    """
    if not goals or not canaries:
        raise ValueError("a bundle needs at least one goal and one canary request")
    names = [models.goal for models in goals]
    if len(set(names)) < len(names):
        raise ValueError(f"goals named twice in {names}")
    for models in goals:
        if models.online.n_slots != 1 << contract.bits:
            raise ValueError(
                f"the weights of {models.goal} have {models.online.n_slots} slots; the feature "
                f"contract has {1 << contract.bits} slots"
            )
        fits = (len(contract.token_names), contract.bits)
        if models.deep is not None and (models.deep.fields, models.deep.slot_bits) != fits:
            raise ValueError(
                f"the deep model of {models.goal} reads {models.deep.fields} slots of "
                f"{models.deep.slot_bits} bits; the feature contract has {fits[0]} of {fits[1]}"
            )
    arrays: dict[str, np.ndarray] = {}
    described: list[dict[str, Any]] = []
    for models in goals:
        goal_arrays, description = _goal_parts(models)
        arrays |= goal_arrays
        described.append(description)
    ranges = {m.goal: m.ensemble.ranges for m in goals if m.ensemble is not None}
    if fitted_ranges is not None:
        ranges = dict(fitted_ranges)
    # The canaries are scored by the models themselves, and by the arrays when they are opened.
    sources = tuple(replace(models, mixture=None) for models in goals)
    draft = Bundle("", root, contract, sources, dataset, label_watermark_us, ranges, {})
    ladders = [models.ladder for models in goals if models.ladder is not None]
    uncounted, poor = _poor_canaries(contract, ladders, canaries)
    columns = request_columns(contract, [*canaries, *uncounted, *poor])
    read = read_columns(contract, columns)
    looked_up = (
        LookedUp.nothing(contract, len(read))
        if snapshot is None or not contract.entities
        else counts_of(contract, snapshot, entity_hashes(contract, read))
    )
    used = None
    if contract.vectors is not None and vectors is not None:
        looked_up.vectors[:] = vector_numbers(
            contract.vectors, vectors, vector_hashes(contract, read)
        )
        used = vectors.digest
    if contract.vectors is not None:
        columns[VECTORS_USED] = string_array([used] * len(read))
    looked_up.forget(slice(len(canaries), len(canaries) + len(uncounted)))
    manifest = {
        "contract": json.loads(contract.to_json()),
        "goals": described,
        "dataset": dataset,
        "label_watermark_us": label_watermark_us,
        "fitted_ranges": ranges,
        "snapshot_lag_hours": contract.rate_lag_hours,
        "facts": dict(facts or {}),
        "audit": None if audit is None else audit.to_json(),
        "canaries": {
            "features": _canary_features(contract, columns, looked_up),
            "scores": _listed(draft.score(read, looked_up)),
        },
        # A bundle that logs everything is, to the byte, what it was before there was a share.
        **({} if log_share >= 1 else {"log_share": log_share}),
        **({} if stale_hours is None else {"stale_hours": stale_hours}),
    }
    files = {} if audit is None else audit.files()
    if candidate_index is not None:
        index_arrays, index_files, manifest[PART] = carried_parts(candidate_index)
        arrays |= index_arrays
        files |= index_files
    written = write_checkpoint(root, KIND, arrays, manifest, files)
    return open_bundle(root, written.digest)


def _canary_features(
    contract: FeatureContract, columns: Mapping[str, pa.Array], looked_up: LookedUp
) -> list[dict[str, Any]]:
    """Return what canaries are scored with: as a decision logs it, with the numbers of vectors.

    A bundle is opened where the vectors themselves may not be.
    """
    every = np.arange(len(looked_up.totals))
    logged = features_json(contract, columns, looked_up, every).to_pylist()
    return [
        json.loads(text)
        | {
            name: None if math.isnan(number) else number
            for name, number in zip(contract.vector_names, row, strict=True)
        }
        for text, row in zip(logged, looked_up.vectors.tolist(), strict=True)
    ]


def _poor_canaries(
    contract: FeatureContract, ladders: Sequence[Ladder], canaries: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return requests for every rung below the first: those to be left without counts, the others.

    Of the latter each has one column, the best one of a goal, or none.
    """
    if not ladders:
        return [], []
    nulls: Mapping[str, Any] = dict.fromkeys(contract.columns)
    best = dict.fromkeys(name for ladder in ladders for name in ladder.columns[:1])
    given = {
        name: next((row[name] for row in canaries if row[name] is not None), None) for name in best
    }
    return [canaries[0]], [*({**nulls, name: value} for name, value in given.items()), nulls]


def _goal_parts(models: GoalModels) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what scores one goal as arrays, and the rest of it for the manifest."""
    arrays: dict[str, np.ndarray] = {}

    def add(part: str, given: Mapping[str, np.ndarray]) -> None:
        arrays.update({f"{models.goal}.{part}.{name}": array for name, array in given.items()})

    add(ONLINE, models.online.to_arrays())
    batch, mixture = None, None
    if models.batch is not None:
        batch_arrays, batch = models.batch.to_arrays()
        add(BATCH, batch_arrays)
    if models.deep is not None:
        add(DEEP, models.deep.to_arrays())
    if models.ensemble is not None:
        mixture_arrays, mixture = ExportedMixture.of(models.ensemble).to_arrays()
        add(ENSEMBLE, mixture_arrays)
    ladder = None
    if models.ladder is not None:
        ladder_arrays, ladder = models.ladder.to_arrays()
        add(LADDER, ladder_arrays)
    return arrays, {
        "goal": models.goal,
        "online": {
            "checkpoint": models.online_checkpoint,
            "configuration": models.configuration,
            "weights": models.online.to_json(),
        },
        "batch": None
        if batch is None
        else {"checkpoint": models.batch_checkpoint, "manifest": batch},
        "ensemble": None if models.ensemble is None else models.ensemble.to_json(),
        "ensemble_checkpoint": models.ensemble_checkpoint,
        "mixture": mixture,
        # A bundle without the expert is, to the byte, what it was before there was one.
        **(
            {}
            if models.deep is None
            else {"deep": {"checkpoint": models.deep_checkpoint, "manifest": models.deep.to_json()}}
        ),
        **(
            {}
            if ladder is None
            else {LADDER: {"checkpoint": models.ladder_checkpoint, "manifest": ladder}}
        ),
    }


def open_bundle(root: Path, digest: str, *, to_score: bool = False) -> Bundle:
    """Open a bundle after verifying every file's SHA-256 and every canary's scores.

    Parameters
    ----------
    root : Path
        Root of the bundles.
    digest : str
    to_score : bool
        Leave alone the files that no score needs; whoever explains one verifies them then.

    Raises
    ------
    MissingCheckpoint
        If there is no such bundle.
    CorruptBundle
        If a file has other bytes, is missing or does not belong; names it. Also if a canary scores
        otherwise than when the bundle was written.
    """
    try:
        checkpoint = read_checkpoint(root, digest, unread=is_audit_file if to_score else None)
    except CorruptCheckpoint as error:
        raise CorruptBundle(str(error)) from error
    return _opened(checkpoint)


def open_bundle_folder(folder: Path, *, to_score: bool = False) -> Bundle:
    """Open a bundle by its folder, wherever it was copied to; see :func:`open_bundle`."""
    try:
        checkpoint = open_folder(folder, unread=is_audit_file if to_score else None)
    except CorruptCheckpoint as error:
        raise CorruptBundle(str(error)) from error
    return _opened(checkpoint)


def _opened(checkpoint: Checkpoint) -> Bundle:
    manifest = checkpoint.manifest
    if manifest["kind"] != KIND:
        raise CorruptBundle(f"{checkpoint.path} is a {manifest['kind']}, not a {KIND}")
    contract = FeatureContract.from_json(json.dumps(manifest["contract"]))
    try:
        candidate_index = carried_index(checkpoint)
    except DifferentCandidates as error:
        raise CorruptBundle(str(error)) from error
    bundle = Bundle(
        digest=checkpoint.digest,
        path=checkpoint.path,
        contract=contract,
        goals=tuple(
            _goal_models(checkpoint, contract, described) for described in manifest["goals"]
        ),
        dataset=manifest["dataset"],
        label_watermark_us=manifest["label_watermark_us"],
        fitted_ranges=manifest["fitted_ranges"],
        manifest=manifest,
        candidate_index=candidate_index,
    )
    canaries = manifest["canaries"]
    columns, looked_up = logged_inputs(contract, canaries["features"])
    scored = _listed(bundle.score(read_columns(contract, columns), looked_up))
    if scored != canaries["scores"]:
        raise CorruptBundle(
            f"{checkpoint.path / 'manifest.json'}: canary requests score {scored}, the bundle says "
            f"{canaries['scores']}; it was written by other code or for another machine: export it "
            "again here"
        )
    return bundle


def _goal_models(
    checkpoint: Checkpoint, contract: FeatureContract, described: Mapping[str, Any]
) -> GoalModels:
    goal = described["goal"]

    def part(name: str) -> dict[str, np.ndarray]:
        prefix = f"{goal}.{name}."
        return {
            full.removeprefix(prefix): array
            for full, array in checkpoint.arrays.items()
            if full.startswith(prefix)
        }

    batch, ensemble, mixture = described["batch"], described["ensemble"], described["mixture"]
    deep, ladder = described.get("deep"), described.get(LADDER)
    return GoalModels(
        goal=goal,
        online=ExportedWeights.from_arrays(part(ONLINE), described["online"]["weights"]),
        online_checkpoint=described["online"]["checkpoint"],
        batch=None if batch is None else ExportedBatch.from_arrays(part(BATCH), batch["manifest"]),
        batch_checkpoint=None if batch is None else batch["checkpoint"],
        ensemble=None if ensemble is None else Ensemble.from_json(ensemble),
        ensemble_checkpoint=described["ensemble_checkpoint"],
        configuration=described["online"]["configuration"],
        deep=None if deep is None else ExportedDeep.from_arrays(part(DEEP), deep["manifest"]),
        deep_checkpoint=None if deep is None else deep["checkpoint"],
        mixture=None if mixture is None else ExportedMixture.from_arrays(part(ENSEMBLE), mixture),
        ladder=None
        if ladder is None
        else Ladder.from_arrays(contract, part(LADDER), ladder["manifest"]),
        ladder_checkpoint=None if ladder is None else ladder["checkpoint"],
    )


def _listed(scores: Scores) -> dict[str, Any]:
    """Return scores as JSON, whose floats read back to the same bits."""
    return {
        "logits": {
            goal: {expert: logits.tolist() for expert, logits in experts.items()}
            for goal, experts in scores.logits.items()
        },
        "probabilities": {goal: p.tolist() for goal, p in scores.probabilities.items()},
        **(
            {"rungs": {goal: rungs.tolist() for goal, rungs in scores.rungs.items()}}
            if scores.rungs
            else {}
        ),
    }
