"""The candidate bundle: what it is made of, and how it compares with what serves.

It is assembled from the newest checkpoints of the learners and pointed at as ``candidate``. The
comparison reads rows that had matured and that neither side was fitted on: the candidate's lineage
by the scores it gave at serving time, mixed as the candidate mixes; the serving bundle by scoring
the same rows itself, only rows served after its labels ended. Whether the candidate replays to the
bit is another question, asked in ``monitoring``; the rule and moving the pointer are
:mod:`.promotion`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import is_pointed, point, read_checkpoint, resolve, unswept
from ad_pipeline.clocks import HOUR_US, hour_key, timestamp
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings.candidate_index import POINTER as NEWEST_INDEX
from ad_pipeline.embeddings.published import NO_ENCODER, read_hour
from ad_pipeline.evaluation.held_out import BASE_RATE, ENSEMBLE, HeldOut
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract, LookedUp, read_columns
from ad_pipeline.features.rates import pointer as snapshot_pointer
from ad_pipeline.features.rates import read_snapshot
from ad_pipeline.hashing import uniform
from ad_pipeline.learners.batch import batch_hours
from ad_pipeline.learners.deep import deep_hours
from ad_pipeline.learners.ensemble.ensembles import FittedEnsemble, open_ensemble
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights, SlotHistory, exported
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.learners.online import online_hours
from ad_pipeline.learners.online.step import OnlineExpert
from ad_pipeline.serving.audit import Audit, ReadTokens
from ad_pipeline.serving.bundle import Bundle, GoalModels, export_bundle, open_bundle
from ad_pipeline.serving.ladder import Ladder, fit_ladder, write_ladder
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.serving.promotion import PromotionVerdict, decide, history, promote, verdict
from ad_pipeline.serving.proof import UnfaithfulExport, prove_bundle
from ad_pipeline.serving.retrieval import PublishedIndex

CANDIDATE = "candidate"
LAST_UPDATE = "last_update_hours"
"""Array of an online checkpoint: hour of the last update of each of its ``slots``, int32."""

COMPARED_ROWS = 120_000
"""Rows a goal's comparison reads at most, drawn by hash: an interval of hours needs no more."""


ReadImpressions = Callable[[pa.ChunkedArray, np.ndarray], pa.Table]
"""From impression ids and their ``received_us`` to the impressions' rows, in the same order."""

ReadMatured = Callable[[str], pa.Table]
"""From a goal to its newest matured impressions with their labels, in order of maturity; see
:func:`ad_pipeline.features.as_served.matured_impressions`."""


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


