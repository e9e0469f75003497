"""How fast wide & deep learns and scores, beside PyTorch and the bare matrix products.

- Training: the product's learner beside the same model in PyTorch, with the same first numbers, the
  same losses, layers and batches, an embedding whose gradients are sparse and its own Adagrad, at
  2^20 slots of 9 numbers; both have two threads and take turns every few batches.
- The table: a batch of slots met evenly at 2^24 slots beside one at 2^18, both tables full: what is
  worst for caches.
- Scoring: the export as a bidder runs it, one thread, for 1, 50 and 1,024 rows and for many; beside
  it JAX in one padded shape.
- The machine: matrix products of the same shapes and nothing else, of one batch forwards and
  backwards in JAX, and of one batch forwards in NumPy with one thread.

PyTorch is no dependency of the project: without it the figures beside it are left out, and the
module says how to install it. Learners that disagree about the loss are NOT COMPARABLE: it says so
and ends with status 1.

    python -m benchmarks.speed.wide_deep [--json] [--runs 5] [--batches 40]
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ad_pipeline.features.encoding import slots as slots_of
from ad_pipeline.learners.deep.embedding_table import FIRST_SQUARES
from ad_pipeline.learners.deep.exported_deep import ExportedDeep
from ad_pipeline.learners.deep.wide_deep import WideDeep
from ad_pipeline.settings import DeepSettings
from ad_pipeline.xla import THREADS
from benchmarks.click_log import ClickLog, feature_contract
from benchmarks.figures import Figure, print_figures
from benchmarks.speed.learn_parquet import columns_of, labels_of, log_loss

TORCH = "torch==2.13.0"
"""What the figures were taken beside: `pip install torch==2.13.0`."""

BITS = 20
SMALL_BITS, LARGE_BITS = 18, 24
FIELDS = 20
SETTINGS = DeepSettings(bits=BITS)
LOG = ClickLog(seed=12)

TURN = 5
"""Batches after which the other learner has its turn."""

CANDIDATES = 50
REQUESTS = 1_000
MANY = 20_000
PADDED = 64
"""Rows of the one shape in which JAX scores."""

TOLERANCE = 5e-3
"""On the log loss of rows that neither has learnt: a row's rate beside an element's."""


HELD_OUT = 8
"""Batches that nobody learns."""

Contestants = Mapping[str, Callable[["Rows"], object]]


@dataclass
class Rows:
    """Hashed rows: slots (n, F), uint32, and labels (n,)."""

    slots: np.ndarray
    labels: np.ndarray

    def batch(self, place: int) -> "Rows":
        """Return one batch of them."""
        rows = slice(place * SETTINGS.batch_rows, (place + 1) * SETTINGS.batch_rows)
        return Rows(self.slots[rows], self.labels[rows])


def hashed_rows(batches: int) -> Rows:
    """Draw rows of a constant and 19 categories of 10 to 130,000 values, in whole batches."""
    contract = feature_contract(BITS)
    chunks = list(LOG.chunks(batches * SETTINGS.batch_rows))
    hashed = [slots_of(contract, columns_of(chunk))[:, :FIELDS] for chunk in chunks]
    labels = [labels_of(chunk) for chunk in chunks]
    return Rows(np.ascontiguousarray(np.concatenate(hashed)), np.concatenate(labels))


class InTorch:
    """The same model as a PyTorch user would write it, with the first numbers of ours.

    Parameters
    ----------
    ours : WideDeep
        That has learnt nothing yet.
    """

    def __init__(self, ours: WideDeep) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch  # pyright: ignore[reportMissingImports]  (no dependency of ours)

        torch.set_num_threads(THREADS)
        self.torch = torch
        exported = ours.exported()
        every = np.arange(1 << BITS, dtype=np.uint32)[:, np.newaxis]
        first = torch.from_numpy(exported.gather(every)[:, 0])
        self.table = torch.nn.Embedding.from_pretrained(first, freeze=False, sparse=True)
        parts: list[Any] = []
        for weights, biases in zip(exported.layers.weights, exported.layers.biases, strict=True):
            layer = torch.nn.Linear(*weights.shape)
            layer.weight.data = torch.from_numpy(weights.T.copy())
            layer.bias.data = torch.from_numpy(biases.copy())
            parts += [layer, torch.nn.LeakyReLU(exported.layers.leak)]
        self.layers = torch.nn.Sequential(*parts[:-1])
        self.loss = torch.nn.BCEWithLogitsLoss(reduction="sum")
        self.optimizers = [
            torch.optim.Adagrad(
                module.parameters(), rate, initial_accumulator_value=FIRST_SQUARES, eps=0.0
            )
            for module, rate in (
                (self.table, SETTINGS.embedding_rate),
                (self.layers, SETTINGS.dense_rate),
            )
        ]

    def scores(self, slots: Any) -> Any:
        """Return the logits of a tensor of slots, int64 (n, F)."""
        numbers = self.table(slots)
        deep = self.layers(numbers[:, :, 1:].reshape(len(slots), -1))
        return numbers[:, :, 0].sum(1) + deep[:, 0]

    def learn(self, rows: Rows) -> None:
        """Take one step; the tensors are made from arrays, as ours are."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        labels = self.torch.from_numpy(rows.labels.astype(np.float32))
        slots = self.torch.from_numpy(rows.slots.astype(np.int64))
        self.loss(self.scores(slots), labels).backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def table_step(self, slots: np.ndarray, gradient: np.ndarray) -> None:
        """Look a batch up and step, without what lies between."""
        self.optimizers[0].zero_grad()
        numbers = self.table(self.torch.from_numpy(slots.astype(np.int64)))
        numbers.backward(self.torch.from_numpy(gradient))
        self.optimizers[0].step()

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return the log odds of rows, float64 (n,)."""
        with self.torch.no_grad():
            return self.scores(self.torch.from_numpy(slots.astype(np.int64))).double().numpy()


def table_step(learner: WideDeep, slots: np.ndarray, gradient: np.ndarray) -> None:
    """Look a batch up and step, without what lies between."""
    learner.table.gather(slots)
    learner.table.apply(slots, gradient)


def has_torch() -> bool:
    """Return whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(contestants: Contestants, batches: Sequence[Rows]) -> dict[str, float]:
    """Return each contestant's median seconds of a batch; they take turns, and turns in beginning.

    Parameters
    ----------
    contestants : mapping of str to callable
        What each does with a batch.
    batches : sequence of Rows
    """
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn, start in enumerate(range(0, len(batches), TURN)):
        for name in names if turn % 2 == 0 else reversed(names):
            for batch in batches[start : start + TURN]:
                spent[name].append(seconds_of(lambda n=name, b=batch: contestants[n](b)))
    return {name: statistics.median(found) for name, found in spent.items()}


