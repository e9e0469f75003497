"""What forgetting buys after an abrupt change, and what it costs where nothing changes.

A learner with each half-life, and one that never forgets, live through the same long stationary
stream; from there each goes on twice, once without a change and once into a world whose click rate
and whose coefficients changed at once. The cost is normalized entropy without the change. The
recovery is the time from which on the sum of its probabilities over an hour is within 0.9 and 1.1
of the sum of the true ones. Rows come at a constant pace, so that half-lives can be given in rows;
the clock moves at micro-batches.

The half-life that the claims are about is chosen on seeds of its own: the shortest that costs no
more than the limit there.

    python -m benchmarks.evidence.half_life [--seeds N] [--fresh] [--budget]
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.learners.online import online_hours
from ad_pipeline.settings import Configuration
from benchmarks.claims import Claim, Section, percent, percent_range, seed_text, table_lines
from benchmarks.click_streams import Clicks, Shape, clicks, coefficients
from benchmarks.seed_intervals import Estimate, mean_over_seeds
from benchmarks.studies import Result, Study, Values, command_line, values_of

SHAPE = Shape((10, 20, 50, 200, 1_000), spread=1.0, relevant=0.3, fading=0.105)
BATCH_ROWS, BATCHES_AN_HOUR = 2_000, 5
ROWS_AN_HOUR = BATCH_ROWS * BATCHES_AN_HOUR
BEFORE_HOURS, AFTER_HOURS = 200, 80
SHOWN_HOURS = 24
CHANGES = {"rises": 2.0, "falls": 0.5}
"""Click rate after the change over that before."""

REDRAWN = 0.3
"""Share of the tokens whose coefficient is drawn anew by the change."""

ALPHAS = (0.05, 0.1, 0.15)
HALF_LIVES = (3, 6, 10, 20, 40, 60, 80)
"""Hours; more are hard to tell from never within the stream."""

TUNING_SEEDS = (551, 552, 553)
TEST_SEEDS = tuple(range(561, 569))
COST = 0.001
"""Relative normalized entropy that forgetting may cost on a stationary stream."""

BAND = (0.9, 1.1)
PATIENCE = 3
"""Half-lives within which calibration must be back."""

TUNING = "tuning"
NEVER = "never"


def run(arm: str, seed: int) -> Values:
    """Live through one stream and one change.

    Parameters
    ----------
    arm : {'tuning', 'rises', 'falls'}
        Tuning looks at the stationary stream only.
    seed : int

    Returns
    -------
    dict of str to float
        By alpha and half-life: "ne" of the stationary stream and the hours until "back".
    """
    old = coefficients(SHAPE, seed)
    before = clicks(SHAPE, seed, BEFORE_HOURS * ROWS_AN_HOUR, truth=old)
    calm = clicks(SHAPE, seed, AFTER_HOURS * ROWS_AN_HOUR, part=1, truth=old)
    values: Values = {}
    for alpha in ALPHAS:
        expert = FTRLExpert(before.bits, configurations(alpha))
        _live(expert, before)
        kept = expert.state()
        logits = _live(expert, calm)
        for place, name in enumerate(_names()):
            said = metrics.probabilities_of(logits[:, place])
            values[f"{alpha}/{name}/ne"] = metrics.normalized_entropy(calm.labels, said)
        if arm == TUNING:
            continue
        new = changed(old, before.slots[: 10 * ROWS_AN_HOUR], seed, CHANGES[arm])
        moved = clicks(SHAPE, seed, AFTER_HOURS * ROWS_AN_HOUR, part=2, truth=new)
        logits = _live(FTRLExpert.restore(*kept), moved)
        for place, name in enumerate(_names()):
            ratios = calibration(logits[:, place], moved.truth)
            values[f"{alpha}/{name}/back"] = hours_until_back(ratios)
            hourly = ratios[: SHOWN_HOURS * BATCHES_AN_HOUR : BATCHES_AN_HOUR]
            values |= {f"{alpha}/{name}/hour {h}": float(each) for h, each in enumerate(hourly)}
    return values


def configurations(alpha: float) -> tuple[Configuration, ...]:
    """Return one that never forgets and one for each half-life."""
    return tuple(
        Configuration(alpha=alpha, l1=0.5, l2=1.0, half_life_hours=hours)
        for hours in (None, *HALF_LIVES)
    )


def changed(old: np.ndarray, slots: np.ndarray, seed: int, factor: float) -> np.ndarray:
    """Return the truth after the change: some tokens drawn anew, and another click rate.

    The intercept makes up for what the drawn tokens do to the click rate, so that it changes by the
    factor in every stream.

    Parameters
    ----------
    old : ndarray of shape (n_slots,), float64
    slots : ndarray of shape (n, F + 1), uint32
        Rows over which the click rate is meant.
    seed : int
    factor : float

    Returns
    -------
    ndarray of shape (n_slots,), float64
    """
    drawn = coefficients(SHAPE, seed + 10_000)
    anew = np.random.default_rng([seed, 5]).random(len(old)) < REDRAWN
    anew[-1] = False
    new = np.where(anew, drawn, old)
    wanted = factor * metrics.probabilities_of(old[slots].sum(axis=1)).mean()
    log_odds = new[slots].sum(axis=1)
    low, high = -10.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        if metrics.probabilities_of(log_odds + middle).mean() < wanted:
            low = middle
        else:
            high = middle
    new[-1] += (low + high) / 2
    return new


def _live(expert: FTRLExpert, stream: Clicks) -> np.ndarray:
    """Learn a stream in micro-batches on the clock; progressive logits of shape (n, K)."""
    logits = []
    for start in range(0, len(stream), BATCH_ROWS):
        rows = slice(start, start + BATCH_ROWS)
        logits.append(expert.predict_then_learn(stream.slots[rows], stream.labels[rows]))
        expert.advance(HOUR_US // BATCHES_AN_HOUR)
    return np.concatenate(logits)


def calibration(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return predicted over true clicks of every hour that begins with a micro-batch.

    Parameters
    ----------
    logits, truth : ndarray of shape (n,), float64
        Log odds, predicted and true.

    Returns
    -------
    ndarray of shape (n / BATCH_ROWS - BATCHES_AN_HOUR + 1,), float64
    """
    sums = [
        np.convolve(
            metrics.probabilities_of(each).reshape(-1, BATCH_ROWS).sum(axis=1),
            np.ones(BATCHES_AN_HOUR),
            mode="valid",
        )
        for each in (logits, truth)
    ]
    return sums[0] / sums[1]


