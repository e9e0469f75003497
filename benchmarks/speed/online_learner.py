"""How fast the online learner learns, beside Vowpal Wabbit, River and the memory it works on.

Four comparisons, each at equal progressive log loss and with settings tuned over one grid, the
contestants taking turns inside every run:

- the kernel on hashed rows of 39 features, one thread, predicting each row before learning it,
  beside Vowpal Wabbit training on the same slots from its binary cache;
- the same beside a loop that does nothing but touch and write the same slots, prefetched;
- Parquet to a model on disk, as whole processes, beside Vowpal Wabbit from text and from cache;
- the kernel beside River's FTRL, which gets its dictionaries ready made.

Beside them stand the switches of the learner, of :mod:`benchmarks.speed.online_switches`.

What each time holds is said in the line of its figure. Contestants that disagree about the loss
are NOT COMPARABLE: the module says so and ends with status 1.

    python -m benchmarks.speed.online_learner [--json] [--runs 5] [--rows 4000000]

Needs less than 2 GB in the temporary folder and Vowpal Wabbit, of the `test` dependencies.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numba import njit

from ad_pipeline.features.encoding import slots
from ad_pipeline.learners.ftrl import ftrl_kernel, slot_memory
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.settings import Configuration
from benchmarks.click_log import (
    ClickLog,
    feature_contract,
    write_parquet_and_vw_text,
    write_vw_slots,
)
from benchmarks.figures import Figure, print_figures
from benchmarks.speed import learn_parquet
from benchmarks.speed.learn_parquet import (
    BITS,
    STATE_DTYPE,
    columns_of,
    labels_of,
    log_loss,
    open_parquet,
    peak_mb,
)
from benchmarks.speed.online_switches import measure_switches

ROWS = 4_000_000
LOG = ClickLog(seed=11)
TUNING_CHUNK = 1_000
"""First chunk of the rows that settings are tuned on; the measured rows end long before."""

SLOTS_TOLERANCE = 1e-5
"""On the progressive log loss over the same slots; both states are float32."""

TOKENS_TOLERANCE = 5e-4
"""Over the same tokens: two hash functions put other tokens into one slot."""

RIVER_TOLERANCE = 2e-3
"""River's FTRL steps with weights one update behind and keeps some that should be 0."""

_IMPORTS = (
    "import gc; gc.disable()\n"
    "from ad_pipeline import hashing\n"
    "from ad_pipeline.checkpoints import write_checkpoint\n"
    "from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert\n"
    "import pyarrow.parquet\n"
    "hashing.seed_of('Numba makes itself ready at the first call')"
)

