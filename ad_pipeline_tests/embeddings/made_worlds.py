"""Made users: activities at random, and worlds whose clicks come from hidden tastes."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.embeddings.content import id_tokens
from ad_pipeline.embeddings.encoder import Encoder, flat_of, laid_out
from ad_pipeline.embeddings.enrichment import DAY_US
from ad_pipeline.embeddings.sequences import History, Sequences
from ad_pipeline.settings import EncoderSettings, Enrichment, Modality

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None,
    reason="JAX is not installed: pip install ad_pipeline[embeddings]",
)

needs_sentences = pytest.mark.skipif(
    importlib.util.find_spec("wordllama") is None,
    reason="the sentence encoder is not installed: pip install ad_pipeline[sentences]",
)

BITS = 10
TASKS = ("click", "conversion")
NOW_US = 1_700_000_000_000_000 // DAY_US * DAY_US
NO_ENRICHMENT = Enrichment(
    absolute_position=False, temporal_decay=False, cyclic_pattern=False, relative_position=False
)


def settings_of(*modalities: str, **others: Any) -> EncoderSettings:
    """Return a small encoder's settings."""
    kinds = tuple(Modality(name=name, tokens=1, longest=16) for name in modalities)
    small: dict[str, Any] = {"bits": BITS, "width": 8, "dimension": 8, "heads": 2, "tasks": TASKS}
    return EncoderSettings(modalities=kinds, **(small | others))


def activities(
    user: np.ndarray, occurred_us: np.ndarray, modality: np.ndarray, ids: np.ndarray
) -> pa.Table:
    """Return a table of activities that our log had at once; one id each, hashed by modality."""
    slots = np.empty(len(ids), np.uint32)
    for name in set(modality):
        mine = modality == name
        slots[mine] = id_tokens(pa.array(ids[mine].astype(str)), f"{name}.topic", BITS)
    return pa.table(
        {
            "user_id": pa.array([f"u{u:05}" for u in user]),
            "occurred_us": pa.array(occurred_us),
            "received_us": pa.array(occurred_us),
            "modality": pa.array(modality),
            "tokens": pa.array(slots[:, None].tolist(), pa.list_(pa.uint32())),
        }
    )


def history_at_random(settings: EncoderSettings, users: int = 40, seed: int = 0) -> History:
    """Return users of 0 to 20 activities of each modality within the month before now."""
    generator = np.random.default_rng(seed)
    parts = []
    for modality in settings.modalities:
        counts = generator.integers(0, 21, users)
        counts[0] = 20  # somebody is in the log
        user = np.repeat(np.arange(users), counts)
        occurred_us = NOW_US - generator.integers(0, 30 * DAY_US, len(user))
        parts.append((user, occurred_us, np.full(len(user), modality.name)))
    user, occurred_us, modality = (np.concatenate(part) for part in zip(*parts, strict=True))
    table = activities(user, occurred_us, modality, generator.integers(0, 30, len(user)))
    widths = {m.name: m.vector for m in settings.modalities}
    given = [generator.normal(size=widths[name]).tolist() for name in modality]
    table = table.append_column("vector", pa.array(given, pa.list_(pa.float32())))
    return History.of_table(table, settings.modalities)


def shaken(encoder: Encoder, seed: int = 1) -> Encoder:
    """Return an encoder none of whose parameters is 0 any more, as after much learning."""
    generator = np.random.default_rng(seed)
    flat = flat_of(encoder.parameters)
    flat = flat + generator.normal(0.0, 0.3, flat.shape).astype(np.float32)
    parameters = laid_out(flat, encoder.parameters)
    content = encoder.content.copy()
    content.rows[1:] = generator.normal(size=content.rows[1:].shape)
    return Encoder(encoder.settings, parameters, content, encoder.ads)


@dataclass(frozen=True)
class World:
    """What was done, what was shown after now, and the truth.

    Attributes
    ----------
    table : pa.Table
        Activities before now.
    ads : ndarray of shape (users, shown, A), uint32
        Slots of the ads that each user is shown after now.
    labels : ndarray of shape (users, shown, 2), float32
        Clicks, and conversions of the clicks.
    probability : ndarray of shape (users, shown)
        Of a click.
    """

    table: pa.Table
    ads: np.ndarray
    labels: np.ndarray
    probability: np.ndarray


def tastes_of_two_sides(users: int, seed: int = 0, topics: int = 5, each: int = 12) -> World:
    """Return users with two hidden tastes; each modality shows one, an ad appeals to both."""
    generator = np.random.default_rng(seed)
    taste = generator.integers(0, topics, (users, 2))
    user = np.repeat(np.arange(users), each)
    chosen = [
        np.where(
            generator.random(len(user)) < 0.7,
            taste[user, side],
            generator.integers(0, topics, len(user)),
        )
        for side in (0, 1)
    ]
    when = NOW_US - generator.integers(0, 30 * DAY_US, 2 * len(user))
    modality = np.repeat(["clicks", "views"], len(user))
    table = activities(np.tile(user, 2), when, modality, np.concatenate(chosen))
    return _shown(generator, table, taste)


def tastes_that_moved(users: int, seed: int = 0, topics: int = 5) -> World:
    """Return users whose taste of the last week is another than that of the months before."""
    generator = np.random.default_rng(seed)
    taste = generator.integers(0, topics, (users, 2))
    ages = np.tile([*range(1, 6), *range(60, 70)], (users, 1))  # days
    order = np.argsort(generator.random(ages.shape), axis=1)
    ages = np.take_along_axis(ages, order, axis=1)
    user = np.repeat(np.arange(users), ages.shape[1])
    chosen = taste[user, (ages.ravel() > 7).astype(int)]
    when = NOW_US - ages.ravel() * DAY_US - generator.integers(0, DAY_US, len(user))
    table = activities(user, when, np.full(len(user), "clicks"), chosen)
    return _shown(generator, table, taste[:, :1])


def _shown(generator: np.random.Generator, table: pa.Table, taste: np.ndarray) -> World:
    """Show every user ads of random topics; each side that matches makes a click likelier."""
    users, sides = taste.shape
    topics = int(taste.max()) + 1
    topic = generator.integers(0, topics, (users, 16, sides))
    matches = (topic == taste[:, None]).sum(axis=-1)
    probability = 1.0 / (1.0 + np.exp(2.5 - 2.5 * matches))
    clicked = generator.random(probability.shape) < probability
    converted = clicked & (generator.random(probability.shape) < 0.3)
    slots = [
        id_tokens(pa.array(topic[..., side].ravel().astype(str)), f"ad.side {side}", BITS)
        for side in range(sides)
    ]
    ads = np.stack(slots, axis=-1).reshape(topic.shape)
    return World(table, ads, np.stack([clicked, converted], -1).astype(np.float32), probability)


def sequences_of(settings: EncoderSettings, table: pa.Table, as_of_us: int = NOW_US) -> Sequences:
    """Return the sequences of all users as of a moment."""
    longest = {modality.name: modality.longest for modality in settings.modalities}
    return History.of_table(table, settings.modalities).sequences(as_of_us, longest)
