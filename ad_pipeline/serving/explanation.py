"""Why a score is what it is, from the bundle's folder alone.

For one request: every feature with its slot, weight, history and the other values in its slot; the
sum of the weights, which is the online expert's score to the bit; the other experts; the mixture,
the calibration, the probability. Nothing here opens a warehouse or a dataset file, and nothing
serves: a scorer does not import this.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ad_pipeline.clocks import timestamp
from ad_pipeline.features.encoding import (
    VECTORS_USED,
    FeatureContract,
    read_columns,
    slots,
    text_hashes,
    vector_hashes,
)
from ad_pipeline.features.token_values import token_values
from ad_pipeline.features.vectors import vectors_named
from ad_pipeline.hashing import MISSING_LABEL
from ad_pipeline.learners.ensemble.exported_mixture import STAGES, ExportedMixture
from ad_pipeline.learners.ftrl.slot_memory import WIDTH as LANES
from ad_pipeline.serving.audit import hour_of_update_us
from ad_pipeline.serving.bundle import ONLINE, Bundle, GoalModels
from ad_pipeline.serving.decisions import feature_names, logged_inputs
from ad_pipeline.serving.ladder import FULL, MEANS, RUNGS
from ad_pipeline.serving.scorer import IDENTITY, OCCURRED

NO_WEIGHT = "no weight: never learnt, learnt to 0, or not admitted"
NOT_SEEN = "this value was never seen: the slot was learnt from others"
NOT_LISTED = "left out of the bundle's dictionary for its size"
NOT_NAMED = "the bundle has no dictionary"

_SHOWN_COLLISIONS = 5


class UnreadableRequest(LookupError):
    """What should be explained is not in the file, or not in the bundle."""


@dataclass(frozen=True)
class Contribution:
    """What one feature adds to the online expert's score.

    Attributes
    ----------
    feature, value : str
    slot : int
    weight : float
        Added as it is; 0 if the slot has none.
    n : float or None
        Sum of squared gradients of the slot; None if the bundle does not say.
    last_update_us : int or None
        Start of the hour in which the slot was last learnt, microseconds.
    collisions : tuple of str
        ``feature=value`` of all others in the slot.
    remark : str
        What is not known of it, or nothing.
    """

    feature: str
    value: str
    slot: int
    weight: float
    n: float | None
    last_update_us: int | None
    collisions: tuple[str, ...]
    remark: str


@dataclass(frozen=True)
class GoalExplanation:
    """One goal's score in its parts.

    Attributes
    ----------
    goal : str
    online_checkpoint : str
    intercept : float
        Of the online expert.
    loss : str
        Whose link makes log odds of its score; ``logistic`` leaves it as it is.
    second_score : float or None
        Of the second head, for a loss that has two; it is not taken apart.
    contributions : tuple of Contribution
        In the order in which they are added.
    logits : dict of str to float
        By expert.
    mixture : ExportedMixture or None
        None if the online expert speaks alone, not calibrated.
    stages : dict of str to float
        ``STAGES`` of ``learners/ensemble/exported_mixture.py`` by name; empty without a mixture.
    slice_value : str
        ``column=value`` by which the calibration differs, or nothing.
    probability : float
    rung : int
        Of the fallback ladder, that answered: its place in ``RUNGS`` of ``serving/ladder.py``. The
        parts above are the mixture's all the same.
    """

    goal: str
    online_checkpoint: str
    intercept: float
    loss: str
    second_score: float | None
    contributions: tuple[Contribution, ...]
    logits: dict[str, float]
    mixture: ExportedMixture | None
    stages: dict[str, float]
    slice_value: str
    probability: float
    rung: int = FULL

    @property
    def score(self) -> float:
        """The online expert's score, added up from the contributions."""
        return kernel_sum(self.intercept, [each.weight for each in self.contributions])


