"""FTRL-Proximal as a River classifier, so that it composes with River's pipelines and metrics.

Only the River protocol and the way from named features to slots: the arithmetic is in
:mod:`ad_pipeline.learners.ftrl_kernel`, the state in ``FTRLExpert`` of
:mod:`ad_pipeline.learners.online`, which production uses without importing River.
"""

import math
import numbers
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self

import numpy as np
import pandas as pd
from river import base

from ad_pipeline import hashing
from ad_pipeline.learners.online import FTRLExpert


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
    bits
        There are 2^bits slots.
    dtype
        ``"float64"``, or ``"float32"`` for half the memory; see ``FTRLExpert`` for the price.

    Attributes
    ----------
    exported_weights : method
        The weight of every slot.

    Examples
    --------
    >>> from ad_pipeline.learners.ftrl import FTRLClassifier
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
        bits: int = 20,
        dtype: str = "float64",
    ) -> None:
        self.alpha = alpha
        self.beta = beta
        self.l1 = l1
        self.l2 = l2
        self.bits = bits
        self.dtype = dtype
        self._expert = FTRLExpert(bits, alpha, beta, l1, l2, dtype)

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], manifest: dict[str, Any]) -> Self:
        """Return the classifier of :meth:`state_arrays` and :meth:`manifest`."""
        expert = FTRLExpert.restore(arrays, manifest)
        model = cls(
            **{name: manifest[name] for name in ("alpha", "beta", "l1", "l2", "bits", "dtype")}
        )
        model._expert = expert
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
            If the label is not binary.
        """
        slots, values = _slots_of_row(x, self.bits)
        self._expert.predict_then_learn(slots, np.array([_label(y)]), np.array([w]), values)

    def predict_proba_one(
        self, x: dict[base.typing.FeatureName, Any], **_kwargs: Any
    ) -> dict[base.typing.ClfTarget, float]:
        """Return the probabilities of False and True."""
        slots, values = _slots_of_row(x, self.bits)
        p = _sigmoid(float(self._expert.logits(slots, values)[0]))
        return {False: 1.0 - p, True: p}

    def learn_many(
        self, X: pd.DataFrame, y: pd.Series, w: float | pd.Series | np.ndarray = 1.0
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
        slots, values = _slots_of_frame(X, self.bits)
        labels = np.fromiter((_label(label) for label in y), dtype=np.float64, count=len(y))
        factors = np.full(len(X), w) if isinstance(w, numbers.Real) else np.asarray(w)
        self._expert.predict_then_learn(slots, labels, factors, values)

    def predict_proba_many(self, X: pd.DataFrame) -> pd.DataFrame:
        """Return the probabilities of False and True, one row a row of ``X``."""
        slots, values = _slots_of_frame(X, self.bits)
        p = np.array([_sigmoid(logit) for logit in self._expert.logits(slots, values).tolist()])
        return pd.DataFrame({False: 1.0 - p, True: p}, index=X.index)

    def learn_slots(
        self,
        slots: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        values: np.ndarray | None = None,
    ) -> np.ndarray:
        """Learn hashed rows; return each one's logit from before its own update, float64 (n,).

        See :meth:`ad_pipeline.learners.online.FTRLExpert.predict_then_learn`.
        """
        return self._expert.predict_then_learn(slots, labels, weights, values)

    def predict_slots(self, slots: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Return the logits of hashed rows, float64 (n,)."""
        return self._expert.logits(slots, values)

    def exported_weights(self) -> np.ndarray:
        """Return the weight of every slot, shape (2^bits,), exactly 0 where ``|z| <= l1``."""
        return self._expert.linear_weights().weights

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return the touched slots, uint32 (k,), and their ``(z, sqrt(n))``, (k, 2)."""
        return self._expert.state()[0]

    def manifest(self) -> dict[str, Any]:
        """Return the parameters as JSON: what :meth:`from_state` needs besides the arrays."""
        return self._expert.state()[1]


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
    if isinstance(value, str):
        return _hash_of(str(name), value), 1.0
    if isinstance(value, (numbers.Real, np.bool_)):
        number = float(value)
        return None if math.isnan(number) else (_hash_of(str(name), None), number)
    if value is None or value is pd.NA:
        return None
    raise TypeError(f"feature {name!r} is a {type(value).__name__}; give text, a number or None")


def _slots_of_row(x: Mapping[Any, Any], bits: int) -> tuple[np.ndarray, np.ndarray]:
    # By name, so that the order in which a dictionary was filled does not reach the sums' last bit.
    ordered = sorted(x.items(), key=lambda item: str(item[0]))
    found = [_hash_and_value(name, value) for name, value in ordered]
    present = [pair for pair in found if pair is not None]
    hashes = np.array([[pair[0] for pair in present]], dtype=np.uint64)
    return hashing.slot_of(hashes, bits), np.array([[pair[1] for pair in present]], np.float64)


def _slots_of_frame(frame: pd.DataFrame, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return slots and values, both (n, F); a missing value counts 0, which teaches nothing."""
    hashes = np.zeros(frame.shape, dtype=np.uint64)
    values = np.zeros(frame.shape, dtype=np.float64)
    ordered = sorted(range(frame.shape[1]), key=lambda place: str(frame.columns[place]))
    for place, position in enumerate(ordered):
        name = frame.columns[position]
        column = frame.iloc[:, position]
        if pd.api.types.is_numeric_dtype(column.dtype):
            hashes[:, place] = _hash_of(str(name), None)
            given = column.to_numpy(np.float64, na_value=np.nan)
            values[:, place] = np.where(np.isnan(given), 0.0, given)
            continue
        known: dict[Any, tuple[int, float] | None] = {}
        for row, value in enumerate(column.tolist()):
            if value not in known:
                known[value] = _hash_and_value(name, value)
            pair = known[value]
            if pair is not None:
                hashes[row, place], values[row, place] = pair
    return hashing.slot_of(hashes, bits), values
