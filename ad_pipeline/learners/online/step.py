"""The online step: score a slice of the hour, then learn it, with any expert that can do both.

Arrays in, arrays out: this module knows neither Dagster nor the warehouse, and does not hash. An
expert's state leaves it as plain arrays and a JSON manifest, ready for a checkpoint; what the
checkpoint's parent and stream position are is the caller's to say.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.ftrl import ftrl_kernel
from ad_pipeline.learners.ftrl.ftrl_expert import Arrays, FTRLExpert, LinearWeights, Manifest
from ad_pipeline.learners.online.controlled_expert import ControlledExpert

if TYPE_CHECKING:
    from ad_pipeline.settings import OnlineSettings


class OnlineExpert(Protocol):
    """What the online step asks of a learner over hashed slots, under K configurations."""

    @property
    def width(self) -> int:
        """K."""
        ...

    def learn(
        self,
        slots: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        outcomes: np.ndarray | None = None,
    ) -> Any:
        """Learn rows in order.

        Slots are uint32 (n, F), labels 0 or 1 (n,), weights float64 (n,), (n, 1) or (n, K),
        outcomes the kernel's columns, (n, N_OUTCOMES), or (n, 0).
        """
        ...

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return log odds, float64 (n, K), of rows of slots, uint32 (n, F), changing nothing."""
        ...

    def advance(self, elapsed_us: int) -> None:
        """Let log time pass: what was learnt so far counts for less."""
        ...

    def state(self) -> tuple[Arrays, Manifest]:
        """Return all that a later :func:`restore_expert` needs: plain arrays and JSON."""
        ...

    def linear_weights(self, configuration: int = 0) -> LinearWeights | None:
        """Return weights that give the :meth:`logits` of a configuration, None if not linear."""
        ...


def new_expert(settings: "OnlineSettings", horizon_days: float = 0.0) -> OnlineExpert:
    """Return an untrained expert.

    Parameters
    ----------
    settings : OnlineSettings
        Of one goal; ``estimator`` is ``"ftrl"`` or the dotted path of any River classifier.
    horizon_days : float
        Window and lateness of the goal, for losses of delays.

    Raises
    ------
    ValueError
        If the estimator is no River classifier.
    """
    if settings.estimator == "ftrl":
        expert = FTRLExpert(settings.bits, settings.configurations(), settings.dtype, horizon_days)
        control = settings.rate_control
        return expert if control is None else ControlledExpert(expert, control)
    return RiverExpert(settings.estimator, settings.estimator_parameters, settings.bits)


def restore_expert(arrays: Mapping[str, np.ndarray], manifest: Manifest) -> OnlineExpert:
    """Return the expert whose :meth:`OnlineExpert.state` was given.

    Raises
    ------
    ValueError
        If the manifest names an expert that this version does not know.
    """
    kind = manifest["expert"]
    if kind == FTRLExpert.kind:
        return FTRLExpert.restore(arrays, manifest)
    if kind == ControlledExpert.kind:
        return ControlledExpert.restore(arrays, manifest)
    if kind == RiverExpert.kind:
        return RiverExpert.restore(arrays, manifest)
    raise ValueError(f"no online expert {kind!r}; this version knows ftrl and river")


