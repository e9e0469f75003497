"""How an encoder learns: labels of ads shown *after* the moment that a user's sequence ends at.

Two towers: the vectors of a user and of an ad meet in an inner product only, once for each task
(:func:`.encoder.task_logits`), so that what ranks an ad for a user also finds ads and users like
them. What the vectors are worth to a ranker is measured elsewhere.

**No leak.** A sequence holds what our log had at its moment, and a label is accepted only if its ad
was shown after that moment: :class:`LabelledAds` refuses any other, by row.

**Step.** Sequences of one padded shape come ``batch_sequences`` at a time, each with up to
``ads_per_sequence`` labelled ads that share its encoding; rows that fill a batch up weigh 0. The
loss is summed. Slots take row-wise AdaGrad (:mod:`.slot_table`), all else Adam.

**User to user** (optional). The activities at even places and those at odd places are encoded as
two users; each should find its other half among the halves of the batch (InfoNCE). Rows of one user
are no strangers to each other, and a row without two halves takes no part.

**Same bytes.** Order is drawn by hash of (seed, user, moment, epoch). A trainer that is stopped
after any step, written, restored and run on over the same rows ends in the bytes of one that was
not stopped; over other rows it refuses to go on in the middle of an epoch.

References
----------
Async Learned User Embeddings for Ads Delivery Optimization, arXiv 2406.05898 (multi-task). Kingma
and Ba, Adam, ICLR 2015. van den Oord et al., Representation Learning with Contrastive Predictive
Coding, arXiv 1807.03748 (InfoNCE).
"""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from ad_pipeline.checkpoints import Checkpoint, write_checkpoint
from ad_pipeline.embeddings.encoder import (
    EmbeddingsExtraMissing,
    Encoder,
    Inputs,
    Parameters,
    flat_of,
    laid_out,
    task_logits,
    user_vector,
    windows_of,
)
from ad_pipeline.embeddings.sequences import Batch, Sequences
from ad_pipeline.hashing import combine, uniform
from ad_pipeline.settings import EncoderSettings, TrainingSettings
from ad_pipeline.xla import jax_or

KIND = "embeddings.encoder"
CODE_VERSION = 1
"""Raise when the same rows and settings would give other weights."""

MOMENTS = 0.9, 0.999
ADAM_FLOOR = 1e-8


class LeakedLabel(ValueError):
    """An ad was shown before the moment at which its user's sequence ends."""


class OtherRows(ValueError):
    """A trainer was stopped in the middle of other rows than it is given now."""


@dataclass(frozen=True)
class LabelledAds:
    """Ads that were shown to users, and what came of them.

    Attributes
    ----------
    sequence : ndarray of shape (n,), int64
        Place of the user's sequence.
    tokens : ndarray of shape (n, A), uint32
        Slots of the ad.
    labels : ndarray of shape (n, tasks), float32
        0, 1, or NaN where a label is not known (yet): it is not learnt.
    """

    sequence: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray

    @classmethod
    def after(
        cls,
        sequences: Sequences,
        sequence: np.ndarray,
        shown_us: np.ndarray,
        tokens: np.ndarray,
        labels: np.ndarray,
    ) -> Self:
        """Return ads, each shown after the moment of its sequence.

        Parameters
        ----------
        sequences : Sequences
        shown_us : ndarray of shape (n,), int64
            When the ad was shown, microseconds.
        sequence, tokens, labels
            See :class:`LabelledAds`.

        Raises
        ------
        LeakedLabel
            If an ad was shown at or before its sequence's moment.
        ValueError
            If a label is not 0, 1 or NaN.
        """
        sequence, labels = np.asarray(sequence, np.int64), np.asarray(labels, np.float32)
        moment = sequences.as_of_us[sequence]
        early = np.flatnonzero(shown_us <= moment)
        if len(early):
            row = int(early[0])
            raise LeakedLabel(
                f"row {row}, and {len(early) - 1} more: its ad was shown at {shown_us[row]}, its "
                f"user's sequence ends at {moment[row]}, so the label may be among what is read; "
                "take a sequence of an earlier moment"
            )
        wrong = np.flatnonzero(~((labels == 0) | (labels == 1) | np.isnan(labels)).all(axis=1))
        if len(wrong):
            raise ValueError(f"row {wrong[0]}: labels are {labels[wrong[0]]}; write 0, 1 or NaN")
        return cls(sequence, np.asarray(tokens, np.uint32), labels)


