"""Whether probabilities are right on average, in every decile and for ads of every age.

A slice is calibrated when the true probabilities of its rows sum to what the forecast says, and the
simulator knows them; sums of labels say the same with more noise. Slices are the deciles of a
forecast's own score and four ranges of the age of the ad, on the test range that the ensemble has
not seen. A forecast is called calibrated when in every slice the interval of true / predicted, over
the seeds, lies within 0.9 and 1.1. Controls: the true probabilities as scores must agree with the
labels in every slice, and doubled odds must be flagged in every slice.

    python -m benchmarks.evidence.calibration [--seeds N] [--fresh] [--budget]
"""

from collections.abc import Sequence

import numpy as np

from ad_pipeline.evaluation import metrics
from benchmarks import small_markets
from benchmarks.claims import Claim, Section, seed_text, table_lines
from benchmarks.seed_intervals import LEVEL, Estimate, mean_over_seeds
from benchmarks.small_markets import DRIFTING, SEEDS
from benchmarks.studies import Result, Study, Values, command_line

GOALS = ("click", "purchase")
EXPERTS = ("online", "batch", "ensemble")
TRUTH, DOUBLED = "truth", "doubled odds"
DECILES = 10
AD_AGES = {"under 6 h": (0, 6), "6 to 24 h": (6, 24), "24 to 72 h": (24, 72), "72 h on": (72, 1e9)}
SLICES = ("all", *(f"decile {place}" for place in range(1, DECILES + 1)), *AD_AGES)
WITHIN = (0.9, 1.1)
SIMULTANEOUS = 1 - (1 - LEVEL) / len(SLICES)
"""Level of each slice's interval in the controls: all of them hold together (Bonferroni)."""

MARKET = "market"


def run(arm: str, seed: int) -> Values:
    """Sum forecasts, labels and true probabilities by slice.

    Parameters
    ----------
    arm : {'market'}
    seed : int

    Returns
    -------
    dict of str to float
        ``<goal>/<forecast>/<slice>/<rows, score, label, truth>``.
    """
    if arm != MARKET:
        raise ValueError(f"no arm {arm!r}")
    values: Values = {}
    for goal, market in small_markets.market_rows(DRIFTING, seed).items():
        tested = np.isfinite(market.column("ensemble_probability"))
        truth, labels = market.column("truth")[tested], market.column("label")[tested]
        ages = market.column("ad_age_hours")[tested]
        forecasts = {
            "online": metrics.probabilities_of(market.column("online_logit")[tested]),
            "batch": metrics.probabilities_of(market.column("batch_logit")[tested]),
            "ensemble": market.column("ensemble_probability")[tested],
            TRUTH: truth,
            DOUBLED: 2 * truth / (1 + truth),
        }
        for forecast, scores in forecasts.items():
            for name, rows in slices(scores, ages).items():
                sums = {"rows": rows.sum(), "score": scores[rows].sum()}
                sums |= {"label": labels[rows].sum(), "truth": truth[rows].sum()}
                values |= {
                    f"{goal}/{forecast}/{name}/{what}": float(total) for what, total in sums.items()
                }
    return values


def slices(scores: np.ndarray, ages: np.ndarray) -> dict[str, np.ndarray]:
    """Return which rows are in which slice, bool (n,) by name, in the order of :data:`SLICES`.

    Parameters
    ----------
    scores : ndarray of shape (n,), float64
    ages : ndarray of shape (n,), float64
        Hours.
    """
    decile = metrics.equal_mass_bins(scores, bins=DECILES)
    return {
        "all": np.ones(len(scores), dtype=bool),
        **{f"decile {place}": decile == place - 1 for place in range(1, DECILES + 1)},
        **{name: (ages >= low) & (ages < high) for name, (low, high) in AD_AGES.items()},
    }


def ratio(
    results: Sequence[Result],
    goal: str,
    forecast: str,
    name: str,
    observed: str,
    level: float = LEVEL,
) -> Estimate:
    """Return observed over predicted of one slice: mean over the seeds, with its interval.

    Parameters
    ----------
    results : sequence of Result
    goal, forecast, name : str
    observed : {'label', 'truth'}
    level : float
    """
    prefix = f"{goal}/{forecast}/{name}"
    return mean_over_seeds(
        [
            result.values[f"{prefix}/{observed}"] / result.values[f"{prefix}/score"]
            for result in results
        ],
        level,
    )


def calibrated(found: Estimate) -> bool:
    """Whether the whole interval of a ratio lies within the limits."""
    return WITHIN[0] <= found.low and found.high <= WITHIN[1]


def reaches_out(found: Estimate) -> float:
    """How far a ratio's interval reaches away from 1, as a logarithm."""
    return float(max(np.log(found.high), -np.log(max(found.low, 1e-9))))


