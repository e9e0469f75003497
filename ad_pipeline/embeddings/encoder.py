"""From a user's sequences to a vector: a module a modality, attention fusion, compression.

:func:`user_vector` is one user's, and pure: training maps it over a batch at once, refreshing maps
it over users one after the other. Labels and steps belong to :mod:`.training`, stored vectors to
whoever keeps them.

**Module.** The mean of an activity's slots, plus the projection of its vector if it has one, is
enriched (:mod:`.enrichment`), passes a transformer block and is pooled by H queries, each a head:

    z_h = (Σ_i w_ih V_h x_i + w_0h v_0h) / (Σ_i w_ih + w_0h),   w_ih = exp(s_h · x_i) 2^(-age_i/τ_h)

w_0 and v_0 are a *prior*: who did nothing, or nothing lately, is pulled to what the modality says
of an unknown user, by as much as his activities are few and old. Pooling is linear in activities.

**Fusion.** The modalities of a user are a sequence of M; a block with attention among them, then
one matrix from all of them to d numbers.

**Same bits.** A user is padded to a shape that is his own (:mod:`.sequences`) and is encoded alone,
by one compiled program a shape: neither the batch that he comes in nor its size can show.

References
----------
Async Learned User Embeddings for Ads Delivery Optimization, arXiv 2406.05898 (modules in parallel,
fusion, compression). Katharopoulos et al., Transformers are RNNs, ICML 2020 (linear attention).
Zhang and Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from ad_pipeline.checkpoints import read_checkpoint
from ad_pipeline.embeddings import enrichment
from ad_pipeline.embeddings.sentences import check_same, sentence_encoder_of
from ad_pipeline.embeddings.sequences import Batch, Sequences, Window
from ad_pipeline.embeddings.slot_table import SlotTable
from ad_pipeline.hashing import uniform
from ad_pipeline.settings import EncoderSettings, Mixing
from ad_pipeline.xla import jax_or

Parameters = dict[str, Any]
"""Arrays by name, in dictionaries by part."""

Inputs = dict[str, dict[str, Any]]
"""What the encoder reads of a user or of a batch, by modality."""

ROWS = 64
"""Users of a call at most; they are encoded one after the other."""

NORM_FLOOR = 0.01
"""Added to a mean square before its root: what was not learnt is small, and stays small."""

NEVER = -1e30
"""The score of an activity that is not there."""


class EmbeddingsExtraMissing(ImportError):
    """JAX is not installed, which user vectors are learned and computed in."""

    def __init__(self) -> None:
        super().__init__(
            "user vectors are computed in JAX, which is not installed; install it with "
            "`pip install ad_pipeline[embeddings]`"
        )


@dataclass(frozen=True)
class Encoder:
    """What was learned of users and ads.

    Attributes
    ----------
    settings : EncoderSettings
    parameters : Parameters
        float32, as :func:`first_parameters` shapes them.
    content : SlotTable
        Rows of activities' slots, width numbers each.
    ads : SlotTable
        Rows of ads' slots: d numbers, then a bias a task.
    """

    settings: EncoderSettings
    parameters: Parameters
    content: SlotTable
    ads: SlotTable

    @classmethod
    def first(cls, settings: EncoderSettings, seed: int = 0) -> Self:
        """Return an encoder that has learnt nothing; same seed, same first weights."""
        bits = settings.bits
        return cls(
            settings,
            first_parameters(settings, seed),
            SlotTable.first(bits, settings.width, seed, "content"),
            SlotTable.first(bits, settings.dimension + len(settings.tasks), seed, "ads"),
        )

    @classmethod
    def open(cls, root: Path, digest: str) -> Self:
        """Read an encoder, every byte verified, from a checkpoint of :mod:`.training`.

        Raises
        ------
        MissingCheckpoint, CorruptCheckpoint
            If it is not there, or bytes differ from its manifest.
        OtherSentenceEncoder, SentencesExtraMissing
            If it reads sentences, and not by the weights that are installed.
        """
        checkpoint = read_checkpoint(root, digest)
        return cls.restore(checkpoint.arrays, checkpoint.manifest)

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Self:
        """Return the encoder of a :meth:`state`."""
        settings = EncoderSettings.model_validate(manifest["settings"])
        check_same(settings, manifest.get("sentence_encoder"))
        parameters = laid_out(np.array(arrays["parameters"]), first_parameters(settings))
        tables = (
            SlotTable(np.array(arrays[f"{name}_rows"]), np.array(arrays[f"{name}_squares"]))
            for name in ("content", "ads")
        )
        return cls(settings, parameters, *tables)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return plain arrays and a JSON manifest that :meth:`restore` takes."""
        arrays = {"parameters": flat_of(self.parameters)}
        for name, table in (("content", self.content), ("ads", self.ads)):
            arrays |= {f"{name}_rows": table.rows, f"{name}_squares": table.squares}
        manifest = {"settings": self.settings.model_dump(mode="json")}
        sentences = sentence_encoder_of(self.settings)
        return arrays, manifest | ({"sentence_encoder": sentences} if sentences else {})

    @property
    def longest(self) -> dict[str, int]:
        """Modalities that are read, with the activities of each: what sequences are cut to."""
        return {modality.name: modality.longest for modality in self.settings.modalities}

    def vectors(self, sequences: Sequences) -> np.ndarray:
        """Return the vectors of users, each as it would be if he were the only one, to the bit.

        Parameters
        ----------
        sequences : Sequences
            Of this encoder's modalities, cut to :attr:`longest`.

        Returns
        -------
        ndarray of shape (n, d), float32

        Raises
        ------
        EmbeddingsExtraMissing
            If JAX is not installed.
        ValueError
            If the sequences are of other modalities, or longer.
        """
        self.check(sequences)
        vectors_of = _compiled_vectors(self.settings.model_dump_json())
        parameters = jax_or(EmbeddingsExtraMissing).device_put(self.parameters)
        out = np.empty((len(sequences), self.settings.dimension), np.float32)
        for batch in sequences.batches(ROWS):
            count = len(batch.rows)
            inputs = _padded(self.inputs(windows_of(sequences, batch)), ROWS - count)
            out[batch.rows] = np.asarray(vectors_of(parameters, inputs, count))[:count]
        return out

    def ad_vectors(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors and biases of ads.

        Parameters
        ----------
        tokens : ndarray of shape (n, A), uint32
            Slots of each ad's ids and words (:mod:`.content`).

        Returns
        -------
        vectors : ndarray of shape (n, d), float32
        biases : ndarray of shape (n, tasks), float32
        """
        rows = self.ads.means(tokens)
        return rows[:, : self.settings.dimension], rows[:, self.settings.dimension :]

    def logits(self, users: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return log odds, float32 (n, tasks), of users' vectors (n, d) with ads' slots (n, A)."""
        return task_logits(self.parameters["heads"], users, self.ads.means(tokens)[:, None])[:, 0]

    def inputs(self, windows: Mapping[str, Window]) -> Inputs:
        """Return what :func:`user_vector` reads of a batch."""
        return {
            modality.name: {
                "content": self.content.means(windows[modality.name].tokens),
                "is_there": windows[modality.name].is_there,
                **({"vector": windows[modality.name].vectors} if modality.vector else {}),
                **enrichment.inputs_of(self.settings.enrichment, windows[modality.name]),
            }
            for modality in self.settings.modalities
        }

    def check(self, sequences: Sequences) -> None:
        """Raise a ValueError unless sequences are of this encoder's modalities and lengths."""
        for name, longest in self.longest.items():
            if name not in sequences.spans:
                raise ValueError(f"sequences lack modality {name!r}; cut them to Encoder.longest")
            found = int(sequences.lengths(name).max(initial=0))
            if found > longest:
                raise ValueError(
                    f"a sequence has {found} activities of modality {name!r}, the encoder reads "
                    f"{longest}; cut sequences to Encoder.longest"
                )


def windows_of(sequences: Sequences, batch: Batch) -> dict[str, Window]:
    """Return the padded activities of a batch, by modality."""
    return {
        name: sequences.newest_first(name, batch.rows, length)
        for name, length in batch.lengths.items()
    }


def first_parameters(settings: EncoderSettings, seed: int = 0) -> Parameters:
    """Return the first parameters: LeCun's uniform weights, drawn by hash; what is added is 0."""
    width, heads, d = settings.width, settings.heads, settings.dimension

    def weights(name: str, inputs: int, units: int) -> np.ndarray:
        draws = uniform(seed, np.arange(inputs * units, dtype=np.uint64), name)
        bound = math.sqrt(3.0 / inputs)
        return ((2.0 * draws - 1.0) * bound).astype(np.float32).reshape(inputs, units)

    def block(name: str, mixing: Mixing) -> Parameters:
        parts = {
            "inner": weights(f"{name}, inner", width, 2 * width),
            "inner_bias": np.zeros(2 * width, np.float32),
            "outer": weights(f"{name}, outer", 2 * width, width),
        }
        if mixing != "none":
            for part in ("asked", "offered", "given", "taken"):
                parts[part] = weights(f"{name}, {part}", width, width)
        return parts

    modules = {}
    for modality in settings.modalities:
        name = f"encoder, {modality.name}"
        modules[modality.name] = {
            "bias": np.zeros(width, np.float32),
            "block": block(name, settings.mixing),
            "scores": weights(f"{name}, scores", width, heads),
            "values": weights(f"{name}, values", width, width),
            "prior": np.zeros(width, np.float32),
            "prior_score": np.zeros(heads, np.float32),
            **enrichment.parameters_of(settings.enrichment, width, heads, modality.longest),
        }
        if modality.vector:
            modules[modality.name]["projection"] = weights(
                f"{name}, projection", modality.vector, width
            )
    return {
        "modules": modules,
        "fusion": block("encoder, fusion", "quadratic"),
        "compression": weights("encoder, compression", len(modules) * width, d),
        "heads": {
            "scale": np.ones((len(settings.tasks), d), np.float32),
            "user": np.zeros((d, len(settings.tasks)), np.float32),
            "bias": np.zeros(len(settings.tasks), np.float32),
        },
    }


def user_vector(settings: EncoderSettings, parameters: Parameters, inputs: Inputs) -> Any:
    """Return one user's vector.

    Parameters
    ----------
    settings : EncoderSettings
    parameters : Parameters
        As :func:`first_parameters` shapes them.
    inputs : Inputs
        Of each modality: ``content`` (L, h), ``is_there`` (L,), ``vector`` (L, W) if it has one,
        and what enrichment reads; newest first.

    Returns
    -------
    array of shape (d,)
        Of the parameters' namespace and dtype.
    """
    pooled = [
        _pooled_module(settings, parameters["modules"][modality.name], inputs[modality.name])
        for modality in settings.modalities
    ]
    xp = pooled[0].__array_namespace__()
    fused = xp.stack(pooled)
    all_there = xp.ones(len(pooled), dtype=bool)
    fused = _block(parameters["fusion"], fused, all_there, "quadratic", settings.heads)
    return fused.reshape(-1) @ parameters["compression"]


def task_logits(heads: Parameters, users: Any, ads: Any) -> Any:
    """Return log odds of users with ads: a scaled inner product, and what either says alone.

    Parameters
    ----------
    heads : Parameters
        ``scale`` (tasks, d), ``user`` (d, tasks), ``bias`` (tasks,).
    users : array of shape (n, d)
    ads : array of shape (n, K, d + tasks)
        K ads a user: vectors, then biases.

    Returns
    -------
    array of shape (n, K, tasks)
    """
    d = users.shape[-1]
    own = users @ heads["user"] + heads["bias"]
    scaled = users[:, None, :] * heads["scale"]
    return ads[..., :d] @ scaled.swapaxes(1, 2) + ads[..., d:] + own[:, None, :]


def _pooled_module(settings: EncoderSettings, module: Parameters, inputs: dict[str, Any]) -> Any:
    """Return what one modality says of a user, (h,)."""
    content, is_there = inputs["content"], inputs["is_there"]
    x = content + module["bias"]
    if "projection" in module:
        x = x + inputs["vector"] @ module["projection"]
    x = enrichment.enriched(module, inputs, x)
    x = _block(module["block"], x, is_there, settings.mixing, settings.heads)
    xp = x.__array_namespace__()
    scores = x @ module["scores"] + enrichment.log_weights(module, inputs)
    scores = xp.where(is_there[:, None], scores, NEVER)
    highest = xp.maximum(scores.max(axis=0), module["prior_score"])
    weights = xp.exp(scores - highest)
    of_prior = xp.exp(module["prior_score"] - highest)
    values = _in_heads(x @ module["values"], settings.heads)
    prior = module["prior"].reshape(settings.heads, -1)
    total = xp.sum(weights[:, :, None] * values, axis=0) + of_prior[:, None] * prior
    return (total / (xp.sum(weights, axis=0) + of_prior)[:, None]).reshape(-1)


def _block(block: Parameters, x: Any, is_there: Any, mixing: Mixing, heads: int) -> Any:
    """Return activities (L, h) after attention among them, if any, and two layers."""
    xp = x.__array_namespace__()
    if mixing != "none":
        normed = _normed(x)
        asked, offered, given = (
            _in_heads(normed @ block[name], heads) for name in ("asked", "offered", "given")
        )
        attention = _linear if mixing == "linear" else _quadratic
        mixed = attention(asked, offered, given, is_there)
        x = x + mixed.reshape(x.shape) @ block["taken"]
    inner = xp.maximum(_normed(x) @ block["inner"] + block["inner_bias"], 0.0)
    return x + inner @ block["outer"]


def _quadratic(asked: Any, offered: Any, given: Any, is_there: Any) -> Any:
    """Return softmax attention of (L, heads, h / heads) parts among the activities there."""
    xp = asked.__array_namespace__()
    scale = 1.0 / math.sqrt(asked.shape[-1])
    scores = scale * (asked.swapaxes(0, 1) @ offered.transpose(1, 2, 0))
    scores = xp.where(is_there, scores, NEVER)
    weights = xp.exp(scores - scores.max(axis=-1, keepdims=True)) * is_there
    total = xp.maximum(xp.sum(weights, axis=-1, keepdims=True), 1.0)  # the highest weighs 1
    return (weights / total @ given.swapaxes(0, 1)).swapaxes(0, 1)


def _linear(asked: Any, offered: Any, given: Any, is_there: Any) -> Any:
    """Return linear attention, with elu + 1 as the map of features."""
    xp = asked.__array_namespace__()
    asked = _positive(asked).swapaxes(0, 1)
    offered = (_positive(offered) * is_there[:, None, None]).swapaxes(0, 1)
    summed = offered.swapaxes(1, 2) @ given.swapaxes(0, 1)
    total = asked @ xp.sum(offered, axis=1)[:, :, None]
    return (asked @ summed / xp.maximum(total, 1e-6)).swapaxes(0, 1)


def _positive(x: Any) -> Any:
    xp = x.__array_namespace__()
    return xp.where(x > 0, x + 1.0, xp.exp(xp.minimum(x, 0.0)))


def _normed(x: Any) -> Any:
    xp = x.__array_namespace__()
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + NORM_FLOOR)