@dataclass(frozen=True)
class Explanation:
    """A score explained.

    Attributes
    ----------
    bundle : Bundle
    features : dict
        As used; see :func:`ad_pipeline.serving.decisions.feature_names`.
    fallbacks : tuple of str
        What was missing and what stood in for it.
    not_looked_at : tuple of str
        Keys of the request that are no features.
    goals : tuple of GoalExplanation
    """

    bundle: Bundle
    features: dict[str, Any]
    fallbacks: tuple[str, ...]
    not_looked_at: tuple[str, ...]
    goals: tuple[GoalExplanation, ...]


def read_request(path: Path) -> dict[str, Any]:
    """Read a request, or a row of ``events.decisions``, out of a JSON file.

    Raises
    ------
    UnreadableRequest
        If the file holds no JSON object.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UnreadableRequest(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UnreadableRequest(f"{path} holds no JSON object; write one request as {{...}}")
    logged = found.get("features")
    if isinstance(logged, str):
        try:
            logged = json.loads(logged)
        except ValueError as error:
            raise UnreadableRequest(f"features in {path} is not JSON: {error}") from error
    return logged if isinstance(logged, dict) else found


def canary(bundle: Bundle, number: int) -> dict[str, Any]:
    """Return the features of one of the bundle's own canary requests, counted from 0.

    Raises
    ------
    UnreadableRequest
        If there is none of that number.
    """
    features = bundle.manifest["canaries"]["features"]
    if not 0 <= number < len(features):
        raise UnreadableRequest(
            f"there is no canary {number} in {bundle.path}; it has 0 to {len(features) - 1}"
        )
    return dict(features[number])


def with_vectors(bundle: Bundle, request: Mapping[str, Any], vectors: Path) -> dict[str, Any]:
    """Return a logged decision's features with the numbers of the vectors that it names.

    Parameters
    ----------
    bundle : Bundle
    request : mapping
        As for :func:`explain`; one that names no vectors is returned as it is.
    vectors : Path
        Root of the published vectors.

    Raises
    ------
    MissingCheckpoint
        If the vectors are not there.
    """
    contract, used = bundle.contract, request.get(VECTORS_USED)
    if contract.vectors is None or not used:
        return dict(request)
    features, _ = _features_used(contract, request)
    columns, _ = logged_inputs(contract, [features])
    hashes = vector_hashes(contract, read_columns(contract, columns))
    numbers = vectors_named(contract.vectors, vectors, [used], hashes)[0].tolist()
    known = {
        name: number
        for name, number in zip(contract.vector_names, numbers, strict=True)
        if not math.isnan(number)
    }
    return {**request, **known}


def explain(
    bundle: Bundle, request: Mapping[str, Any], goals: Sequence[str] | None = None
) -> Explanation:
    """Explain the scores of one request.

    Parameters
    ----------
    bundle : Bundle
    request : mapping
        The feature contract's columns, and counts under the names that decisions log them by, as
        far as known: a column that is left out is null, counts that are left out are 0, numbers of
        a user's vector are unknown, and all are said. Without them a score is what a scorer without
        snapshot and vectors gives. A decision has the vectors' name only; see
        :func:`with_vectors`.
    goals : sequence of str, optional
        All goals if left out.

    Returns
    -------
    Explanation

    Raises
    ------
    UnreadableRequest
        If a value is of the wrong kind, or the bundle has no such goal.
    """
    contract = bundle.contract
    features, fallbacks = _features_used(contract, request)
    try:
        columns, looked_up = logged_inputs(contract, [features])
    except (TypeError, ValueError) as error:
        raise UnreadableRequest(f"the request cannot be read: {error}") from error
    read = read_columns(contract, columns)
    wanted = [models.goal for models in bundle.goals] if goals is None else list(goals)
    for goal in wanted:
        if all(models.goal != goal for models in bundle.goals):
            known = ", ".join(models.goal for models in bundle.goals)
            raise UnreadableRequest(f"{bundle.path} has no goal {goal!r}; it has {known}")
    scores = bundle.score(read, looked_up)
    row_slots = slots(contract, read, looked_up)[0].tolist()
    values = token_values(contract, columns, looked_up)[0]
    tokens = bundle.audit.tokens(sorted(set(row_slots)))
    known_names = {*feature_names(contract), *contract.vector_names, *IDENTITY, OCCURRED}
    return Explanation(
        bundle=bundle,
        features=features,
        fallbacks=(*fallbacks, *bundle.missing()),
        not_looked_at=tuple(sorted(set(request) - known_names)),
        goals=tuple(
            GoalExplanation(
                goal=models.goal,
                online_checkpoint=models.online_checkpoint,
                intercept=models.online.intercept,
                loss=models.online.loss,
                second_score=_second_score(models, row_slots),
                contributions=_contributions(bundle, models, row_slots, values, tokens),
                logits={
                    expert: float(value[0]) for expert, value in scores.logits[models.goal].items()
                },
                mixture=models.mixture if models.mixes(scores.logits[models.goal]) else None,
                stages=_stages(
                    models,
                    scores.logits[models.goal],
                    text_hashes(contract, read, models.sliced_by),
                ),
                slice_value=_slice_value(models, features),
                probability=float(scores.probabilities[models.goal][0]),
                rung=int(scores.rungs.get(models.goal, (FULL,))[0]),
            )
            for models in bundle.goals
            if models.goal in wanted
        ),
    )


def _second_score(models: GoalModels, row_slots: Sequence[int]) -> float | None:
    partner = models.online.partner
    if partner is None:
        return None
    return float(partner.logits(np.array([row_slots], np.uint32))[0])


def kernel_sum(intercept: float, weights: Sequence[float]) -> float:
    """Add weights in the order in which every score is added; see ``slot_memory.sum_lanes``.

    Weight i goes to partial sum i mod 8, and the eight are added in pairs: so the printed weights
    give the printed score to the last bit.
    """
    parts = [0.0] * LANES
    for place, weight in enumerate(weights):
        parts[place % LANES] += weight
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [parts[place] + parts[place + half] for place in range(half)]
    return intercept + parts[0]


def explanation_lines(explained: Explanation) -> Iterator[str]:
    """Yield the lines that people read; every number is written so that it reads back exactly."""
    bundle = explained.bundle
    yield f"bundle {bundle.digest}"
    yield f"dataset {bundle.dataset}, labels up to {timestamp(bundle.label_watermark_us)}"
    for name, value in explained.features.items():
        yield f"  {name} = {json.dumps(value, ensure_ascii=False)}"
    for reason in explained.fallbacks:
        yield f"  missing: {reason}"
    for name in explained.not_looked_at:
        yield f"  {name}: no feature of this bundle, not looked at"
    for found in explained.goals:
        yield ""
        yield from _goal_lines(found, bundle.audit.slots_left_out)


def _goal_lines(found: GoalExplanation, slots_left_out: int) -> Iterator[str]:
    yield f"== {found.goal}: probability {found.probability!r}"
    yield f"online expert, checkpoint {found.online_checkpoint}"
    header = ("feature", "value", "slot", "weight", "n", "last learnt", "")
    rows = [_contribution_cells(each) for each in found.contributions]
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()
    if slots_left_out:
        yield f"  {slots_left_out:,} slots are left out of the bundle's dictionary for its size"
    yield f"  intercept {found.intercept!r}"
    yield f"  sum {found.score!r} (feature i into partial sum i mod {LANES}, those in pairs)"
    if found.second_score is not None:
        yield f"  second head of {found.loss}: sum {found.second_score!r}"
    for expert, logit in found.logits.items():
        link = f" (of the sum, under {found.loss})" if expert == ONLINE else ""
        yield f"expert {expert}: log odds {logit!r}{link}"
    mixture = found.mixture
    if mixture is None:
        yield "no mixture: the online expert alone, not calibrated"
    else:
        intercept, *weights = mixture.mixture.tolist()
        parts = [f"{w!r} x {name}" for name, w in zip(mixture.experts, weights, strict=True)]
        of = "probabilities" if mixture.of_probabilities else "log odds"
        yield f"mixture of {of}: {intercept!r} + {' + '.join(parts)}"
        for stage in STAGES[:-1]:
            at = f" for {found.slice_value}" if stage == "corrected" and found.slice_value else ""
            yield f"  {stage}{at}: {found.stages[stage]!r}"
    if found.rung != FULL:
        yield f"answered by rung {RUNGS[found.rung]}, not as above: {MEANS[found.rung]}"
    yield f"probability {found.probability!r}"


def _contribution_cells(each: Contribution) -> tuple[str, ...]:
    others = list(each.collisions[:_SHOWN_COLLISIONS])
    if len(each.collisions) > _SHOWN_COLLISIONS:
        others.append(f"{len(each.collisions) - _SHOWN_COLLISIONS} more")
    remarks = [each.remark] if each.remark else []
    if others:
        remarks.append(f"also in this slot: {', '.join(others)}")
    return (
        each.feature,
        each.value,
        str(each.slot),
        repr(each.weight),
        "-" if each.n is None else f"{each.n:.6g}",
        "-" if each.last_update_us is None else timestamp(each.last_update_us),
        "; ".join(remarks),
    )


def _features_used(
    contract: FeatureContract, request: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the features that score a request, under their logged names, and what stood in."""
    counts = [name for name in feature_names(contract) if name not in contract.logged_columns]
    absent = [name for name in contract.columns if name not in request]
    fallbacks = [f"column {name}: null" for name in absent]
    uncounted = [name for name in counts if name not in request]
    if counts and len(uncounted) == len(counts):
        fallbacks.append("no counts in the request: every count is 0")
    else:
        fallbacks += [f"count {name}: 0" for name in uncounted]
    unknown = [name for name in contract.vector_names if request.get(name) is None]
    if unknown and len(unknown) == len(contract.vector_names):
        fallbacks.append("no numbers of a user's vector in the request: every one is unknown")
    else:
        fallbacks += [f"{name}: unknown" for name in unknown]
    features = {
        name: request.get(name) for name in (*contract.logged_columns, *contract.vector_names)
    }
    return features | {name: request.get(name, 0) for name in counts}, fallbacks


