"""Wide & deep, trained in JAX: layers, the step that learns them, state that can be saved.

The only module of the learners that imports JAX, and only when one is made. The formulas of losses
are those of :mod:`ad_pipeline.learners.delayed.losses`, the table is :mod:`.embedding_table`, and
scores come from :mod:`.deep_scores`, in training as in serving: what JAX computes forwards is used
for its gradient alone. Which rows are learnt, and when, belongs to the caller.

**Model.** Each slot of a row has a wide weight and an embedding. The embeddings, one beside the
other, pass the layers; a logit is the sum of the wide weights plus the last layer's output. A loss
with two heads (``losses.TWO_HEADED``) has two outputs of the last layer, and two wide weights a
slot: its heads answer different questions, and one wide weight could not.

**Step.** Rows are learnt in order, ``batch_rows`` at a time; the last batch of a call is padded
with rows of weight 0, so that one shape is compiled. Gradients are *summed* over the batch, not
averaged: padding then cannot dilute, a batch of three rows does not step as far as one of a
thousand, and a slot met once is stepped alike whatever the batch holds beside it. AdaGrad makes the
sum's size a matter of its constants only. Weights of a loss depend on scores as numbers: what is
pulled back through the network is the slope of each row's logit, so nothing is differentiated
through a weight.

**Bursts.** A batch whose gradient is longer than :data:`LONGEST` times the root mean square of all
batches so far is shortened to that, table and layers alike. Without it one burst of positives would
not move the layers far, AdaGrad sees to that, but its square would slow them for good. Bursts that
are the stream's nature, more than one batch in ``LONGEST``^2, raise that root mean square and pass.
``non_negative`` drops, of a batch whose positives take back more than its negatives gave, all that
negatives' side of the risk says (Kiryo et al., algorithm 1 without its backward step).

**Same bytes.** The number of XLA's threads is part of the result: :mod:`ad_pipeline.xla` sets it.

References
----------
Cheng et al., Wide & Deep Learning for Recommender Systems, DLRS 2016. Ktena et al., Addressing
Delayed Feedback for Continuous Training with Neural Networks in CTR Prediction, RecSys 2019,
section 4.2. Kiryo et al., Positive-Unlabeled Learning with Non-Negative Risk Estimator, NeurIPS
2017. He et al., Delving Deep into Rectifiers, ICCV 2015 (the layers' first weights).
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Self

import numpy as np

from ad_pipeline.hashing import uniform
from ad_pipeline.learners.deep.deep_scores import DenseLayers, Unlearnt, logits
from ad_pipeline.learners.deep.embedding_table import EmbeddingTable
from ad_pipeline.learners.deep.exported_deep import ExportedDeep, slots_of_fields
from ad_pipeline.learners.delayed import losses
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.learners.ftrl.ftrl_expert import HEADS
from ad_pipeline.settings import DeepSettings
from ad_pipeline.xla import jax_or

Arrays = dict[str, np.ndarray]
Manifest = dict[str, Any]

UNLEARNT_SCALE = 0.01
"""Embeddings of slots that were not learnt are uniform in [-0.01, 0.01)."""

FIRST_SQUARES = 1.0
"""AdaGrad's sums of squares of the layers begin here; see :mod:`.embedding_table`."""

LONGEST = 10.0
"""Of a batch's gradient, in root mean squares of those so far."""

WARM_UP = 20
"""Batches whose gradients are taken as they come, before there is a root mean square to trust."""


class DeepExtraMissing(ImportError):
    """JAX is not installed, which only wide & deep needs."""

    def __init__(self) -> None:
        super().__init__(
            "wide & deep is trained in JAX, which is not installed; install it with "
            "`pip install ad_pipeline[deep]`, or take `deep` out of the settings"
        )


