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

PyTorch is no dependency of the project: without it the module says how to install it, and ends.
Learners that disagree about the loss are NOT COMPARABLE: it says so and ends with status 1.

    python -m benchmarks.speed.wide_deep [--json] [--runs 5] [--batches 40]
"""

import argparse
import importlib.metadata
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ad_pipeline.features.encoding import slots as slots_of
from ad_pipeline.learners.deep.embedding_table import FIRST_SQUARES
from ad_pipeline.learners.deep.exported_deep import ExportedDeep
from ad_pipeline.learners.deep.wide_deep import THREADS, WideDeep
from ad_pipeline.settings import DeepSettings
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

TOLERANCE = 2e-3
"""On the log loss of rows that neither has learnt: a row's rate beside an element's."""


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
        import torch

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

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return the log odds of rows, float64 (n,)."""
        with self.torch.no_grad():
            return self.scores(self.torch.from_numpy(slots.astype(np.int64))).double().numpy()


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def learn_in_turns(
    ours: WideDeep, theirs: InTorch, rows: Rows, batches: Sequence[int]
) -> tuple[float, float]:
    """Return the seconds of both over some batches, taking turns, beginning in alternation."""
    spent = [0.0, 0.0]
    for turn, start in enumerate(range(0, len(batches), TURN)):
        for mine in (turn % 2 == 0, turn % 2 == 1):
            for place in batches[start : start + TURN]:
                batch = rows.batch(place)
                if mine:
                    spent[0] += seconds_of(lambda b=batch: ours.learn(b.slots, b.labels))
                else:
                    spent[1] += seconds_of(lambda b=batch: theirs.learn(b))
    return spent[0], spent[1]


def training_figures(batches: int, runs: int) -> tuple[list[Figure], ExportedDeep, Rows]:
    """Return what a row of training costs in ours, in PyTorch and in bare products."""
    rows = hashed_rows(batches * (runs + 1) + 8)
    ours = WideDeep(SETTINGS, FIELDS, BITS)
    theirs = InTorch(ours)
    bare = _bare_products()
    pairs: list[tuple[float, float]] = []
    products: list[float] = []
    for run in range(runs + 1):
        places = range(run * batches, (run + 1) * batches)
        found = learn_in_turns(ours, theirs, rows, places)
        floor = statistics.median(seconds_of(bare) for _ in range(batches))
        if run:  # the first one compiles and warms up, for both
            pairs.append(found)
            products.append(floor)
    held_out = Rows(rows.slots[-8 * 1024 :], rows.labels[-8 * 1024 :])
    our_loss = log_loss(ours.logits(held_out.slots), held_out.labels)
    their_loss = log_loss(theirs.logits(held_out.slots), held_out.labels)
    per_run = batches * SETTINGS.batch_rows
    floor_s = statistics.median(products)
    batch_s = statistics.median(mine for mine, _ in pairs) / batches
    figures = [
        Figure(
            "pytorch_ratio",
            statistics.median(torch_s / our_s for our_s, torch_s in pairs),
            f"training rows/s beside PyTorch {_version('torch')} with sparse gradients and Adagrad,"
            f" 2^{BITS} slots x 9 numbers, {FIELDS} fields, batches of {SETTINGS.batch_rows:,}, "
            f"{THREADS} threads each",
            3.0,
            limit=f"the matrix products alone take {1e3 * floor_s:.1f} of our {1e3 * batch_s:.1f} "
            f"ms; nothing else would give "
            f"{statistics.median(t for _, t in pairs) / batches / floor_s:.1f}",
        ),
        Figure(
            "training_rows_per_s",
            statistics.median(per_run / our_s for our_s, _ in pairs),
            "ours, checks of input included",
        ),
        Figure(
            "pytorch_rows_per_s",
            statistics.median(per_run / torch_s for _, torch_s in pairs),
            "PyTorch",
        ),
        Figure(
            "products_rows_per_s",
            SETTINGS.batch_rows / floor_s,
            f"the matrix products of a batch forwards and backwards in JAX, {THREADS} threads",
        ),
        Figure("training_loss", our_loss, "our log loss on 8,192 rows that were not learnt"),
        Figure(
            "training_loss_difference",
            their_loss - our_loss,
            f"PyTorch's less ours; at most {TOLERANCE:g} apart",
        ),
    ]
    return figures, ours.exported(), held_out


def table_figures(batches: int, runs: int) -> list[Figure]:
    """Return what a batch costs with many slots beside one with few."""
    generator = np.random.default_rng(5)
    learners = {bits: _full_learner(bits) for bits in (SMALL_BITS, LARGE_BITS)}
    labels = (generator.random(SETTINGS.batch_rows) < 0.05).astype(np.float64)
    seconds: dict[int, list[float]] = {bits: [] for bits in learners}
    alone: dict[int, list[float]] = {bits: [] for bits in learners}
    for run in range(runs + 1):
        whole, table = dict.fromkeys(learners, 0.0), dict.fromkeys(learners, 0.0)
        for _ in range(batches):
            for bits, learner in learners.items():
                slots = generator.integers(0, 1 << bits, (SETTINGS.batch_rows, FIELDS))
                drawn = slots.astype(np.uint32)
                whole[bits] += seconds_of(lambda at=learner, s=drawn: at.learn(s, labels))
                drawn = generator.permuted(drawn, axis=0) ^ np.uint32(1)
                table[bits] += seconds_of(lambda at=learner, s=drawn: _table_step(at, s))
        if run:
            for bits in learners:
                seconds[bits].append(whole[bits] / batches)
                alone[bits].append(table[bits] / batches)
    small, large = (statistics.median(alone[bits]) for bits in (SMALL_BITS, LARGE_BITS))
    return [
        Figure(
            "table_growth_ratio",
            statistics.median(
                big / few for big, few in zip(seconds[LARGE_BITS], seconds[SMALL_BITS], strict=True)
            ),
            f"seconds of a batch with 2^{LARGE_BITS} slots beside one with 2^{SMALL_BITS}, all "
            "learnt, met evenly",
            1.25,
            "lower",
            limit=f"looking up and stepping alone take {1e3 * small:.1f} and {1e3 * large:.1f} ms: "
            "a batch touches as many lines of memory, which lie further away",
        ),
        Figure("table_ms_small", 1e3 * small, f"the table's part at 2^{SMALL_BITS}", None, "lower"),
        Figure("table_ms_large", 1e3 * large, f"the table's part at 2^{LARGE_BITS}", None, "lower"),
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
    arguments = parser.parse_args()
    try:
        _version("torch")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"PyTorch is not installed, which is measured against: pip install {TORCH}")
    training, exported, held_out = training_figures(arguments.batches, arguments.runs)
    figures = [
        *training[:1],
        *table_figures(arguments.batches, arguments.runs),
        *scoring_figures(exported, held_out, arguments.runs),
        *training[1:],
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


def _table_step(learner: WideDeep, slots: np.ndarray) -> None:
    learner.table.apply(slots, learner.table.gather(slots))


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
