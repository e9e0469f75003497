"""How fast the online learner learns, beside Vowpal Wabbit, River and the memory it works on.

Four comparisons, each at equal progressive log loss and with settings tuned over one grid, the
contestants taking turns inside every run:

- the kernel on hashed rows of 39 features, one thread, predicting each row before learning it,
  beside Vowpal Wabbit training on the same slots from its binary cache;
- the same beside a loop that does nothing but touch and write the same slots, prefetched;
- Parquet to a model on disk, as whole processes, beside Vowpal Wabbit from text and from cache;
- the kernel beside River's FTRL, which gets its dictionaries ready made.

What each time holds is said in the line of its figure. Contestants that disagree about the loss
are NOT COMPARABLE: the module says so and ends with status 1.

    python -m benchmarks.speed.online_learner [--json] [--runs 5] [--rows 4000000]

Needs less than 2 GB in the temporary folder and Vowpal Wabbit, of the `test` dependencies.
"""

import argparse
import itertools
import json
import math
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numba import njit

from ad_pipeline.checkpoints import write_checkpoint
from ad_pipeline.features.encoding import slots
from ad_pipeline.learners import ftrl_kernel
from ad_pipeline.learners.online import FTRLExpert
from benchmarks.click_log import (
    CATEGORIES,
    LABEL,
    ClickLog,
    feature_contract,
    write_parquet_and_vw_text,
    write_vw_slots,
)
from benchmarks.figures import Figure, print_figures

BITS = 22
ROWS = 4_000_000
LOG = ClickLog(seed=11)
TUNING_CHUNK = 1_000
"""First chunk of the rows that settings are tuned on; the measured rows end long before."""

SLOTS_TOLERANCE = 1e-5
"""On the progressive log loss over the same slots; Vowpal Wabbit's state is float32."""

TOKENS_TOLERANCE = 5e-4
"""Over the same tokens: two hash functions put other tokens into one slot."""

RIVER_TOLERANCE = 2e-3
"""River's FTRL steps with weights one update behind and keeps some that should be 0."""

READERS = 2
"""Threads that decode and hash ahead of the learner."""


@dataclass(frozen=True)
class Setting:
    """Hyper-parameters of FTRL-Proximal, by the names of the paper."""

    alpha: float
    beta: float
    l1: float
    l2: float


GRID = tuple(
    Setting(alpha, 1.0, l1, l2)
    for alpha, l1, l2 in itertools.product((0.02, 0.05, 0.1), (0.0, 0.5), (0.0, 1.0, 10.0))
)


@dataclass(frozen=True)
class Timed:
    """One run of one contestant.

    Attributes
    ----------
    seconds : float
    loss : float
        Mean progressive log loss.
    """

    seconds: float
    loss: float