class WideDeep:
    """Wide & deep over the online expert's hashed slots.

    Parameters
    ----------
    settings : DeepSettings
        Of one goal.
    fields : int
        F, slots of a row: the layers are made for so many.
    slot_bits : int
        Of the slots that rows come with; the table has the highest ``settings.bits`` of them.
    horizon_days : float
        Window and lateness of the goal, for losses of delays.
    seed : int
        Same seed, same first weights.

    Raises
    ------
    DeepExtraMissing
        If JAX is not installed.
    ValueError
        If rows have fewer bits than the table, or no fields.
    """

    kind = "wide_deep"

    def __init__(
        self,
        settings: DeepSettings,
        fields: int,
        slot_bits: int,
        horizon_days: float = 0.0,
        seed: int = 0,
    ) -> None:
        if settings.bits > slot_bits:
            raise ValueError(
                f"the table has {settings.bits} bits, slots have {slot_bits}; write at most "
                "settings.online.bits as settings.deep.bits"
            )
        if fields < 1:
            raise ValueError(f"rows of {fields} slots; there must be at least one")
        self._jax = jax_or(DeepExtraMissing)
        self.settings = settings
        self.fields = fields
        self.slot_bits = slot_bits
        self.horizon_days = horizon_days
        self.seed = seed
        self.rows = 0
        heads = len(HEADS[settings.loss])
        self.table = EmbeddingTable(
            settings.bits,
            settings.embedding,
            settings.embedding_rate,
            Unlearnt(heads, UNLEARNT_SCALE, seed),
        )
        first = _first_layers(settings, fields, heads, seed)
        zeros = [(np.zeros_like(weights), np.zeros_like(biases)) for weights, biases in first]
        self._keep(first, zeros, 0)
        self._step = _compiled_step(
            settings.loss,
            settings.non_negative,
            settings.leak,
            settings.dense_rate,
            horizon_days,
        )

    def learn(
        self,
        slots: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        outcomes: np.ndarray | None = None,
    ) -> None:
        """Learn rows in order, a batch at a time; the end of the rows ends the last batch.

        Parameters
        ----------
        slots : ndarray of shape (n, F), uint32
            Below 2**slot_bits.
        labels : ndarray of shape (n,), 0 or 1
        weights : ndarray of shape (n,), optional
            Factor on each row's gradient, at least 0; all 1 if left out.
        outcomes : ndarray of shape (n, N_OUTCOMES) or (n, 0), optional
            What losses of labels that come late ask for beside the label: the columns of
            :mod:`ad_pipeline.learners.ftrl.ftrl_kernel`. As logged if left out or without columns:
            nothing late, every negative real.

        Raises
        ------
        ValueError
            If shapes disagree, a slot is out of range, a label is not 0 or 1, or a weight or an
            outcome is not finite.
        """
        mine = self._slots_of(slots)
        rows = len(mine)
        given = (
            _checked_labels(labels, rows),
            _checked_weights(weights, rows),
            _checked_outcomes(outcomes, rows),
        )
        size = self.settings.batch_rows
        for start in range(0, rows, size):
            batch = slice(start, start + size)
            self._learn_batch(mine[batch], *(array[batch] for array in given))

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return log odds, float64 (n,), of rows, uint32 (n, F): the bits that serving would say.

        Raises
        ------
        ValueError
            If the slots are not F a row, or not below 2**slot_bits.
        """
        return logits(
            self.table.gather,
            self._slots_of(slots),
            self.layers,
            self.settings.loss,
            self.horizon_days,
        )

    @property
    def layers(self) -> DenseLayers:
        """The layers as they are now; later steps do not change what was returned."""
        if self._layers is None:
            self._layers = DenseLayers(
                tuple(np.array(weights) for weights, _ in self._dense),
                tuple(np.array(biases) for _, biases in self._dense),
                self.settings.leak,
            )
        return self._layers

    def exported(self) -> ExportedDeep:
        """Return what a scorer needs; its scores are those of :meth:`logits`, to the bit."""
        return ExportedDeep.from_state(*self.state())

    def state(self) -> tuple[Arrays, Manifest]:
        """Return the slots that were learnt, the layers, and everything else as JSON.

        Between two calls of :meth:`learn`; a learner that goes on from there ends in the bytes of
        one that was never interrupted.
        """
        arrays = self.table.state()
        for place, (values, squares) in enumerate(zip(self._dense, self._squares, strict=True)):
            for name, value, square in zip(("weights", "biases"), values, squares, strict=True):
                arrays[f"{name}_{place}"] = np.array(value)
                arrays[f"{name}_{place}_squares"] = np.array(square)
        manifest = {
            "expert": self.kind,
            "settings": self.settings.model_dump(mode="json"),
            "fields": self.fields,
            "slot_bits": self.slot_bits,
            "horizon_days": self.horizon_days,
            "seed": self.seed,
            "unlearnt_scale": self.table.unlearnt.scale,
            "rows": self.rows,
            "steps": int(self._steps),
        }
        return arrays, manifest

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], manifest: Manifest) -> Self:
        """Return the learner of a :meth:`state`."""
        learner = cls(
            DeepSettings(**manifest["settings"]),
            manifest["fields"],
            manifest["slot_bits"],
            manifest["horizon_days"],
            manifest["seed"],
        )
        table = learner.table
        table.unlearnt = table.unlearnt._replace(scale=manifest["unlearnt_scale"])
        table.fill(arrays)
        names = [(f"weights_{place}", f"biases_{place}") for place in range(len(learner._dense))]
        learner._keep(
            [(np.asarray(arrays[w]), np.asarray(arrays[b])) for w, b in names],
            [
                (np.asarray(arrays[f"{w}_squares"]), np.asarray(arrays[f"{b}_squares"]))
                for w, b in names
            ],
            manifest["steps"],
        )
        learner.rows = manifest["rows"]
        return learner

    def continued(self, settings: DeepSettings) -> "WideDeep":
        """Return a learner of another objective or other rates that begins where this one stands.

        A second head begins untrained: what the first has learnt is no start for it. Sums of
        squares are kept, so an embedding's rate is the new one over what was met before.

        Raises
        ------
        ValueError
            If this learner has two heads, or the settings ask for another network.
        """
        own = self.settings
        if len(HEADS[own.loss]) > 1:
            raise ValueError(f"{own.loss} has two heads; only a learner with one can be continued")
        for name in ("bits", "embedding", "layers", "leak"):
            if getattr(own, name) != getattr(settings, name):
                raise ValueError(
                    f"{name} is {getattr(own, name)}, not {getattr(settings, name)}: that would be "
                    "another network"
                )
        other = WideDeep(settings, self.fields, self.slot_bits, self.horizon_days, self.seed)
        other.rows = self.rows
        other.table.begin_at(self.table)
        dense = [(np.array(weights), np.array(biases)) for weights, biases in self._dense]
        squares = [(np.array(weights), np.array(biases)) for weights, biases in self._squares]
        added = len(HEADS[settings.loss]) - 1
        if added:
            # The layers' first draw is of two outputs: the second of them is untrained there.
            drawn, _ = _first_layers(settings, self.fields, 1 + added, self.seed)[-1]
            weights, biases = dense[-1]
            dense[-1] = (
                np.hstack([weights, drawn[:, 1:]]),
                np.concatenate([biases, np.zeros(added, np.float32)]),
            )
            squares[-1] = (
                np.hstack([squares[-1][0], np.zeros_like(drawn[:, 1:])]),
                np.concatenate([squares[-1][1], np.zeros(added, np.float32)]),
            )
        other._keep(dense, squares, int(self._steps))
        return other

    def _keep(self, dense: Any, squares: Any, steps: int) -> None:
        """Hand the layers to JAX, as copies: a step overwrites the memory that it is given."""
        jax = self._jax
        cpu = jax.devices("cpu")[0]
        self._dense, self._squares, self._steps = jax.device_put(
            jax.tree.map(lambda array: jax.numpy.array(array, copy=True), (dense, squares, steps)),
            cpu,
        )
        self._layers: DenseLayers | None = None

    def _slots_of(self, slots: np.ndarray) -> np.ndarray:
        # A slot is the highest bits of a hash, so fewer bits are the highest of those.
        checked = slots_of_fields(slots, self.fields, self.slot_bits)
        return checked >> np.uint32(self.slot_bits - self.settings.bits)

    def _learn_batch(
        self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray, outcomes: np.ndarray
    ) -> None:
        rows, size = len(slots), self.settings.batch_rows
        given = (self.table.gather(slots), labels, weights, outcomes)
        if rows < size:
            given = tuple(
                np.concatenate([array, np.zeros((size - rows, *array.shape[1:]), array.dtype)])
                for array in given
            )
        self._dense, self._squares, self._steps, gradients = self._step(
            self._dense, self._squares, self._steps, *given
        )
        self._layers = None
        self.table.apply(slots, np.asarray(gradients)[:rows])
        self.rows += rows


def _first_layers(
    settings: DeepSettings, fields: int, heads: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return He et al.'s uniform weights and biases of 0, float32; drawn by hash of the seed."""
    widths = [fields * settings.embedding, *settings.layers, heads]
    layers = []
    for place, (inputs, units) in enumerate(itertools.pairwise(widths)):
        draws = uniform(
            seed, np.arange(inputs * units, dtype=np.uint64), f"wide & deep, layer {place}"
        )
        bound = math.sqrt(6.0 / inputs)
        weights = ((2.0 * draws - 1.0) * bound).astype(np.float32).reshape(inputs, units)
        layers.append((weights, np.zeros(units, np.float32)))
    return layers