def _contributions(
    bundle: Bundle,
    models: GoalModels,
    row_slots: list[int],
    values: tuple[str, ...],
    tokens: Mapping[int, list[tuple[str, str]]],
) -> tuple[Contribution, ...]:
    weights = models.online.of_slots(np.array(row_slots, np.uint32)).tolist()
    exported = models.online.slots
    history = bundle.audit.history(models.goal)
    found: list[Contribution] = []
    for feature, value, slot, weight in zip(
        bundle.contract.token_names, values, row_slots, weights, strict=True
    ):
        own = (feature, value)
        there = tokens[slot]
        n, last_update_us = None, None
        if weight != 0.0 and history is not None:
            place = int(np.searchsorted(exported, slot))
            n = float(history.n[place])
            hours = int(history.last_update_hours[place])
            last_update_us = None if hours < 0 else hour_of_update_us(hours)
        found.append(
            Contribution(
                feature=feature,
                value=value,
                slot=slot,
                weight=weight,
                n=n,
                last_update_us=last_update_us,
                collisions=tuple(f"{name}={text}" for name, text in there if (name, text) != own),
                remark=_remark(weight, own, there, bundle),
            )
        )
    return tuple(found)


def _remark(
    weight: float, own: tuple[str, str], there: Sequence[tuple[str, str]], bundle: Bundle
) -> str:
    if weight == 0.0:
        return NO_WEIGHT
    if bundle.manifest["audit"] is None:
        return NOT_NAMED
    if not there:
        return NOT_LISTED if bundle.audit.slots_left_out else NOT_SEEN
    return "" if own in there else NOT_SEEN


def _stages(
    models: GoalModels, logits: Mapping[str, np.ndarray], slices: np.ndarray | None
) -> dict[str, float]:
    if models.mixture is None or not models.mixes(logits):
        return {}
    passed = models.mixture.stages(logits, slices)[0].tolist()
    return dict(zip(STAGES, passed, strict=True))


def _slice_value(models: GoalModels, features: Mapping[str, Any]) -> str:
    if models.sliced_by is None:
        return ""
    text = features[models.sliced_by]
    return f"{models.sliced_by}={MISSING_LABEL if text is None else text}"
