"""How fast the online learner answers when it gets little at a time: a row, a batch, a new process.

- one row at a time from a dictionary of 39 features, each predicted before it is learnt, through
  our River classifier and through River's own hasher and FTRL, the two taking turns every hundred
  rows, which are made just before, as a parser would: old dictionaries lie far away in memory, and
  fetching them would be most of what is measured;
- a micro-batch of 1,000 hashed rows beside a batch of 100,000, both per row;
- a fresh process with Python's bytecode and Numba's kernels on disk, up to its first score.

What each time holds is said in the line of its figure. Learners that disagree about the loss are
NOT COMPARABLE: the module says so and ends with status 1. Learning whole logs is measured in
``online_learner``.

    python -m benchmarks.speed.online_requests [--json] [--runs 5] [--rows 60000]
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ad_pipeline.learners.ftrl.classifier import FTRLClassifier
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.settings import Configuration
from benchmarks.click_log import CATEGORIES, LABEL, NUMBERS
from benchmarks.figures import Figure, print_figures
from benchmarks.speed.online_learner import (
    BITS,
    LOG,
    RIVER_TOLERANCE,
    Processes,
    Setting,
    hashed_rows,
)

if TYPE_CHECKING:
    from river.base import Classifier
    from river.compose import Pipeline

ROWS = 60_000
"""Dictionaries of each run: while its own are few, River finds its weights sooner."""

ROW_BITS = 20
"""Of both learners' slots where rows come one at a time: the product's default."""

TURN = 100
"""Rows after which the other learner has its turn."""

SETTING = Setting(alpha=0.1, beta=1.0, l1=0.5, l2=1.0)

BATCH = 100_000
MICRO_BATCH = 1_000

FIRST_SCORE = """
import numpy as np
from ad_pipeline.hashing import NamedValues
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
slots, values = NamedValues().read({"site": "a", "price": 1.5}, 22)
print(FTRLExpert(22).logits(slots, values).item())
"""
"""What production does: from names and values to a logit."""

FIRST_SCORE_IN_RIVER = """
from ad_pipeline.learners.ftrl.classifier import FTRLClassifier
print(FTRLClassifier(bits=22).predict_proba_one({"site": "a", "price": 1.5})[True])
"""

Row = dict[Any, Any]


@dataclass
class RowByRow:
    """One run of a learner over dictionaries, as far as it has come.

    Attributes
    ----------
    model : Classifier or Pipeline
    seconds : float
        Of predicting and learning every row in turn.
    predict_s : float
        Of predicting every row once more, after its turn.
    scores : list of float
        What each row's label was given before it was learnt.
    """

    model: "Classifier | Pipeline"
    seconds: float = 0.0
    predict_s: float = 0.0
    scores: list[float] = field(default_factory=list)

    def take_turn(self, rows: list[Row], labels: list[bool]) -> None:
        """Predict, then learn, each of some rows by River's protocol; then predict all again."""
        model, scores = self.model, self.scores
        start = time.perf_counter()
        for row, label in zip(rows, labels, strict=True):
            scores.append(model.predict_proba_one(row)[label])
            model.learn_one(row, label)
        learnt = time.perf_counter()
        for row in rows:
            model.predict_proba_one(row)
        self.predict_s += time.perf_counter() - learnt
        self.seconds += learnt - start

    @property
    def loss(self) -> float:
        """Mean progressive log loss."""
        return -float(np.log(np.maximum(self.scores, 1e-15)).mean())


def turns(rows: int) -> Iterator[tuple[list[Row], list[bool]]]:
    """Yield rows as dictionaries of 26 texts and up to 13 logarithms of numbers, and labels.

    A raw number of a heavy tail would drive any learner off; taking its logarithm, like making the
    dictionary, is in no one's time.
    """
    for chunk in LOG.chunks(rows):
        for start in range(0, len(chunk), TURN):
            raw = chunk.slice(start, TURN).to_pylist()
            named = [
                {name: row[name] for name in CATEGORIES}
                | {name: math.log1p(row[name]) for name in NUMBERS if row[name] is not None}
                for row in raw
            ]
            yield named, [bool(row[LABEL]) for row in raw]


def ours() -> FTRLClassifier:
    """Return an untrained classifier of ours."""
    return FTRLClassifier(bits=ROW_BITS, **asdict(SETTING))


def rivers() -> "Pipeline":
    """Return River's hasher and FTRL, with as many slots as ours."""
    from river import linear_model, optim, preprocessing

    hasher = preprocessing.FeatureHasher(n_features=2**ROW_BITS, seed=1)
    optimizer = optim.FTRLProximal(**asdict(SETTING))
    return hasher | linear_model.LogisticRegression(optimizer, intercept_lr=0.0)


def row_by_row(rows: int, *models: "Classifier | Pipeline") -> list[RowByRow]:
    """Let models take turns on the same rows, beginning in alternation."""
    runs = [RowByRow(model) for model in models]
    for turn, (named, labels) in enumerate(turns(rows)):
        for run in runs if turn % 2 else reversed(runs):
            run.take_turn(named, labels)
    return runs


