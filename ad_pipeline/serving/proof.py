"""Proof that a bundle's arrays are the models they came from, read back from the checkpoints.

Canary requests show that a few scores are right; here every slot, every node and leaf, every knot
and weight is compared with the source that the bundle names by its digest, and both sides score
rows that are made to fall on, just above and just below every border. It is run when a candidate is
built and again as a check of the asset; a scorer does not import this. Candidate replay is another
question: it asks for the whole path, this for the export alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ad_pipeline.datasets import Deployment
from ad_pipeline.hashing import uniform
from ad_pipeline.learners.batch.batch_hours import open_batch_model
from ad_pipeline.learners.batch.batch_model import BatchModel, ExportedBatch
from ad_pipeline.learners.deep.deep_hours import TrainedDeep, open_deep
from ad_pipeline.learners.deep.exported_deep import ExportedDeep
from ad_pipeline.learners.ensemble.ensemble import Ensemble
from ad_pipeline.learners.ensemble.ensembles import read_ensemble
from ad_pipeline.learners.ensemble.exported_mixture import STAGES, ExportedMixture
from ad_pipeline.learners.ftrl.exported_weights import STEP, ExportedWeights, exported
from ad_pipeline.learners.ftrl.ftrl_expert import LinearWeights
from ad_pipeline.learners.online.online_hours import open_expert
from ad_pipeline.serving.bundle import Bundle
from ad_pipeline.serving.ladder import Ladder, read_ladder

BORDER_ROWS = 4_096
"""Rows of border values that both sides' trees score."""

_PURPOSE = "border values of a proof"
_UNSEEN = 2**64 - 1
_SLOTS_AT_ONCE = 1 << 18
_HARMLESS = {"thresholds", "leaves", "category_firsts", "category_hashes", "category_codes"}
"""Arrays of the trees that a damaged copy can be scored with: it stays within the trees, and
comes to an end."""

_EXTREMES = (0.0, -0.0, 1e-35, -1e-35, 1e-36, 1e300, -1e300, np.inf, -np.inf, np.nan)


class UnfaithfulExport(ValueError):
    """A bundle's arrays are not the models that it names."""


@dataclass(frozen=True)
class Proof:
    """What was compared of one goal, and what differed.

    Attributes
    ----------
    goal : str
    slots, trees, tree_rows, calibrated_rows, deep_slots : int
        Compared.
    faults : tuple of str
        Empty if the export is the models.
    """

    goal: str
    slots: int
    trees: int
    tree_rows: int
    calibrated_rows: int
    faults: tuple[str, ...]
    deep_slots: int = 0


@dataclass(frozen=True)
class Sources:
    """The models of one goal as their checkpoints have them.

    Attributes
    ----------
    online : LinearWeights
    batch : BatchModel or None
    ensemble : Ensemble or None
    deep : TrainedDeep or None
    ladder : Ladder or None
    """

    online: LinearWeights
    batch: BatchModel | None
    ensemble: Ensemble | None
    deep: TrainedDeep | None = None
    ladder: Ladder | None = None


def prove_bundle(deployment: Deployment, bundle: Bundle) -> tuple[Proof, ...]:
    """Compare every goal of a bundle with the checkpoints that it names.

    Parameters
    ----------
    deployment : Deployment
    bundle : Bundle

    Returns
    -------
    tuple of Proof
        In the order of the bundle's goals.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        If a checkpoint is gone or not intact.
    """
    return tuple(
        prove_goal(bundle, place, _sources(deployment, bundle, place))
        for place in range(len(bundle.goals))
    )


def prove_goal(bundle: Bundle, place: int, sources: Sources) -> Proof:
    """Compare one goal of a bundle with its sources.

    Parameters
    ----------
    bundle : Bundle
    place : int
        Of the goal.
    sources : Sources
    """
    models = bundle.goals[place]
    faults = [*_weight_faults(models.goal, models.online, sources.online)]
    trees = tree_rows = calibrated_rows = 0
    if (models.batch is None) != (sources.batch is None):
        faults.append("a batch model is on one side only")
    elif models.batch is not None and sources.batch is not None:
        rows = _border_rows(sources.batch.exported)
        trees, tree_rows = len(models.batch.forest.first_node), len(rows)
        faults += _tree_faults(models.batch, sources.batch, rows)
    if (models.mixture is None) != (sources.ensemble is None):
        faults.append("an ensemble is on one side only")
    elif models.mixture is not None and sources.ensemble is not None:
        calibrated_rows, found = _mixture_faults(models.mixture, sources.ensemble)
        faults += found
    deep_slots = 0
    if (models.deep is None) != (sources.deep is None):
        faults.append("a wide & deep model is on one side only")
    elif models.deep is not None and sources.deep is not None:
        deep_slots = 1 << models.deep.bits
        faults += _deep_faults(models.deep, sources.deep)
    if (models.ladder is None) != (sources.ladder is None):
        faults.append("a fallback ladder is on one side only")
    elif models.ladder is not None and sources.ladder is not None:
        faults += _ladder_faults(models.ladder, sources.ladder)
    return Proof(
        goal=models.goal,
        slots=models.online.n_slots,
        trees=trees,
        tree_rows=tree_rows,
        calibrated_rows=calibrated_rows,
        faults=tuple(f"{models.goal}: {fault}" for fault in faults),
        deep_slots=deep_slots,
    )