def _in_heads(x: Any, heads: int) -> Any:
    return x.reshape(len(x), heads, -1)


def _padded(inputs: Inputs, rows: int) -> Inputs:
    """Return a batch's inputs with rows of zeros behind."""
    return {
        name: {
            part: np.concatenate([array, np.zeros((rows, *array.shape[1:]), array.dtype)])
            for part, array in of.items()
        }
        for name, of in inputs.items()
    }


@cache
def _compiled_vectors(settings_json: str) -> Any:
    """Return the program from parameters and a batch's inputs to vectors, a user at a time.

    How many users there are is an argument, so that one costs no more than one.
    """
    jax = jax_or(EmbeddingsExtraMissing)
    settings = EncoderSettings.model_validate_json(settings_json)

    def vectors(parameters: Parameters, inputs: Inputs, count: Any) -> Any:
        def encode(row: Any, out: Any) -> Any:
            one = jax.tree.map(lambda array: array[row], inputs)
            return out.at[row].set(user_vector(settings, parameters, one))

        first = jax.numpy.zeros((ROWS, settings.dimension), np.float32)
        return jax.lax.fori_loop(0, count, encode, first)

    return jax.jit(vectors)


def flat_of(tree: Parameters) -> np.ndarray:
    """Return all numbers of a tree one after the other, float32 (P,), parts in order of name."""
    return np.concatenate([leaf.reshape(-1) for leaf in _leaves(tree)])


def laid_out(flat: np.ndarray, like: Parameters) -> Parameters:
    """Return views of the numbers of :func:`flat_of`, shaped as another tree's."""
    ends = np.cumsum([leaf.size for leaf in _leaves(like)])
    parts = iter(np.split(flat, ends[:-1]))

    def shaped(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: shaped(part) for name, part in sorted(tree.items())}
        return next(parts).reshape(tree.shape)

    return shaped(like)


def _leaves(tree: Any) -> Iterator[np.ndarray]:
    if isinstance(tree, dict):
        for _, part in sorted(tree.items()):
            yield from _leaves(part)
    else:
        yield tree
