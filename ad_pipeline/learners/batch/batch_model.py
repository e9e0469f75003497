"""The batch expert: LightGBM on matured rows, with the online expert's logit among its features.

Training and the coding of categories. Which rows have matured, and when to retrain, is the caller's
to say; scoring is :mod:`.trees`, so that this module imports LightGBM only to train.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from ad_pipeline.learners.batch.trees import Forest, parse_forest
from ad_pipeline.settings import BatchSettings

ONLINE_LOGIT = "online_logit"
"""Name of the column that carries the online expert's progressive logit."""

OTHER = 0
"""Code of every value that was not frequent in training."""

MODEL_FILE = "model.txt"

_LEAF_L2 = 5.0
"""LightGBM's lambda_l2. With rare positives a leaf's Hessian is about its expected positives, so
this is five positives' worth of pull towards no change."""

_CATEGORY_PRIOR = 200.0
"""LightGBM's cat_smooth and cat_l2, whose defaults (10) are for common positives. With 3,000
positives at 1.5 % and half of the categories pure noise, 10 left the model no better than its own
online logit; 100 to 300 won 0.4 to 0.8 % of log loss (two seeds, flat between)."""


@dataclass(frozen=True)
class TooFewPositives:
    """Why there is no model: not an error, and not a model of noise either.

    Attributes
    ----------
    slice_name : {"training", "validation"}
    found, needed : int
        Positives in that slice.
    """

    slice_name: str
    found: int
    needed: int

    def __str__(self) -> str:
        """Return the reason for people."""
        return (
            f"{self.found} positives in the {self.slice_name} slice, {self.needed} needed "
            "(settings.batch.minimum_positives); no batch model yet"
        )


