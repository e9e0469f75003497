"""FTRL-Proximal as a River classifier, so that it composes with River's pipelines and metrics.

Only the River protocol and the way from named features to slots: the arithmetic is in
:mod:`.ftrl_kernel`, the state in :mod:`.ftrl_expert`, which production uses without importing
River.
"""

import datetime as dt
import hashlib
import itertools
import math
import numbers
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numba import njit
from river import base

from ad_pipeline import hashing
from ad_pipeline.learners.ftrl import ftrl_kernel, slot_memory
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.settings import Configuration

if TYPE_CHECKING:
    import pandas as pd

_MICROSECOND = dt.timedelta(microseconds=1)


def _compiled(sources: str) -> tuple[Callable[..., float], Callable[..., float]]:
    """Return how a dictionary is learnt, and how it is predicted, in one call each.

    Both give NaN for a row that compiled code cannot read.

    Parameters
    ----------
    sources : str
        Stands for the code of the functions called. Numba keeps compiled code by what it closes
        over and by its own file; of other files it knows nothing.
    """

    @njit(cache=True)  # with the interpreter's lock, which reading needs
    def learn_named(
        row, known, room, slots, values, shift, state, momenta, label, weight, parameters, position
    ):
        found = hashing.read_named_values(row, known, room, slots, values, shift)
        if found < 0 or not sources:
            return np.nan
        return ftrl_kernel.learn_row(
            state, momenta, slots[:found].reshape((1, found)), values[:found].reshape((1, found)),
            label, weight, parameters, position,
        )  # fmt: skip

    @njit(cache=True)
    def predict_named(row, known, room, slots, values, shift, state, parameters):
        found = hashing.read_named_values(row, known, room, slots, values, shift)
        if found < 0 or not sources:
            return np.nan
        return ftrl_kernel.predict_row(
            state, slots[:found].reshape((1, found)), values[:found].reshape((1, found)), parameters
        )

    return learn_named, predict_named


_learn_named, _predict_named = _compiled(
    "".join(
        hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
        for module in (hashing, ftrl_kernel, slot_memory)
    )
)


class _OfThread(threading.local):
    """What one thread reads rows into: no part of any model, so that none is copied or stored."""

    def __init__(self) -> None:
        self.named_values = hashing.NamedValues()


_OF_THREAD = _OfThread()


