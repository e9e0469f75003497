"""How fast users are refreshed and an encoder trained, and which attention is worth its time.

- Refreshing: :meth:`Encoder.vectors` of users with so many activities in each of two modalities,
  the reading of sequences included. Figures are per core: the seconds are of all threads of this
  process, so that neither a second core nor who else is on the machine counts. The exponent is the
  slope of log seconds in log activities.
- Attention: pooling alone, and linear or quadratic self-attention before it, at the same sizes;
  and what each ranks the clicks of users by whom no label has met, in two made worlds. In `tastes`
  activities speak for themselves; in `marked` one activity says which of the others are meant, so
  that they must be read together.
- User to user: whether the contrastive term brings users of equal tastes nearer, in both worlds.
- Training: sequences a second and core.
- Memory: two hours of a log of made users are published, the first of everybody, by the product's
  own path from the warehouse to the stores, in a fresh process: its private pages at their peak
  (files that are mapped the system can drop). Once for a log and once for four times its users,
  with the same number of activities in memory; and the larger one as a single part, which must
  publish the same bytes.

    python -m benchmarks.speed.embeddings [--json] [--runs 5] [--seeds 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import yaml

from ad_pipeline.checkpoints import point
from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.datasets import Deployment, load_dataset
from ad_pipeline.embeddings import encoder_hours
from ad_pipeline.embeddings.content import id_tokens
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.enrichment import DAY_US
from ad_pipeline.embeddings.sequences import History
from ad_pipeline.embeddings.training import LabelledAds, Training
from ad_pipeline.embeddings.vector_hours import advance_hours
from ad_pipeline.evaluation.metrics import roc_auc
from ad_pipeline.events.contract import event_tables
from ad_pipeline.settings import (
    EncoderSettings,
    Mixing,
    Modality,
    TrainingSettings,
)
from ad_pipeline.warehouse import Warehouse
from benchmarks.figures import Figure, print_figures
from benchmarks.speed.similarity import private_mb

MIXINGS: tuple[Mixing, ...] = get_args(Mixing)
LENGTHS = 32, 128, 512
MODALITIES = "clicks", "looks"
NOW_US = 1_700_000_000_000_000 // DAY_US * DAY_US

TOPICS = 5
SHOWN = 16
"""Ads that each user is shown."""

CONTRASTIVE = 0.1

GROWTH = 4
LOOKS_OF_USER, CLICKS_OF_USER = 40, 10
PARTS = 4
"""Of the smaller log."""

QUICK = TrainingSettings(dense_rate=0.01, table_rate=0.3, batch_sequences=32, epochs=3)


def settings_of(mixing: Mixing, longest: int, width: int = 32) -> EncoderSettings:
    """Return an encoder of two modalities, one slot an activity."""
    kinds = tuple(Modality(name=name, tokens=1, longest=longest) for name in MODALITIES)
    tasks = ("click", "conversion")
    return EncoderSettings(
        modalities=kinds, mixing=mixing, width=width, dimension=width, tasks=tasks
    )


def history_of(users: int, length: int) -> History:
    """Return users who all did so much in each modality, evenly over a month."""
    generator = np.random.default_rng(length)
    user = np.tile(np.repeat(np.arange(users), length), len(MODALITIES))
    modality = np.repeat(MODALITIES, users * length)
    ids = generator.integers(0, 1 << 14, len(user))
    return _history(user, modality, ids, generator, settings_of("none", length))


def padding_share(users: int) -> float:
    """Return the share of padding where most users did little and few did much."""
    generator = np.random.default_rng(9)
    counts = np.ceil(generator.lognormal(3.0, 1.0, users)).astype(np.int64)  # median 20
    user = np.repeat(np.arange(users), counts)
    modality = np.repeat(MODALITIES[:1], len(user))
    settings = settings_of("none", 128)
    history = _history(user, modality, user, generator, settings)
    return history.sequences(NOW_US, {MODALITIES[0]: 128}).padding_share()


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call on all cores together."""
    start = time.process_time()
    work()
    return time.process_time() - start


def seconds_per_user(users: int, runs: int) -> dict[tuple[str, int], float]:
    """Return the median core seconds that a user's vector takes, by attention and length."""
    spent: dict[tuple[str, int], list[float]] = {}
    for length in LENGTHS:
        history = history_of(users, length)
        contestants = {mixing: Encoder.first(settings_of(mixing, length)) for mixing in MIXINGS}
        sequences = history.sequences(NOW_US, contestants["none"].longest)
        for run in range(runs + 1):
            for mixing, encoder in contestants.items():
                seconds = cpu_seconds(lambda e=encoder, s=sequences: e.vectors(s)) / users
                if run:  # the first one compiles
                    spent.setdefault((mixing, length), []).append(seconds)
    return {key: statistics.median(found) for key, found in spent.items()}


