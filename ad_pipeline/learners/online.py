"""The online step: score a slice of the hour, then learn it, with any expert that can do both.

Arrays in, arrays out: this module knows neither Dagster nor the warehouse, and does not hash. An
expert's state leaves it as plain arrays and a JSON manifest, ready for a checkpoint; what the
checkpoint's parent and stream position are is the caller's to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners import ftrl_kernel

if TYPE_CHECKING:
    from ad_pipeline.settings import OnlineSettings

Arrays = dict[str, np.ndarray]
Manifest = dict[str, Any]

KIND_LABELS = {
    "immediate_positive": 1,
    "negative": 0,
    "delayed_positive": 1,
    "confirmed_negative": 0,
    "retraction": 0,
}
"""The label that each kind of training example teaches."""


@dataclass(frozen=True)
class LinearWeights:
    """A linear expert as the scorer needs it; see :func:`ftrl_kernel.linear_logits`.

    Attributes
    ----------
    weights : ndarray of shape (2**bits,), float32 or float64
    intercept : float
    """

    weights: np.ndarray
    intercept: float


class OnlineExpert(Protocol):
    """What the online step asks of a learner over hashed slots."""

    def learn(self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
        """Learn rows in order: slots uint32 (n, F), labels 0/1 (n,), weights float64 (n,)."""
        ...

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return the float64 logit of every row of slots, uint32 (n, F), changing nothing."""
        ...

    def state(self) -> tuple[Arrays, Manifest]:
        """Return all that a later :func:`restore_expert` needs: plain arrays and JSON."""
        ...

    def linear_weights(self) -> LinearWeights | None:
        """Return weights whose in-order sum *is* :meth:`logits`, or None if it is not linear."""
        ...


def new_expert(settings: "OnlineSettings") -> OnlineExpert:
    """Return an untrained expert.

    Parameters
    ----------
    settings : OnlineSettings
        ``estimator`` is ``"ftrl"`` or the dotted path of any River classifier.

    Raises
    ------
    ValueError
        If the estimator is no River classifier.
    """
    if settings.estimator == "ftrl":
        return FTRLExpert(settings.bits, settings.alpha, settings.beta, settings.l1, settings.l2)
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
    if kind == RiverExpert.kind:
        return RiverExpert.restore(arrays, manifest)
    raise ValueError(f"no online expert {kind!r}; this version knows ftrl and river")