def hours_until_back(ratios: np.ndarray) -> float:
    """Return after how many hours every hour is within the band; see :func:`calibration`."""
    outside = np.flatnonzero((ratios < BAND[0]) | (ratios > BAND[1]))
    return float(outside[-1] + 1) / BATCHES_AN_HOUR if outside.size else 0.0


def _names() -> tuple[str, ...]:
    return (NEVER, *map(str, HALF_LIVES))


STUDY = Study(
    name="half_life",
    settings={
        "code_version": online_hours.CODE_VERSION,
        "shape": asdict(SHAPE),
        "hours": [BEFORE_HOURS, AFTER_HOURS, ROWS_AN_HOUR, BATCHES_AN_HOUR],
        "changes": CHANGES,
        "redrawn": REDRAWN,
        "alphas": ALPHAS,
        "half_lives": HALF_LIVES,
        "band": BAND,
        "window": "an hour",
    },
    seeds={TUNING: TUNING_SEEDS, **dict.fromkeys(CHANGES, TEST_SEEDS)},
    run=run,
    seconds=10.0,
)


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return cost and recovery at the half-life that the tuning seeds chose."""
    alpha = chosen_alpha(results)
    half_life = chosen_half_life(results, alpha)
    cost = _cost(results, alpha, half_life)
    shortest = _cost(results, alpha, str(HALF_LIVES[0]))
    rows = int(half_life) * ROWS_AN_HOUR
    made = [
        Claim(
            key="half_life.cost",
            says=(
                f"A half-life of {half_life} hours ({rows:,} rows) costs at most {100 * COST:g} % "
                "of normalized entropy on a stationary stream against never forgetting."
            ),
            figure=f"{percent(cost.value, 3)} at alpha {alpha}",
            interval=percent_range(cost, 3),
            seeds=seed_text(TEST_SEEDS),
            met=cost.high <= COST,
            control=f"a half-life of {HALF_LIVES[0]} hours costs {percent(shortest.value)}",
            control_met=shortest.low > COST,
        )
    ]
    for change in CHANGES:
        back = _back(results, change, alpha, half_life)
        never = _back(results, change, alpha, NEVER)
        limit = PATIENCE * int(half_life)
        seeds = seed_text(TEST_SEEDS)
        pairs = list(zip(back, never, strict=True))
        made += [
            Claim(
                key=f"half_life.recovery.{change}",
                says=(
                    f"After the click rate {change} by a factor of two and {100 * REDRAWN:g} % of "
                    "the coefficients change, calibration is back within 0.9 and 1.1 within "
                    f"{PATIENCE} half-lives of {half_life} hours."
                ),
                figure=f"after {_hours(back)} hours, of {limit} allowed",
                interval="all seeds",
                seeds=seeds,
                met=max(back) <= limit,
                control=(
                    "at that moment the learner that never forgets is still outside in "
                    f"{sum(late > soon for soon, late in pairs)} of {len(pairs)} streams"
                ),
                control_met=all(late > soon for soon, late in pairs),
            ),
            Claim(
                key=f"half_life.needed.{change}",
                says=(
                    f"Without forgetting it is not back within those {limit} hours: the click rate "
                    f"{change}."
                ),
                figure=f"after {_hours(never)} hours",
                interval="all seeds",
                seeds=seeds,
                met=min(never) > limit,
                control=f"with forgetting it is, after {_hours(back)} hours",
                control_met=max(back) <= limit,
            ),
        ]
    return made


def chosen_alpha(results: Sequence[Result]) -> str:
    """Return the alpha of the best learner that never forgets, on the tuning seeds."""
    return min(map(str, ALPHAS), key=lambda a: np.mean(values_of(results, TUNING, _ne(a, NEVER))))


def chosen_half_life(results: Sequence[Result], alpha: str) -> str:
    """Return the shortest half-life that costs no more than the limit on the tuning seeds.

    The longest, if none does.
    """
    never = np.array(values_of(results, TUNING, _ne(alpha, NEVER)))
    for hours in map(str, HALF_LIVES):
        if np.max(np.array(values_of(results, TUNING, _ne(alpha, hours))) / never - 1.0) <= COST:
            return hours
    return str(HALF_LIVES[-1])


def _ne(alpha: str, half_life: str) -> str:
    return f"{alpha}/{half_life}/ne"


def _cost(results: Sequence[Result], alpha: str, half_life: str) -> Estimate:
    # Both changes share the stationary stream of a seed.
    first = next(iter(CHANGES))
    pairs = zip(
        values_of(results, first, _ne(alpha, half_life)),
        values_of(results, first, _ne(alpha, NEVER)),
        strict=True,
    )
    return mean_over_seeds([with_ / without - 1.0 for with_, without in pairs])


def _back(results: Sequence[Result], change: str, alpha: str, half_life: str) -> list[float]:
    return values_of(results, change, f"{alpha}/{half_life}/back")


def _hours(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def details(results: Sequence[Result]) -> list[str]:
    """Return cost and recovery of every half-life, for the chosen alpha and the others."""
    lines: list[str] = []
    for alpha in map(str, ALPHAS):
        rows = []
        for name in _names():
            cost = _cost(results, alpha, name)
            rows.append(
                [
                    name if name == NEVER else f"{name} h",
                    "0"
                    if name == NEVER
                    else f"{percent(cost.value, 3)} ({percent_range(cost, 3)})",
                    *(_hours(_back(results, change, alpha, name)) for change in CHANGES),
                ]
            )
        note = " (chosen)" if alpha == chosen_alpha(results) else ""
        lines += [
            f"alpha {alpha}{note}: cost on the stationary stream, hours until calibration is back.",
            "",
            *table_lines(["half-life", "normalized entropy", *CHANGES], rows),
            "",
        ]
    return [
        *lines,
        "The learner that never forgets comes back too: with rates per coordinate that fall with "
        "the root of what was seen, the intercept needs a time that grows with the root of its "
        "history only. Three half-lives are a generous limit for any half-life that costs little; "
        "what forgetting buys is in the columns above.",
    ]


def picture(results: Sequence[Result]) -> bytes:
    """Draw predicted over true clicks by hour after both changes, with and without forgetting."""
    from benchmarks.pictures import new_figure, png

    alpha = chosen_alpha(results)
    half_life = chosen_half_life(results, alpha)
    figure, axes = new_figure(columns=2)
    for panel, change in zip(axes, CHANGES, strict=True):
        for name, label, colour in (
            (NEVER, "never forgets", "tab:gray"),
            (half_life, f"half-life {half_life} h", "tab:red"),
            (str(HALF_LIVES[0]), f"half-life {HALF_LIVES[0]} h", "tab:orange"),
        ):
            hourly = [
                np.mean(values_of(results, change, f"{alpha}/{name}/hour {hour}"))
                for hour in range(SHOWN_HOURS)
            ]
            panel.plot(range(1, SHOWN_HOURS + 1), hourly, color=colour, linewidth=1.2, label=label)
        for bound in BAND:
            panel.axhline(bound, color="black", linewidth=0.6, linestyle=":")
        panel.set_xlabel("hours after the change")
        panel.set_title(f"click rate {change}")
    axes[0].set_ylabel("predicted / true clicks")
    axes[0].legend(frameon=False, fontsize=8)
    return png(figure)


SECTION = Section(
    study=STUDY,
    title="Half-life",
    method=(
        f"{BEFORE_HOURS} hours of {ROWS_AN_HOUR:,} rows with five fields of 10 to 1,000 tokens, "
        f"then {AFTER_HOURS} hours with and without the change; the clock moves every "
        f"{60 // BATCHES_AN_HOUR} minutes. Calibration is against the simulator's true "
        "probabilities, over every hour that begins with a micro-batch; 'back' means that all "
        "later hours are within the band. Two things were changed after first runs: these were "
        "single micro-batches, which leave the band by chance now and then; and the change did not "
        "make up for what the drawn tokens do to the click rate, which in one stream hardly moved, "
        "so that a control failed. The other verdicts were the same. alpha is the one that "
        "is best without forgetting, the half-life the shortest that costs at most "
        f"{100 * COST:g} % there, both on the tuning seeds. The control asked for first, that a "
        "learner that never forgets is not back within three half-lives, is a claim of its own; "
        "the control of a recovery is that it takes longer."
    ),
    claims=claims,
    details=details,
    pictures={"half_life": picture},
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