def build_candidate(
    deployment: Deployment,
    hour_us: int,
    canaries: Sequence[Mapping[str, Any]],
    *,
    read_tokens: ReadTokens | None = None,
    read_matured: ReadMatured | None = None,
    configurations: Mapping[str, int] | None = None,
    candidate_index: PublishedIndex | None = None,
) -> Bundle:
    """Write the state that an hour left as a bundle and point ``candidate`` at it.

    Parameters
    ----------
    deployment : Deployment
    hour_us : int
        The last log hour learnt, microseconds.
    canaries : sequence of mappings
        A few raw requests; see :func:`ad_pipeline.serving.bundle.export_bundle`.
    read_tokens : callable, optional
        Gives what fell into the exported slots up to the hour; without it the bundle can explain a
        score by slots only.
    read_matured : callable, optional
        Gives the rows that the fallback ladder is fitted on; without it, or without
        ``settings.fallbacks``, the mixture answers whatever is missing.
    configurations : mapping of str to int, optional
        Which configuration of the online learner serves each goal; the first unless named.
    candidate_index : PublishedIndex, optional
        From :func:`index_of_hour`: what answers which ads there are
        for a user.

    Raises
    ------
    MissingCheckpoint
        If the hour has not been learnt, or its snapshot or vectors are not there.
    UnfaithfulExport
        If the bundle is not the models it was made of; ``candidate`` stays where it was.
    WeightsOutOfRange
        If weights do not fit into the format of ``settings.export.weights``.
    UnservableExpert
        If an online expert has no linear form, so that a scorer could not carry it.
    """
    dataset = deployment.dataset
    goals = [goal.name for goal in dataset.goals_in_chain_order()]
    fitted = {goal: open_ensemble(deployment, goal) for goal in goals}
    snapshot = resolve(deployment.snapshots, snapshot_pointer(hour_us))
    chosen = configurations or {}
    made = [_models(deployment, goal, hour_us, chosen.get(goal, 0), fitted[goal]) for goal in goals]
    contract = FeatureContract.from_dataset(dataset)
    vectors = None if contract.vectors is None else read_hour(deployment.vectors, hour_us)
    ladders: dict[str, Ladder | None] = {}
    stale_hours: int | None = None
    fallbacks = dataset.settings.fallbacks
    if read_matured is not None and fallbacks is not None:
        ladders = {
            models.goal: ladder_of(
                contract, models, read_matured(models.goal), fallbacks.least_share
            )
            for models, _ in made
        }
        # To a mixture without a ladder old counts say more than none.
        if all(ladder is not None for ladder in ladders.values()):
            stale_hours = fallbacks.stale_hours
    audit = None
    if read_tokens is not None:
        audit = Audit.collect(
            {models.goal: models.online for models, _ in made},
            {models.goal: history for models, history in made if history is not None},
            read_tokens,
            dataset.settings.export.dictionary_tokens,
        )
    with unswept(deployment.bundles), unswept(deployment.checkpoints):
        built = export_bundle(
            deployment.bundles,
            contract=contract,
            goals=[
                _with_ladder(deployment, models, ladders.get(models.goal)) for models, _ in made
            ],
            dataset=dataset.name,
            label_watermark_us=hour_us + HOUR_US,
            fitted_ranges={goal: found.ranges for goal, found in fitted.items() if found},
            canaries=canaries,
            snapshot=read_snapshot(deployment.snapshots, snapshot),
            vectors=vectors,
            facts={"settings": dataset.settings.digest(), "hour": hour_key(hour_us)},
            audit=audit,
            log_share=dataset.settings.serving_log.share,
            stale_hours=stale_hours,
            candidate_index=candidate_index,
        )
        faults = [fault for proof in prove_bundle(deployment, built) for fault in proof.faults]
        if faults:
            raise UnfaithfulExport("; ".join(faults))
        point(deployment.bundles, CANDIDATE, built.digest)
    return built


def index_of_hour(vectors: Path, hour_us: int) -> tuple[PublishedIndex | None, str]:
    """Return the candidate index that a bundle of an hour may carry, or why there is none.

    Parameters
    ----------
    vectors : Path
        Root of the vectors, :attr:`ad_pipeline.datasets.Deployment.vectors`.
    hour_us : int
        Start of the last hour that the bundle knows, microseconds.

    Returns
    -------
    index : PublishedIndex or None
        The newest, if it knows nothing after the hour and is of the encoder whose vectors the hour
        published.
    why_not : str
        For people; empty if there is one.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        If the hour published no vectors, or the index is not intact.
    """
    if not is_pointed(vectors, NEWEST_INDEX):
        return None, "none was made yet: materialize embeddings/candidates"
    with unswept(vectors):
        found = PublishedIndex.read(vectors, resolve(vectors, NEWEST_INDEX))
        of_hour = read_hour(vectors, hour_us, verify=False).version
    if found.end_us > hour_us + HOUR_US:
        return None, f"the newest knows the log up to {timestamp(found.end_us)}, after the bundle"
    if found.version != of_hour:
        return None, f"the newest is of encoder {found.version}, the vectors are of {of_hour}"
    if found.version == NO_ENCODER:
        return None, "no encoder was trained yet"
    return found, ""


