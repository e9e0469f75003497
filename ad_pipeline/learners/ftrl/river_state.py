"""River classifiers as plain data: state out as arrays and JSON, back in, never a pickle.

A pickle may run any code on load and breaks with any rename. This codec walks a classifier's
attributes and carries what is data: numbers, strings, the standard containers, NumPy arrays, and
objects whose class lives in ``river``, rebuilt by ``cls.__new__`` and their state. Everything else
(a lambda as default factory, an object of another library) is refused by name. Identity is kept:
an object that two attributes share is shared again after the round trip.

River's own conventions stay here; the experts above see slots and logits.
"""

import collections
import copyreg
import functools
import importlib
import inspect
import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

JSONTree = Any
"""None, bool, int, str, float, or a tagged list."""

PROBABILITY_FLOOR = 1e-12
"""River classifiers may answer 0 or 1; their logit is bounded by this."""

_UNSEEDED = object()
"""Stands for a random source without a seed."""

_ALLOWED_ROOTS = ("river", "builtins", "collections", "numpy")


class UnsupportedState(TypeError):
    """A classifier holds something that is not plain data."""


def new_classifier(path: str, parameters: Mapping[str, Any]) -> Any:
    """Return a new River classifier.

    Parameters
    ----------
    path : str
        Dotted path of the class, e.g. ``"river.linear_model.LogisticRegression"``.
    parameters : mapping
        Keyword arguments.

    Raises
    ------
    ValueError
        If the path names no River classifier, or one whose random choices have no seed.
    """
    from river import base

    module, _, name = path.rpartition(".")
    if module.split(".")[0] != "river":
        raise ValueError(f"{path!r} is not in river; write e.g. river.linear_model.ALMAClassifier")
    found = getattr(importlib.import_module(module), name, None)
    if not (inspect.isclass(found) and issubclass(found, base.Classifier)):
        raise ValueError(f"{path!r} is no River classifier; look it up in river's API reference")
    model = found(**parameters)
    if model._is_stochastic:
        raise ValueError(
            f"{path} makes random choices without a seed, so that a re-run would differ; set "
            "settings.online.estimator_parameters.seed"
        )
    return model


def learn_rows(
    model: Any, rows: Iterable[dict[int, float]], labels: np.ndarray, weights: np.ndarray
) -> None:
    """Call ``learn_one`` row by row; a row of weight 0 is left out.

    Raises
    ------
    ValueError
        If a weight is neither 0 nor 1 and the classifier's ``learn_one`` takes none.
    """
    weighted = "w" in inspect.signature(model.learn_one).parameters
    for features, label, weight in zip(rows, labels.tolist(), weights.tolist(), strict=True):
        if weight == 0.0:
            continue
        if weighted:
            model.learn_one(features, bool(label), w=weight)
        elif weight == 1.0:
            model.learn_one(features, bool(label))
        else:
            raise ValueError(
                f"{type(model).__name__}.learn_one takes no weight, but an example weighs {weight};"
                " set its kind to 0 or 1 in settings.online.kind_weights"
            )


def probability_logits(model: Any, rows: list[dict[int, float]]) -> np.ndarray:
    """Return the float64 logit of ``predict_proba_one``; no opinion yet counts as one half."""
    logits = np.empty(len(rows))
    for index, features in enumerate(rows):
        answer = model.predict_proba_one(features)
        raw = float(answer.get(True, 0.0)) if answer else 0.5
        p = min(max(raw, PROBABILITY_FLOOR), 1.0 - PROBABILITY_FLOOR)
        logits[index] = math.log(p / (1.0 - p))
    return logits


def sparse_weights(model: Any) -> tuple[dict[int, float], float] | None:
    """Return ``({slot: weight}, intercept)`` of a logistic regression, None for any other model."""
    from river import linear_model, optim

    if not isinstance(model, linear_model.LogisticRegression):
        return None
    if not isinstance(model.loss, optim.losses.Log) or not isinstance(
        model.initializer, optim.initializers.Zeros
    ):
        return None  # another link, or slots never seen that do not weigh 0
    return {int(slot): float(w) for slot, w in model.weights.items()}, float(model.intercept)


def encode(root: Any) -> tuple[dict[str, np.ndarray], JSONTree]:
    """Return an object's arrays and its JSON tree.

    Raises
    ------
    UnsupportedState
        If something in it is not plain data; the message says where it hangs.
    """
    encoder = _Encoder()
    tree = encoder.encode(root, type(root).__name__)
    return encoder.arrays, tree


def decode(arrays: Mapping[str, np.ndarray], tree: JSONTree) -> Any:
    """Return the object of an :func:`encode`.

    Raises
    ------
    UnsupportedState
        If the tree names a class outside river, builtins, collections and numpy.
    """
    return _Decoder(arrays).decode(tree)