class RiverExpert:
    """Any River classifier as the online expert; its features are ``{slot: 1.0}``.

    Two features of a row in one slot add up, as in the kernel.

    Parameters
    ----------
    path : str
        Dotted path, e.g. ``"river.linear_model.LogisticRegression"``.
    parameters : mapping
        Keyword arguments; plain values only.
    bits : int
        2^bits slots.
    """

    kind = "river"
    width = 1

    def __init__(self, path: str, parameters: Mapping[str, Any], bits: int = 20) -> None:
        from ad_pipeline.learners.ftrl import river_state

        self.bits = bits
        self._model = river_state.new_classifier(path, parameters)

    def learn(
        self,
        slots: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        outcomes: np.ndarray | None = None,
    ) -> None:
        """Learn rows in order; see :class:`OnlineExpert`. Outcomes are not looked at.

        Raises
        ------
        ValueError
            If a weight is neither 0 nor 1 and the classifier's ``learn_one`` takes none.
        """
        from ad_pipeline.learners.ftrl import river_state

        slots = ftrl_kernel.checked_slots(slots, 1 << self.bits)
        river_state.learn_rows(self._model, _slot_dicts(slots), labels, weights.reshape(len(slots)))

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return log odds, float64 (n, 1); see :class:`OnlineExpert`."""
        from ad_pipeline.learners.ftrl import river_state

        slots = ftrl_kernel.checked_slots(slots, 1 << self.bits)
        linear = river_state.sparse_weights(self._model)
        if linear is None:
            return river_state.probability_logits(self._model, _slot_dicts(slots))[:, np.newaxis]
        # Summed as the scorer sums, and not by River's dot product, so that both agree to the bit.
        weights, intercept = linear
        gathered = np.fromiter(
            (weights.get(slot, 0.0) for slot in slots.ravel().tolist()),
            dtype=np.float64,
            count=slots.size,
        )
        out = np.empty(len(slots))
        places = np.arange(slots.size, dtype=np.uint32).reshape(slots.shape)
        ftrl_kernel.linear_logits(gathered, places, out, intercept)
        return out[:, np.newaxis]

    def advance(self, elapsed_us: int) -> None:
        """Let time pass, which no River classifier notices."""

    def linear_weights(self, configuration: int = 0) -> LinearWeights | None:
        """Return the dense weights of a generalised linear model, None for any other."""
        from ad_pipeline.learners.ftrl import river_state

        linear = river_state.sparse_weights(self._model)
        if linear is None:
            return None
        weights, intercept = linear
        dense = np.zeros(1 << self.bits)
        dense[list(weights)] = list(weights.values())
        return LinearWeights(dense, intercept)

    def state(self) -> tuple[Arrays, Manifest]:
        """Return the classifier's attributes as plain arrays and JSON.

        Raises
        ------
        river_state.UnsupportedState
            If the classifier holds something that is not plain data; the message says where.
        """
        from ad_pipeline.learners.ftrl import river_state

        arrays, tree = river_state.encode(self._model)
        return arrays, {"expert": self.kind, "bits": self.bits, "model": tree}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], manifest: Manifest) -> Self:
        """Return the expert of a :meth:`state`."""
        from ad_pipeline.learners.ftrl import river_state

        expert = cls.__new__(cls)
        expert.bits = manifest["bits"]
        expert._model = river_state.decode(arrays, manifest["model"])
        return expert


@dataclass(frozen=True)
class Examples:
    """An hour's training examples, ordered by (emit_us, impression_id, kind, source_event_id).

    Attributes
    ----------
    slots : ndarray of shape (m, F), uint32
    labels : ndarray of shape (m,), 0 or 1
    weights : ndarray of shape (m,), (m, 1) or (m, K), float64
        For all configurations, or for each.
    emit_us : ndarray of shape (m,), int64
        Microseconds since the epoch, non-decreasing.
    outcomes : ndarray of shape (m, N_OUTCOMES) or (m, 0), float64
        What losses of labels that come late ask for: the kernel's columns. None if left out.
    """

    slots: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    emit_us: np.ndarray
    outcomes: np.ndarray = field(kw_only=True, default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        """Make as many rows of no outcomes as there are examples."""
        if not self.outcomes.size:
            object.__setattr__(self, "outcomes", np.zeros((len(self.emit_us), 0)))

    @property
    def teach(self) -> np.ndarray:
        """Whether each row has a weight for any configuration, bool (m,)."""
        return np.any(np.atleast_2d(self.weights.T) > 0, axis=0)

    @property
    def first_weights(self) -> np.ndarray:
        """Weights under configuration 0, float64 (m,)."""
        return self.weights if self.weights.ndim == 1 else self.weights[:, 0]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.emit_us)

    def taken(self, rows: np.ndarray | slice) -> Self:
        """Return some of the examples, in the order in which they are named."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class HourScores:
    """What the expert said at serving time.

    Attributes
    ----------
    logits : ndarray of shape (n, K), float64
        Log odds under each configuration.
    micro_batch : ndarray of shape (n,), int16
        Slice of the hour, from 0.
    """

    logits: np.ndarray
    micro_batch: np.ndarray