@cache
def _compiled_step(
    loss: str, non_negative: bool, leak: float, rate: float, horizon_days: float
) -> Callable[..., Any]:
    """Return the step of a batch; JAX compiles it for each shape that it is called with.

    Its arguments and what it returns: layers, their sums of squares, batches that moved anything so
    far; then, given to it, a batch's gathered numbers, labels, weights and outcomes, and in place
    of those the gradient by the gathered numbers.
    """
    jax = jax_or(DeepExtraMissing)
    jnp = jax.numpy

    def scores_of(dense: Any, gathered: Any) -> Any:
        heads = dense[-1][1].shape[0]
        x = gathered[:, :, heads:].reshape(gathered.shape[0], -1)
        for weights, biases in dense[:-1]:
            x = x @ weights + biases
            x = jnp.where(x > 0, x, leak * x)
        weights, biases = dense[-1]
        return x @ weights + biases + gathered[:, :, :heads].sum(axis=1)

    def step(
        dense: Any, squares: Any, steps: Any, gathered: Any, labels: Any, weights: Any,
        outcomes: Any,
    ) -> Any:  # fmt: skip
        scores, pulled_back = jax.vjp(scores_of, dense, gathered)
        slopes = _slopes(jnp, jax.nn.sigmoid, loss, non_negative, horizon_days)(
            scores, labels, weights, outcomes
        )
        by_dense, by_gathered = pulled_back(slopes * weights[:, None])
        leaves = jax.tree.leaves
        length = jnp.sqrt(sum(jnp.sum(g * g) for g in leaves(by_dense)))
        # The sums of squares of all coordinates together are those of the gradients' lengths.
        usual = jnp.sqrt(sum(map(jnp.sum, leaves(squares))) / jnp.maximum(steps, 1))
        shorter = jnp.minimum(1.0, LONGEST * usual / jnp.maximum(length, 1e-30))
        factor = jnp.where(steps >= WARM_UP, shorter, 1.0)
        by_dense = jax.tree.map(lambda g: factor * g, by_dense)
        squares = jax.tree.map(lambda n, g: n + g * g, squares, by_dense)
        dense = jax.tree.map(
            lambda v, n, g: v - rate * g / jnp.sqrt(n + FIRST_SQUARES), dense, squares, by_dense
        )
        return dense, squares, steps + (length > 0), factor * by_gathered

    return jax.jit(step, donate_argnums=(0, 1, 2))