def judge_candidate(
    deployment: Deployment, held_out: Iterable[HeldOut], read_impressions: ReadImpressions
) -> JudgedCandidate:
    """Compare the candidate with the serving bundle on matured rows, goal by goal.

    Parameters
    ----------
    deployment : Deployment
    held_out : iterable of HeldOut
        Of each goal.
    read_impressions : callable
        Gives the raw rows that the serving bundle scores.

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
        found.goal: judge_goal(deployment, found, serving, read_impressions) for found in held_out
    }
    return JudgedCandidate(digest, candidate.label_watermark_us, verdicts)


def promote_candidate(
    deployment: Deployment,
    judged: JudgedCandidate,
    *,
    replay_passed: bool,
    unlike_what_was_served: str = "",
) -> tuple[bool, str]:
    """Let the candidate serve if it was judged no worse and its replay passed.

    Parameters
    ----------
    deployment : Deployment
    judged : JudgedCandidate
    replay_passed : bool
        Whether ``monitoring.candidate_replay`` found this bundle to agree.
    unlike_what_was_served : str
        Where ``monitoring.parity`` found served scores that are not given again; '' if nowhere.
        Who serves would serve this bundle as wrongly, and its own loss would be judged on that.

    Returns
    -------
    promoted : bool
        Whether the candidate serves now.
    reason : str
        For people.
    """
    moves = history(deployment.serving)
    promoted, reason = decide(judged.verdicts)
    if moves and moves[-1].digest == judged.digest:
        promoted, reason = True, "it serves already"
    elif not replay_passed:
        # Across runs Dagster does not hold the promotion back when the blocking check failed.
        promoted, reason = (
            False,
            "its replay has not passed; materialize monitoring/candidate_replay",
        )
    elif unlike_what_was_served:
        promoted, reason = (
            False,
            f"served scores are not given again: {unlike_what_was_served}; see "
            "monitoring/parity_findings, mend the scorer or roll back, and serve sound hours",
        )
    if promoted:
        promote(
            deployment.serving,
            deployment.bundles,
            judged.digest,
            judged.evidence(),
            watermark_us=judged.watermark_us,
        )
    return promoted, reason


def judge_goal(
    deployment: Deployment,
    held_out: HeldOut,
    serving: Bundle | None,
    read_impressions: ReadImpressions,
) -> PromotionVerdict:
    """Compare one goal's ensemble with the serving bundle, or with the base rate if none serves.

    Parameters
    ----------
    deployment : Deployment
    held_out : HeldOut
    serving : Bundle or None
    read_impressions : callable
    """
    settings = deployment.dataset.settings
    forecast = held_out.probabilities[ENSEMBLE]
    compare = partial(
        verdict,
        margin=settings.promotion.margin,
        seed=settings.seed,
        replicates=settings.evaluation.replicates,
        level=settings.evaluation.level,
    )
    if serving is None:
        base_rate = held_out.probabilities[BASE_RATE]
        return compare(
            held_out.labels,
            forecast,
            None,
            held_out.hours_us,
            base_rate=float(base_rate[0]) if len(base_rate) else None,
        )
    # What the serving bundle was fitted on says nothing about it.
    chosen = np.flatnonzero(held_out.serving_us >= serving.label_watermark_us)
    if len(chosen) > COMPARED_ROWS:
        draws = uniform(settings.seed, held_out.impression_ids.take(pa.array(chosen)), "promotion")
        chosen = chosen[draws < COMPARED_ROWS / len(chosen)]
    rows = read_impressions(
        held_out.impression_ids.take(pa.array(chosen)), held_out.serving_us[chosen]
    )
    read, looked_up = read_as_served(deployment, serving.contract, rows)
    scored = serving.score(read, looked_up).probabilities[held_out.goal]
    return compare(held_out.labels[chosen], forecast[chosen], scored, held_out.hours_us[chosen])


def _models(
    deployment: Deployment,
    goal: str,
    hour_us: int,
    configuration: int,
    fitted: FittedEnsemble | None,
) -> tuple[GoalModels, SlotHistory | None]:
    online_digest = resolve(deployment.checkpoints, online_hours.pointer(goal, hour_us))
    expert = online_hours.open_expert(deployment.checkpoints, online_digest)
    linear = expert.linear_weights(configuration)
    if linear is None:
        raise UnservableExpert(
            f"the online expert of {goal} ({deployment.dataset.settings.online.estimator}) has no "
            "linear weights to export; it stays an expert of the predictions only"
        )
    settings = deployment.dataset.settings
    weights = exported(linear, settings.export.weights, settings.seed, goal)
    batch_digest = batch_hours.digest_after(deployment, goal, hour_us)
    batch = None if batch_digest is None else batch_hours.open_batch_model(deployment, batch_digest)
    deep_digest = deep_hours.digest_after(deployment, goal, hour_us)
    deep = None if deep_digest is None else deep_hours.open_deep(deployment, deep_digest)
    models = GoalModels(
        goal=goal,
        online=weights,
        online_checkpoint=online_digest,
        batch=None if batch is None else batch.exported,
        batch_checkpoint=batch_digest,
        ensemble=None if fitted is None else fitted.ensemble,
        ensemble_checkpoint=None if fitted is None else fitted.digest,
        configuration=configuration,
        deep=None if deep is None else deep.exported,
        deep_checkpoint=deep_digest,
    )
    # Verified when the expert was opened.
    checkpoint = read_checkpoint(deployment.checkpoints, online_digest, verify=False)
    return models, slot_history(expert, checkpoint.arrays, weights, configuration)


def ladder_of(
    contract: FeatureContract, models: GoalModels, matured: pa.Table, least_share: float
) -> Ladder | None:
    """Fit the fallback ladder of a goal's models.

    Parameters
    ----------
    contract : FeatureContract
    models : GoalModels
    matured : pyarrow.Table
        The contract's columns and ``label``, in order of maturity.
    least_share : float
        See :func:`ad_pipeline.serving.ladder.fit_ladder`.
    """
    read = read_columns(contract, {name: matured.column(name) for name in contract.columns})
    alone = Bundle("", Path(), contract, (models,), "", 0, {}, {})
    uncounted = alone.score(read, LookedUp.nothing(contract, len(read)))
    labels = matured.column("label").to_numpy()
    return fit_ladder(contract, read, labels, uncounted.probabilities[models.goal], least_share)


def _with_ladder(deployment: Deployment, models: GoalModels, ladder: Ladder | None) -> GoalModels:
    if ladder is None:
        return models
    digest = write_ladder(deployment.checkpoints, models.goal, ladder)
    return replace(models, ladder=ladder, ladder_checkpoint=digest)


def slot_history(
    expert: OnlineExpert,
    arrays: Mapping[str, np.ndarray],
    weights: ExportedWeights,
    configuration: int = 0,
) -> SlotHistory | None:
    """Return what an online checkpoint says of the exported slots.

    Parameters
    ----------
    expert : OnlineExpert
        Restored from the checkpoint.
    arrays : mapping of str to ndarray
        Of the checkpoint: ``slots``, and :data:`LAST_UPDATE` in the same order.
    weights : ExportedWeights
    configuration : int

    Returns
    -------
    SlotHistory or None
        None of a learner that keeps no n. The hour is -1 where the checkpoint has none: of slots
        that share the weight of a narrower configuration without having been met themselves.
    """
    if not isinstance(expert, FTRLExpert):
        return None
    slots = weights.slots
    last_update_hours = np.full(len(slots), -1, np.int32)
    if LAST_UPDATE in arrays:
        met = np.asarray(arrays["slots"])
        known = np.isin(slots, met, assume_unique=True)
        last_update_hours[known] = arrays[LAST_UPDATE][np.searchsorted(met, slots[known])]
    return SlotHistory(expert.accumulated(configuration, slots), last_update_hours)