def median_of(runs: Sequence[Mapping[str, float]], name: str, over: str = "") -> float:
    """Return the median over runs of a contestant's seconds, or of their ratio to another's."""
    return statistics.median(run[name] / run[over] if over else run[name] for run in runs)


def training_figures(batches: int, runs: int) -> tuple[list[Figure], ExportedDeep, Rows]:
    """Return what a row of training costs in ours, in PyTorch if it is there, in bare products."""
    rows = hashed_rows(batches * (runs + 1) + HELD_OUT)
    ours = WideDeep(SETTINGS, FIELDS, BITS)
    theirs = InTorch(ours) if has_torch() else None
    bare = _bare_products()
    learners: dict[str, Callable[[Rows], object]] = {
        "ours": lambda batch: ours.learn(batch.slots, batch.labels),
        "products": lambda batch: bare(),
    }
    gradient = np.full((SETTINGS.batch_rows, FIELDS, ours.table.width), 1e-4, np.float32)
    tables: dict[str, Callable[[Rows], object]] = {
        "ours": lambda batch: table_step(ours, batch.slots, gradient)
    }
    if theirs is not None:
        learners["torch"] = theirs.learn
        tables["torch"] = lambda batch: theirs.table_step(batch.slots, gradient)
    places = [range(run * batches, (run + 1) * batches) for run in range(runs + 1)]
    # The first run compiles and warms up, for all.
    learnt = [in_turns(learners, [*map(rows.batch, batch)]) for batch in places][1:]
    held_out = Rows(*(array[-HELD_OUT * SETTINGS.batch_rows :] for array in vars(rows).values()))
    exported = ours.exported()
    our_loss = log_loss(exported.logits(held_out.slots), held_out.labels)
    their_loss = (
        None if theirs is None else log_loss(theirs.logits(held_out.slots), held_out.labels)
    )
    stepped = [in_turns(tables, [*map(rows.batch, batch)]) for batch in places][1:]
    our_s, floor_s = median_of(learnt, "ours"), median_of(learnt, "products")
    figures = [
        Figure(
            "training_rows_per_s",
            SETTINGS.batch_rows / our_s,
            f"ours, 2^{BITS} slots x 9 numbers, {FIELDS} fields, checks of input included",
            limit=f"the matrix products alone, {SETTINGS.batch_rows / floor_s:,.0f}",
        ),
        Figure(
            "products_ratio",
            median_of(learnt, "ours", "products"),
            "a batch of training beside its matrix products, forwards and backwards, in JAX, "
            f"{THREADS} threads",
            better="lower",
        ),
        Figure("table_ms", 1e3 * median_of(stepped, "ours"), "the table's part", better="lower"),
        Figure("training_loss", our_loss, "our log loss on rows that were not learnt"),
    ]
    if their_loss is None:
        return figures, exported, held_out
    their_s = median_of(learnt, "torch")
    beside = [
        Figure(
            "pytorch_ratio",
            median_of(learnt, "torch", "ours"),
            f"training rows/s beside PyTorch {_version('torch')} with sparse gradients and Adagrad,"
            f" 2^{BITS} slots x 9 numbers, {FIELDS} fields, batches of {SETTINGS.batch_rows:,}, "
            f"{THREADS} threads each",
            3.0,
            limit=f"matrix products alone, which both must do, take {1e3 * floor_s:.1f} of our "
            f"{1e3 * our_s:.1f} ms and of PyTorch's {1e3 * their_s:.1f}; whoever did nothing else "
            f"would reach {median_of(learnt, 'torch', 'products'):.2f}",
        ),
        Figure(
            "pytorch_table_ratio",
            median_of(stepped, "torch", "ours"),
            "the table alone beside PyTorch's: a batch looked up and stepped on, "
            f"{1e3 * median_of(stepped, 'torch'):.1f} ms there",
        ),
        Figure("pytorch_rows_per_s", SETTINGS.batch_rows / their_s, "PyTorch"),
        Figure(
            "training_loss_difference",
            their_loss - our_loss,
            f"PyTorch's less ours; at most {TOLERANCE:g} apart",
        ),
    ]
    return [*beside, *figures], exported, held_out