def _slopes(
    jnp: Any, sigmoid: Any, loss: Any, non_negative: bool, horizon_days: float
) -> Callable[..., Any]:
    """Return the function from scores (n, heads) and a batch's rows to slopes (n, heads)."""

    def of_event(coefficients: losses.Coefficients, score: Any, labels: Any, told: Any) -> Any:
        event = losses.Event(
            sigmoid(score), sigmoid(-score), labels, told[:, kernel.LATE],
            told[:, kernel.LATENESS], told[:, kernel.REAL_NEGATIVE],
        )  # fmt: skip
        return (*coefficients(event), event.f, event.q)

    def of_one_head(scores: Any, labels: Any, weights: Any, told: Any) -> Any:
        score = scores[:, 0]
        coefficients = losses.COEFFICIENTS.get(loss, losses.log_loss)
        a, b, f, q = of_event(coefficients, score, labels, told)
        if loss == "positive_unlabelled" and non_negative:
            given = jnp.sum(weights * b * jnp.logaddexp(score, 0.0))  # of -log(1 - f)
            b = jnp.where(given < 0, 0.0, b)
        return losses.slope_of(a, b, f, q)[:, None]

    def of_windows(scores: Any, labels: Any, _weights: Any, told: Any) -> Any:
        heads = (losses.in_window, losses.out_of_window)
        return jnp.stack(
            [
                losses.slope_of(*of_event(head, scores[:, place], labels, told))
                for place, head in enumerate(heads)
            ],
            axis=1,
        )

    def of_delays(scores: Any, labels: Any, _weights: Any, told: Any) -> Any:
        score, log_rate = scores[:, 0], scores[:, 1]
        rate = jnp.clip(jnp.exp(jnp.minimum(log_rate, 30.0)), *losses.RATES_PER_DAY)
        censored = losses.Censored(
            labels, told[:, kernel.LATE], told[:, kernel.CONFIRMED], told[:, kernel.WAITED],
            told[:, kernel.DELAY], horizon_days,
        )  # fmt: skip
        slopes = losses.delayed_feedback_slopes(
            sigmoid(score), sigmoid(-score), rate, censored,
            jnp.exp(-rate * censored.waited), jnp.exp(-rate * horizon_days),
        )  # fmt: skip
        return jnp.stack(slopes, axis=1)

    return {"bi_defuse": of_windows, "delayed_feedback": of_delays}.get(loss, of_one_head)