@dataclass(frozen=True)
class ExportedBatch:
    """What scores of a trained model: flattened trees and the coding of categories, as arrays.

    Attributes
    ----------
    forest : Forest
    dense_names : tuple of str
        Numeric columns, in order, without :data:`ONLINE_LOGIT`, which follows them.
    category_names : tuple of str
        Categorical columns, in order, behind the numeric ones.
    category_hashes : tuple of ndarray, uint64
        Per categorical: hashes of its frequent values, ascending.
    category_codes : tuple of ndarray, int32
        Their codes, from 1 in order of count; :data:`OTHER` is everything else.
    """

    forest: Forest
    dense_names: tuple[str, ...]
    category_names: tuple[str, ...]
    category_hashes: tuple[np.ndarray, ...]
    category_codes: tuple[np.ndarray, ...]

    def columns(
        self, dense: np.ndarray, category_hashes: np.ndarray, online_logit: np.ndarray
    ) -> np.ndarray:
        """Return the columns that the trees read, float64; see :meth:`predict_logits`.

        Returns
        -------
        ndarray of shape (n, d + 1 + c), float64
        """
        _check_widths(dense, category_hashes, self.dense_names, self.category_names)
        return _columns(
            dense, category_hashes, online_logit, self.category_hashes, self.category_codes
        )

    def predict_logits(
        self, dense: np.ndarray, category_hashes: np.ndarray, online_logit: np.ndarray
    ) -> np.ndarray:
        """Return the logit of every row; one row scores as it does among many, to the bit.

        Parameters
        ----------
        dense : ndarray of shape (n, d), float
            Columns ``dense_names``; NaN is missing.
        category_hashes : ndarray of shape (n, c), uint64
            Columns ``category_names``.
        online_logit : ndarray of shape (n,), float64
            NaN is missing.

        Returns
        -------
        ndarray of shape (n,), float64

        Raises
        ------
        ValueError
            If a shape is not the model's.
        """
        return self.forest.logits(self.columns(dense, category_hashes, online_logit))

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays, and the names as JSON."""
        firsts = np.cumsum([0, *map(len, self.category_hashes)])
        arrays = self.forest.to_arrays() | {
            "category_firsts": firsts.astype(np.int64),
            "category_hashes": np.concatenate([np.zeros(0, np.uint64), *self.category_hashes]),
            "category_codes": np.concatenate([np.zeros(0, np.int32), *self.category_codes]),
        }
        return arrays, {
            "n_features": self.forest.n_features,
            "dense_names": list(self.dense_names),
            "category_names": list(self.category_names),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Self:
        """Return the model of :meth:`to_arrays`, as views of the arrays given."""
        firsts = arrays["category_firsts"].tolist()
        spans = list(itertools.pairwise(firsts))
        hashes, codes = np.asarray(arrays["category_hashes"]), np.asarray(arrays["category_codes"])
        return cls(
            forest=Forest.from_arrays(arrays, manifest["n_features"]),
            dense_names=tuple(manifest["dense_names"]),
            category_names=tuple(manifest["category_names"]),
            category_hashes=tuple(hashes[start:end] for start, end in spans),
            category_codes=tuple(codes[start:end] for start, end in spans),
        )


@dataclass(frozen=True)
class BatchModel:
    """A trained model with everything between raw features and a logit.

    Attributes
    ----------
    text : str
        LightGBM's own text format.
    dense_names : tuple of str
        Numeric columns, in order, without :data:`ONLINE_LOGIT`, which follows them.
    category_names : tuple of str
        Categorical columns, in order, behind the numeric ones.
    category_hashes : tuple of ndarray, uint64
        Per categorical: hashes of its frequent values, ascending.
    category_codes : tuple of ndarray, int32
        Their codes, from 1 in order of count; :data:`OTHER` is everything else.
    training : dict
        Facts for people: rows, positives, rounds, log losses.
    """

    text: str
    dense_names: tuple[str, ...]
    category_names: tuple[str, ...]
    category_hashes: tuple[np.ndarray, ...]
    category_codes: tuple[np.ndarray, ...]
    training: dict[str, Any]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """All columns in the order of the model."""
        return (*self.dense_names, ONLINE_LOGIT, *self.category_names)

    @cached_property
    def exported(self) -> ExportedBatch:
        """What scores of it; the text is parsed once."""
        return ExportedBatch(
            parse_forest(self.text),
            self.dense_names,
            self.category_names,
            self.category_hashes,
            self.category_codes,
        )

    def predict_logits(
        self, dense: np.ndarray, category_hashes: np.ndarray, online_logit: np.ndarray
    ) -> np.ndarray:
        """Return the logit of every row; see :meth:`ExportedBatch.predict_logits`."""
        return self.exported.predict_logits(dense, category_hashes, online_logit)

    def to_checkpoint(self) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, bytes]]:
        """Return arrays, manifest and files, as ``checkpoints.write_checkpoint`` takes them."""
        arrays: dict[str, np.ndarray] = {}
        for index in range(len(self.category_names)):
            arrays[f"category_hashes_{index:03d}"] = self.category_hashes[index]
            arrays[f"category_codes_{index:03d}"] = self.category_codes[index]
        manifest = {
            "dense_names": list(self.dense_names),
            "category_names": list(self.category_names),
            "training": self.training,
        }
        return arrays, manifest, {MODEL_FILE: self.text.encode()}

    @classmethod
    def from_checkpoint(
        cls,
        arrays: Mapping[str, np.ndarray],
        manifest: Mapping[str, Any],
        files: Mapping[str, Path | bytes],
    ) -> Self:
        """Return the model of :meth:`to_checkpoint`; files are bytes or paths to them."""
        file = files[MODEL_FILE]
        text = (file.read_bytes() if isinstance(file, Path) else file).decode()
        places = range(len(manifest["category_names"]))
        return cls(
            text=text,
            dense_names=tuple(manifest["dense_names"]),
            category_names=tuple(manifest["category_names"]),
            category_hashes=tuple(np.array(arrays[f"category_hashes_{i:03d}"]) for i in places),
            category_codes=tuple(np.array(arrays[f"category_codes_{i:03d}"]) for i in places),
            training=dict(manifest["training"]),
        )


def training_slices(
    anchor_us: np.ndarray, validation_share: float, gap_us: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows by time: training, a gap, validation.

    The gap is a window long: without it rows on both sides of the border share label delays and
    the counts that feed rates, and early stopping would see a part of its own training slice.

    Parameters
    ----------
    anchor_us : ndarray of shape (n,), int64
        Clock of the rows, microseconds.
    validation_share : float
        Share of the rows, the latest, that validate.
    gap_us : int
        Attribution window, microseconds.

    Returns
    -------
    train, valid : ndarray of shape (n,), bool
        Disjoint; rows in the gap are in neither.
    """
    if not len(anchor_us):
        empty = np.zeros(0, dtype=bool)
        return empty, empty
    first = min(int(len(anchor_us) * (1 - validation_share)), len(anchor_us) - 1)
    start = np.partition(anchor_us, first)[first]
    return anchor_us < start - gap_us, anchor_us >= start


def train_batch_model(
    dense: np.ndarray,
    category_hashes: np.ndarray,
    online_logit: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    valid: np.ndarray,
    dense_names: Sequence[str],
    category_names: Sequence[str],
    settings: BatchSettings,
    seed: int = 1,
) -> BatchModel | TooFewPositives:
    """Train on the training slice, stopping early on the validation slice.

    The same rows in the same order give the same model, to the byte.

    Parameters
    ----------
    dense : ndarray of shape (n, d), float
        NaN is missing.
    category_hashes : ndarray of shape (n, c), uint64
    online_logit : ndarray of shape (n,), float64
        The logit that the online expert gave at serving time, never a later one.
    labels : ndarray of shape (n,), 0 or 1
        Matured.
    train, valid : ndarray of shape (n,), bool
        Disjoint slices; see :func:`training_slices`.
    dense_names, category_names : sequence of str
        Names of the columns.
    settings : BatchSettings
    seed : int
        LightGBM's; this configuration draws nothing, so it only guards against a later one that
        does.

    Returns
    -------
    BatchModel or TooFewPositives

    Raises
    ------
    ValueError
        If shapes disagree or the slices overlap.
    """
    _check_widths(dense, category_hashes, dense_names, category_names)
    if (train & valid).any():
        raise ValueError("the training and validation slices overlap")
    positives = int(labels[train].sum())
    if positives < settings.minimum_positives:
        return TooFewPositives("training", positives, settings.minimum_positives)
    to_validate = max(1, round(settings.minimum_positives * settings.validation_share))
    validating = int(labels[valid].sum())
    if validating < to_validate:
        return TooFewPositives("validation", validating, to_validate)
    coded = [
        _frequent(category_hashes[train, place], settings.top_categories)
        for place in range(category_hashes.shape[1])
    ]
    hashes, codes = tuple(pair[0] for pair in coded), tuple(pair[1] for pair in coded)
    names = [*dense_names, ONLINE_LOGIT, *category_names]
    text, facts = _fit(
        _columns(dense[train], category_hashes[train], online_logit[train], hashes, codes),
        labels[train],
        _columns(dense[valid], category_hashes[valid], online_logit[valid], hashes, codes),
        labels[valid],
        names,
        settings,
        seed,
    )
    facts |= {
        "train_rows": int(train.sum()),
        "train_positives": positives,
        "valid_rows": int(valid.sum()),
        "valid_positives": validating,
    }
    return BatchModel(text, tuple(dense_names), tuple(category_names), hashes, codes, facts)