class FTRLExpert:
    """FTRL-Proximal over hashed slots (McMahan et al., KDD 2013, Algorithm 1).

    Parameters
    ----------
    bits : int
        2^bits slots.
    alpha, beta, l1, l2 : float
        Learning rate, its smoothing, and the regularisations of the paper.
    dtype : str
        Of the state: ``"float64"``, or ``"float32"`` for half the memory. In float32 a gradient of
        a rare event's negative (its probability) falls below half a unit in the last place of z
        once |z| passes about 10^7 times it, and is lost: every negative then, no positive, so the
        learner drifts upwards.
    """

    kind = "ftrl"

    def __init__(
        self,
        bits: int = 20,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 0.5,
        l2: float = 1.0,
        dtype: str = "float64",
    ) -> None:
        if not 1 <= bits <= 30:
            raise ValueError(f"bits is {bits}; write a whole number from 1 to 30")
        if not alpha > 0 or beta < 0 or l1 < 0 or l2 < 0:
            raise ValueError(
                f"alpha must be positive and beta, l1, l2 at least 0; got {alpha}, {beta}, {l1}, "
                f"{l2}"
            )
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {dtype!r}; write 'float32' or 'float64'")
        self.bits = bits
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.l1 = float(l1)
        self.l2 = float(l2)
        self.dtype = dtype
        self._state = np.zeros((1 << bits, 2), dtype=dtype)

    @property
    def _regularisation(self) -> tuple[float, float, float, float]:
        return self.alpha, self.beta, self.l1, self.l2

    def learn(self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
        """Learn rows in order; see :class:`OnlineExpert`."""
        self.predict_then_learn(slots, labels, weights)

    def predict_then_learn(
        self,
        slots: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        values: np.ndarray | None = None,
    ) -> np.ndarray:
        """Learn rows in order and return each one's logit from before its own update.

        Parameters
        ----------
        slots : ndarray of shape (n, F), uint32
        labels : ndarray of shape (n,), 0 or 1
        weights : ndarray of shape (n,), optional
            All 1 if left out; a row of weight 0 is predicted only.
        values : ndarray of shape (n, F), optional
            All 1 if left out.

        Returns
        -------
        ndarray of shape (n,), float64

        Raises
        ------
        ValueError
            If shapes disagree, a slot is out of range, a label is neither 0 nor 1, or a weight or a
            value is not finite (one NaN would spread to every slot it meets).
        """
        slots = ftrl_kernel.checked_slots(slots, len(self._state))
        rows = len(slots)
        targets = np.ascontiguousarray(labels, dtype=np.float64)
        if targets.shape != (rows,) or not np.isin(targets, (0.0, 1.0)).all():
            raise ValueError(f"labels must be {rows} zeros and ones, shape ({rows},)")
        factors = np.ones(rows) if weights is None else np.ascontiguousarray(weights, np.float64)
        if factors.shape != (rows,) or not np.isfinite(factors).all() or (factors < 0).any():
            raise ValueError(f"weights must be {rows} finite numbers of at least 0")
        out = np.empty(rows)
        ftrl_kernel.learn(
            self._state, slots, _checked_values(values, slots), targets, factors,
            *self._regularisation, out,
        )  # fmt: skip
        return out

    def logits(self, slots: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Return the float64 logit of every row; see :class:`OnlineExpert`."""
        slots = ftrl_kernel.checked_slots(slots, len(self._state))
        out = np.empty(len(slots))
        ftrl_kernel.predict(
            self._state, slots, _checked_values(values, slots), *self._regularisation, out
        )
        return out

    def linear_weights(self) -> LinearWeights:
        """Return the dense weights, exactly 0 where ``|z| <= l1``."""
        return LinearWeights(ftrl_kernel.weights(self._state, *self._regularisation), 0.0)

    def state(self) -> tuple[Arrays, Manifest]:
        """Return the touched slots and their ``(z, sqrt(n))``, and the parameters.

        An untouched slot is (0, 0) and is not stored: an hour's checkpoint is as large as what was
        learnt, not as the table.
        """
        seen = (self._state[:, 0] != 0) | (self._state[:, 1] != 0)
        touched = np.flatnonzero(seen).astype(np.uint32)
        manifest = {
            "expert": self.kind,
            "bits": self.bits,
            "alpha": self.alpha,
            "beta": self.beta,
            "l1": self.l1,
            "l2": self.l2,
            "dtype": self.dtype,
        }
        return {"slots": touched, "z_sqrt_n": self._state[touched]}, manifest

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], manifest: Manifest) -> Self:
        """Return the expert of a :meth:`state`."""
        expert = cls(
            **{name: manifest[name] for name in ("bits", "alpha", "beta", "l1", "l2", "dtype")}
        )
        expert._state[arrays["slots"]] = arrays["z_sqrt_n"]
        return expert


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

    def __init__(self, path: str, parameters: Mapping[str, Any], bits: int = 20) -> None:
        from ad_pipeline.learners import river_state

        self.bits = bits
        self._model = river_state.new_classifier(path, parameters)

    def learn(self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
        """Learn rows in order; see :class:`OnlineExpert`.

        Raises
        ------
        ValueError
            If a weight is neither 0 nor 1 and the classifier's ``learn_one`` takes none.
        """
        from ad_pipeline.learners import river_state

        slots = ftrl_kernel.checked_slots(slots, 1 << self.bits)
        river_state.learn_rows(self._model, _slot_dicts(slots), labels, weights)

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return the float64 logit of every row; see :class:`OnlineExpert`."""
        from ad_pipeline.learners import river_state

        slots = ftrl_kernel.checked_slots(slots, 1 << self.bits)
        linear = river_state.sparse_weights(self._model)
        if linear is None:
            return river_state.probability_logits(self._model, _slot_dicts(slots))
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
        return out

    def linear_weights(self) -> LinearWeights | None:
        """Return the dense weights of a generalised linear model, None for any other."""
        from ad_pipeline.learners import river_state

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
        from ad_pipeline.learners import river_state

        arrays, tree = river_state.encode(self._model)
        return arrays, {"expert": self.kind, "bits": self.bits, "model": tree}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], manifest: Manifest) -> Self:
        """Return the expert of a :meth:`state`."""
        from ad_pipeline.learners import river_state

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
    weights : ndarray of shape (m,), float64
    emit_us : ndarray of shape (m,), int64
        Microseconds since the epoch, non-decreasing.
    """

    slots: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    emit_us: np.ndarray


@dataclass(frozen=True)
class HourScores:
    """What the expert said at serving time.

    Attributes
    ----------
    logits : ndarray of shape (n,), float64
    micro_batch : ndarray of shape (n,), int16
        Slice of the hour, from 0.
    """

    logits: np.ndarray
    micro_batch: np.ndarray


def labels_and_weights(
    kinds: Sequence[str], kind_weights: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the label (uint8) and the weight (float64) of every example by its kind.

    Parameters
    ----------
    kinds : sequence of str
        ``examples.training_examples.kind``.
    kind_weights : mapping of str to float
        ``settings.online.kind_weights``.

    Raises
    ------
    ValueError
        If a kind is unknown, or the settings give it no weight.
    """
    found, codes = np.unique(np.asarray(kinds, dtype=str), return_inverse=True)
    names: list[str] = found.tolist()
    for name in names:
        if name not in KIND_LABELS:
            raise ValueError(f"unknown kind {name!r}; known are {', '.join(KIND_LABELS)}")
        if name not in kind_weights:
            raise ValueError(f"settings.online.kind_weights has no {name!r}; write a weight, or 0")
    labels = np.array([KIND_LABELS[name] for name in names], dtype=np.uint8)
    weights = np.array([kind_weights[name] for name in names], dtype=np.float64)
    return labels[codes], weights[codes]