def _sources(deployment: Deployment, bundle: Bundle, place: int) -> Sources:
    models = bundle.goals[place]
    expert = open_expert(deployment.checkpoints, models.online_checkpoint)
    linear = expert.linear_weights(models.configuration)
    if linear is None:
        raise UnfaithfulExport(f"the online expert of {models.goal} has no linear weights")
    batch, ensemble = models.batch_checkpoint, models.ensemble_checkpoint
    deep, ladder = models.deep_checkpoint, models.ladder_checkpoint
    return Sources(
        online=linear,
        batch=None if batch is None else open_batch_model(deployment, batch),
        ensemble=None if ensemble is None else read_ensemble(deployment, ensemble).ensemble,
        deep=None if deep is None else open_deep(deployment, deep),
        ladder=None if ladder is None else read_ladder(deployment.checkpoints, ladder),
    )


def _weight_faults(goal: str, found: ExportedWeights, source: LinearWeights) -> Iterator[str]:
    if found.n_slots != len(source.weights):
        yield f"{found.n_slots} slots, the checkpoint has {len(source.weights)}"
        return
    link, of_source = (
        (each.intercept, each.loss, each.horizon_days, each.partner is None)
        for each in (found, source)
    )
    if link != of_source:
        yield f"intercept and link {link}, the checkpoint has {of_source}"
    every = np.arange(found.n_slots, dtype=np.uint32)
    looked_up = found.of_slots(every)
    expected = exported(source, found.format, found.seed or 0, goal).dense().weights
    differ = np.flatnonzero(looked_up != expected)
    if len(differ):
        slot = int(differ[0])
        yield (
            f"{len(differ)} slots weigh otherwise than in the checkpoint, the first is {slot}: "
            f"{looked_up[slot]!r} and not {expected[slot]!r}"
        )
    if found.partner is not None and source.partner is not None:
        second = f"{goal}, second head"
        yield from (
            f"second head: {fault}"
            for fault in _weight_faults(second, found.partner, source.partner)
        )
    bound = 0.0 if found.seed is None else STEP
    off = np.abs(looked_up - source.weights.astype(np.float64))
    beyond = int((off > bound).sum())
    if beyond:
        yield f"{beyond} slots are off by more than {bound!r}, which rounding cannot do"


def _tree_faults(found: ExportedBatch, source: BatchModel, rows: np.ndarray) -> Iterator[str]:
    arrays, names = found.to_arrays()
    expected_arrays, expected_names = source.exported.to_arrays()
    if names != expected_names:
        yield f"trees read columns {names}, the checkpoint {expected_names}"
        return
    changed = [
        name
        for name, expected in expected_arrays.items()
        if not _same_bytes(arrays[name], expected)
    ]
    yield from (f"{name} of the trees are not those of the checkpoint" for name in changed)
    if not set(changed) <= _HARMLESS:
        return
    scored = found.forest.logits(rows)
    by_lightgbm = _lightgbm_logits(source.text, rows)
    differ = int((scored != by_lightgbm).sum())
    if differ:
        yield f"{differ} of {len(rows)} rows of border values score otherwise than in LightGBM"