@dataclass(frozen=True)
class Progress:
    """What has been learnt after a step.

    Attributes
    ----------
    step, steps : int
        Of all epochs over these rows.
    loss : float
        Mean log loss of the step's labels, before it was learnt.
    """

    step: int
    steps: int
    loss: float

    def __str__(self) -> str:
        """Return a line for people."""
        return f"step {self.step:,} of {self.steps:,}, log loss {self.loss:.4f}"


class Training:
    """An encoder on its way.

    Parameters
    ----------
    encoder : EncoderSettings
    settings : TrainingSettings

    Attributes
    ----------
    means, squares : ndarray of shape (P,), float32
        Adam's, of all parameters but the tables'.
    steps : int
        Over all rows that were ever learnt.
    step_of_rows : int
        The next step over the rows of ``rows_digest``.
    rows_digest : str
        Of the rows that are being learnt; empty when all were.

    Raises
    ------
    EmbeddingsExtraMissing
        If JAX is not installed.
    """

    def __init__(self, encoder: EncoderSettings, settings: TrainingSettings) -> None:
        self._gradient = _compiled_gradient(
            encoder.model_dump_json(), settings.contrastive, settings.temperature
        )
        self.settings = settings
        self._take(Encoder.first(encoder, settings.seed))
        self.means, self.squares = np.zeros_like(self._flat), np.zeros_like(self._flat)
        self.steps = 0
        self.step_of_rows = 0
        self.rows_digest = ""

    def _take(self, encoder: Encoder) -> None:
        """Make an encoder the one that is learnt; its parameters become views of one array."""
        self._flat = flat_of(encoder.parameters)
        parameters = laid_out(self._flat, encoder.parameters)
        self._learnt = Encoder(encoder.settings, parameters, encoder.content, encoder.ads)

    @property
    def encoder(self) -> Encoder:
        """The encoder as it is now; later steps do not change what was returned."""
        own = self._learnt
        parameters = laid_out(self._flat.copy(), own.parameters)
        return Encoder(own.settings, parameters, own.content.copy(), own.ads.copy())

    def learn(self, sequences: Sequences, ads: LabelledAds) -> Iterator[Progress]:
        """Learn every label ``epochs`` times; whoever stops to ask for more stops learning.

        Parameters
        ----------
        sequences : Sequences
        ads : LabelledAds

        Yields
        ------
        Progress
            After each step.

        Raises
        ------
        OtherRows
            If this trainer stands in the middle of other rows.
        ValueError
            If sequences or labels are not those of the settings.
        """
        self._learnt.check(sequences)
        tasks = self._learnt.settings.tasks
        if ads.labels.shape[1:] != (len(tasks),):
            raise ValueError(f"labels have shape {ads.labels.shape}, tasks are {tasks}")
        rows = _Rows.of(self.settings, sequences, ads)
        if self.rows_digest not in ("", rows.digest):
            raise OtherRows(
                f"step {self.step_of_rows} of rows {self.rows_digest[:12]} comes next, and these "
                f"are {rows.digest[:12]}; give the rows that were begun, or begin a new training"
            )
        if self.steps == 0:
            self._begin_at_rates(ads.labels)
        epochs = range(self.settings.epochs)
        schedule = [batch for epoch in epochs for batch in rows.batches(epoch)]
        for place in range(self.step_of_rows, len(schedule)):
            loss = self._learn_batch(rows, schedule[place])
            is_last = place + 1 == len(schedule)
            self.step_of_rows, self.rows_digest = (0, "") if is_last else (place + 1, rows.digest)
            yield Progress(place + 1, len(schedule), loss)

    def digest_of(self, sequences: Sequences, ads: LabelledAds) -> str:
        """Return what rows are called by :attr:`rows_digest`."""
        return _Rows.of(self.settings, sequences, ads).digest

    def write(self, root: Path, watermark_us: int, parent: str | None = None) -> Checkpoint:
        """Write the encoder and what its training goes on from; the digest is its version.

        Parameters
        ----------
        root : Path
            Folder of the checkpoints.
        watermark_us : int
            Labels up to here were learnt.
        parent : str, optional
            Checkpoint that this one was continued from.
        """
        arrays, manifest = self.state()
        return write_checkpoint(
            root, KIND, arrays, manifest | {"watermark_us": watermark_us, "parent": parent}
        )

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return plain arrays and a JSON manifest that :meth:`restore` takes."""
        arrays, manifest = self.encoder.state()
        arrays |= {"means": self.means.copy(), "squares": self.squares.copy()}
        return arrays, manifest | {
            "training": self.settings.model_dump(mode="json"),
            "code_version": CODE_VERSION,
            "steps": self.steps,
            "step_of_rows": self.step_of_rows,
            "rows_digest": self.rows_digest,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Self:
        """Return the trainer of a :meth:`state`.

        Raises
        ------
        ValueError
            If it is of other code.
        """
        if manifest["code_version"] != CODE_VERSION:
            raise ValueError(
                f"the checkpoint is of code version {manifest['code_version']}, this is "
                f"{CODE_VERSION}; begin a new training"
            )
        encoder = Encoder.restore(arrays, manifest)
        training = cls(encoder.settings, TrainingSettings.model_validate(manifest["training"]))
        training._take(encoder)
        training.means, training.squares = (np.array(arrays[n]) for n in ("means", "squares"))
        training.steps = manifest["steps"]
        training.step_of_rows = manifest["step_of_rows"]
        training.rows_digest = manifest["rows_digest"]
        return training

    def _begin_at_rates(self, labels: np.ndarray) -> None:
        """Set the tasks' biases to the log odds of the labels, which steps would take long to."""
        known = np.isfinite(labels)
        positives = np.where(known, labels, 0.0).sum(axis=0, dtype=np.float64)
        rates = (positives + 0.5) / (known.sum(axis=0) + 1.0)
        self._learnt.parameters["heads"]["bias"][:] = np.log(rates / (1.0 - rates))

    def _learn_batch(self, rows: "_Rows", batch: Batch) -> float:
        own, rate = self._learnt, self.settings.table_rate
        given, ad_tokens, windows = rows.given(own, batch)
        loss, gradients = self._gradient(own.parameters, *given)
        by_parameters, by_content, by_ads = _as_numpy(gradients)
        self._step(flat_of(by_parameters))
        # One step for all modalities: two of them may meet in a slot.
        own.content.step(
            _stacked_bags([window.tokens for window in windows.values()]),
            np.concatenate([by_content[name].reshape(-1, own.settings.width) for name in windows]),
            rate,
        )
        own.ads.step(ad_tokens, by_ads, rate)
        return float(loss)

    def _step(self, gradient: np.ndarray) -> None:
        """Take a step of Adam (algorithm 1, with its note on efficiency)."""
        self.steps += 1
        slow, slower = map(np.float32, MOMENTS)
        self.means += (1 - slow) * (gradient - self.means)
        self.squares += (1 - slower) * (gradient * gradient - self.squares)
        unbiased = np.sqrt(1.0 - MOMENTS[1] ** self.steps) / (1.0 - MOMENTS[0] ** self.steps)
        rate = np.float32(self.settings.dense_rate * unbiased)
        self._flat -= rate * self.means / (np.sqrt(self.squares) + np.float32(ADAM_FLOOR))