def online_hour(
    expert: OnlineExpert,
    impressions_slots: np.ndarray,
    impressions_us: np.ndarray,
    examples: Examples,
    micro_batch_us: int,
    hour_us: int,
) -> HourScores:
    """Run one log hour: per slice, score its impressions, then learn its examples.

    An impression is scored by what was emitted before its slice began, never by its own slice.

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
    logits = np.empty(len(impressions_us))
    for index in range(n_slices):
        rows = order[first_impression[index] : first_impression[index + 1]]
        if len(rows):
            logits[rows] = expert.logits(impressions_slots[rows])
        learnt = slice(first_example[index], first_example[index + 1])
        if learnt.start < learnt.stop:
            expert.learn(examples.slots[learnt], examples.labels[learnt], examples.weights[learnt])
    return HourScores(logits, impression_slice)


def _checked_values(values: np.ndarray | None, slots: np.ndarray) -> np.ndarray:
    if values is None or not len(slots):
        return ftrl_kernel.NO_VALUES
    checked = np.ascontiguousarray(values, dtype=np.float64)
    if checked.shape != slots.shape or not np.isfinite(checked).all():
        raise ValueError(
            f"values must be finite numbers of shape {slots.shape}, not {checked.shape}; write a "
            "missing value as 0"
        )
    return checked


def _slot_dicts(slots: np.ndarray) -> list[dict[int, float]]:
    rows: list[dict[int, float]] = []
    for row in slots.tolist():
        features: dict[int, float] = {}
        for slot in row:
            features[slot] = features.get(slot, 0.0) + 1.0
        rows.append(features)
    return rows