def table_figures(batches: int, runs: int, large_bits: int) -> list[Figure]:
    """Return what a batch costs with many slots beside one with few."""
    generator = np.random.default_rng(5)
    small, large = (_full_learner(bits) for bits in (SMALL_BITS, large_bits))
    gradient = np.full((SETTINGS.batch_rows, FIELDS, small.table.width), 1e-4, np.float32)
    other = 1 << (large_bits - 1)
    spare = np.uint32(large_bits - SMALL_BITS)

    def stepped(learner: WideDeep, slots: np.ndarray) -> None:
        table_step(learner, slots, gradient)

    contestants: dict[str, Callable[[Rows], object]] = {
        "large": lambda batch: large.learn(batch.slots, batch.labels),
        "small": lambda batch: small.learn(batch.slots >> spare, batch.labels),
    }
    # Other slots than those just learnt, which the caches still hold.
    alone: dict[str, Callable[[Rows], object]] = {
        "large": lambda batch: stepped(large, batch.slots ^ np.uint32(other)),
        "small": lambda batch: stepped(small, (batch.slots ^ np.uint32(other)) >> spare),
    }
    whole: list[dict[str, float]] = []
    parts: list[dict[str, float]] = []
    for _ in range(runs + 1):
        shape = (batches, SETTINGS.batch_rows, FIELDS)
        drawn = generator.integers(0, 1 << large_bits, shape).astype(np.uint32)
        labels = (generator.random(SETTINGS.batch_rows) < 0.05).astype(np.float64)
        evenly = [Rows(slots, labels) for slots in drawn]
        whole.append(in_turns(contestants, evenly))
        parts.append(in_turns(alone, evenly))
    small_ms, large_ms = (1e3 * median_of(parts[1:], name) for name in ("small", "large"))
    return [
        Figure(
            "table_growth_ratio",
            median_of(whole[1:], "large", "small"),
            f"seconds of a batch with 2^{large_bits} slots beside one with 2^{SMALL_BITS}, all "
            "learnt, met evenly",
            1.25,
            "lower",
            limit=f"of a batch, the table's part is {large_ms:.1f} ms and {small_ms:.1f} ms: it "
            "touches as many lines of memory, which lie further away",
        ),
        Figure("table_ms_small", small_ms, f"the table's part at 2^{SMALL_BITS}", better="lower"),
        Figure("table_ms_large", large_ms, f"the table's part at 2^{large_bits}", better="lower"),
    ]


