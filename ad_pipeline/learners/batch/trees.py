"""A trained LightGBM model as arrays, scored by a compiled loop: LightGBM itself is not needed.

A scorer imports this instead of LightGBM, which brings scikit-learn, seconds of import time and an
OpenMP pool that spins on a busy machine. Sums run over trees in order, in float64, row by row: a
score does not depend on the other rows, and equals ``Booster.predict(raw_score=True)`` to the bit
(a test holds the two together). Training belongs to :mod:`ad_pipeline.learners.batch.batch_model`.

References
----------
LightGBM 4, ``Tree::Decision`` (``include/LightGBM/tree.h``) and the text model format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numba import njit

_CATEGORICAL = 1
_DEFAULT_LEFT = 2
_MISSING_ZERO = 1
_MISSING_NAN = 2
_BLOCK = 512
_ZERO = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold: what is closer to 0 is 0."""


@dataclass(frozen=True)
class Forest:
    """All trees of a model, one after another.

    Attributes
    ----------
    n_features : int
        Columns a row must have.
    first_node, first_leaf : ndarray of shape (trees,), int64
        Where each tree's nodes and leaves begin.
    is_leaf : ndarray of shape (trees,), bool
        Whether the tree is a single leaf.
    feature, decision, left, right : ndarray of shape (nodes,), int32
        Split column, LightGBM's ``decision_type``, and children within the tree; a negative child
        is the leaf ``~child``.
    threshold : ndarray of shape (nodes,), float64
        Numeric threshold.
    bitset_start, bitset_length : ndarray of shape (nodes,), int64
        The categories that go left, as 32-bit words of ``bitset``.
    bitset : ndarray, uint32
    leaf : ndarray of shape (leaves,), float64
    """

    n_features: int
    first_node: np.ndarray
    first_leaf: np.ndarray
    is_leaf: np.ndarray
    feature: np.ndarray
    decision: np.ndarray
    left: np.ndarray
    right: np.ndarray
    threshold: np.ndarray
    bitset_start: np.ndarray
    bitset_length: np.ndarray
    bitset: np.ndarray
    leaf: np.ndarray

    def logits(self, columns: np.ndarray) -> np.ndarray:
        """Return the raw score of every row.

        Parameters
        ----------
        columns : ndarray of shape (n, n_features), float64
            NaN is missing; a category is its code.

        Returns
        -------
        ndarray of shape (n,), float64

        Raises
        ------
        ValueError
            If the number of columns is not the model's.
        """
        if columns.ndim != 2 or columns.shape[1] != self.n_features:
            raise ValueError(f"rows have shape {columns.shape}; the model has {self.n_features}")
        out = np.empty(len(columns))
        _score(
            np.ascontiguousarray(columns, dtype=np.float64),
            self.first_node, self.first_leaf, self.is_leaf, self.feature, self.decision, self.left,
            self.right, self.threshold, self.bitset_start, self.bitset_length, self.bitset,
            self.leaf, out,
        )  # fmt: skip
        return out

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the trees as a few arrays, each row of which is one of the attributes."""
        return {
            "trees": np.stack([self.first_node, self.first_leaf, self.is_leaf.astype(np.int64)]),
            "nodes": np.stack([self.feature, self.decision, self.left, self.right]),
            "thresholds": self.threshold,
            "categories": np.stack([self.bitset_start, self.bitset_length]),
            "bitset": self.bitset,
            "leaves": self.leaf,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], n_features: int) -> Self:
        """Return the trees of :meth:`to_arrays`, as views of the arrays given."""
        first_node, first_leaf, is_leaf = np.asarray(arrays["trees"])
        feature, decision, left, right = np.asarray(arrays["nodes"])
        bitset_start, bitset_length = np.asarray(arrays["categories"])
        return cls(
            n_features=n_features,
            first_node=first_node,
            first_leaf=first_leaf,
            is_leaf=is_leaf.astype(np.bool_),
            feature=feature,
            decision=decision,
            left=left,
            right=right,
            threshold=np.asarray(arrays["thresholds"]),
            bitset_start=bitset_start,
            bitset_length=bitset_length,
            bitset=np.asarray(arrays["bitset"]),
            leaf=np.asarray(arrays["leaves"]),
        )


def parse_forest(text: str) -> Forest:
    """Return the trees of a LightGBM text model (binary objective, constant leaves).

    Raises
    ------
    ValueError
        If the text is no such model.
    """
    header, *blocks = text.split("\nTree=")
    facts = _facts(header)
    if facts.get("num_class") != "1" or not facts.get("objective", "").startswith("binary"):
        raise ValueError("the text is no LightGBM model with a binary objective")
    nodes: dict[str, list[np.ndarray]] = {
        name: []
        for name in ("feature", "decision", "left", "right", "threshold", "start", "length")
    }
    leaves, bitsets, first_node, first_leaf, is_leaf = [], [], [], [], []
    n_nodes = n_leaves = n_words = 0
    for block in blocks:
        tree = _facts(block)
        if tree.get("is_linear", "0") != "0":
            raise ValueError("the model has linear leaves, which this scorer does not know")
        leaf = _numbers(tree["leaf_value"], np.float64)
        leaves.append(leaf)
        first_node.append(n_nodes)
        first_leaf.append(n_leaves)
        is_leaf.append(len(leaf) == 1)
        n_leaves += len(leaf)
        if len(leaf) == 1:
            continue
        decision = _numbers(tree["decision_type"], np.int32)
        threshold = _numbers(tree["threshold"], np.float64)
        start = np.zeros(len(decision), dtype=np.int64)
        length = np.zeros(len(decision), dtype=np.int64)
        categorical = (decision & _CATEGORICAL) > 0
        if categorical.any():
            bounds = _numbers(tree["cat_boundaries"], np.int64)
            words = _numbers(tree["cat_threshold"], np.uint32)
            which = threshold[categorical].astype(np.int64)
            start[categorical] = bounds[which] + n_words
            length[categorical] = bounds[which + 1] - bounds[which]
            bitsets.append(words)
            n_words += len(words)
        nodes["feature"].append(_numbers(tree["split_feature"], np.int32))
        nodes["decision"].append(decision)
        nodes["left"].append(_numbers(tree["left_child"], np.int32))
        nodes["right"].append(_numbers(tree["right_child"], np.int32))
        nodes["threshold"].append(threshold)
        nodes["start"].append(start)
        nodes["length"].append(length)
        n_nodes += len(decision)
    return Forest(
        n_features=int(facts["max_feature_idx"]) + 1,
        first_node=np.array(first_node, dtype=np.int64),
        first_leaf=np.array(first_leaf, dtype=np.int64),
        is_leaf=np.array(is_leaf, dtype=np.bool_),
        feature=_joined(nodes["feature"], np.int32),
        decision=_joined(nodes["decision"], np.int32),
        left=_joined(nodes["left"], np.int32),
        right=_joined(nodes["right"], np.int32),
        threshold=_joined(nodes["threshold"], np.float64),
        bitset_start=_joined(nodes["start"], np.int64),
        bitset_length=_joined(nodes["length"], np.int64),
        bitset=_joined(bitsets, np.uint32),
        leaf=_joined(leaves, np.float64),
    )


def _facts(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _numbers(text: str, dtype: type[np.generic]) -> np.ndarray:
    return np.array(text.split(), dtype=dtype)


def _joined(parts: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


@njit(cache=True, nogil=True)
def _score(
    columns: np.ndarray,
    first_node: np.ndarray,
    first_leaf: np.ndarray,
    is_leaf: np.ndarray,
    feature: np.ndarray,
    decision: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    threshold: np.ndarray,
    bitset_start: np.ndarray,
    bitset_length: np.ndarray,
    bitset: np.ndarray,
    leaf: np.ndarray,
    out: np.ndarray,
) -> None:
    # A block of rows passes one tree while its nodes are in the cache; each row still adds its
    # trees in order.
    for block in range(0, columns.shape[0], _BLOCK):
        end = min(block + _BLOCK, columns.shape[0])
        out[block:end] = 0.0
        for tree in range(first_node.size):
            for row in range(block, end):
                child = np.int64(-1)
                if not is_leaf[tree]:
                    child = np.int64(0)
                    while child >= 0:
                        node = first_node[tree] + child
                        value = columns[row, feature[node]]
                        kind = decision[node]
                        goes_left = False
                        if kind & _CATEGORICAL:
                            if value > -1.0:  # false for NaN
                                code = np.int64(value)
                                word = code >> 5
                                if word < bitset_length[node]:
                                    bits = bitset[bitset_start[node] + word]
                                    goes_left = (bits >> np.uint32(code & 31)) & np.uint32(1) == 1
                        else:
                            missing = (kind >> 2) & 3
                            absent = missing != _MISSING_NAN and np.isnan(value)
                            if absent or abs(value) <= _ZERO:
                                value = 0.0
                            if (missing == _MISSING_NAN and np.isnan(value)) or (
                                missing == _MISSING_ZERO and value == 0.0
                            ):
                                goes_left = (kind & _DEFAULT_LEFT) != 0
                            else:
                                goes_left = value <= threshold[node]
                        child = np.int64(left[node]) if goes_left else np.int64(right[node])
                out[row] += leaf[first_leaf[tree] + ~child]
