"""What the study of user vectors measures in one market: what an encoder is worth to a ranker.

From a market of :mod:`benchmarks.vector_worlds` to numbers: arms of an encoder are trained on the
first days, a ranker on the next with vectors as of their last refresh, and the last two days are
tested. Gains are under the true probabilities, so that the noise of labels is no part of them; the
main one is measured on labels too, as a real log would. What is claimed of the numbers stands in
:mod:`benchmarks.evidence.embeddings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.embeddings.content import id_tokens
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.graph import SimilarityGraph, Users
from ad_pipeline.embeddings.next_actions import Actions
from ad_pipeline.embeddings.published import ad_hashes
from ad_pipeline.embeddings.sequences import Activities, History
from ad_pipeline.embeddings.training import CODE_VERSION, train
from ad_pipeline.hashing import hash_strings, seed_of, uniform
from ad_pipeline.learners.batch import batch_hours
from ad_pipeline.monitoring.user_vectors.cold_start import (
    BUCKETS,
    SEGMENT,
    SEGMENT_STRENGTH,
    STRENGTH,
    bucket_of,
    last_segments,
    segments_of,
)
from ad_pipeline.monitoring.user_vectors.features import Engagements
from ad_pipeline.monitoring.user_vectors.labelled import Impressions, lessons
from ad_pipeline.monitoring.user_vectors.ranker import (
    MOST_TRAININGS,
    TRAINED_ROWS,
    USER_SHARE,
    Split,
    mean_losses,
)
from ad_pipeline.monitoring.user_vectors.recall import recalls
from ad_pipeline.monitoring.user_vectors.study import (
    StudiedLog,
    engaged_after,
    lists_of,
    probabilities_with,
)
from ad_pipeline.monitoring.user_vectors.worth import INTERVALS
from ad_pipeline.settings import (
    NEXT,
    BatchSettings,
    EncoderSettings,
    Enrichment,
    Modality,
    TrainingSettings,
    UserVectorSettings,
)
from benchmarks import vector_worlds
from benchmarks.studies import Values
from benchmarks.vector_worlds import AD_COLUMNS, GOALS, RankerRows, VectorWorld, vector_world

BITS = 14
MODALITIES = {"ad_click": 8, "ad_view": 8, "content_view": 128}
"""Activities of each that are read."""

LEARNT_FROM_US, ENCODER_US, TESTED_US = DAY_US // 2, 5 * DAY_US, 8 * DAY_US
"""Since the market's start: the encoder learns between the first two, the ranker between the second
and the third, and the rest is tested."""

BLOCK_US = DAY_US
GAP_US = 6 * HOUR_US
TRAINING = TrainingSettings(
    dense_rate=0.001, table_rate=0.1, epochs=2, batch_sequences=64, ads_per_sequence=32
)
DIMENSION = 32

MAIN_US = DAY_US
"""Interval of all other figures: everybody is refreshed at midnight."""

FEWEST = UserVectorSettings().fewest_activities
"""Activities from which on a user has a vector: what the product does."""

NEW_SHARE = 0.3
"""Of users, whose activities are kept from the encoder up to a moment drawn over the whole log."""

SEEDS = (501, 502, 503, 504, 505, 506)
"""Learning rates, features and the world were chosen on seeds 11 and 12."""

TOLERATED = 0.001
"""Share of normalized entropy below which a loss counts as none: one training varies so."""

ANEW = 1_000
"""Added to the seed of a training that is done anew."""

VERSION = 1

LIST = 10
NEIGHBOURS = 50
GRAPH = UserVectorSettings(
    neighbours=NEIGHBOURS, exact_users=1, clusters_per_root=2.0, probes=12, aimed_recall=None
)
"""A search of twelve clusters, whatever they hold: what its comparisons buy is asked."""


@dataclass(frozen=True)
class Arm:
    """An encoder to be measured.

    Attributes
    ----------
    enrichment : Enrichment
    modalities : tuple of str
    dimension : int
    tasks : tuple of str
    publishers : int or None
        Half of the publishers whose labels are learnt; all if None.
    of_strangers : bool
        Whether everybody is given another user's vectors: a control.
    anew : bool
        Whether it is trained from another start and order: a control.
    """

    enrichment: Enrichment = field(default_factory=Enrichment)
    modalities: tuple[str, ...] = tuple(MODALITIES)
    dimension: int = DIMENSION
    tasks: tuple[str, ...] = (*GOALS, NEXT)
    publishers: int | None = None
    of_strangers: bool = False
    anew: bool = False

    @property
    def encoder(self) -> EncoderSettings:
        """Settings of the encoder."""
        return EncoderSettings(
            modalities=tuple(
                Modality(name=name, tokens=3, longest=MODALITIES[name]) for name in self.modalities
            ),
            enrichment=self.enrichment,
            bits=BITS,
            dimension=self.dimension,
            tasks=self.tasks,
        )


@dataclass(frozen=True)
class Market(StudiedLog):
    """A market, laid out for encoder and ranker.

    Attributes
    ----------
    world : VectorWorld
    actions : Actions
        What users read.
    """

    world: VectorWorld
    actions: Actions


@lru_cache(maxsize=1)
def market_of(seed: int) -> Market:
    """Return a seed's market."""
    return laid_out(vector_world(seed))