CONTESTANTS = (
    "kernel", "kernel_vw", "few", "few_river", "whole", "whole_text", "whole_cache",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Hyper-parameters of FTRL-Proximal, by the names of the paper."""

    alpha: float
    beta: float
    l1: float
    l2: float

    @property
    def configuration(self) -> Configuration:
        """The same as the product's settings say it."""
        return Configuration(**asdict(self))


GRID = tuple(
    Setting(alpha, 1.0, l1, l2)
    for alpha, l1, l2 in itertools.product((0.05, 0.1, 0.2), (0.0, 0.5), (0.0, 1.0))
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


@dataclass(frozen=True)
class Measured:
    """All runs of all contestants, and what explains them.

    Attributes
    ----------
    rows, core_rows, river_rows : int
        Of the whole processes, of the kernels, of River.
    runs : dict of str to list of Timed
        By contestant, run by run.
    touches : list of float
        Seconds of the bare touch-and-write, run by run.
    whole_runs : list of dict
        What :func:`learn_parquet` said, run by run.
    decode_s, hash_s, import_s : float
        Seconds of decoding and of hashing all rows with one thread, and of Python with imports.
    vw : str
        Which Vowpal Wabbit.
    switches : sequence of Figure
        Of :mod:`benchmarks.speed.online_switches`.
    """

    rows: int
    core_rows: int
    river_rows: int
    runs: dict[str, list[Timed]]
    touches: list[float]
    whole_runs: list[dict[str, float]]
    decode_s: float
    hash_s: float
    import_s: float
    vw: str
    switches: Sequence[Figure]

    def seconds(self, name: str) -> float:
        """Return the median time of a contestant."""
        return statistics.median(run.seconds for run in self.runs[name])

    def ratio(self, slower: str, faster: str) -> float:
        """Return the median over runs of one contestant's time over the other's."""
        pairs = zip(self.runs[slower], self.runs[faster], strict=True)
        return statistics.median(a.seconds / b.seconds for a, b in pairs)

    @property
    def river_ratio(self) -> float:
        """Median ratio of rows a second: River gets fewer rows, or it would take minutes."""
        pairs = zip(self.runs["few_river"], self.runs["kernel"], strict=True)
        scale = self.core_rows / self.river_rows
        return statistics.median(scale * river.seconds / ours.seconds for river, ours in pairs)

    def loss_difference(self, theirs: str, ours: str) -> float:
        """Return how much higher their loss is than ours."""
        return self.runs[theirs][0].loss - self.runs[ours][0].loss


class Processes:
    """Runs whole processes as after `pip install`: with Python's bytecode written beforehand.

    BLAS gets one thread: no contestant computes with it, and its threads would spin beside them.

    Parameters
    ----------
    bytecode : Path
        Folder for it; a process that runs first fills it for the next.
    """

    def __init__(self, bytecode: Path) -> None:
        self.environment = {
            **os.environ,
            "PYTHONPYCACHEPREFIX": str(bytecode),
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(self, *command: str) -> tuple[float, str]:
        """Return the seconds from before the process starts to after it ends, and its output."""
        start = time.perf_counter()
        done = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
        )
        return time.perf_counter() - start, done.stdout


class VowpalWabbit:
    """Vowpal Wabbit's FTRL: its command line where there is one, else the wheel's native parser.

    Attributes
    ----------
    processes : Processes
    command : str or None
        Path of `vw`.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
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
        wheel = (sys.executable, "-m", "vowpalwabbit")
        program = (self.command, "--onethread") if self.command else wheel
        seconds, said = self.processes.run(*program, *_vw_arguments(setting), *arguments)
        found = re.search(r"average loss = ([0-9.]+)", said)
        if found is None:
            raise RuntimeError(f"Vowpal Wabbit printed no loss: {said[-500:]}")
        return Timed(seconds, float(found[1]))


def learn_parquet_in_a_fresh_process(
    processes: Processes, parquet: Path, setting: Setting
) -> tuple[Timed, dict[str, float]]:
    """Run :mod:`benchmarks.speed.learn_parquet`, imports and all; Numba's cache is warm."""
    with tempfile.TemporaryDirectory(dir=parquet.parent) as checkpoints:
        seconds, said = processes.run(
            sys.executable, "-m", learn_parquet.__name__, str(parquet),
            "--configuration", json.dumps(asdict(setting)), "--checkpoints", checkpoints,
        )  # fmt: skip
    found = json.loads(said)
    return Timed(seconds, found["loss"]), found


def learn_slots(setting: Setting, row_slots: np.ndarray, labels: np.ndarray) -> Timed:
    """Learn hashed rows with the product's expert, its checks of slots and labels included."""
    expert = FTRLExpert(BITS, (setting.configuration,), STATE_DTYPE)
    start = time.perf_counter()
    logits = expert.predict_then_learn(row_slots, labels)[:, 0]
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
    state = slot_memory.aligned_zeros((1 << BITS, 2), STATE_DTYPE)
    start = time.perf_counter()
    _touch(state.reshape(-1), row_slots, (0.0,))
    return time.perf_counter() - start


def tuned(train: Callable[[Setting], Timed]) -> tuple[Setting, float]:
    """Return the setting of the grid with the lowest loss on the tuning rows, and that loss."""
    losses = {setting: train(setting).loss for setting in GRID}
    best = min(losses, key=lambda setting: losses[setting])
    return best, losses[best]


def measure(rows: int, runs: int, folder: Path, note: Callable[[str], None]) -> Measured:
    """Write the log, tune, and let the contestants take turns.

    Parameters
    ----------
    rows : int
        Of the whole processes; the kernels learn a quarter, River a 160th.
    runs : int
        Medians are over this many; a ratio is taken inside each run.
    folder : Path
        For the data; the caller removes it.
    note : callable
        Is told what is going on.

    Returns
    -------
    Measured
    """
    processes = Processes(folder / "bytecode")
    vw = VowpalWabbit(processes)
    note(f"Vowpal Wabbit: {vw.says}")
    core_rows, tuning_rows, river_rows = rows // 4, rows // 20, max(rows // 160, 2_000)
    parquet, text = folder / "log.parquet", folder / "log.vw"

    tune_slots, tune_labels = hashed_rows(tuning_rows, TUNING_CHUNK)
    tune_text = folder / "tuning.vw"
    write_vw_slots(tune_text, tune_labels, tune_slots)
    learn_slots(GRID[0], tune_slots[:10], tune_labels[:10])  # compiles, or loads what is compiled
    ours, our_tuning_loss = tuned(lambda setting: learn_slots(setting, tune_slots, tune_labels))
    theirs, their_tuning_loss = tuned(
        lambda setting: vw.train(setting, "--noconstant", *cached(tune_text))
    )
    note(f"tuned over {len(GRID)} settings on {tuning_rows:,} rows of their own")
    note(f"  ours          {ours}, log loss {our_tuning_loss:.6f}")
    note(f"  Vowpal Wabbit {theirs}, log loss {their_tuning_loss:.6f}")

    core_slots, core_labels = hashed_rows(core_rows)
    core_text = folder / "slots.vw"
    write_vw_slots(core_text, core_labels, core_slots)
    vw.train(theirs, "--noconstant", *cached(core_text))
    core_text.unlink()  # its cache is all that is read from here on
    river_dicts = [dict.fromkeys(row, 1.0) for row in core_slots[:river_rows].tolist()]
    river_labels = (core_labels[:river_rows] > 0).tolist()
    touch_slots(core_slots[:10])
    few = slice(0, river_rows)
    timed: dict[str, list[Timed]] = {name: [] for name in CONTESTANTS}
    touches: list[float] = []
    for _ in range(runs):
        timed["kernel"].append(learn_slots(ours, core_slots, core_labels))
        touches.append(touch_slots(core_slots))
        timed["kernel_vw"].append(vw.train(theirs, "--noconstant", *cached(core_text)))
        timed["few"].append(learn_slots(ours, core_slots[few], core_labels[few]))
        timed["few_river"].append(learn_with_river(ours, river_dicts, river_labels))
    core_text.with_suffix(".cache").unlink()
    note("hashed rows measured")
    grid = [ours, *(setting for setting in GRID if setting != ours)][:8]
    switches = measure_switches(
        [setting.configuration for setting in grid], core_slots, core_labels, runs
    )
    note("switches measured")

    write_parquet_and_vw_text(LOG.chunks(rows), parquet, text)
    vw.whole_process(theirs, *cached(text))
    decode_s, hash_s = _decode_and_hash_seconds(parquet)
    note("log written")
    learn_parquet_in_a_fresh_process(processes, parquet, ours)
    whole_runs: list[dict[str, float]] = []
    model = ("-f", str(folder / "vw.model"))
    for _ in range(runs):
        run, said = learn_parquet_in_a_fresh_process(processes, parquet, ours)
        timed["whole"].append(run)
        whole_runs.append(said)
        timed["whole_text"].append(vw.whole_process(theirs, "-d", str(text), *model))
        timed["whole_cache"].append(vw.whole_process(theirs, *cached(text), *model))
    note("whole processes measured")
    return Measured(
        rows=rows,
        core_rows=core_rows,
        river_rows=river_rows,
        runs=timed,
        touches=touches,
        whole_runs=whole_runs,
        decode_s=decode_s,
        hash_s=hash_s,
        import_s=processes.run(sys.executable, "-c", _IMPORTS)[0],
        vw=vw.says,
        switches=switches,
    )


def figures_of(measured: Measured) -> list[Figure]:
    """Return the figures, those that have something to reach first."""
    m = measured
    kernel_s = m.seconds("kernel")
    touch_s = statistics.median(m.touches)
    touch_ratios = [
        run.seconds / touch for run, touch in zip(m.runs["kernel"], m.touches, strict=True)
    ]
    whole_s = m.seconds("whole")
    learn_s = kernel_s * m.rows / m.core_rows
    cores = len(os.sched_getaffinity(0))
    evenly_s = (m.import_s + m.decode_s + m.hash_s + learn_s) / cores
    parts = (
        f"each alone: imports {m.import_s:.2f} s, decoding {m.decode_s:.2f} s, hashing "
        f"{m.hash_s:.2f} s, learning {learn_s:.2f} s; spread evenly over {cores} cores "
        f"{evenly_s:.2f} s, measured {whole_s:.2f} s"
    )
    return [
        Figure(
            "core_vw_cache_ratio",
            m.ratio("kernel_vw", "kernel"),
            f"{m.core_rows:,} hashed rows x 39, progressive, one thread, beside Vowpal Wabbit from "
            f"its binary cache, reading included, imports not; both states {STATE_DTYPE} ({m.vw})",
            8.0,
            limit=f"the touch-and-write alone would give {m.seconds('kernel_vw') / touch_s:.1f}",
        ),
        Figure(
            "touch_ratio",
            statistics.median(touch_ratios),
            "the same rows beside a loop that only touches and writes their slots, prefetched",
            2.5,
            "lower",
            f"{m.core_rows / touch_s:,.0f} rows/s at 39 reads and writes of 8 bytes a row",
        ),
        Figure(
            "vw_text_ratio",
            m.ratio("whole_text", "whole"),
            f"{m.rows:,} rows, Parquet to checkpoint, whole process with imports (Numba's cache "
            "warm), one thread reading ahead and one learning, beside Vowpal Wabbit from text, "
            "whole process, one reading and one learning",
            4.0,
            limit=parts,
        ),
        Figure(
            "vw_cache_ratio",
            m.ratio("whole_cache", "whole"),
            "the same beside Vowpal Wabbit from its cache, whole process; making the cache is in "
            "no one's time",
            2.0,
            limit=parts,
        ),
        Figure(
            "river_ratio",
            m.river_ratio,
            f"the kernel's rows/s over {m.core_rows:,} rows beside those of River's FTRL over the "
            f"first {m.river_rows:,}, its dictionaries ready made",
            100.0,
        ),
        *m.switches,
        Figure("core_rows_per_s", m.core_rows / kernel_s, "our kernel, checks of input included"),
        Figure("core_vw_rows_per_s", m.core_rows / m.seconds("kernel_vw"), "Vowpal Wabbit"),
        Figure("touch_rows_per_s", m.core_rows / touch_s, "the bare touch-and-write"),
        Figure("river_rows_per_s", m.river_rows / m.seconds("few_river"), "River"),
        Figure("whole_seconds", whole_s, "ours, Parquet to checkpoint", better="lower"),
        Figure("vw_text_seconds", m.seconds("whole_text"), "Vowpal Wabbit", better="lower"),
        Figure("vw_cache_seconds", m.seconds("whole_cache"), "Vowpal Wabbit", better="lower"),
        Figure("decode_seconds", m.decode_s, "Parquet to Arrow alone, one thread", better="lower"),
        Figure("hash_seconds", m.hash_s, "Arrow to slots alone, one thread", better="lower"),
        Figure("import_seconds", m.import_s, "Python and our imports alone", better="lower"),
        Figure("core_loss", m.runs["kernel"][0].loss, "our progressive log loss, hashed rows"),
        Figure(
            "core_loss_difference",
            m.loss_difference("kernel_vw", "kernel"),
            f"Vowpal Wabbit's less ours; at most {SLOTS_TOLERANCE:g} apart",
        ),
        Figure("whole_loss", m.runs["whole"][0].loss, "our progressive log loss, from Parquet"),
        Figure(
            "whole_loss_difference",
            m.loss_difference("whole_text", "whole"),
            f"Vowpal Wabbit's less ours; at most {TOKENS_TOLERANCE:g} apart (other hash function)",
        ),
        Figure(
            "river_loss_difference",
            m.loss_difference("few_river", "few"),
            f"River's less ours over its rows; at most {RIVER_TOLERANCE:g} apart",
        ),
        Figure(
            "whole_peak_mb",
            max(said["peak_mb"] for said in m.whole_runs),
            "peak memory of our whole process, MB",
            better="lower",
        ),
        Figure("peak_mb", peak_mb(), "peak memory of this benchmark, MB", better="lower"),
    ]


def incomparable(figures: Mapping[str, float]) -> list[str]:
    """Return what is wrong with the losses, one line a pair of contestants that disagree."""
    tolerances = {
        "core_loss_difference": SLOTS_TOLERANCE,
        "whole_loss_difference": TOKENS_TOLERANCE,
        "river_loss_difference": RIVER_TOLERANCE,
        "grid8_loss_difference": 0.0,
    }
    return [
        f"NOT COMPARABLE: {key} is {figures[key]:.2e}, allowed are {tolerance:g}"
        for key, tolerance in tolerances.items()
        if not abs(figures[key]) <= tolerance
    ]


def main() -> None:
    """Print a table, then one JSON object on the last line; end with 1 if losses disagree."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the whole processes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(
            arguments.rows,
            arguments.runs,
            Path(folder),
            (lambda _: None) if arguments.json else _say,
        )
    figures = figures_of(measured)
    print_figures(figures, as_json=arguments.json)
    wrong = incomparable({figure.key: figure.value for figure in figures})
    if wrong:
        sys.exit("\n".join(wrong))


@njit(nogil=True)  # not cached: Numba would not see a change of `prefetch`, which stands elsewhere
def _touch(state: np.ndarray, row_slots: np.ndarray, lanes: tuple[float, ...]) -> None:
    rows, width = row_slots.shape
    for row in range(rows):
        ahead = row + ftrl_kernel.ROWS_AHEAD
        if ahead < rows:
            for feature in range(width):
                slot_memory.prefetch(state, row_slots[ahead, feature], lanes)
        for feature in range(width):
            first = 2 * np.int64(row_slots[row, feature])
            state[first] += 1.0
            state[first + 1] += 1.0


def _vw_arguments(setting: Setting) -> list[str]:
    named = {
        "--ftrl_alpha": setting.alpha,
        "--ftrl_beta": setting.beta,
        "--l1": setting.l1,
        "--l2": setting.l2,
        "-b": BITS,
        "--loss_function": "logistic",
    }
    values = [str(part) for pair in named.items() for part in pair]
    return ["--ftrl", *values, "--holdout_off", "--passes", "1"]


def cached(text: Path) -> tuple[str, ...]:
    """Arguments that read the cache of a text if it is there, and make it if not."""
    return "-d", str(text), "--cache_file", str(text.with_suffix(".cache"))


def hashed_rows(rows: int, first_chunk: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows and hash them: slots (n, 39) without the constant, labels (n,)."""
    contract = feature_contract(BITS)
    chunks = list(LOG.chunks(rows, first_chunk))
    row_slots = [slots(contract, columns_of(chunk))[:, 1:] for chunk in chunks]
    labels = [labels_of(chunk) for chunk in chunks]
    return np.ascontiguousarray(np.concatenate(row_slots)), np.concatenate(labels)


def _decode_and_hash_seconds(parquet: Path) -> tuple[float, float]:
    contract = feature_contract(BITS)
    file = open_parquet(parquet)
    decode_s = hash_s = 0.0
    for group in range(file.num_row_groups):
        start = time.perf_counter()
        table = file.read_row_group(group, use_threads=False)
        decoded = time.perf_counter()
        slots(contract, columns_of(table))
        decode_s += decoded - start
        hash_s += time.perf_counter() - decoded
    return decode_s, hash_s


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