def _fit(
    train_columns: np.ndarray,
    train_labels: np.ndarray,
    valid_columns: np.ndarray,
    valid_labels: np.ndarray,
    names: list[str],
    settings: BatchSettings,
    seed: int,
) -> tuple[str, dict[str, Any]]:
    import lightgbm

    parameters = {
        "objective": "binary",
        "metric": "binary_logloss",
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "min_data_in_leaf": settings.minimum_leaf_rows,
        "max_bin": settings.maximum_bins,
        "lambda_l2": _LEAF_L2,
        "cat_l2": _CATEGORY_PRIOR,
        "cat_smooth": _CATEGORY_PRIOR,
        "seed": seed,
        # One thread, one order of sums: the same bytes from the same rows. Two threads were no
        # faster on two quiet cores and nine times slower on busy ones (OpenMP spins).
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    categorical = list(range(names.index(ONLINE_LOGIT) + 1, len(names)))
    # LightGBM refuses names with JSON characters, and a feature cross may be called "a:b"; the
    # true names are in the manifest.
    plain = [f"f{place}" for place in range(len(names))]
    training = lightgbm.Dataset(
        train_columns,
        train_labels,
        feature_name=plain,
        categorical_feature=categorical,
        params=parameters,
    )
    validation = lightgbm.Dataset(valid_columns, valid_labels, reference=training)
    record: dict[str, Any] = {}
    booster = lightgbm.train(
        parameters,
        training,
        num_boost_round=settings.rounds,
        valid_sets=[validation],
        valid_names=["valid"],
        callbacks=[
            lightgbm.early_stopping(settings.early_stopping_rounds, verbose=False),
            lightgbm.record_evaluation(record),
        ],
    )
    rounds = booster.best_iteration or booster.current_iteration()
    losses = record["valid"]["binary_logloss"]
    gains = booster.feature_importance("gain", iteration=rounds)
    share = gains / max(float(gains.sum()), 1e-300)
    facts = {
        "rounds": rounds,
        "valid_log_loss": float(losses[rounds - 1]),
        "gain_shares": {name: round(float(s), 6) for name, s in zip(names, share, strict=True)},
    }
    return booster.model_to_string(num_iteration=rounds), facts


def _frequent(hashes: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``top`` most frequent hashes, ascending, and their codes from 1 by count."""
    values, counts = np.unique(hashes, return_counts=True)
    ranked = np.lexsort((values, -counts))[:top]
    codes = np.arange(1, len(ranked) + 1, dtype=np.int32)
    ascending = np.argsort(values[ranked])
    return values[ranked][ascending], codes[ascending]


def _columns(
    dense: np.ndarray,
    category_hashes: np.ndarray,
    online_logit: np.ndarray,
    known: Sequence[np.ndarray],
    codes: Sequence[np.ndarray],
) -> np.ndarray:
    """Lay out the model's columns, float64 (n, d + 1 + c)."""
    n_rows, n_dense = dense.shape
    columns = np.empty((n_rows, n_dense + 1 + len(known)))
    columns[:, :n_dense] = dense
    columns[:, n_dense] = online_logit
    for place in range(len(known)):
        target = columns[:, n_dense + 1 + place]
        target[:] = OTHER
        if len(known[place]):
            at = np.searchsorted(known[place], category_hashes[:, place])
            at[at == len(known[place])] = 0
            found = known[place][at] == category_hashes[:, place]
            target[found] = codes[place][at[found]]
    return columns


def _check_widths(
    dense: np.ndarray,
    category_hashes: np.ndarray,
    dense_names: Sequence[str],
    category_names: Sequence[str],
) -> None:
    if dense.shape[1:] != (len(dense_names),):
        raise ValueError(f"dense has shape {dense.shape}; the columns are {list(dense_names)}")
    if category_hashes.shape[1:] != (len(category_names),):
        raise ValueError(
            f"category_hashes has shape {category_hashes.shape}; the columns are "
            f"{list(category_names)}"
        )