def laid_out(world: VectorWorld) -> Market:
    """Lay a market out: activities and ads as slots, rows by places."""
    ads = {ad: place for place, ad in enumerate(world.ads["ad_id"].to_pylist())}
    ad_tokens = _slots(world.ads, AD_COLUMNS, "ad")
    done, contents = world.activities, world.activities["content_id"].to_pylist()
    is_ad = np.array([content in ads for content in contents])
    place = np.array([ads.get(content, 0) for content in contents])
    kind = pa.array([content.split("-")[0] for content in contents])
    read = np.zeros((len(contents), 3), np.uint32)
    read[:, 0] = id_tokens(done["content_id"], "content", BITS)
    read[:, 1] = id_tokens(kind, "content's kind", BITS)
    of_ads = _slots(world.ads, ("ad_id", "campaign_id", "category"), "done to ad")
    tokens = np.where(is_ad[:, np.newaxis], of_ads[place], read)
    listed = pa.FixedSizeListArray.from_arrays(pa.array(tokens.ravel()), 3)
    done = done.append_column("tokens", listed.cast(pa.list_(pa.uint32())))
    names = tuple(Modality(name=name, tokens=3) for name in MODALITIES)
    history = History.of_table(done, names)
    user = history.places(done["user_id"])
    received_us = done["received_us"].to_numpy()
    modality = np.array(done["modality"].to_pylist())
    views, clicks = modality == "content_view", modality == "ad_click"
    about = np.concatenate([read, np.zeros((len(read), 1), np.uint32)], axis=1)
    split = Split(world.start_us + ENCODER_US, world.start_us + TESTED_US)
    goals = {goal: _impressions(history, ads, rows) for goal, rows in world.rows.items()}
    segments = {goal: segments_of(rows.context, SEGMENT) for goal, rows in world.rows.items()}
    seen = goals["click"]
    before = np.flatnonzero((seen.occurred_us <= split.learn_from_us) & (seen.user >= 0))
    of_users = last_segments(len(history.users), seen.user[before], segments["click"][before])
    return Market(
        history=history,
        ad_hashes=ad_hashes(world.ads["ad_id"]),
        ad_tokens=ad_tokens,
        goals=goals,
        segments=segments,
        user_segments=of_users,
        engagements=Engagements(user[clicks], place[clicks], received_us[clicks]),
        first_us=world.start_us,
        split=split,
        batch=BatchSettings(),
        gaps_us=dict.fromkeys(GOALS, GAP_US),
        engagers_every_us=DAY_US,
        world=world,
        actions=Actions(user[views], received_us[views], about[views]),
    )