STUDY = Study(
    name="calibration",
    settings={"markets": small_markets.settings(), "slices": SLICES, "ages": AD_AGES},
    seeds={MARKET: SEEDS},
    run=run,
    seconds=1.0,
    shared=lambda arm, seed: small_markets.shared(DRIFTING, seed),
)


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return one claim per goal, forecast and kind of slice."""
    made: list[Claim] = []
    kinds = {
        "all": ("in the large", ("all",)),
        "deciles": ("in every decile of its score", SLICES[1 : DECILES + 1]),
        "ad_age": ("for ads of every age", tuple(AD_AGES)),
    }
    for goal in GOALS:
        control, control_met = _controls(results, goal)
        for forecast in EXPERTS:
            for kind, (where, names) in kinds.items():
                found = {name: ratio(results, goal, forecast, name, "truth") for name in names}
                worst = max(found, key=lambda name: reaches_out(found[name]))
                label = "" if kind == "all" else f" ({worst})"
                outside = [name for name in names if not calibrated(found[name])]
                made.append(
                    Claim(
                        key=f"calibration.{goal}.{forecast}.{kind}",
                        says=(
                            f"The {forecast} probabilities of {goal}s are calibrated {where}: "
                            f"true / predicted within {WITHIN[0]} and {WITHIN[1]}."
                        ),
                        figure=f"{found[worst].value:.3f}{label}"
                        + ("" if kind == "all" else f", {len(outside)} of {len(names)} outside"),
                        interval=f"{found[worst].low:.3f}–{found[worst].high:.3f}",
                        seeds=seed_text(SEEDS),
                        met=not outside,
                        control=control,
                        control_met=control_met,
                    )
                )
    return made


def _controls(results: Sequence[Result], goal: str) -> tuple[str, bool]:
    true = [ratio(results, goal, TRUTH, name, "label", SIMULTANEOUS) for name in SLICES]
    doubled = [ratio(results, goal, DOUBLED, name, "truth", SIMULTANEOUS) for name in SLICES]
    agree = sum(found.low <= 1 <= found.high for found in true)
    flagged = sum(not found.low <= 1 <= found.high for found in doubled)
    text = (
        f"true probabilities as scores agree with the labels in {agree} of {len(SLICES)} slices; "
        f"doubled odds are flagged in {flagged} of {len(SLICES)}"
    )
    return text, agree == flagged == len(SLICES)


def details(results: Sequence[Result]) -> list[str]:
    """Return every slice's ratios, of truth and of labels."""
    lines: list[str] = []
    for goal in GOALS:
        rows = [
            [
                name,
                f"{sum(r.values[f'{goal}/ensemble/{name}/rows'] for r in results):,.0f}",
                *(
                    _cell(results, goal, forecast, name, observed)
                    for forecast in EXPERTS
                    for observed in ("truth", "label")
                ),
            ]
            for name in SLICES
        ]
        header = ["slice", "rows", *(f"{f}, {o}" for f in EXPERTS for o in ("true", "label"))]
        lines += [
            f"{goal.capitalize()}s: true probability / score and mean label / mean score, means "
            "over the seeds with intervals; rows are those of the ensemble, all seeds together. "
            "Deciles are those of each forecast's own score.",
            "",
            *table_lines(header, rows),
            "",
        ]
    return lines[:-1]


def _cell(results: Sequence[Result], goal: str, forecast: str, name: str, observed: str) -> str:
    found = ratio(results, goal, forecast, name, observed)
    return f"{found.value:.3f} ({found.low:.2f}–{found.high:.2f})"


def picture(results: Sequence[Result]) -> bytes:
    """Draw true / predicted by decile of score, for both goals."""
    from benchmarks.pictures import new_figure, png

    figure, axes = new_figure(columns=2)
    places = np.arange(1, DECILES + 1)
    for panel, goal in zip(axes, GOALS, strict=True):
        panel.axhspan(*WITHIN, color="0.93")
        panel.axhline(1, color="black", linewidth=0.6)
        for shift, forecast, colour in zip(
            (-0.15, 0.0, 0.15), EXPERTS, ("tab:blue", "tab:green", "tab:red"), strict=True
        ):
            found = [ratio(results, goal, forecast, f"decile {place}", "truth") for place in places]
            value = np.array([each.value for each in found])
            bounds = np.array([[each.low for each in found], [each.high for each in found]])
            panel.errorbar(
                places + shift,
                value,
                yerr=np.abs(bounds - value),
                color=colour,
                marker="o",
                markersize=3,
                capsize=2,
                linewidth=1.0,
                label=forecast,
            )
        panel.set_xticks(places)
        panel.set_xlabel("decile of the score")
        panel.set_title(f"{goal}s")
    axes[0].set_ylabel("true / predicted")
    axes[0].legend(frameon=False, fontsize=8)
    return png(figure)


SECTION = Section(
    study=STUDY,
    title="Calibration",
    method=(
        "On the test ranges of the same six drifting markets, the sum of the simulator's true "
        "probabilities over the sum of the scores, by slice; means over the seeds with Student's t "
        f"interval. Calibrated means that the interval lies within {WITHIN[0]} and {WITHIN[1]} in "
        "every slice; the figure is that of the slice whose interval reaches furthest from 1. The "
        "last day of these markets drifts."
    ),
    claims=claims,
    details=details,
    pictures={"calibration": picture},
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
