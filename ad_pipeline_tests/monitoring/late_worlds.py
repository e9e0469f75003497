"""A small made world of late labels, for the tests of the harness."""

import numpy as np

from ad_pipeline.clocks import HOUR_US, MINUTE_US, SECOND_US, hour_of
from ad_pipeline.datasets import Goal
from ad_pipeline.monitoring.late_labels.linear import LinearLearners
from ad_pipeline.monitoring.late_labels.prequential import Replay
from ad_pipeline.monitoring.late_labels.stream import LateStream, WorldRows, stream_of_world
from ad_pipeline.settings import Configuration, DelaySettings, Settings

START_US = 490_000 * HOUR_US
BITS = 10
DELAYS = DelaySettings(refit_every_hours=2, lookback_hours=12, group_by=None)
GOAL = Goal(name="purchase", window_us=3 * HOUR_US, lateness_us=0, observation_us=20 * MINUTE_US)


def small_world(anchors: int = 6_000, seed: int = 1) -> WorldRows:
    """Return anchors every ten seconds, of six kinds with rates of their own, an hour late."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 6, anchors)
    served_us = START_US + np.arange(anchors) * 10 * SECOND_US
    positive = rng.random(anchors) < (0.1 + 0.08 * kind)
    delay_us = (rng.exponential(40.0, anchors) * MINUTE_US).astype(np.int64)
    return WorldRows(
        slots=np.column_stack((kind, 100 + rng.integers(0, 300, anchors))).astype(np.uint32),
        slot_bits=BITS,
        served_us=served_us,
        arrived_us=np.where(positive, served_us + delay_us, -1),
        ads=kind * 100 + (np.arange(anchors) // 1_500),
        groups=kind,
    )


def small_stream(anchors: int = 6_000, seed: int = 1) -> LateStream:
    """Return the stream of a :func:`small_world`; its log ends when its last label matures."""
    world = small_world(anchors, seed)
    end_us = hour_of(int(world.served_us[-1])) + 5 * HOUR_US
    return stream_of_world(world, GOAL, end_us, Settings(delays=DELAYS))


def small_replay(stream: LateStream, **changed: object) -> Replay:
    """Return a replay whose stream begins in the log's second half."""
    asked: dict[str, object] = {
        "split_us": stream.start_us + 9 * HOUR_US,
        "block_us": 10 * MINUTE_US,
        "delays": DELAYS,
    }
    return Replay(**(asked | changed))  # pyright: ignore[reportArgumentType]


def linear(stream: LateStream) -> LinearLearners:
    """Return the linear family for a stream."""
    return LinearLearners(Configuration(alpha=0.5, l1=0.0, l2=0.0), BITS, stream.horizon_us / 864e8)