def scoring_figures(exported: ExportedDeep, rows: Rows, runs: int) -> list[Figure]:
    """Return what scores cost as a bidder computes them."""
    slots = np.tile(rows.slots, (-(-MANY // len(rows.slots)), 1))[:MANY]
    exported.logits(slots[:1])
    in_jax = _jax_scores(exported)
    in_jax(slots[:1])
    requests: dict[str, list[float]] = {"one": [], "few": [], "batch": [], "jax": []}
    many: list[float] = []
    alone: list[float] = []
    for run in range(runs):
        for place in range(REQUESTS):
            at = (run * REQUESTS + place) * 7 % (MANY - 1024)
            requests["one"].append(seconds_of(lambda s=slots[at : at + 1]: exported.logits(s)))
            few = slots[at : at + CANDIDATES]
            requests["few"].append(seconds_of(lambda s=few: exported.logits(s)))
            if place % 10 == 0:
                requests["jax"].append(seconds_of(lambda s=few: in_jax(s)))
                batch = slots[at : at + 1024]
                requests["batch"].append(seconds_of(lambda s=batch: exported.logits(s)))
        many.append(seconds_of(lambda: exported.logits(slots)))
        alone.append(_numpy_products_seconds())
    many_s = statistics.median(many)
    products = SETTINGS.batch_rows / statistics.median(alone)
    one, few, batch, padded = (1e6 * statistics.median(found) for found in requests.values())
    return [
        Figure(
            "scoring_rows_per_s",
            MANY / many_s,
            f"{MANY:,} rows x {FIELDS}, one thread, embeddings looked up in the export",
            50_000.0,
            limit=f"NumPy's matrix products alone, one thread, {products:,.0f}",
        ),
        Figure(
            "scoring_p99_ms",
            1e3 * float(np.quantile(requests["few"], 0.99)),
            f"99th percentile of {len(requests['few']):,} requests of {CANDIDATES} candidates",
            1.0,
            "lower",
            limit=f"median {few:.0f} us",
        ),
        Figure("scoring_us_1", one, "a request of one row, median", better="lower"),
        Figure("scoring_us_50", few, f"a request of {CANDIDATES} rows, median", better="lower"),
        Figure("scoring_us_1024", batch, "1,024 rows, median", better="lower"),
        Figure(
            "jax_scoring_us_50",
            padded,
            f"{CANDIDATES} rows in JAX, padded to {PADDED}, looked up as ours, {THREADS} threads",
            better="lower",
        ),
    ]


def incomparable(figures: Sequence[Figure]) -> list[str]:
    """Return what is wrong with the losses, a line a pair of learners that disagree."""
    return [
        f"NOT COMPARABLE: {figure.key} is {figure.value:.2e}, allowed are {TOLERANCE:g}"
        for figure in figures
        if figure.key.endswith("loss_difference") and not abs(figure.value) <= TOLERANCE
    ]


def main() -> None:
    """Print a table, then one JSON object on the last line; end with 1 if losses disagree."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40, help="of a run")
    parser.add_argument("--large-bits", type=int, default=LARGE_BITS, help="of the large table")
    arguments = parser.parse_args()
    if not has_torch():
        sys.stderr.write(
            f"PyTorch is not installed; figures beside it are left out: pip install {TORCH}\n"
        )
    training, exported, held_out = training_figures(arguments.batches, arguments.runs)
    figures = [
        *training,
        *table_figures(arguments.batches, arguments.runs, arguments.large_bits),
        *scoring_figures(exported, held_out, arguments.runs),
    ]
    print_figures(figures, as_json=arguments.json)
    wrong = incomparable(figures)
    if wrong:
        sys.exit("\n".join(wrong))


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _shapes() -> list[tuple[int, int]]:
    widths = [FIELDS * SETTINGS.embedding, *SETTINGS.layers, 1]
    return list(itertools.pairwise(widths))


def _bare_products() -> Callable[[], object]:
    """Return a batch's matrix products, forwards, by weights and by inputs, and nothing else."""
    import jax

    generator = np.random.default_rng(3)
    shapes = [*zip([SETTINGS.batch_rows] * 5, _shapes(), strict=True)]
    given = [
        tuple(
            jax.numpy.asarray(generator.normal(size=shape), np.float32)
            for shape in ((rows, inputs), (inputs, units), (rows, units))
        )
        for rows, (inputs, units) in shapes
    ]
    products = jax.jit(lambda all_of_them: [(x @ w, x.T @ d, d @ w.T) for x, w, d in all_of_them])
    return lambda: jax.block_until_ready(products(given))


def _numpy_products_seconds() -> float:
    """Return the seconds of a batch's matrix products forwards, in NumPy with one thread."""
    generator = np.random.default_rng(3)
    pairs = [
        tuple(
            generator.normal(size=shape).astype(np.float32)
            for shape in ((SETTINGS.batch_rows, inputs), (inputs, units))
        )
        for inputs, units in _shapes()
    ]
    with threadpool_limits(1):
        return statistics.median(
            seconds_of(lambda: [x @ weights for x, weights in pairs]) for _ in range(10)
        )


def _full_learner(bits: int) -> WideDeep:
    """Return a learner every slot of whose table was learnt."""
    learner = WideDeep(SETTINGS.model_copy(update={"bits": bits}), FIELDS, bits)
    step = 1 << 16
    gradients = np.full((step, 1, learner.table.width), 0.01, np.float32)
    for first in range(0, 1 << bits, step):
        every = np.arange(first, first + step, dtype=np.uint32)
        learner.table.apply(every[:, np.newaxis], gradients)
    return learner


def _jax_scores(exported: ExportedDeep) -> Callable[[np.ndarray], np.ndarray]:
    """Return the scores of up to :data:`PADDED` rows in JAX, compiled for that one shape."""
    import jax

    jnp = jax.numpy
    layers = exported.layers
    dense = [
        (jnp.asarray(weights), jnp.asarray(biases))
        for weights, biases in zip(layers.weights, layers.biases, strict=True)
    ]

    @jax.jit
    def scores(dense: Any, gathered: Any) -> Any:
        x = gathered[:, :, 1:].reshape(PADDED, -1)
        for weights, biases in dense[:-1]:
            x = x @ weights + biases
            x = jnp.where(x > 0, x, layers.leak * x)
        return (x @ dense[-1][0] + dense[-1][1])[:, 0] + gathered[:, :, 0].sum(axis=1)

    def score(slots: np.ndarray) -> np.ndarray:
        padded = np.zeros((PADDED, FIELDS), np.uint32)
        padded[: len(slots)] = slots
        return np.asarray(scores(dense, exported.gather(padded)))[: len(slots)]

    return score


if __name__ == "__main__":
    main()