class VowpalWabbit:
    """Vowpal Wabbit's FTRL: its command line where there is one, else the wheel's native parser.

    Attributes
    ----------
    command : str or None
        Path of `vw`.
    """

    def __init__(self) -> None:
        self.command = shutil.which("vw")

    @property
    def says(self) -> str:
        """Which one it is."""
        if self.command:
            return f"{self.command} --onethread"
        from vowpalwabbit import __version__

        return f"wheel {__version__}, native parser in a second thread: it has no --onethread"

    def train(self, setting: Setting, *arguments: str) -> Timed:
        """Train in this process, so that Python and its imports are in no one's time.

        The time holds opening and reading the data, allocating the weights and training.
        """
        if self.command:
            return self.whole_process(setting, *arguments)
        from vowpalwabbit import Workspace

        start = time.perf_counter()
        workspace = Workspace(arg_list=[*_vw_arguments(setting), "--quiet", *arguments])
        seconds = time.perf_counter() - start
        loss = workspace.get_sum_loss() / workspace.get_weighted_examples()
        workspace.finish()
        return Timed(seconds, loss)

    def whole_process(self, setting: Setting, *arguments: str) -> Timed:
        """Train as a process of its own, from before it starts to after it ends."""
        program = [self.command, "--onethread"] if self.command else [sys.executable, "-m"]
        if not self.command:
            program.append("vowpalwabbit")
        start = time.perf_counter()
        done = subprocess.run(
            [*map(str, program), *_vw_arguments(setting), *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        found = re.search(r"average loss = ([0-9.]+)", done.stdout + done.stderr)
        if found is None:
            raise RuntimeError(f"Vowpal Wabbit printed no loss: {done.stderr[-500:]}")
        return Timed(seconds, float(found[1]))


def learn_parquet(parquet: Path, setting: Setting, checkpoints: Path) -> dict[str, float]:
    """Learn a Parquet log in this process and leave a checkpoint: the path of the product.

    Row groups are decoded and hashed by two threads, ahead of the one that learns them in order.

    Returns
    -------
    dict of str to float
        ``loss``, ``peak_mb``, and ``learn_s``, the learner's share of the time.
    """
    expert = FTRLExpert(BITS, **asdict(setting))
    losses: list[float] = []
    rows = 0
    learn_s = 0.0
    for row_slots, labels in _encoded_groups(parquet):
        start = time.perf_counter()
        logits = expert.predict_then_learn(row_slots, labels)
        learn_s += time.perf_counter() - start
        losses.append(log_loss(logits, labels) * len(labels))
        rows += len(labels)
    arrays, manifest = expert.state()
    write_checkpoint(checkpoints, "learners.online_model", arrays, {"expert": manifest})
    return {"loss": math.fsum(losses) / rows, "peak_mb": _peak_mb(), "learn_s": learn_s}


def learn_parquet_in_a_fresh_process(
    parquet: Path, setting: Setting
) -> tuple[Timed, dict[str, float]]:
    """Run :func:`learn_parquet` as a process of its own, imports and all; Numba's cache is warm."""
    with tempfile.TemporaryDirectory(dir=parquet.parent) as checkpoints:
        start = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable, "-m", "benchmarks.speed.online_learner", "--learn", str(parquet),
                "--setting", json.dumps(asdict(setting)), "--checkpoints", checkpoints,
            ],
            check=True,
            capture_output=True,
            text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    said = json.loads(done.stdout)
    return Timed(seconds, said["loss"]), said


def learn_slots(setting: Setting, row_slots: np.ndarray, labels: np.ndarray) -> Timed:
    """Learn hashed rows with the product's expert, its checks of slots and labels included."""
    expert = FTRLExpert(BITS, **asdict(setting))
    start = time.perf_counter()
    logits = expert.predict_then_learn(row_slots, labels)
    return Timed(time.perf_counter() - start, log_loss(logits, labels))


def learn_with_river(setting: Setting, rows: list[dict[int, float]], labels: list[bool]) -> Timed:
    """Predict and learn row by row with River's FTRL; the dictionaries are ready made."""
    from river import linear_model, optim

    model = linear_model.LogisticRegression(optim.FTRLProximal(**asdict(setting)), intercept_lr=0.0)
    scores: list[float] = []
    start = time.perf_counter()
    for row, label in zip(rows, labels, strict=True):
        scores.append(model.predict_proba_one(row)[True])
        model.learn_one(row, label)
    seconds = time.perf_counter() - start
    p = np.clip(np.array(scores), 1e-15, 1 - 1e-15)
    return Timed(seconds, log_loss(np.log(p / (1 - p)), np.array(labels)))


def touch_slots(row_slots: np.ndarray) -> float:
    """Return the seconds that bare reads and writes of the slots take, prefetched as the kernel."""
    state = np.ones((1 << BITS, 2))
    start = time.perf_counter()
    _touch(state, row_slots)
    return time.perf_counter() - start


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean log loss of logits, float64 (n,), against labels 0/1 (n,)."""
    return float(np.logaddexp(0.0, np.where(labels > 0, -logits, logits)).mean())


def tuned(train: Callable[[Setting], Timed]) -> tuple[Setting, float]:
    """Return the setting of the grid with the lowest loss on the tuning rows, and that loss."""
    losses = {setting: train(setting).loss for setting in GRID}
    best = min(losses, key=lambda setting: losses[setting])
    return best, losses[best]


def measure(rows: int, runs: int, folder: Path, note: Callable[[str], None]) -> list[Figure]:
    """Write the log, tune, measure, and return the figures.

    Parameters
    ----------
    rows : int
        Of the whole processes; the kernels learn a quarter, River a 160th of them.
    runs : int
        Medians are over this many; a ratio is taken inside each run.
    folder : Path
        For the data; the caller removes it.
    note : callable
        Is told what is going on.

    Returns
    -------
    list of Figure
    """
    vw = VowpalWabbit()
    note(f"Vowpal Wabbit: {vw.says}")
    core_rows, tuning_rows, river_rows = rows // 4, rows // 20, max(rows // 160, 100)
    parquet, text = folder / "log.parquet", folder / "log.vw"

    tune_slots, tune_labels = _hashed(tuning_rows, TUNING_CHUNK)
    tune_text = folder / "tuning.vw"
    write_vw_slots(tune_text, tune_labels, tune_slots)
    learn_slots(GRID[0], tune_slots[:10], tune_labels[:10])  # compiles, or loads what is compiled
    ours, our_tuning_loss = tuned(lambda setting: learn_slots(setting, tune_slots, tune_labels))
    theirs, their_tuning_loss = tuned(
        lambda setting: vw.train(setting, "--noconstant", *_cached(tune_text))
    )
    note(f"tuned over {len(GRID)} settings, {tuning_rows:,} rows: ours {ours}, loss "
         f"{our_tuning_loss:.6f}; Vowpal Wabbit {theirs}, loss {their_tuning_loss:.6f}")  # fmt: skip

    core_slots, core_labels = _hashed(core_rows)
    core_text = folder / "slots.vw"
    write_vw_slots(core_text, core_labels, core_slots)
    vw.train(theirs, "--noconstant", *_cached(core_text))
    core_text.unlink()  # its cache is all that is read from here on
    river_dicts = [dict.fromkeys(row, 1.0) for row in core_slots[:river_rows].tolist()]
    river_labels = (core_labels[:river_rows] > 0).tolist()
    touch_slots(core_slots[:10])
    core: dict[str, list[Timed]] = {"ours": [], "vw": [], "river": [], "ours, river's rows": []}
    touches: list[float] = []
    for _ in range(runs):
        core["ours"].append(learn_slots(ours, core_slots, core_labels))
        touches.append(touch_slots(core_slots))
        core["vw"].append(vw.train(theirs, "--noconstant", *_cached(core_text)))
        few = slice(0, river_rows)
        core["ours, river's rows"].append(learn_slots(ours, core_slots[few], core_labels[few]))
        core["river"].append(learn_with_river(ours, river_dicts, river_labels))
    note("hashed rows measured")

    write_parquet_and_vw_text(LOG.chunks(rows), parquet, text)
    vw.whole_process(theirs, *_cached(text))
    decode_s, hash_s = _decode_and_hash_seconds(parquet, core_rows)
    learn_parquet_in_a_fresh_process(parquet, ours)
    whole: dict[str, list[Timed]] = {"ours": [], "text": [], "cache": []}
    saids: list[dict[str, float]] = []
    model = ("-f", str(folder / "vw.model"))
    for _ in range(runs):
        timed, said = learn_parquet_in_a_fresh_process(parquet, ours)
        whole["ours"].append(timed)
        saids.append(said)
        whole["text"].append(vw.whole_process(theirs, "-d", str(text), *model))
        whole["cache"].append(vw.whole_process(theirs, *_cached(text), *model))
    note("whole processes measured")
    return _figures(
        rows, core_rows, river_rows, core, touches, whole, saids, decode_s, hash_s, vw.says
    )


def incomparable(figures: Mapping[str, float]) -> list[str]:
    """Return what is wrong with the losses, one line a pair of contestants that disagree."""
    tolerances = {
        "core_loss_difference": SLOTS_TOLERANCE,
        "whole_loss_difference": TOKENS_TOLERANCE,
        "river_loss_difference": RIVER_TOLERANCE,
    }
    return [
        f"NOT COMPARABLE: {key} is {figures[key]:.2e}, allowed are {tolerance:g}"
        for key, tolerance in tolerances.items()
        if not abs(figures[key]) <= tolerance
    ]


def main() -> None:
    """Print a table, then one JSON object on the last line; end with 1 if losses disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the whole processes")
    parser.add_argument("--learn", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--setting", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoints", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.learn is not None:
        said = learn_parquet(arguments.learn, Setting(**arguments.setting), arguments.checkpoints)
        sys.stdout.write(json.dumps(said))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            arguments.rows,
            arguments.runs,
            Path(folder),
            (lambda _: None) if arguments.json else _say,
        )
    print_figures(figures, as_json=arguments.json)
    wrong = incomparable({figure.key: figure.value for figure in figures})
    if wrong:
        sys.exit("\n".join(wrong))