@dataclass(frozen=True)
class Position:
    """How far into an hour a learner has come.

    Attributes
    ----------
    next_slice : int
        Slice to score and learn next; those before it are done.
    examples : int
        Of the hour, learnt so far.
    logits : ndarray of shape (n, K), float64
        Scores of the hour's impressions, in their order; 0 for those of later slices.
    """

    next_slice: int
    examples: int
    logits: np.ndarray


def online_hour(
    expert: OnlineExpert,
    impressions_slots: np.ndarray,
    impressions_us: np.ndarray,
    examples: Examples,
    micro_batch_us: int,
    hour_us: int,
    begin: Position | None = None,
    after_slice: Callable[[Position], None] | None = None,
    chosen: Callable[[slice], Examples] | None = None,
) -> HourScores:
    """Run one log hour: per slice, score its impressions, then learn its examples.

    An impression is scored by what was emitted before its slice began, never by its own slice. The
    learner's clock moves at the end of each slice.

    Parameters
    ----------
    expert : OnlineExpert
        As the previous hour left it; updated in place.
    impressions_slots : ndarray of shape (n, F), uint32
        In any order.
    impressions_us : ndarray of shape (n,), int64
        ``received_us`` of the impressions, all inside the hour.
    examples : Examples
        Emitted inside the hour.
    micro_batch_us : int
        Length of a slice, microseconds.
    hour_us : int
        Start of the hour, microseconds since the epoch.
    begin : Position, optional
        Where to go on; the expert is as that position left it. The hour's start if left out.
    after_slice : callable, optional
        Called with the position after each slice but the last.
    chosen : callable, optional
        Called once for each slice, with the places of the examples emitted in it; returns what is
        learnt then. Just those if left out; see :mod:`ad_pipeline.learners.online.lanes`.

    Returns
    -------
    HourScores
        In the order of the impressions given.

    Raises
    ------
    ValueError
        If a moment lies outside the hour, or the examples are out of order.
    """
    if micro_batch_us <= 0:
        raise ValueError(f"micro_batch_us is {micro_batch_us}; write a positive number")
    for name, moments in (("impression", impressions_us), ("example", examples.emit_us)):
        if len(moments) and not (
            hour_us <= int(moments.min()) and int(moments.max()) < hour_us + HOUR_US
        ):
            raise ValueError(
                f"an {name} lies outside the hour that starts at {hour_us}: moments run from "
                f"{moments.min()} to {moments.max()}"
            )
    if (np.diff(examples.emit_us) < 0).any():
        raise ValueError("examples are not ordered by emit_us; the order is part of the result")
    impression_slice = ((impressions_us - hour_us) // micro_batch_us).astype(np.int16)
    order = np.argsort(impression_slice, kind="stable")
    n_slices = -(-HOUR_US // micro_batch_us)
    bounds = np.arange(n_slices + 1)
    first_impression = np.searchsorted(impression_slice[order], bounds)
    first_example = np.searchsorted((examples.emit_us - hour_us) // micro_batch_us, bounds)
    begin = begin or Position(0, 0, np.zeros((len(impressions_us), expert.width)))
    logits, examples_learned = begin.logits, begin.examples
    for index in range(begin.next_slice, n_slices):
        rows = order[first_impression[index] : first_impression[index + 1]]
        if len(rows):
            logits[rows] = expert.logits(impressions_slots[rows])
        emitted = slice(int(first_example[index]), int(first_example[index + 1]))
        batch = examples.taken(emitted) if chosen is None else chosen(emitted)
        if len(batch):
            expert.learn(batch.slots, batch.labels, batch.weights, batch.outcomes)
        expert.advance(min(micro_batch_us, HOUR_US - index * micro_batch_us))
        examples_learned += emitted.stop - emitted.start
        if after_slice is not None and index + 1 < n_slices:
            after_slice(Position(index + 1, examples_learned, logits))
    return HourScores(logits, impression_slice)


def _slot_dicts(slots: np.ndarray) -> list[dict[int, float]]:
    rows: list[dict[int, float]] = []
    for row in slots.tolist():
        features: dict[int, float] = {}
        for slot in row:
            features[slot] = features.get(slot, 0.0) + 1.0
        rows.append(features)
    return rows