def batch_seconds(slots: np.ndarray, labels: np.ndarray, batch_rows: int) -> float:
    """Return the seconds of learning the second half of the rows in batches; the first is known."""
    half = len(slots) // 2
    expert = FTRLExpert(BITS, (Configuration(**asdict(SETTING)),))
    expert.predict_then_learn(slots[:half], labels[:half])
    start = time.perf_counter()
    for first in range(half, len(slots), batch_rows):
        batch = slice(first, first + batch_rows)
        expert.predict_then_learn(slots[batch], labels[batch])
    return time.perf_counter() - start


def learn_one_figures(rows: int, runs: int) -> list[Figure]:
    """Return how much faster a row from a dictionary is than with River, and what explains it."""
    row_by_row(TURN, ours(), rivers())  # compiles, or loads what is compiled
    pairs = [row_by_row(rows, ours(), rivers()) for _ in range(runs)]
    our_runs, their_runs = (list(found) for found in zip(*pairs, strict=True))

    def microseconds(name: str, found: list[RowByRow]) -> float:
        return 1e6 / rows * statistics.median(getattr(run, name) for run in found)

    return [
        Figure(
            "learn_one_river_ratio",
            statistics.median(theirs.seconds / mine.seconds for mine, theirs in pairs),
            f"predict_proba_one and learn_one of {rows:,} dictionaries of 39 features, 2^{ROW_BITS}"
            " slots, beside River's FeatureHasher and LogisticRegression(FTRLProximal) on the same",
            10.0,
            limit="nothing known: a row is one compiled call to predict it and one to learn it",
        ),
        Figure(
            "one_row_us", microseconds("seconds", our_runs), "ours, both, a row", better="lower"
        ),
        Figure(
            "predict_one_us",
            microseconds("predict_s", our_runs),
            "ours, predict_proba_one alone",
            better="lower",
        ),
        Figure(
            "river_one_row_us",
            microseconds("seconds", their_runs),
            "River's, both, a row",
            better="lower",
        ),
        Figure(
            "river_predict_one_us",
            microseconds("predict_s", their_runs),
            "River's, predict_proba_one alone",
            better="lower",
        ),
        Figure(
            "one_loss_difference",
            their_runs[0].loss - our_runs[0].loss,
            f"River's progressive log loss less ours; at most {RIVER_TOLERANCE:g} apart",
        ),
    ]


def microbatch_figures(rows: int, runs: int) -> list[Figure]:
    """Return what a row of a micro-batch costs beside one of a batch."""
    slots, labels = hashed_rows(2 * rows)
    batch_seconds(slots[:100], labels[:100], 50)
    pairs = [
        (batch_seconds(slots, labels, MICRO_BATCH), batch_seconds(slots, labels, rows))
        for _ in range(runs)
    ]
    return [
        Figure(
            "microbatch_ratio",
            statistics.median(micro / whole for micro, whole in pairs),
            f"a row in batches of {MICRO_BATCH:,} beside one in a batch of {rows:,}, hashed rows "
            "x 39, checks of input included",
            2.0,
            "lower",
            limit="1 would be a call that costs nothing",
        ),
        Figure(
            "microbatch_us",
            1e6 * statistics.median(micro for micro, _ in pairs) / (rows / MICRO_BATCH),
            f"learning {MICRO_BATCH:,} rows",
            better="lower",
        ),
    ]


def warm_start_figures(runs: int) -> list[Figure]:
    """Return the seconds from before a process starts until it has printed its first score."""
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder))

        def seconds(program: str) -> float:
            processes.run(sys.executable, "-c", program)  # writes what the next ones read
            return statistics.median(
                processes.run(sys.executable, "-c", program)[0] for _ in range(runs)
            )

        python = seconds("import numpy")
        return [
            Figure(
                "warm_start_s",
                seconds(FIRST_SCORE),
                "a whole process, bytecode and kernels cached on disk: imports, a dictionary's "
                "slots, an expert of 2^22 slots, its first score",
                1.5,
                "lower",
                f"Python and NumPy alone take {python:.2f} s",
            ),
            Figure(
                "warm_start_river_s",
                seconds(FIRST_SCORE_IN_RIVER),
                "the same through the River classifier, River's imports included",
                better="lower",
            ),
        ]


def incomparable(figures: list[Figure]) -> list[str]:
    """Return what is wrong with the losses, in a line; nothing if they agree."""
    return [
        f"NOT COMPARABLE: {figure.key} is {figure.value:.2e}, allowed are {RIVER_TOLERANCE:g}"
        for figure in figures
        if figure.key == "one_loss_difference" and not abs(figure.value) <= RIVER_TOLERANCE
    ]


def main() -> None:
    """Print a table, then one JSON object on the last line; end with 1 if losses disagree."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=ROWS, help="dictionaries of each run")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows of the large batch")
    arguments = parser.parse_args()
    figures = [
        *learn_one_figures(arguments.rows, arguments.runs),
        *microbatch_figures(arguments.batch, arguments.runs),
        *warm_start_figures(arguments.runs),
    ]
    print_figures(sorted(figures, key=lambda figure: figure.reach is None), as_json=arguments.json)
    if wrong := incomparable(figures):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
