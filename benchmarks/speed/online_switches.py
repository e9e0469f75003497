"""What each switch of the online learner costs: the same hashed rows with it on and with it off.

Eight configurations in one pass, decay, admission and confidence, each beside the plain kernel of
one configuration, in turns. Learning in batches of :data:`BATCH_ROWS`, as the pipeline does, with
the checks of input inside. What the learner costs beside other learners belongs to
:mod:`benchmarks.speed.online_learner`, which prints these figures too.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.settings import Configuration
from benchmarks.figures import Figure
from benchmarks.speed.learn_parquet import BITS, STATE_DTYPE, log_loss

BATCH_ROWS = 50_000
BATCH_US = HOUR_US // 12
"""Log time between two batches."""

HALF_LIFE_HOURS = 24.0

ADMISSIONS: tuple[dict[str, str | int | float], ...] = (
    {"admission": "count", "admission_count": 2},
    {"admission": "poisson", "admission_probability": 0.1},
)


def measure_switches(
    grid: Sequence[Configuration], slots: np.ndarray, labels: np.ndarray, runs: int
) -> list[Figure]:
    """Return the figures of all switches.

    Parameters
    ----------
    grid : sequence of 8 Configurations
        Different ones; the first is the plain kernel's.
    slots : ndarray of shape (n, F), uint32
    labels : ndarray of shape (n,), 0 or 1
    runs : int
        Medians are over this many; a ratio is taken inside each run.
    """
    base = grid[0]
    one = (base,)
    decaying = (base.model_copy(update={"half_life_hours": HALF_LIFE_HOURS}),)
    admitting = [(base.model_copy(update=admission),) for admission in ADMISSIONS]
    few = slice(0, 10)
    trained = FTRLExpert(BITS, one, STATE_DTYPE)
    trained.learn(slots, labels, np.ones(len(labels)))
    for configurations in (one, grid, decaying, *admitting):  # compiles, or loads what is compiled
        learn_in_batches(configurations, slots[few], labels[few])
    ways: Mapping[str, Callable[[], object]] = {
        "one": lambda: learn_in_batches(one, slots, labels),
        "grid": lambda: learn_in_batches(grid, slots, labels),
        "decay": lambda: learn_in_batches(decaying, slots, labels),
        "count": lambda: learn_in_batches(admitting[0], slots, labels),
        "poisson": lambda: learn_in_batches(admitting[1], slots, labels),
        "logits": lambda: trained.logits(slots),
        "uncertainty": lambda: trained.uncertainty(slots),
    }
    seconds = {name: [0.0] * runs for name in ways}
    for run in range(runs):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name][run] = time.perf_counter() - start

    def ratio(name: str, plain: str = "one") -> float:
        pairs = zip(seconds[name], seconds[plain], strict=True)
        return statistics.median(on / off for on, off in pairs)

    count_ratio, poisson_ratio = ratio("count"), ratio("poisson")
    with_what = f"{len(slots):,} hashed rows in batches of {BATCH_ROWS:,}, state {STATE_DTYPE}"
    return [
        Figure(
            "grid8_ratio",
            ratio("grid"),
            f"{with_what}: {len(grid)} different configurations in one pass beside the first alone",
            4.0,
            "lower",
        ),
        Figure(
            "decay_ratio",
            ratio("decay"),
            f"a half-life of {HALF_LIFE_HOURS:g} h, the clock moved five minutes after each batch, "
            "beside none",
            1.3,
            "lower",
        ),
        Figure(
            "admission_ratio",
            max(count_ratio, poisson_ratio),
            "the slower of a slot's admission at its second visit "
            f"({count_ratio:.2f}) and by a draw of 0.1 ({poisson_ratio:.2f}), beside always",
            1.3,
            "lower",
        ),
        Figure(
            "confidence_ratio",
            ratio("uncertainty", "logits"),
            "predicting the trained rows with their uncertainty, one pass for both, beside without",
            1.3,
            "lower",
        ),
        Figure(
            "grid8_loss_difference",
            grid_loss_difference(grid, slots[: BATCH_ROWS * 2], labels[: BATCH_ROWS * 2]),
            "the largest difference between a configuration's loss in the grid and alone",
            better="lower",
        ),
    ]


def learn_in_batches(
    configurations: Sequence[Configuration], slots: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Learn rows in batches, the clock moving after each; return log odds (n, K)."""
    expert = FTRLExpert(BITS, tuple(configurations), STATE_DTYPE)
    logits = np.empty((len(slots), len(configurations)))
    for start in range(0, len(slots), BATCH_ROWS):
        rows = slice(start, start + BATCH_ROWS)
        logits[rows] = expert.predict_then_learn(slots[rows], labels[rows])
        expert.advance(BATCH_US)
    return logits


def grid_loss_difference(
    grid: Sequence[Configuration], slots: np.ndarray, labels: np.ndarray
) -> float:
    """Return the largest difference between a configuration's log loss in the grid and alone."""
    together = learn_in_batches(grid, slots, labels)
    alone = [learn_in_batches((each,), slots, labels)[:, 0] for each in grid]
    return max(
        abs(log_loss(together[:, place], labels) - log_loss(logits, labels))
        for place, logits in enumerate(alone)
    )