def seconds_alone(calls: int) -> float:
    """Return the median core seconds of a call for one user, 128 activities a modality."""
    encoder = Encoder.first(settings_of("none", 128))
    sequences = history_of(1, 128).sequences(NOW_US, encoder.longest)
    encoder.vectors(sequences)
    return statistics.median(
        cpu_seconds(lambda: encoder.vectors(sequences)) for _ in range(20 * calls)
    )


def exponent(seconds: dict[tuple[str, int], float], mixing: Mixing) -> float:
    """Return the slope of log seconds in log activities."""
    logs = [np.log(seconds[mixing, length]) for length in LENGTHS]
    return float(np.polyfit(np.log(LENGTHS), logs, 1)[0])


def tastes(users: int, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return who did what, and each user's two tastes: a modality shows one each."""
    taste = generator.integers(0, TOPICS, (users, 2))
    user = np.tile(np.repeat(np.arange(users), 12), 2)
    side = np.repeat([0, 1], users * 12)
    is_noise = generator.random(len(user)) < 0.3
    topic = np.where(is_noise, generator.integers(0, TOPICS, len(user)), taste[user, side])
    return user, np.array(MODALITIES)[side], topic, taste


def marked(users: int, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return who did what, and each user's tastes: half of what he does is meant.

    A modality holds six activities of one kind and six of another, and a mark of which kind shows
    the taste; the other kind shows another one.
    """
    taste = generator.integers(0, TOPICS, (users, 2))
    other = generator.integers(0, TOPICS, (users, 2))
    meant = generator.integers(0, 2, (users, 2))
    user = np.tile(np.repeat(np.arange(users), 13), 2)
    side = np.repeat([0, 1], users * 13)
    place = np.tile(np.arange(13), 2 * users)
    kind = place % 2
    shown = np.where(kind == meant[user, side], taste[user, side], other[user, side])
    mark = 2 * TOPICS + meant[user, side]
    return (
        user,
        np.array(MODALITIES)[side],
        np.where(place == 12, mark, TOPICS * kind + shown),
        taste,
    )


WORLDS = {"tastes": tastes, "marked": marked}


@dataclass(frozen=True)
class Learnt:
    """What was learned of half the users is worth to the other half.

    Attributes
    ----------
    auc : float
        Of their clicks.
    alike : float
        Share of their ten nearest, by cosine, that have both tastes in common; by chance 0.04.
    """

    auc: float
    alike: float


def learnt(world: str, mixing: Mixing, users: int, seed: int, contrastive: float = 0.0) -> Learnt:
    """Learn the clicks of half the users of a world, and judge by the other half."""
    generator = np.random.default_rng(seed)
    user, modality, ids, taste = WORLDS[world](users, generator)
    settings = settings_of(mixing, 16, width=16)
    history = _history(user, modality, ids, generator, settings)
    sequences = history.sequences(NOW_US, dict.fromkeys(MODALITIES, 16))
    topic = generator.integers(0, TOPICS, (users, SHOWN, 2))
    matches = (topic == taste[:, np.newaxis]).sum(axis=-1)
    clicked = generator.random(matches.shape) < 1.0 / (1.0 + np.exp(2.5 - 2.5 * matches))
    ads = np.stack(
        [id_tokens(pa.array(topic[..., s].ravel().astype(str)), f"ad {s}", 16) for s in (0, 1)],
        axis=-1,
    )
    labels = np.stack([clicked, clicked & False], axis=-1).reshape(-1, 2)
    sequence = np.repeat(np.arange(users), SHOWN)
    is_learnt = sequence < users // 2
    given = LabelledAds.after(
        sequences,
        sequence[is_learnt],
        np.full(is_learnt.sum(), NOW_US + 1),
        ads[is_learnt],
        labels[is_learnt],
    )
    how = QUICK.model_copy(update={"seed": seed, "contrastive": contrastive})
    training = Training(settings, how)
    for _ in training.learn(sequences, given):
        pass
    encoder = training.encoder
    vectors = encoder.vectors(sequences)
    logits = encoder.logits(vectors[sequence[~is_learnt]], ads[~is_learnt])[:, 0]
    probabilities = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    return Learnt(
        roc_auc(labels[~is_learnt, 0], probabilities),
        _share_alike(vectors[users // 2 :], taste[users // 2 :]),
    )


def training_seconds(users: int, runs: int) -> float:
    """Return the median core seconds of a sequence in training, 128 activities a modality."""
    settings = settings_of("none", 128)
    sequences = history_of(users, 128).sequences(NOW_US, dict.fromkeys(MODALITIES, 128))
    generator = np.random.default_rng(1)
    sequence = np.repeat(np.arange(users), SHOWN)
    ads = LabelledAds.after(
        sequences,
        sequence,
        np.full(len(sequence), NOW_US + 1),
        generator.integers(1, 1 << 16, (len(sequence), 3)).astype(np.uint32),
        generator.integers(0, 2, (len(sequence), 2)),
    )
    training = Training(settings, TrainingSettings(epochs=1))
    found = [
        cpu_seconds(lambda: [*training.learn(sequences, ads)]) / users for _ in range(runs + 1)
    ]
    return statistics.median(found[1:])


@contextmanager
def peak_private_mb() -> Iterator[list[float]]:
    """Yield a list of one number: the most private memory while the block runs, MiB."""
    peak, done = [private_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], private_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def write_log(folder: Path, users: int) -> None:
    """Write a home whose warehouse holds the activities of made users, evenly over two weeks."""
    encoder = EncoderSettings(
        modalities=(
            Modality(name="ad_click", tokens=2, longest=32),
            Modality(name="look", tokens=1, longest=32),
        ),
        ad_columns=("ad_id", "campaign_id"),
        tasks=("click",),
    )
    clocks = {"occurred_us": "occurred_us", "received_us": "received_us"}
    columns = {
        "impressions": ("impression_id", "user_id", "ad_id", "campaign_id"),
        "engagements": ("event_id", "impression_id", "goal"),
        "user_activities": ("event_id", "user_id", "modality", "content_id"),
    }
    written = {
        "name": "streamed",
        "start": timestamp(NOW_US),
        "end": timestamp(NOW_US + DAY_US),
        "goals": {"click": {"window": "1h", "lateness": "0h", "observation": "1h"}},
        "sources": {
            table: {
                "files": "{home}/logs/*.parquet",
                "columns": {name: name for name in own} | clocks,
            }
            for table, own in columns.items()
        },
        "features": {"categorical": ["user_id", "ad_id"]},
        "entities": ["ad_id"],
        "settings": {"user_vectors": {"encoder": encoder.model_dump(mode="json")}},
    }
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    deployment = Deployment(load_dataset(path), folder / "home")
    tables, warehouse = event_tables(deployment.dataset), Warehouse(deployment.warehouse)
    warehouse.create([tables[name] for name in columns])
    first_us, span_us = NOW_US - 13 * DAY_US, 13 * DAY_US + 2 * HOUR_US
    user, when = (f"'user-' || hash(number * 3) % {users} AS user_id", "{at} AS occurred_us")
    of_table = {
        "user_activities": (
            LOOKS_OF_USER,
            f"'a' || number AS event_id, {user}, 'look' AS modality, "
            "'page-' || hash(number * 5) % 5000 AS content_id",
        ),
        "impressions": (
            2 * CLICKS_OF_USER,
            f"'i' || number AS impression_id, {user}, 'ad-' || hash(number * 7) % 500 AS ad_id, "
            "'campaign-' || hash(number * 7) % 20 AS campaign_id",
        ),
        "engagements": (
            CLICKS_OF_USER,
            "'e' || number AS event_id, 'i' || 2 * number AS impression_id, 'click' AS goal",
        ),
    }
    with warehouse.writer() as connection:
        for table, (of_user, own) in of_table.items():
            rows = of_user * users
            at = f"{first_us} + CAST(number * ({span_us} / {rows}) AS BIGINT)"
            connection.execute(
                f"INSERT INTO events.{table} BY NAME SELECT {own}, {when.format(at=at)}, "
                f"{at} + 1000 AS received_us FROM range({rows}) AS made(number)"
            )
    training = Training(encoder, TrainingSettings())
    digest = training.write(deployment.checkpoints, NOW_US - 1).digest
    for hour_us in (NOW_US, NOW_US + HOUR_US):
        point(deployment.checkpoints, encoder_hours.pointer(hour_us), digest)


def published(folder: Path, in_memory: int) -> dict[str, Any]:
    """Publish two hours of a log, with so many activities in memory; return what it took."""
    written = yaml.safe_load((folder / "dataset.yaml").read_text())
    written["settings"]["user_vectors"]["activities_in_memory"] = in_memory
    path = folder / f"dataset_{in_memory}.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    deployment = Deployment(load_dataset(path), folder / "home")
    began = time.process_time()
    with peak_private_mb() as peak:
        warehouse = Warehouse(deployment.warehouse)
        hours = list(advance_hours(warehouse, deployment, NOW_US, NOW_US + 2 * HOUR_US))
    return {
        "digest": hours[-1].digest,
        "encoded": sum(hour.encoded for hour in hours),
        "seconds": time.process_time() - began,
        "peak_mb": peak[0],
    }


def published_alone(folder: Path, in_memory: int) -> dict[str, Any]:
    """Return what :func:`published` says in a process of its own."""
    asked = ["--publish", str(folder), "--in-memory", str(in_memory)]
    command = [sys.executable, "-m", "benchmarks.speed.embeddings", *asked]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def memory_figures(users: int, runs: int) -> list[Figure]:
    """Return what publishing holds in memory as users grow, and what parts cost.

    Parameters
    ----------
    users : int
        Of the smaller log.
    runs : int
        Of either log in parts, in turns; peaks are medians, since allocators differ from run to
        run.

    Raises
    ------
    RuntimeError
        If parts publish other bytes than one part does: there would be nothing to compare.
    """
    in_memory = (LOOKS_OF_USER + CLICKS_OF_USER) * users // PARTS
    more = GROWTH * users
    with tempfile.TemporaryDirectory(prefix="speed-embeddings-") as scratch:
        few, many = Path(scratch) / "few", Path(scratch) / "many"
        for folder, count in ((few, users), (many, more)):
            folder.mkdir()
            write_log(folder, count)
        turns = [[published_alone(log, in_memory) for log in (few, many)] for _ in range(runs)]
        whole = published_alone(many, GROWTH * PARTS * in_memory)
    large = turns[0][1]
    if whole["digest"] != large["digest"] or large["encoded"] < more / 2:
        raise RuntimeError(f"one part published {whole}, {GROWTH * PARTS} parts {large}")
    peaks = np.array([[each["peak_mb"] for each in turn] for turn in turns])
    small_mb, large_mb = np.median(peaks, axis=0)
    ratios = peaks[:, 1] / peaks[:, 0]
    return [
        Figure(
            "memory_ratio",
            large_mb / small_mb,
            f"peak memory of publishing {more:,} users in {GROWTH * PARTS} parts over that of "
            f"{users:,} in {PARTS}, {in_memory:,} activities in memory; {runs} runs were "
            f"{ratios.min():.2f} to {ratios.max():.2f}",
            1.1,
            "lower",
        ),
        Figure(
            "memory_mb",
            small_mb,
            f"peak memory of {users:,} users, libraries included, MiB",
            better="lower",
        ),
        Figure(
            "memory_whole_ratio",
            whole["peak_mb"] / large_mb,
            f"peak memory of {more:,} users in one part over that of {GROWTH * PARTS} parts: what "
            "the parts save, and that the measure sees users",
        ),
        Figure(
            "parts_ratio",
            statistics.median(turn[1]["seconds"] for turn in turns) / whole["seconds"],
            f"core seconds of {GROWTH * PARTS} parts over those of one, which publishes the same "
            f"bytes; {more:,} users twice, {large['encoded']:,} of them encoded",
            better="lower",
        ),
    ]


def speed_figures(users: int, runs: int) -> list[Figure]:
    """Return what a refresh and a training cost."""
    seconds = seconds_per_user(users, runs)
    figures = [
        Figure(
            "users_per_s" if length == 128 else f"users_per_s_{length}",
            1.0 / seconds["none", length],
            f"users refreshed a second and core, {length} activities in each of "
            f"{len(MODALITIES)} modalities, 32 numbers, reading of sequences included",
        )
        for length in (128, 32, 512)
    ]
    figures.append(
        Figure(
            "events_exponent",
            exponent(seconds, "none"),
            f"slope of log seconds in log activities, {LENGTHS[0]} to {LENGTHS[-1]}, pooling alone",
            1.1,
            "lower",
        )
    )
    for mixing in MIXINGS[1:]:
        ratio = seconds[mixing, 512] / seconds["none", 512]
        figures += [
            Figure(
                f"events_exponent_{mixing}",
                exponent(seconds, mixing),
                f"the same with {mixing} self-attention before pooling",
                better="lower",
            ),
            Figure(
                f"{mixing}_ratio",
                ratio,
                f"core seconds with {mixing} self-attention beside pooling alone, 512 activities",
                better="lower",
            ),
        ]
    figures.append(
        Figure(
            "one_user_ms",
            1e3 * seconds_alone(runs),
            "one user alone, 128 activities a modality: what an update on demand costs",
            better="lower",
        )
    )
    trained = training_seconds(users, runs)
    return [
        *figures,
        Figure(
            "padding_share",
            padding_share(users),
            "share of padded activities that are padding, lengths log-normal of median 20, at most "
            "128; shapes are powers of two",
            better="lower",
        ),
        Figure(
            "sequences_trained_per_s",
            1.0 / trained,
            f"sequences learnt a second and core, 128 activities a modality, {SHOWN} ads each",
        ),
    ]


def attention_figures(users: int, seeds: int) -> list[Figure]:
    """Return what each attention ranks clicks by in each world, and its gain over pooling alone."""
    figures = []
    for world in WORLDS:
        runs = {
            mixing: [learnt(world, mixing, users, seed) for seed in range(seeds)]
            for mixing in MIXINGS
        }
        for mixing in MIXINGS:
            found = [run.auc for run in runs[mixing]]
            gains = np.subtract(found, [run.auc for run in runs["none"]])
            beside = "" if mixing == "none" else f"; beside none {_spread(gains)}"
            figures.append(
                Figure(
                    f"auc_{world}_{mixing}",
                    statistics.mean(found),
                    f"AUC of clicks of users not learnt, {users:,} users, world `{world}`, mean of "
                    f"{seeds} seeds{beside}",
                )
            )
        drawn = [learnt(world, "none", users, seed, CONTRASTIVE) for seed in range(seeds)]
        alike = [run.alike for run in runs["none"]]
        drawn_alike = [run.alike for run in drawn]
        figures += [
            Figure(
                f"alike_{world}",
                statistics.mean(alike),
                "share of the ten nearest users that have both tastes in common, by chance 0.04",
            ),
            Figure(
                f"alike_{world}_contrastive",
                statistics.mean(drawn_alike),
                f"the same with a user-to-user term of weight {CONTRASTIVE:g}; beside none "
                f"{_spread(np.subtract(drawn_alike, alike))}; AUC "
                f"{statistics.mean(run.auc for run in drawn):.3f}",
            ),
        ]
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, then one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="of the worlds")
    parser.add_argument("--users", type=int, default=1_000, help="who are refreshed")
    parser.add_argument("--world-users", type=int, default=6_000)
    parser.add_argument("--published-users", type=int, default=20_000, help="and four times those")
    parser.add_argument("--memory-runs", type=int, default=3, help="of publishing")
    parser.add_argument("--publish", type=Path, help="publish the log in this folder, and no more")
    parser.add_argument("--in-memory", type=int, help="activities, while it is published")
    chosen = parser.parse_args(arguments)
    if chosen.publish is not None:
        sys.stdout.write(json.dumps(published(chosen.publish, chosen.in_memory)) + "\n")
        return
    figures = [
        *speed_figures(chosen.users, chosen.runs),
        *memory_figures(chosen.published_users, chosen.memory_runs),
        *attention_figures(chosen.world_users, chosen.seeds),
    ]
    print_figures(figures, as_json=chosen.json)


def _share_alike(vectors: np.ndarray, taste: np.ndarray) -> float:
    centred = vectors - vectors.mean(axis=0)
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    closeness = units @ units.T
    np.fill_diagonal(closeness, -np.inf)
    nearest = np.argpartition(-closeness, 10, axis=1)[:, :10]
    return float((taste[nearest] == taste[:, np.newaxis]).all(axis=-1).mean())


def _spread(gains: np.ndarray) -> str:
    return f"{gains.mean():+.3f}, from {gains.min():+.3f} to {gains.max():+.3f}"


def _history(
    user: np.ndarray,
    modality: np.ndarray,
    ids: np.ndarray,
    generator: np.random.Generator,
    settings: EncoderSettings,
) -> History:
    slots = id_tokens(pa.array(ids.astype(str)), "id", settings.bits)
    when = NOW_US - generator.integers(0, 30 * DAY_US, len(user))
    table = pa.table(
        {
            "user_id": pa.array(np.char.add("u", np.char.zfill(user.astype(str), 7))),
            "occurred_us": when,
            "received_us": when,
            "modality": pa.array(modality),
            "tokens": pa.ListArray.from_arrays(
                pa.array(np.arange(len(user) + 1, dtype=np.int32)), pa.array(slots)
            ),
        }
    )
    return History.of_table(table, settings.modalities)


if __name__ == "__main__":
    main()