def with_newcomers(market: Market, seed: int) -> Market:
    """Return the market with some users of whom little is known, or nothing yet, at any time.

    In a log that begins with everybody there are no new users: the encoder learns from the market
    as it is, and what is read of these users begins when they join. The ranker's own features know
    them all along, which favours the ranker without vectors.
    """
    users = len(market.history.users)
    draws = np.random.default_rng(seed).random((2, users))
    length_us = vector_worlds.SPEC.days * DAY_US
    joined_us = market.world.start_us + (draws[1] * length_us).astype(np.int64)
    joined_us[draws[0] >= NEW_SHARE] = 0
    modalities = {}
    for name, of in market.history.modalities.items():
        user = np.repeat(np.arange(users), np.diff(of.offsets))
        kept = of.received_us >= joined_us[user]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(user[kept], minlength=users))])
        modalities[name] = Activities(
            offsets, of.occurred_us[kept], of.received_us[kept], of.tokens[kept], of.vectors[kept]
        )
    return replace(market, history=History(market.history.users, modalities))


def _slots(table: pa.Table, columns: tuple[str, ...], name: str) -> np.ndarray:
    return np.stack([id_tokens(table[each], f"{name}.{each}", BITS) for each in columns], axis=1)


def _impressions(history: History, ads: Mapping[str, int], rows: RankerRows) -> Impressions:
    return Impressions(
        history.places(rows.users),
        np.array([ads[ad] for ad in rows.ads["ad_id"].to_pylist()]),
        rows.occurred_us,
        rows.matured_us,
        rows.labels,
        rows.dense,
        rows.categories,
        rows.online_logit,
        rows.dense_names,
        rows.category_names,
    )


def encoder_of(arm: Arm, seed: int) -> Encoder:
    """Train an arm's encoder on a seed's market, unless it is the last one that was trained."""
    return _encoder_of(replace(arm, of_strangers=False), seed)


@lru_cache(maxsize=1)
def _encoder_of(arm: Arm, seed: int) -> Encoder:
    market = market_of(seed)
    goals = dict(market.goals)
    if arm.publishers is not None:
        goals = {
            goal: shown.taken(publisher_half(market, goal) == arm.publishers)
            for goal, shown in goals.items()
        }
    span_us = (market.world.start_us + LEARNT_FROM_US, market.world.start_us + ENCODER_US)
    settings = arm.encoder
    longest = {name: MODALITIES[name] for name in arm.modalities}
    taught = lessons(
        market.history,
        longest,
        market.ad_tokens,
        goals,
        arm.tasks,
        span_us,
        BLOCK_US,
        market.actions if NEXT in arm.tasks else None,
        seed,
    )
    how = TRAINING.model_copy(update={"seed": seed + ANEW if arm.anew else seed})
    return train(settings, how, taught.sequences, taught.ads, say=lambda _: None).encoder


def publisher_half(market: Market, goal: str) -> np.ndarray:
    """Return the half, 0 or 1, of each row's publisher, drawn by its name."""
    names = market.world.rows[goal].context["publisher_id"].combine_chunks()
    return (uniform(0, hash_strings(names, seed_of("publisher")), "half") < 0.5).astype(np.int64)


@lru_cache(maxsize=128)
def probabilities_without(seed: int, goal: str) -> np.ndarray:
    """Return what the ranker without vectors says of a goal's tested rows."""
    return probabilities_with(market_of(seed), goal, None)


@dataclass(frozen=True)
class Tested:
    """The tested rows of a goal.

    Attributes
    ----------
    places : ndarray of shape (t,), int64
        Among the goal's rows.
    of_ranked : ndarray of shape (n,), bool
        Which of :meth:`Market.ranked_rows` they are.
    truth : ndarray of shape (t,), float64
    """

    places: np.ndarray
    of_ranked: np.ndarray
    truth: np.ndarray


