"""The online learner beside Vowpal Wabbit, online gradient descent and its own slimmer variants.

Streams are simulated (:mod:`benchmarks.click_streams`), so that every learner sees the same rows
and nothing else differs. Settings are chosen on seeds of their own: each candidate is run on tuning
and test seeds, the choice reads only the first, the figures only the second. AucLoss is 1 - ROC-AUC
of the logits given before each row was learnt, over the second half of a stream.

    python -m benchmarks.evidence.online_learner [--seeds N] [--fresh] [--budget]
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ad_pipeline.evaluation import metrics
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.learners.online import online_hours
from ad_pipeline.settings import Configuration
from benchmarks.claims import Claim, Section, percent, percent_range, seed_text, table_lines
from benchmarks.click_streams import EVEN, FADING, UNIFORM, Clicks, Shape, clicks
from benchmarks.reference_learners import GradientDescent, Rate
from benchmarks.seed_intervals import Estimate, mean_over_seeds
from benchmarks.studies import Result, Study, Values, command_line, values_of

ROWS = 300_000
SHAPES = {"fading": FADING, "even": EVEN, "uniform": UNIFORM}
TUNING_SEEDS = (501, 502, 503)
TEST_SEEDS = tuple(range(511, 519))
UNIFORM_SEEDS = TEST_SEEDS[:3]

ALPHAS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
GLOBAL_ALPHAS = (2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)
GLOBAL_BETAS = (1.0, 30.0)
"""One rate for all meets thousands of times the gradients of a slot: its beta is tuned too."""

GLOBAL_RATES: tuple[Rate, ...] = ("global gradients", "global rows")
L1 = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
COUNTS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)
COUNT_ALPHAS = (0.1, 0.15, 0.2, 0.3, 0.4)
EQUAL = 0.001
"""Relative AucLoss within which two learners count as equally good."""

ADMISSIONS: dict[str, dict[str, Any]] = {
    "always": {},
    "count 2": {"admission": "count", "admission_count": 2},
    "count 50": {"admission": "count", "admission_count": 50},
    "poisson 0.1": {"admission": "poisson", "admission_probability": 0.1},
    "poisson 0.03": {"admission": "poisson", "admission_probability": 0.03},
}
ADMISSION_L1 = (0.0, 1.0)
GAIN, SAVING, DETRIMENT = 0.05, 0.5, 0.0005
"""Least gain of rates per coordinate, least share of coordinates saved, largest AucLoss for it."""

PARITY = "parity"
PARITY_ROWS, PARITY_SHAPE = 20_000, Shape((20, 200, 2_000, 10_000), spread=1.0)
PARITY_SETS = (
    {"alpha": 0.05, "beta": 1.0, "l1": 0.5, "l2": 1.0},
    {"alpha": 0.1, "beta": 1.0, "l1": 1.0, "l2": 0.0},
    {"alpha": 0.2, "beta": 0.5, "l1": 0.0, "l2": 0.1},
    {"alpha": 0.3, "beta": 1.0, "l1": 2.0, "l2": 0.5},
    {"alpha": 0.1, "beta": 0.1, "l1": 0.1, "l2": 10.0},
)
PARITY_SEEDS = (521, 522, 523)
AGREEMENT = 1e-5

FLAT, KEEPER = "memory", "memory, rows kept"
MEMORY_SEEDS = (531, 532, 533)
FEW_ROWS, MANY_ROWS, BATCH_ROWS = 1_000_000, 10_000_000, 10_000
MEMORY_FIELDS, MEMORY_BITS = 8, 18
FLAT_WITHIN = 0.02


def run(arm: str, seed: int) -> Values:
    """Measure one arm.

    Parameters
    ----------
    arm : str
        A shape, 'parity', 'memory' or 'memory, rows kept'.
    seed : int

    Returns
    -------
    dict of str to float
        Of a shape: "<learner>/<setting>/loss" and ".../non_zeros" of every candidate. Of parity:
        gaps by set. Of memory: peak MB by rows.
    """
    if arm == PARITY:
        return _parity(seed)
    if arm in (FLAT, KEEPER):
        return _memory(arm, seed)
    return _candidates(clicks(SHAPES[arm], seed, ROWS).compact(), arm)


def _candidates(stream: Clicks, name: str) -> Values:
    n_slots = 1 << stream.bits
    values: Values = {"seen_once": _seen_once(stream)}
    for rate in GLOBAL_RATES:
        for alpha, beta in product(GLOBAL_ALPHAS, GLOBAL_BETAS):
            learner = GradientDescent(alpha, beta, rate)
            found = learner.learn(stream.slots, stream.labels, n_slots)
            values |= _judged(f"{rate}/{alpha}/{beta}", stream, *found)
    values |= _ftrl(stream, {f"ftrl/{a}/0.0": Configuration(alpha=a, l1=0.0, l2=0.0)
                                    for a in ALPHAS})  # fmt: skip
    if name == "uniform":
        return values
    for alpha in COUNT_ALPHAS:
        for count in COUNTS:
            learner = GradientDescent(alpha, at_least=count)
            found = learner.learn(stream.slots, stream.labels, n_slots)
            values |= _judged(f"counted/{alpha}/{count}", stream, *found)
    for alpha in ALPHAS:
        values |= _ftrl(
            stream,
            {f"ftrl/{alpha}/{l1}": Configuration(alpha=alpha, l1=l1, l2=0.0) for l1 in L1 if l1},
        )
        for l1 in ADMISSION_L1:
            values |= _ftrl(
                stream,
                {
                    f"{admission}/{alpha}/{l1}": Configuration(
                        alpha=alpha, l1=l1, l2=0.0, **options
                    )
                    for admission, options in ADMISSIONS.items()
                },
            )
    return values


def _ftrl(stream: Clicks, configurations: dict[str, Configuration]) -> Values:
    """Judge several configurations in one pass."""
    expert = FTRLExpert(stream.bits, tuple(configurations.values()))
    logits = expert.predict_then_learn(stream.slots, stream.labels)
    values: Values = {}
    for place, name in enumerate(configurations):
        values |= _judged(name, stream, logits[:, place], expert.linear_weights(place).weights)
    return values


def _judged(name: str, stream: Clicks, logits: np.ndarray, weights: np.ndarray) -> Values:
    late = slice(len(stream) // 2, None)
    said = metrics.probabilities_of(logits[late])
    return {
        f"{name}/loss": 1.0 - metrics.roc_auc(stream.labels[late], said),
        f"{name}/non_zeros": float(np.count_nonzero(weights)),
    }


def _seen_once(stream: Clicks) -> float:
    """Return the share of the tokens seen that are seen once."""
    return float(np.mean(np.unique(stream.slots, return_counts=True)[1] == 1))


def _parity(seed: int) -> Values:
    """Compare with Vowpal Wabbit on one file per set of hyper-parameters."""
    stream = clicks(PARITY_SHAPE, seed, PARITY_ROWS).compact()
    values: Values = {}
    for place, options in enumerate(PARITY_SETS):
        theirs_loss, theirs = vowpal_wabbit(stream, options)
        ours = _alone(stream, options)
        other = _alone(stream, options | {"alpha": 1.1 * options["alpha"]})
        expert, logits = ours
        arrays, _ = expert.state()
        z = arrays["z_sqrt_n"][:, 0, 0]
        weights = expert.linear_weights().weights[arrays["slots"]]
        values |= {
            f"{place}/loss": abs(_log_loss(logits, stream) - theirs_loss),
            f"{place}/probability": float(np.abs(metrics.probabilities_of(logits) - theirs).max()),
            f"{place}/non_zeros": float(np.count_nonzero(weights)),
            f"{place}/inside": float(np.count_nonzero(weights[np.abs(z) <= options["l1"]])),
            f"{place}/nearly_inside": float(
                np.count_nonzero(weights[np.abs(z) <= 1.1 * options["l1"]])
            ),
            f"{place}/control": abs(_log_loss(other[1], stream) - theirs_loss),
        }
    return values


def _alone(stream: Clicks, options: dict[str, float]) -> tuple[FTRLExpert, np.ndarray]:
    expert = FTRLExpert(stream.bits, (Configuration.model_validate(options),))
    return expert, expert.predict_then_learn(stream.slots, stream.labels)[:, 0]


def vowpal_wabbit(stream: Clicks, options: dict[str, float]) -> tuple[float, np.ndarray]:
    """Learn a stream with ``vw --ftrl``, from a text file, once.

    Parameters
    ----------
    stream : Clicks
    options : dict of str to float
        alpha, beta, l1, l2.

    Returns
    -------
    loss : float
        Progressive log loss, as it reports it.
    probabilities : ndarray of shape (n,), float64
        Each row's from before it was learnt, of six digits.
    """
    import vowpalwabbit

    with tempfile.TemporaryDirectory(prefix="vowpal_wabbit-") as folder:
        log, told = Path(folder) / "stream.vw", Path(folder) / "predictions"
        log.write_text(
            "".join(
                f"{2 * label - 1} | " + " ".join(map(str, slots)) + "\n"
                for slots, label in zip(stream.slots.tolist(), stream.labels.tolist(), strict=True)
            )
        )
        workspace = vowpalwabbit.Workspace(
            f"-d {log} -p {told} --ftrl --ftrl_alpha {options['alpha']} --ftrl_beta "
            f"{options['beta']} --l1 {options['l1']} --l2 {options['l2']} -b {stream.bits} "
            "--loss_function logistic --link logistic --noconstant --quiet"
        )
        loss = workspace.get_sum_loss() / workspace.get_weighted_examples()
        workspace.finish()
        return loss, np.loadtxt(told)


def _log_loss(logits: np.ndarray, stream: Clicks) -> float:
    return metrics.log_loss(stream.labels, metrics.probabilities_of(logits))


def _memory(arm: str, seed: int) -> Values:
    """Learn few and many rows, each in a fresh process, and return the peaks in MB."""
    return {
        f"{rows}": _in_a_fresh_process(rows, seed, keep=arm == KEEPER)
        for rows in (FEW_ROWS, MANY_ROWS)
    }


def _in_a_fresh_process(rows: int, seed: int, *, keep: bool) -> float:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    learning = context.Process(target=_learn_rows, args=(theirs, rows, seed, keep))
    learning.start()
    theirs.close()
    peak_mb = ours.recv()
    learning.join()
    return peak_mb


def _learn_rows(answer: Any, rows: int, seed: int, keep: bool) -> None:
    """Learn rows in micro-batches and send the peak of this process's memory, MB."""
    expert = FTRLExpert(MEMORY_BITS, (Configuration(),))
    kept: list[np.ndarray] = []
    for batch in range(rows // BATCH_ROWS):
        rng = np.random.default_rng([seed, batch])
        size = (BATCH_ROWS, MEMORY_FIELDS)
        slots = rng.integers(0, 1 << MEMORY_BITS, size, dtype=np.uint32)
        expert.learn(slots, rng.random(BATCH_ROWS) < 0.05, np.ones(BATCH_ROWS))
        if keep:
            kept.append(slots)
    answer.send(peak_memory_mb())


def peak_memory_mb() -> float:
    """Return the most memory that this process has held at once, from ``/proc``.

    Not ``getrusage``: its figure survives ``exec`` and so counts the parent's memory too.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


STUDY = Study(
    name="online_learner",
    settings={
        "code_version": online_hours.CODE_VERSION,
        "rows": ROWS,
        "shapes": {name: asdict(shape) for name, shape in SHAPES.items()},
        "alphas": ALPHAS,
        "global_alphas": GLOBAL_ALPHAS,
        "global_betas": GLOBAL_BETAS,
        "global_rates": GLOBAL_RATES,
        "l1": L1,
        "counts": COUNTS,
        "count_alphas": COUNT_ALPHAS,
        "admissions": ADMISSIONS,
        "admission_l1": ADMISSION_L1,
        "parity": [PARITY_SETS, PARITY_ROWS, asdict(PARITY_SHAPE)],
        "memory": [FEW_ROWS, MANY_ROWS, BATCH_ROWS, MEMORY_FIELDS, MEMORY_BITS],
    },
    seeds={
        PARITY: PARITY_SEEDS,
        "fading": (*TUNING_SEEDS, *TEST_SEEDS),
        "even": (*TUNING_SEEDS, *TEST_SEEDS),
        "uniform": (*TUNING_SEEDS, *UNIFORM_SEEDS),
        FLAT: MEMORY_SEEDS,
        KEEPER: MEMORY_SEEDS,
    },
    run=run,
    seconds=12.0,
)


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what the test seeds say of what the tuning seeds chose, then parity and memory."""
    made = [*_parity_claims(results)]
    for name in ("even", "fading"):
        made += [_rates(results, name), _sparsity(results, name), _inclusion(results, name)]
    return [*made, _flat(results)]


def _parity_claims(results: Sequence[Result]) -> list[Claim]:
    sets = range(len(PARITY_SETS))

    def over_sets(name: str, of: Callable[[list[float]], float]) -> float:
        return of([v for place in sets for v in values_of(results, PARITY, f"{place}/{name}")])

    loss, probability = over_sets("loss", max), over_sets("probability", max)
    control = over_sets("control", min)
    inside, non_zeros = over_sets("inside", sum), over_sets("non_zeros", sum)
    nearly = over_sets("nearly_inside", sum)
    return [
        Claim(
            key="online_learner.parity",
            says=(
                f"Progressive log loss is within {AGREEMENT:g} of Vowpal Wabbit's own FTRL over "
                f"{len(PARITY_SETS)} sets of hyper-parameters."
            ),
            figure=f"at most {loss:.1e} apart; probabilities at most {probability:.1e}",
            interval="largest of all sets and seeds",
            seeds=seed_text(PARITY_SEEDS),
            met=loss <= AGREEMENT,
            control=f"alpha 10 % larger is at least {control:.1e} apart",
            control_met=control > AGREEMENT,
        ),
        Claim(
            key="online_learner.zeros",
            says="No weight is non-zero where z is within l1, in any of these sets.",
            figure=f"{inside:,.0f} of {non_zeros:,.0f} non-zero weights",
            interval="exact",
            seeds=seed_text(PARITY_SEEDS),
            met=inside == 0,
            control=f"within 1.1 times l1 the same count finds {nearly:,.0f}",
            control_met=nearly > 0,
        ),
    ]


def _rates(results: Sequence[Result], name: str) -> Claim:
    own, shared = _chosen_rates(results, name)
    gain = _gain(results, name, own, shared)
    control = _gain(results, "uniform", *_chosen_rates(results, "uniform"))
    return Claim(
        key=f"online_learner.rates.{name}",
        says=(
            f"Rates per coordinate lower AucLoss by at least {100 * GAIN:g} % against the best "
            f"global rate, both tuned, on the {name} stream."
        ),
        figure=f"{percent(-gain.value)} ({_setting(own)} against {_setting(shared)})",
        interval=f"{percent(-gain.high)} to {percent(-gain.low)}",
        seeds=seed_text(TEST_SEEDS),
        met=gain.low >= GAIN,
        control=f"where no token is more frequent than another: {percent(-control.value)}",
        control_met=abs(control.value) < GAIN / 5,
    )


def _chosen_rates(results: Sequence[Result], name: str) -> tuple[str, str]:
    """Return the best candidate with rates of its own and the best with one rate for all."""
    grid = product(GLOBAL_RATES, GLOBAL_ALPHAS, GLOBAL_BETAS)
    every = [f"{rate}/{alpha}/{beta}" for rate, alpha, beta in grid]
    return (
        _best(results, name, [f"ftrl/{alpha}/0.0" for alpha in ALPHAS]),
        _best(results, name, every),
    )


def _gain(results: Sequence[Result], name: str, own: str, shared: str) -> Estimate:
    pairs = zip(_tested(results, name, own, "loss"), _tested(results, name, shared, "loss"),
                strict=True)  # fmt: skip
    return mean_over_seeds([1.0 - ours / theirs for ours, theirs in pairs])


def _sparsity(results: Sequence[Result], name: str) -> Claim:
    sparse, counted, cut = _chosen_sparse(results, name)
    saved = _relative(results, name, sparse, counted, "non_zeros")
    worse = _relative(results, name, sparse, counted, "loss")
    control = _relative(results, name, cut, counted, "loss")
    return Claim(
        key=f"online_learner.sparsity.{name}",
        says=(
            "FTRL has at most half of the non-zero weights of gradient descent with rates per "
            f"coordinate and counted features, AucLoss at most {100 * EQUAL:g} % higher, both "
            f"tuned, on the {name} stream."
        ),
        figure=(
            f"{1 + saved.value:.2f} of the non-zeros ({_setting(sparse)} against "
            f"{_setting(counted)}), AucLoss {percent(worse.value)}"
        ),
        interval=f"{1 + saved.low:.2f}–{1 + saved.high:.2f}, {percent_range(worse)}",
        seeds=seed_text(TEST_SEEDS),
        met=saved.high <= -0.5 and worse.high <= EQUAL,
        control=(
            f"counted until as few are left ({_setting(cut)}), AucLoss is {percent(control.value)}"
        ),
        control_met=control.low > EQUAL,
    )


def _chosen_sparse(results: Sequence[Result], name: str) -> tuple[str, str, str]:
    """Return the sparsest FTRL and the sparsest counted learner of equal loss, and one cut down.

    Equal to the best counted learner of all, on the tuning seeds. The third is the counted learner
    that keeps no more coordinates than that FTRL.
    """
    counted = [f"counted/{alpha}/{count}" for alpha in COUNT_ALPHAS for count in COUNTS]
    best = _tuned(results, name, _best(results, name, counted), "loss")

    def sparsest(candidates: list[str]) -> str:
        equal = [c for c in candidates if _tuned(results, name, c, "loss") <= best * (1 + EQUAL)]
        if not equal:
            return _best(results, name, candidates)
        return min(equal, key=lambda c: _tuned(results, name, c, "non_zeros"))

    ours = sparsest([f"ftrl/{alpha}/{l1}" for alpha in ALPHAS for l1 in L1])
    few = _tuned(results, name, ours, "non_zeros")
    alpha = sparsest(counted).split("/")[1]
    fewer = [
        candidate
        for count in COUNTS
        if _tuned(results, name, (candidate := f"counted/{alpha}/{count}"), "non_zeros") <= few
    ]
    return ours, sparsest(counted), fewer[0] if fewer else f"counted/{alpha}/{COUNTS[-1]}"


def _inclusion(results: Sequence[Result], name: str) -> Claim:
    alpha = _admission_alpha(results, name)
    always, twice, strict = (f"{each}/{alpha}/0.0" for each in ("always", "count 2", "count 50"))
    saved = _relative(results, name, twice, always, "non_zeros")
    worse = _relative(results, name, twice, always, "loss")
    control = _relative(results, name, strict, always, "loss")
    return Claim(
        key=f"online_learner.inclusion.{name}",
        says=(
            f"Admitting a token at its second visit exports at least {100 * SAVING:g} % fewer "
            f"coordinates at most {100 * DETRIMENT:g} % AucLoss higher, on the {name} stream; l1 "
            "is 0, so that nothing else makes zeros."
        ),
        figure=f"{percent(saved.value, 1)} coordinates, AucLoss {percent(worse.value, 3)}",
        interval=f"{percent_range(saved, 1)}, {percent_range(worse, 3)}",
        seeds=seed_text(TEST_SEEDS),
        met=saved.high <= -SAVING and worse.high <= DETRIMENT,
        control=f"admitting at the 50th visit, AucLoss is {percent(control.value, 3)}",
        control_met=control.low > DETRIMENT,
    )


def _admission_alpha(results: Sequence[Result], name: str) -> str:
    return _best(results, name, [f"always/{alpha}/0.0" for alpha in ALPHAS]).split("/")[1]


def _flat(results: Sequence[Result]) -> Claim:
    growth, kept = (_growth(results, arm) for arm in (FLAT, KEEPER))
    few = max(values_of(results, FLAT, f"{FEW_ROWS}"))
    return Claim(
        key="online_learner.memory",
        says=(
            f"Learning {MANY_ROWS:,} rows in micro-batches takes at most {100 * FLAT_WITHIN:g} % "
            f"more memory at its peak than {FEW_ROWS:,}, one fresh process each."
        ),
        figure=f"at most {percent(max(growth))}, of {few:.0f} MB",
        interval="largest of all seeds",
        seeds=seed_text(MEMORY_SEEDS),
        met=max(growth) <= FLAT_WITHIN,
        control=f"a learner that keeps its rows: at least {percent(min(kept), 0)}",
        control_met=min(kept) > 10 * FLAT_WITHIN,
    )


def _growth(results: Sequence[Result], arm: str) -> list[float]:
    few, many = (values_of(results, arm, f"{rows}") for rows in (FEW_ROWS, MANY_ROWS))
    return [high / low - 1.0 for low, high in zip(few, many, strict=True)]


def _best(results: Sequence[Result], name: str, candidates: Sequence[str]) -> str:
    """Return the candidate of the lowest AucLoss on the tuning seeds."""
    return min(candidates, key=lambda candidate: _tuned(results, name, candidate, "loss"))


def _tuned(results: Sequence[Result], name: str, candidate: str, what: str) -> float:
    tuning = [r for r in results if r.seed in TUNING_SEEDS]
    return float(np.mean(values_of(tuning, name, f"{candidate}/{what}")))


def _tested(results: Sequence[Result], name: str, candidate: str, what: str) -> list[float]:
    tests = [r for r in results if r.seed in TEST_SEEDS]
    return values_of(tests, name, f"{candidate}/{what}")


def _relative(results: Sequence[Result], name: str, left: str, right: str, what: str) -> Estimate:
    """Return how much more `left` has than `right`, relative to it, seed by seed."""
    pairs = zip(
        _tested(results, name, left, what), _tested(results, name, right, what), strict=True
    )
    return mean_over_seeds([a / b - 1.0 for a, b in pairs])


def _setting(candidate: str) -> str:
    """Return a candidate for people."""
    kind, *rest = candidate.split("/")
    if kind == "ftrl":
        return f"alpha {rest[0]}, l1 {rest[1]}"
    if kind == "counted":
        return f"alpha {rest[0]} from visit {rest[1]} on"
    return f"{kind}, alpha {rest[0]}, beta {rest[1]}"


def details(results: Sequence[Result]) -> list[str]:
    """Return what each way of admission saves and costs, with and without l1."""
    lines = []
    for name in ("even", "fading"):
        alpha = _admission_alpha(results, name)
        reference = f"always/{alpha}/0.0"
        share = float(np.mean(values_of(results, name, "seen_once")))
        rows = []
        for l1 in ADMISSION_L1:
            for admission in ADMISSIONS:
                candidate = f"{admission}/{alpha}/{l1}"
                exported = _tested(results, name, candidate, "non_zeros")
                worse = _relative(results, name, candidate, reference, "loss")
                saved = _relative(results, name, candidate, reference, "non_zeros")
                cell = "0" if candidate == reference else percent(saved.value, 1)
                cost = f"{percent(worse.value, 3)} ({percent_range(worse, 3)})"
                rows.append(
                    [admission, f"{l1:g}", f"{np.mean(exported):,.0f}", cell,
                     "0" if candidate == reference else cost]
                )  # fmt: skip
        lines += [
            f"Admission on the {name} stream, alpha {alpha}: exported coordinates and AucLoss "
            f"against admitting everything without l1, means over the test seeds. {100 * share:.0f}"
            " % of the tokens seen are seen once.",
            "",
            *table_lines(["admission", "l1", "exported", "coordinates", "AucLoss"], rows),
            "",
        ]
    sets = [
        [
            ", ".join(f"{key} {value:g}" for key, value in options.items()),
            *(
                f"{max(values_of(results, PARITY, f'{place}/{name}')):.1e}"
                for name in ("loss", "probability")
            ),
            f"{min(values_of(results, PARITY, f'{place}/control')):.1e}",
        ]
        for place, options in enumerate(PARITY_SETS)
    ]
    header = ["set", "log loss apart", "probability apart", "log loss apart, alpha 10 % larger"]
    return [*lines, "Vowpal Wabbit, by set; largest gap, and smallest of the control:", "",
            *table_lines(header, sets)]  # fmt: skip


def picture(results: Sequence[Result]) -> bytes:
    """Draw AucLoss over non-zero weights of FTRL and of counted gradient descent."""
    from benchmarks.pictures import new_figure, png

    figure, axes = new_figure(columns=2)
    for panel, name in zip(axes, ("even", "fading"), strict=True):
        ours, counted, _ = _chosen_sparse(results, name)
        for kind, chosen, settings, label, colour in (
            ("ftrl", ours, L1, "FTRL, by l1", "tab:red"),
            ("counted", counted, COUNTS, "gradient descent, by count", "tab:gray"),
        ):
            alpha = chosen.split("/")[1]
            points = [
                (
                    np.mean(_tested(results, name, f"{kind}/{alpha}/{setting}", "non_zeros")),
                    np.mean(_tested(results, name, f"{kind}/{alpha}/{setting}", "loss")),
                )
                for setting in settings
            ]
            panel.plot(
                *zip(*points, strict=True), color=colour, marker="o", markersize=3,
                linewidth=1.2, label=f"{label} (alpha {alpha})",
            )  # fmt: skip
        panel.set_xscale("log")
        panel.set_xlabel("weights that are not zero")
        panel.set_title(f"{name} stream")
        panel.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("AucLoss")
    return png(figure)


SECTION = Section(
    study=STUDY,
    title="Online learner",
    method=(
        f"Streams of {ROWS:,} rows with ten fields of 10 to 1,000,000 tokens under a Zipf law "
        "(exponent 1.1) and a logistic truth in which three tokens of ten have a coefficient. In "
        "the *even* stream all coefficients have one spread; in the *fading* one those of a field "
        "of a million tokens have 0.3 of the spread of a field of ten, as where coarse fields "
        "carry most of the signal. The claims are made for both, since they do not agree: where "
        "rare tokens tell as much as frequent ones, rates of their own are worth more and leaving "
        "tokens out costs more. Both streams were chosen while the study was written, after a look "
        "at seed 1 of a dozen shapes. In the control of the rates no slot is more frequent than "
        "another; in two first runs it failed, because it had an intercept and because the beta of "
        "the global rate was not tuned: both were mended, the second in favour of the global rate. "
        "The sparsity claim of the even stream once held only because the grid of the counted "
        "learner ended below its best alpha. Each candidate of a grid runs on "
        f"{len(TUNING_SEEDS)} tuning and {len(TEST_SEEDS)} test seeds; the choice reads "
        "the tuning seeds, the figures are of the test seeds. AucLoss is 1 - ROC-AUC of the "
        "progressive logits of the second half."
    ),
    claims=claims,
    details=details,
    pictures={"online_learner": picture},
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