def _deep_faults(found: ExportedDeep, source: TrainedDeep) -> Iterator[str]:
    expected = source.exported
    if found.to_json() != expected.to_json():
        yield f"wide & deep is {found.to_json()}, the checkpoint's {expected.to_json()}"
        return
    arrays, of_source = found.to_arrays(), expected.to_arrays()
    changed = [name for name in of_source if not _same_bytes(arrays[name], of_source[name])]
    yield from (f"{name} of wide & deep are not those of the checkpoint" for name in changed)
    # A damaged directory, or arrays of other shapes, could be looked up beyond their ends.
    if {"present", "rank"} & set(changed) or any(
        arrays[name].shape != of_source[name].shape for name in changed
    ):
        return
    differ = 0
    for first in range(0, 1 << found.bits, _SLOTS_AT_ONCE):
        last = min(first + _SLOTS_AT_ONCE, 1 << found.bits)
        every = np.arange(first, last, dtype=np.uint32)[:, None]
        kept = found.gather(every << np.uint32(found.slot_bits - found.bits))
        differ += int((kept != source.table.gather(every)).any(axis=(1, 2)).sum())
    if differ:
        yield f"{differ} slots of wide & deep have other numbers than in the checkpoint"
    draws = uniform(0, np.arange(BORDER_ROWS * found.fields, dtype=np.uint64), _PURPOSE)
    rows = (draws * (1 << found.slot_bits)).astype(np.uint32).reshape(BORDER_ROWS, found.fields)
    differ = int((found.logits(rows) != source.logits(rows)).sum())
    if differ:
        yield f"{differ} of {len(rows)} drawn rows score otherwise in wide & deep"


def _mixture_faults(found: ExportedMixture, source: Ensemble) -> tuple[int, list[str]]:
    faults: list[str] = []
    arrays, names = found.to_arrays()
    expected_arrays, expected_names = ExportedMixture.of(source).to_arrays()
    if names != expected_names:
        return 0, [f"the mixture reads {names}, the checkpoint's {expected_names}"]
    for name, expected in expected_arrays.items():
        if not _same_bytes(arrays[name], expected):
            faults.append(f"{name} of the mixture are not those of the checkpoint")
    layer = source.calibration
    maps = [layer.overall, *(each.calibration for each in layer.corrections)]
    borders = np.array([*_EXTREMES, *(knot for each in maps for knot in each.knots)])
    steps = np.concatenate([_around(borders), np.linspace(-20, 20, 401)])
    hashes = np.array([_UNSEEN, *(each.slice_hash for each in layer.corrections)], np.uint64)
    slices, calibrated = (part.reshape(-1) for part in np.meshgrid(hashes, steps, indexing="ij"))
    # The maps alone, so that a row can lie on a knot; then the whole of it.
    maps_alone = replace(found, experts=("",), mixture=np.array([0.0, 1.0]), of_probabilities=False)
    by_arrays = maps_alone.stages({"": calibrated}, slices)[:, STAGES.index("corrected")]
    logits = dict.fromkeys(source.experts, calibrated)
    differ = int((~_equal(by_arrays, layer.apply(calibrated, slices))).sum())
    differ += int((~_equal(found.apply(logits, slices), source.apply(logits, slices))).sum())
    if differ:
        faults.append(f"{differ} rows of border values are mixed or calibrated otherwise")
    return len(calibrated), faults


def _ladder_faults(found: Ladder, source: Ladder) -> Iterator[str]:
    arrays, tree = found.to_arrays()
    expected_arrays, expected = source.to_arrays()
    for name, default in expected.items():
        if tree[name] != default:
            yield f"{name} of the ladder is {tree[name]!r}, the checkpoint's {default!r}"
    for name, array in expected_arrays.items():
        if not _same_bytes(arrays[name], array):
            yield f"{name} of the ladder are not those of the checkpoint"


def _border_rows(batch: ExportedBatch) -> np.ndarray:
    """Return rows whose every value lies at a border of some node, or is one that no node knows."""
    forest = batch.forest
    width = forest.n_features
    numeric = width - len(batch.category_names)
    draws = uniform(0, np.arange(BORDER_ROWS * width, dtype=np.uint64), _PURPOSE)
    rows = np.empty((BORDER_ROWS, width))
    for feature in range(width):
        if feature < numeric:
            thresholds = forest.threshold[forest.feature == feature]
            values = np.concatenate([_around(np.unique(thresholds)), np.array(_EXTREMES)])
        else:
            most = len(batch.category_codes[feature - numeric])
            values = np.array([*range(most + 2), 31.0, 32.0, 63.0, 64.0, 1e6, -1.0, np.nan])
        place = (draws[feature::width] * len(values)).astype(np.int64)
        rows[:, feature] = values[place]
    return rows


def _around(borders: np.ndarray) -> np.ndarray:
    return np.concatenate([borders, np.nextafter(borders, np.inf), np.nextafter(borders, -np.inf)])


def _lightgbm_logits(text: str, rows: np.ndarray) -> np.ndarray:
    import lightgbm

    booster = lightgbm.Booster(model_str=text)
    return np.asarray(booster.predict(rows, raw_score=True, num_threads=1), np.float64)


def _same_bytes(found: np.ndarray, expected: np.ndarray) -> bool:
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.tobytes() == expected.tobytes()
    )


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))