def train(
    encoder: EncoderSettings,
    settings: TrainingSettings,
    sequences: Sequences,
    ads: LabelledAds,
    say: Callable[[str], object] | None = None,
    lines: int = 20,
) -> Training:
    """Train an encoder from its first weights and say how far it is.

    Parameters
    ----------
    encoder : EncoderSettings
    settings : TrainingSettings
    sequences : Sequences
    ads : LabelledAds
    say : callable, optional
        Is given about ``lines`` lines; they go to standard error if left out.
    lines : int
    """
    training = Training(encoder, settings)
    for progress in training.learn(sequences, ads):
        every = max(progress.steps // lines, 1)
        if progress.step % every == 0 or progress.step == progress.steps:
            (say or sys.stderr.write)(f"{progress}\n")
    return training


@dataclass(frozen=True)
class _Rows:
    """What is learnt: a row is a sequence with up to ``ads_per_sequence`` of its ads.

    Attributes
    ----------
    sequences : Sequences
        A row each.
    shown : ndarray of shape (rows, K), int64
        Places of the ads; -1 for none.
    """

    settings: TrainingSettings
    sequences: Sequences
    ads: LabelledAds
    shown: np.ndarray
    identities: np.ndarray
    digest: str

    @classmethod
    def of(cls, settings: TrainingSettings, sequences: Sequences, ads: LabelledAds) -> "_Rows":
        size = settings.ads_per_sequence
        order = np.argsort(ads.sequence, kind="stable")
        of = ads.sequence[order]
        is_first = np.diff(of, prepend=-1) != 0
        starts = np.maximum.accumulate(np.where(is_first, np.arange(len(of)), 0))
        place = np.arange(len(of)) - starts
        row = np.cumsum(is_first | (place % size == 0)) - 1
        shown = np.full((int(row[-1]) + 1 if len(row) else 0, size), -1, np.int64)
        shown[row, place % size] = order
        firsts = shown[:, 0]
        sequence = ads.sequence[firsts]
        _, chunk = np.unique(row, return_index=True)
        identities = combine(
            sequences.identities()[sequence], (place[chunk] // size).astype(np.uint64)
        )
        told = hashlib.sha256()
        for array in (identities, ads.tokens[order], ads.labels[order], of):
            told.update(np.ascontiguousarray(array).data)
        return cls(settings, sequences.take(sequence), ads, shown, identities, told.hexdigest())

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the rows of an epoch in an order of its own."""
        draws = uniform(self.settings.seed, self.identities, f"order of epoch {epoch}")
        order = np.lexsort((self.identities, draws))
        return self.sequences.batches(self.settings.batch_sequences, order)

    def given(self, encoder: Encoder, batch: Batch) -> tuple[tuple[Any, ...], np.ndarray, Any]:
        """Return what a step is given, the slots of its ads, and its activities."""
        spare = self.settings.batch_sequences - len(batch.rows)
        rows = np.pad(batch.rows, (0, spare), constant_values=-1)
        windows = windows_of(self.sequences, Batch(rows, batch.lengths))
        inputs = encoder.inputs(windows)
        content = {name: of_modality.pop("content") for name, of_modality in inputs.items()}
        shown = np.where(rows[:, np.newaxis] >= 0, self.shown[rows], -1)
        tokens = np.where(shown[..., np.newaxis] >= 0, self.ads.tokens[shown], np.uint32(0))
        labels = np.where(shown[..., np.newaxis] >= 0, self.ads.labels[shown], np.float32(np.nan))
        user = np.where(rows >= 0, self.sequences.user[rows], -1).astype(np.int32)
        return (content, encoder.ads.means(tokens), inputs, labels, user), tokens, windows


def _as_numpy(tree: Any) -> Any:
    """Return a tree of JAX's arrays as NumPy's."""
    if isinstance(tree, dict):
        return {name: _as_numpy(part) for name, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(_as_numpy, tree))
    return np.asarray(tree)


def _stacked_bags(bags: list[np.ndarray]) -> np.ndarray:
    """Lay bags (b, L, T) of several widths one after the other, padded by nothing: (m, T)."""
    most = max(of_modality.shape[-1] for of_modality in bags)
    # Not -1: a modality of vectors alone has bags of no tokens.
    flat = [bag.reshape(bag.shape[0] * bag.shape[1], bag.shape[2]) for bag in bags]
    return np.concatenate([np.pad(b, ((0, 0), (0, most - b.shape[1]))) for b in flat])


def loss_of(
    settings: EncoderSettings,
    contrastive: float,
    temperature: float,
    parameters: Parameters,
    content: dict[str, Any],
    ads: Any,
    inputs: Inputs,
    labels: Any,
    user: Any,
) -> tuple[Any, Any]:
    """Return what a step makes smaller, and the mean log loss of its known labels; in JAX.

    Parameters
    ----------
    settings : EncoderSettings
    contrastive, temperature : float
        As in :class:`.settings.TrainingSettings`.
    parameters : Parameters
    content : dict of str to array of shape (b, L, h)
        Mean rows of the activities' slots, a modality each.
    ads : array of shape (b, K, d + tasks)
        Mean rows of the ads' slots.
    inputs : Inputs
        Of the batch, without the content.
    labels : array of shape (b, K, tasks)
        NaN where there is none.
    user : array of shape (b,), int32
        Equal for rows of one user; -1 for no row.
    """
    jax = jax_or(EmbeddingsExtraMissing)
    jnp = jax.numpy
    whole = {name: inputs[name] | {"content": content[name]} for name in content}
    encoded = jax.vmap(lambda one: user_vector(settings, parameters, one))
    logits = task_logits(parameters["heads"], encoded(whole), ads)
    known = jnp.isfinite(labels)
    targets = jnp.where(known, labels, 0.0)
    losses = jnp.where(known, jnp.logaddexp(0.0, logits) - targets * logits, 0.0)
    summed = losses.sum()
    mean = summed / jnp.maximum(known.sum(), 1)
    if not contrastive:
        return summed, mean
    halves = [_half(jnp, whole, parity) for parity in (0, 1)]
    both = jnp.stack([_is_any(jnp, half) for half in halves]).all(axis=0)
    first, second = (_unit(jnp, encoded(half)) for half in halves)
    closeness = first @ second.T / temperature
    stranger = user[:, None] != user[None, :]
    compared = (stranger | jnp.eye(len(user), dtype=bool)) & both[:, None] & both[None, :]
    closeness = jnp.where(compared, closeness, -1e30)
    own = jnp.diagonal(closeness)
    found = sum(jax.nn.logsumexp(closeness, axis=axis) - own for axis in (0, 1))
    return summed + contrastive * jnp.where(both, found / 2.0, 0.0).sum(), mean


def _half(jnp: Any, inputs: Inputs, parity: int) -> Inputs:
    return {
        name: of
        | {"is_there": of["is_there"] & (jnp.arange(of["is_there"].shape[1]) % 2 == parity)}
        for name, of in inputs.items()
    }


def _is_any(jnp: Any, inputs: Inputs) -> Any:
    return jnp.stack([of["is_there"].any(axis=1) for of in inputs.values()]).any(axis=0)


def _unit(jnp: Any, vectors: Any) -> Any:
    return vectors / jnp.sqrt((vectors * vectors).sum(axis=-1, keepdims=True) + 1e-12)


@cache
def _compiled_gradient(settings_json: str, contrastive: float, temperature: float) -> Any:
    """Return the function from what :func:`loss_of` takes to the mean log loss and gradients.

    By parameters, by content and by ads.
    """
    jax = jax_or(EmbeddingsExtraMissing)
    settings = EncoderSettings.model_validate_json(settings_json)

    def gradient(*given: Any) -> Any:
        of = jax.value_and_grad(
            lambda *learnt: loss_of(settings, contrastive, temperature, *learnt, *given[3:]),
            argnums=(0, 1, 2),
            has_aux=True,
        )
        (_, mean_loss), gradients = of(*given[:3])
        return mean_loss, gradients

    return jax.jit(gradient)