def _checked_labels(labels: np.ndarray, rows: int) -> np.ndarray:
    targets = np.ascontiguousarray(labels, dtype=np.float32)
    if targets.shape != (rows,) or not ((targets == 0.0) | (targets == 1.0)).all():
        raise ValueError(f"labels must be {rows} zeros and ones, shape ({rows},)")
    return targets


def _checked_weights(weights: np.ndarray | None, rows: int) -> np.ndarray:
    if weights is None:
        return np.ones(rows, np.float32)
    factors = np.ascontiguousarray(weights, dtype=np.float32)
    if factors.shape != (rows,) or not np.isfinite(factors).all() or (factors < 0).any():
        raise ValueError(f"weights must be {rows} finite numbers of at least 0, shape ({rows},)")
    return factors


def _checked_outcomes(outcomes: np.ndarray | None, rows: int) -> np.ndarray:
    if outcomes is None or outcomes.shape == (rows, 0):
        told = np.zeros((rows, kernel.N_OUTCOMES), np.float32)
        told[:, kernel.REAL_NEGATIVE] = 1.0
        return told
    told = np.ascontiguousarray(outcomes, dtype=np.float32)
    if told.shape != (rows, kernel.N_OUTCOMES) or not np.isfinite(told).all():
        raise ValueError(
            f"outcomes must be finite numbers of shape {(rows, kernel.N_OUTCOMES)}, not "
            f"{told.shape}"
        )
    return told