class _Encoder:
    """One walk over an object graph; ``_seen`` maps ``id`` to the number of its node."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # ids are only unique while their objects live

    def encode(self, value: Any, path: str) -> JSONTree:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else ["float", repr(value)]
        if isinstance(value, np.generic):
            return ["scalar", self._store(np.asarray(value), path)]
        if type(value) is bytes:
            return ["bytes", self._store(np.frombuffer(value, dtype=np.uint8), path)]
        if isinstance(value, type):
            return ["class", _class_name(value, path)]
        if id(value) in self._seen:
            return ["same", self._seen[id(value)]]
        # Numbered before its children are walked, as the decoder does: cycles find their way back.
        self._seen[id(value)] = len(self._alive)
        self._alive.append(value)
        return self._encode_once(value, path)

    def _encode_once(self, value: Any, path: str) -> JSONTree:
        kind = type(value)
        if kind is np.ndarray:
            if value.dtype.hasobject:
                raise UnsupportedState(f"{path} is an array of Python objects")
            return ["array", self._store(value.copy(), path)]
        if kind in (list, tuple):
            items = [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
            return [kind.__name__, items]
        if kind in (set, frozenset):
            ordered = sorted(value, key=lambda item: (type(item).__name__, repr(item)))
            return [kind.__name__, [self.encode(item, f"{path}{{}}") for item in ordered]]
        if kind is collections.deque:
            items = [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
            return ["deque", value.maxlen, items]
        if kind is collections.defaultdict:
            factory = self.encode(value.default_factory, f"{path}.default_factory")
            return ["defaultdict", factory, self._encode_items(value, path)]
        if kind in (dict, collections.OrderedDict, collections.Counter):
            return [kind.__name__, self._encode_items(value, path)]
        if kind is functools.partial:  # River's nested default factories
            bound = [self.encode(part, f"{path}(…)") for part in (value.func, value.args)]
            return ["partial", *bound, self._encode_items(value.keywords, path)]
        if kind is random.Random:  # noqa: S311 - River's own
            version, words, gauss = value.getstate()
            stored = self._store(np.array(words, dtype=np.uint32), path)
            return ["random", version, stored, self.encode(gauss, path)]
        if value is _UNSEEDED:
            return ["unseeded"]
        if kind.__module__.split(".")[0] == "river":
            return self._encode_object(value, path)
        raise UnsupportedState(
            f"{path} is a {kind.__module__}.{kind.__qualname__}, which this format cannot carry; "
            "choose parameters that leave it out, or another classifier"
        )

    def _encode_object(self, value: Any, path: str) -> JSONTree:
        reduced = value.__reduce_ex__(2)
        if isinstance(reduced, str):
            raise UnsupportedState(f"{path} reduces to the global {reduced!r}")
        parts: tuple[Any, ...] = (*reduced, None, None, None)
        rebuild, arguments, state, items, pairs = parts[:5]
        if items is not None or pairs is not None:
            raise UnsupportedState(f"{path} ({type(value).__name__}) subclasses a container")
        if rebuild is copyreg.__newobj__:  # pyright: ignore[reportAttributeAccessIssue]
            kind, arguments = arguments[0], arguments[1:]
            how = "new"
        elif isinstance(rebuild, type):
            kind, how = rebuild, "call"
        else:
            raise UnsupportedState(f"{path} is rebuilt by the function {rebuild!r}")
        if isinstance(state, dict) and state.get("seed", 0) is None:
            # A random source that nobody seeded starts from the machine's entropy: it cannot be
            # replayed, and no classifier that predicts with one gets past new_classifier. What is
            # left (River's Gaussians hold one for drawing samples) would only make bytes differ.
            state = {
                name: _UNSEEDED if type(item) is random.Random else item  # noqa: S311
                for name, item in state.items()
            }
        return [
            "object",
            how,
            _class_name(kind, path),
            [self.encode(item, f"{path}(…)") for item in arguments],
            self.encode(state, path),
        ]

    def _encode_items(self, value: Mapping[Any, Any], path: str) -> JSONTree:
        # Weight tables: whole numbers to floats, by the ten thousand.
        if (
            len(value) > 8
            and all(type(key) is int and abs(key) < 1 << 62 for key in value)
            and all(type(item) is float for item in value.values())
        ):
            keys = np.fromiter(value.keys(), dtype=np.int64, count=len(value))
            floats = np.fromiter(value.values(), dtype=np.float64, count=len(value))
            return ["table", self._store(keys, path), self._store(floats, path)]
        return [
            "items",
            [
                [self.encode(key, f"{path} key"), self.encode(item, f"{path}[{key!r}]")]
                for key, item in value.items()
            ],
        ]

    def _store(self, array: np.ndarray, path: str) -> str:
        if array.dtype.hasobject:
            raise UnsupportedState(f"{path} is an array of Python objects")
        name = f"river_{len(self.arrays):06d}"
        self.arrays[name] = array
        return name


class _Decoder:
    """The walk back; objects are numbered in the order in which the encoder met them."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self._made: list[Any] = []

    def decode(self, tree: JSONTree) -> Any:
        if not isinstance(tree, list):
            return tree
        tag, *parts = tree
        simple: dict[str, Callable[[Any], Any]] = {
            "float": float,
            "scalar": lambda name: self._arrays[name][()],
            "bytes": lambda name: self._arrays[name].tobytes(),
            "class": _class_of,
            "same": lambda number: self._made[number],
        }
        if tag in simple:
            return simple[tag](parts[0])
        number = len(self._made)
        self._made.append(None)
        return self._decode_once(tag, parts, number)

    def _decode_once(self, tag: str, parts: list[Any], number: int) -> Any:
        if tag == "array":
            made: Any = np.array(self._arrays[parts[0]])
        elif tag == "list":
            made = self._made[number] = []
            made.extend(self.decode(item) for item in parts[0])
        elif tag in ("tuple", "set", "frozenset"):
            kind = {"tuple": tuple, "set": set, "frozenset": frozenset}[tag]
            made = kind([self.decode(item) for item in parts[0]])
        elif tag == "deque":
            made = self._made[number] = collections.deque(maxlen=parts[0])
            made.extend(self.decode(item) for item in parts[1])
        elif tag == "defaultdict":
            made = self._made[number] = collections.defaultdict(self.decode(parts[0]))
            self._fill(made, parts[1])
        elif tag in ("dict", "OrderedDict", "Counter"):
            kind = {"dict": dict}.get(tag) or getattr(collections, tag)
            made = self._made[number] = kind()
            self._fill(made, parts[0])
        elif tag == "partial":
            keywords: dict[str, Any] = {}
            function, arguments = self.decode(parts[0]), self.decode(parts[1])
            self._fill(keywords, parts[2])
            if not isinstance(function, type):
                raise UnsupportedState("the state holds a partial of something that is no class")
            made = functools.partial(function, *arguments, **keywords)
        elif tag == "random":
            version, name, gauss = parts
            made = random.Random()  # noqa: S311 - River's own, its state follows
            made.setstate((version, tuple(self._arrays[name].tolist()), self.decode(gauss)))
        elif tag == "unseeded":
            made = random.Random()  # noqa: S311
        elif tag == "object":
            return self._decode_object(parts, number)
        else:
            raise UnsupportedState(f"unknown tag {tag!r}; the state was written by a newer version")
        self._made[number] = made
        return made

    def _decode_object(self, parts: list[Any], number: int) -> Any:
        how, class_name, arguments, state = parts
        kind: Any = _class_of(class_name)
        if kind.__module__.split(".")[0] != "river":
            raise UnsupportedState(f"the state builds a {class_name}; only river's may be")
        given = [self.decode(item) for item in arguments]
        made: Any = kind.__new__(kind, *given) if how == "new" else kind(*given)
        self._made[number] = made
        attributes = self.decode(state)
        if attributes is None:
            return made
        if hasattr(made, "__setstate__"):
            made.__setstate__(attributes)
        elif isinstance(attributes, tuple):
            for part in attributes:
                for name, item in (part or {}).items():
                    object.__setattr__(made, name, item)
        else:
            made.__dict__.update(attributes)
        return made

    def _fill(self, made: dict[Any, Any], tree: JSONTree) -> None:
        if tree[0] == "table":
            keys, floats = self._arrays[tree[1]], self._arrays[tree[2]]
            made.update(zip(keys.tolist(), floats.tolist(), strict=True))
            return
        for key, item in tree[1]:
            made[self.decode(key)] = self.decode(item)


def _class_name(kind: type, path: str) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__.split(".")[0] not in _ALLOWED_ROOTS or "<" in kind.__qualname__:
        raise UnsupportedState(f"{path} names the class {name}, which this format cannot carry")
    return name


def _class_of(name: str) -> type:
    module, _, qualified = name.partition(":")
    if module.split(".")[0] not in _ALLOWED_ROOTS:
        raise UnsupportedState(f"the state names {name}; only {', '.join(_ALLOWED_ROOTS)} may be")
    found: Any = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    if not isinstance(found, type):
        raise UnsupportedState(f"the state names {name} as a class, which it is not")
    return found