def tested(market: Market, goal: str) -> Tested:
    """Return the tested rows of a goal."""
    rows = market.ranked_rows(goal)
    of_ranked = market.split.tested(market.goals[goal].taken(rows))
    places = rows[of_ranked]
    return Tested(places, of_ranked, market.world.rows[goal].truth[places])


def expected_gain(truth: np.ndarray, with_columns: np.ndarray, without: np.ndarray) -> float:
    """Return the share of expected log loss, so of normalized entropy, that columns save.

    Parameters
    ----------
    truth : ndarray of shape (t,), float64
    with_columns, without : ndarray of shape (trainings, t), float64
    """
    losses, of_other = (mean_losses(truth, said).sum() for said in (with_columns, without))
    return float(1.0 - losses / of_other)


def gain_of_columns(seed: int, goal: str, columns: np.ndarray) -> float:
    """Return the expected gain of some more columns."""
    market = market_of(seed)
    said = probabilities_with(market, goal, columns)
    return expected_gain(tested(market, goal).truth, said, probabilities_without(seed, goal))


def study_settings(arms: Mapping[str, Arm]) -> dict[str, object]:
    """Return all that figures of some arms follow from."""
    return {
        "worlds": vector_worlds.settings(),
        "arms": {
            name: {
                "encoder": arm.encoder.model_dump(mode="json"),
                "publishers": arm.publishers,
                **{name: True for name in ("of_strangers", "anew") if getattr(arm, name)},
            }
            for name, arm in arms.items()
        },
        "training": TRAINING.model_dump(mode="json"),
        "code_versions": {"encoder": CODE_VERSION, "batch": batch_hours.CODE_VERSION},
        "days": [LEARNT_FROM_US, ENCODER_US, TESTED_US, BLOCK_US, GAP_US, MAIN_US],
        "intervals": INTERVALS,
        "prior": [STRENGTH, SEGMENT_STRENGTH, NEW_SHARE],
        "fewest": FEWEST,
        "trainings": [MOST_TRAININGS, TRAINED_ROWS, USER_SHARE],
        "lists": [LIST, GRAPH.neighbours, GRAPH.half_life_hours, GRAPH.popularity_strength],
        "version": VERSION,
    }


def match_values(market: Market, seed: int, goal: str, said: np.ndarray) -> Values:
    """Measure what match columns gain, on all tested rows and by half of the publishers."""
    found, without = tested(market, goal), probabilities_without(seed, goal)
    half = publisher_half(market, goal)[found.places]
    values = {"match": expected_gain(found.truth, said, without)}
    return values | {
        f"half/{each}": expected_gain(
            found.truth[half == each], said[:, half == each], without[:, half == each]
        )
        for each in (0, 1)
    }


def bucket_values(
    market: Market, seed: int, goal: str, activities: np.ndarray, said: Mapping[str, np.ndarray]
) -> Values:
    """Measure what several probabilities of the tested rows gain in each bucket of activity.

    Parameters
    ----------
    market : Market
    seed : int
    goal : str
    activities : ndarray of shape (t,), int64
        Of each tested row's user.
    said : mapping of str to ndarray of shape (trainings, t), float64
        Probabilities, by the name that their gain gets.
    """
    truth, without = tested(market, goal).truth, probabilities_without(seed, goal)
    bucket = bucket_of(activities)
    values: Values = {}
    for place in range(len(BUCKETS)):
        inside = bucket == place
        values[f"bucket/{place}/rows"] = float(inside.sum())
        for name, each in said.items():
            values[f"bucket/{place}/{name}"] = expected_gain(
                truth[inside], each[:, inside], without[:, inside]
            )
    return values


def recall_values(
    market: Market, users: Users, graph: SimilarityGraph, seed: int
) -> dict[str, float]:
    """Return the recall of every way to make lists, of clicks in the tested days."""
    lists = lists_of(market, users, graph, GRAPH, DAY_US, LIST, seed)
    return recalls(lists, *engaged_after(market, "click"), LIST)