class FTRLClassifier(base.MiniBatchClassifier):
    """FTRL-Proximal logistic regression over hashed features.

    A text value is the feature ``name=value``; a number is the feature ``name`` with that value;
    ``None`` and NaN are left out. There is no intercept: give a feature that is always 1.

    Learning in batches of any size, with columns in any order, gives the same state, to the byte,
    as one row at a time: each row is learnt on its own, in order, its features by name.

    Parameters
    ----------
    alpha
        Learning rate.
    beta
        Smooths the learning rate of slots seldom seen.
    l1
        A slot weighs exactly 0 while its ``|z|`` is at most this.
    l2
        Pulls weights towards 0.
    half_life_hours
        Hours after which what was learnt counts half, by the moments of the rows that are learnt;
        None forgets nothing.
    moment
        Name of the feature that says when a row happened, a ``datetime``. It moves the clock, never
        backwards, and is not learnt. Needed with a half-life, ignored without.
    schedule
        How a slot's rate follows its gradients: ``"adagrad"`` (FTRL), ``"decayed"`` (as RMSProp) or
        ``"adam"``.
    forgetting
        Share of the squared gradients forgotten at each visit, if decayed or adam.
    momentum
        Share of the last direction that goes on, if adam.
    loss
        ``"logistic"``, ``"probit"``, ``"cloglog"``, ``"squared"`` or ``"poisson"``, with its link.
    admission
        When a slot is learnt: ``"always"``, ``"count"`` (from one visit on) or ``"poisson"`` (once
        a draw admits it).
    admission_count
        The visit that admits a slot.
    admission_probability
        With which each visit admits a slot.
    bits
        There are 2^bits slots.
    dtype
        Of the state: ``"float64"``, or ``"float32"`` for half the memory.

    Attributes
    ----------
    exported_weights : method
        The weight of every slot.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Examples
    --------
    >>> from ad_pipeline.learners.ftrl.classifier import FTRLClassifier
    >>> model = FTRLClassifier(alpha=0.5, l1=0.0, l2=0.0, bits=10)
    >>> for _ in range(3):
    ...     model.learn_one({"site": "a", "bias": 1.0}, True)
    ...     model.learn_one({"site": "b", "bias": 1.0}, False)
    >>> model.predict_one({"site": "a", "bias": 1.0})
    True

    References
    ----------
    McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013, Algorithm 1.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 0.5,
        l2: float = 1.0,
        half_life_hours: float | None = None,
        moment: str | None = None,
        schedule: Literal["adagrad", "decayed", "adam"] = "adagrad",
        forgetting: float = 0.001,
        momentum: float = 0.9,
        loss: Literal["logistic", "probit", "cloglog", "squared", "poisson"] = "logistic",
        admission: Literal["always", "count", "poisson"] = "always",
        admission_count: int = 2,
        admission_probability: float = 0.1,
        bits: int = 20,
        dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        self.alpha = alpha
        self.beta = beta
        self.l1 = l1
        self.l2 = l2
        self.half_life_hours = half_life_hours
        self.moment = moment
        self.schedule = schedule
        self.forgetting = forgetting
        self.momentum = momentum
        self.loss = loss
        self.admission = admission
        self.admission_count = admission_count
        self.admission_probability = admission_probability
        self.bits = bits
        self.dtype = dtype
        if half_life_hours is not None and moment is None:
            raise ValueError("a half-life needs the name of the feature that says when: moment")
        configuration = Configuration(
            alpha=alpha,
            beta=beta,
            l1=l1,
            l2=l2,
            half_life_hours=half_life_hours,
            schedule=schedule,
            forgetting=forgetting,
            momentum=momentum,
            loss=loss,
            admission=admission,
            admission_count=admission_count,
            admission_probability=admission_probability,
        )
        self._expert = FTRLExpert(bits, (configuration,), dtype)
        self._latest: dt.datetime | None = None

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        """Yield what River's checks are run with."""
        yield {"bits": 14}
        yield {"bits": 14, "dtype": "float32", "l1": 0.0, "alpha": 0.5}
        yield {"bits": 14, "schedule": "adam", "loss": "probit"}
        yield {"bits": 14, "admission": "poisson", "admission_probability": 0.5, "loss": "cloglog"}
        yield {"bits": 14, "half_life_hours": 1.0, "moment": "moment", "schedule": "decayed"}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], manifest: dict[str, Any]) -> Self:
        """Return the classifier of :meth:`state_arrays` and :meth:`manifest`."""
        expert = FTRLExpert.restore(arrays, manifest["expert"])
        (configuration,) = expert.configurations
        given = configuration.model_dump(exclude={"bits", "strategy", "non_negative"})
        model = cls(
            **given, moment=manifest["moment"], bits=expert.bits, dtype=manifest["expert"]["dtype"]
        )
        model._expert = expert
        latest = manifest["latest"]
        model._latest = None if latest is None else dt.datetime.fromisoformat(latest)
        return model

    def learn_one(
        self, x: dict[base.typing.FeatureName, Any], y: base.typing.ClfTarget, w: float = 1.0
    ) -> None:
        """Learn one row.

        Parameters
        ----------
        x
            Features by name.
        y
            True or False (or 1 or 0).
        w
            Factor on the gradient.

        Raises
        ------
        TypeError
            If a value is neither text nor number.
        ValueError
            If the label is not binary, the weight is negative, or it or a value is infinite.
        """
        label = float(y) if y is True or y is False else _label(y)
        if not 0.0 <= w < math.inf:
            raise ValueError(f"weight {w!r} is no finite number of at least 0")
        if self.moment is not None:
            when = x.get(self.moment)
            x = self._without_moment(x)
            self._move_clock(when)
        expert = self._expert
        if type(x) is dict:
            arrays = _OF_THREAD.named_values.arrays_for(x)
            state, momenta, parameters = expert.row_arrays()
            odds = _learn_named(
                id(x), *arrays, 64 - self.bits, state, momenta, label, w, parameters, expert.rows
            )
            if odds == odds:
                expert.rows += 1
                return
        slots, values = _slots_of_unusual_row(dict(x), self.bits)
        expert.predict_then_learn(slots, np.array([label]), np.array([w]), values)

    def predict_proba_one(
        self, x: dict[base.typing.FeatureName, Any], **_kwargs: Any
    ) -> dict[base.typing.ClfTarget, float]:
        """Return the probabilities of False and True."""
        if self.moment is not None:
            x = self._without_moment(x)
        expert = self._expert
        odds = math.nan
        if type(x) is dict:
            arrays = _OF_THREAD.named_values.arrays_for(x)
            state, _, parameters = expert.row_arrays()
            odds = _predict_named(id(x), *arrays, 64 - self.bits, state, parameters)
        if odds != odds:
            slots, values = _slots_of_unusual_row(dict(x), self.bits)
            odds = float(expert.logits(slots, values)[0, 0])
        p = _sigmoid(odds)
        return {False: 1.0 - p, True: p}

    def learn_many(
        self, X: "pd.DataFrame", y: "pd.Series", w: "float | pd.Series | np.ndarray" = 1.0
    ) -> None:
        """Learn rows in order.

        Parameters
        ----------
        X
            Features by column; a missing value is a feature that is not there.
        y
            True or False.
        w
            Factor on the gradient, one for all or one a row.
        """
        features, moments = self._without_moments(X)
        slots, values = _slots_of_frame(features, self.bits)
        labels = np.fromiter((_label(label) for label in y), dtype=np.float64, count=len(y))
        factors = np.full(len(X), w) if isinstance(w, numbers.Real) else np.asarray(w)
        for when, start, end in _runs(moments, len(X)):
            self._move_clock(when)
            rows = slice(start, end)
            self._expert.predict_then_learn(slots[rows], labels[rows], factors[rows], values[rows])

    def predict_proba_many(self, X: "pd.DataFrame") -> "pd.DataFrame":
        """Return the probabilities of False and True, one row a row of ``X``."""
        import pandas as pd

        slots, values = _slots_of_frame(self._without_moments(X)[0], self.bits)
        logits = self._expert.logits(slots, values)[:, 0]
        p = np.array([_sigmoid(logit) for logit in logits.tolist()])
        return pd.DataFrame({False: 1.0 - p, True: p}, index=X.index)

    def learn_slots(
        self,
        slots: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        values: np.ndarray | None = None,
    ) -> np.ndarray:
        """Learn hashed rows; return each one's log odds from before its own update, float64 (n,).

        See :meth:`ad_pipeline.learners.ftrl.ftrl_expert.FTRLExpert.predict_then_learn`.
        """
        return self._expert.predict_then_learn(slots, labels, weights, values)[:, 0]

    def predict_slots(self, slots: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Return the log odds of hashed rows, float64 (n,)."""
        return self._expert.logits(slots, values)[:, 0]

    def exported_weights(self) -> np.ndarray:
        """Return the weight of every slot, shape (2^bits,), exactly 0 where ``|z| <= l1``."""
        return self._expert.linear_weights().weights

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return the touched slots, uint32 (k,), and their ``(z, sqrt(n))``, (k, 2, 1)."""
        return self._expert.state()[0]

    def manifest(self) -> dict[str, Any]:
        """Return the parameters as JSON: what :meth:`from_state` needs besides the arrays."""
        return {
            "expert": self._expert.state()[1],
            "moment": self.moment,
            "latest": None if self._latest is None else self._latest.isoformat(),
        }

    def _move_clock(self, when: dt.datetime | None) -> None:
        if self.half_life_hours is None or when is None:
            return
        if self._latest is not None and when > self._latest:
            self._expert.advance((when - self._latest) // _MICROSECOND)
        self._latest = when if self._latest is None else max(when, self._latest)

    def _without_moment(self, x: Mapping[Any, Any]) -> dict[Any, Any]:
        return {name: value for name, value in x.items() if name != self.moment}

    def _without_moments(
        self, frame: "pd.DataFrame"
    ) -> "tuple[pd.DataFrame, Sequence[dt.datetime] | None]":
        """Return the columns that are learnt, and when each row happened."""
        if self.moment is None or self.moment not in frame.columns:
            return frame, None
        return frame.drop(columns=self.moment), frame[self.moment].tolist()


def _runs(
    moments: Sequence[dt.datetime] | None, rows: int
) -> Iterator[tuple[dt.datetime | None, int, int]]:
    """Yield the rows between which no clock moves, as (moment, start, end)."""
    if moments is None:
        yield None, 0, rows
        return
    end = 0
    for when, run in itertools.groupby(itertools.accumulate(moments, max)):
        start, end = end, end + sum(1 for _ in run)
        yield when, start, end


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    odds = math.exp(logit)
    return odds / (1.0 + odds)


def _label(y: Any) -> float:
    if y not in (0, 1):
        raise ValueError(f"label {y!r} is not binary; write True or False")
    return float(y)


@lru_cache(maxsize=1 << 16)
def _hash_of(name: str, text: str | None) -> int:
    """Hash of the feature ``name=text``, or of ``name`` for a number."""
    if text is None:
        return hashing.seed_of(name)
    return int(hashing.hash_values([text], hashing.seed_of(name))[0])


def _hash_and_value(name: Any, value: Any) -> tuple[int, float] | None:
    """Return a feature's hash and value, or None if it is missing."""
    import pandas as pd

    if isinstance(value, str):
        return _hash_of(str(name), value), 1.0
    if isinstance(value, (numbers.Real, np.bool_)):
        number = float(value)
        return None if math.isnan(number) else (_hash_of(str(name), None), number)
    if value is None or value is pd.NA:
        return None
    raise TypeError(f"feature {name!r} is a {type(value).__name__}; give text, a number or None")


def _by_seed(name: Any) -> int:
    # So that the order of a dictionary, or of columns, does not reach the sums' last bit.
    return _hash_of(str(name), None)


def _slots_of_unusual_row(x: dict[Any, Any], bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Do what compiled code leaves to Python: names that are no text, other types, complaints.

    Slots and values, both (1, F), are in the order of the names' seeds, as compiled code has them.
    """
    found = [_hash_and_value(name, x[name]) for name in sorted(x, key=_by_seed)]
    present = [pair for pair in found if pair is not None]
    hashes = np.array([[pair[0] for pair in present]], dtype=np.uint64)
    values = np.array([[pair[1] for pair in present]], dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a feature is infinite; give a finite number, or None if it is missing")
    return hashing.slot_of(hashes, bits), values


def _slots_of_frame(frame: "pd.DataFrame", bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return slots and values, both (n, F), each row in the order of its names' seeds.

    What is missing stands behind what is there, with the value 0, which teaches nothing: a sum
    depends on the places of its terms.
    """
    import pandas as pd

    hashes = np.zeros(frame.shape, dtype=np.uint64)
    values = np.zeros(frame.shape, dtype=np.float64)
    missing = np.ones(frame.shape, dtype=np.bool_)
    ordered = sorted(range(frame.shape[1]), key=lambda place: _by_seed(frame.columns[place]))
    for place, position in enumerate(ordered):
        name = frame.columns[position]
        column = frame.iloc[:, position]
        if pd.api.types.is_numeric_dtype(column.dtype):
            hashes[:, place] = _hash_of(str(name), None)
            given = column.to_numpy(np.float64, na_value=np.nan)
            missing[:, place] = np.isnan(given)
            values[:, place] = np.where(missing[:, place], 0.0, given)
            continue
        known: dict[Any, tuple[int, float] | None] = {}
        for row, value in enumerate(column.tolist()):
            if value not in known:
                known[value] = _hash_and_value(name, value)
            pair = known[value]
            if pair is not None:
                hashes[row, place], values[row, place] = pair
                missing[row, place] = False
    if missing.any():
        places = np.argsort(missing, axis=1, kind="stable")
        hashes = np.take_along_axis(hashes, places, axis=1)
        values = np.take_along_axis(values, places, axis=1)
    return hashing.slot_of(hashes, bits), values
