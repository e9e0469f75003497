"""What the stored results of the study of late labels say: estimates, tables and pictures.

Estimates are means over seeds with their intervals; which of them a claim rests on, and its limits,
stand in ``benchmarks/evidence/delayed_labels.py``.
"""

from collections.abc import Callable, Sequence

from ad_pipeline.monitoring.late_labels.arms import (
    ORACLE,
    PRE_TRAINED,
    RECALIBRATED,
    VANILLA,
    VANILLA_IMMEDIATE,
)
from benchmarks.claims import percent, percent_range, table_lines
from benchmarks.late_cases import (
    AGES,
    BURSTS,
    BY_AGE,
    DEFER,
    ES_DFM,
    FAMILIES,
    FNC,
    FNW,
    HAZARD,
    KTENA,
    STREAMING,
)
from benchmarks.late_worlds import EXACT_MODELS, OTHER_DRAW
from benchmarks.pictures import new_figure, png
from benchmarks.seed_intervals import Estimate, mean_over_seeds
from benchmarks.studies import Result, values_of

BY_AD_AGE = (0.9, 1.1)
"""Predicted over true, at every age of an ad."""

LOWER_IS_BETTER = {"log_loss": True, "pr_auc": False, "roc_auc": False, "rce": False}
SOON = {
    "short": "linear",
    "short, no spread": "linear, all rates equal",
    "short, deep": "wide & deep",
}
TAKES_LONG = {"long": "base rate 0.40", "long, 0.05": "base rate 0.05"}


def of_seeds(
    results: Sequence[Result], world: str, figure: Callable[[dict[str, float]], float]
) -> Estimate:
    """Return the mean over a world's seeds of a figure that is computed from the values of each."""
    return mean_over_seeds([figure(each.values) for each in results if each.arm == world])


def mean(results: Sequence[Result], world: str, name: str) -> Estimate:
    """Return the mean over the seeds of a named number."""
    return mean_over_seeds(values_of(results, world, name))


def difference(results: Sequence[Result], world: str, left: str, right: str) -> Estimate:
    """Return the mean over the seeds of left - right."""
    return of_seeds(results, world, lambda of: of[left] - of[right])


def over(results: Sequence[Result], world: str, left: str, right: str) -> Estimate:
    """Return the mean over the seeds of left / right - 1."""
    return of_seeds(results, world, lambda of: of[left] / of[right] - 1)


def inside(found: Estimate, limits: tuple[float, float]) -> bool:
    """Whether the whole interval is within limits."""
    return limits[0] <= found.low and found.high <= limits[1]


def reaches(found: Estimate, limits: tuple[float, float]) -> bool:
    """Whether any of the interval is within limits."""
    return found.low <= limits[1] and found.high >= limits[0]


def interval_text(found: Estimate, digits: int = 3) -> str:
    """Return the bounds for people."""
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}"


def figures_text(found: Sequence[Estimate]) -> str:
    """Return the values for people, of ratios."""
    return ", ".join(f"{each.value:.2f}" for each in found)


def limits_text(limits: tuple[float, float]) -> str:
    """Return limits for people."""
    return f"{limits[0]:g} to {limits[1]:g}"


def by_age(results: Sequence[Result], world: str, loss: str) -> list[Estimate]:
    """Return predicted over true of a loss at each age of an ad."""
    return [mean(results, world, f"{loss}/age/{place}") for place in range(len(AGES))]


def gain_of(results: Sequence[Result], measure: str, better: str, worse: str) -> Estimate:
    """Return by how much one arm of the stream is better than another, whatever better means."""
    names = (f"{better}/{measure}", f"{worse}/{measure}")
    return difference(results, "stream", *(names[::-1] if LOWER_IS_BETTER[measure] else names))


def closed(
    results: Sequence[Result], loss: str, measure: str, since: str = PRE_TRAINED
) -> Estimate:
    """Return the share of the gap between an arm and the oracle that a loss closes."""
    return of_seeds(
        results,
        "stream",
        lambda of: (
            (of[f"{loss}/{measure}"] - of[f"{since}/{measure}"])
            / (of[f"{ORACLE}/{measure}"] - of[f"{since}/{measure}"])
        ),
    )


def details(results: Sequence[Result]) -> list[str]:
    """Return the raw values behind the claims."""
    soon = [
        [named, loss, *(
            f"{found.value:.{digits}f} ({interval_text(found, digits)})"
            for measure, digits in (("rce", 2), ("calibration", 3))
            for found in [mean(results, world, f"{loss}/{measure}")]
        )]
        for world, named in SOON.items()
        for loss in KTENA
    ]  # fmt: skip
    ages = [
        [named, loss, *(f"{each.value:.2f}" for each in by_age(results, world, loss))]
        for world, named in TAKES_LONG.items()
        for loss in BY_AGE
    ]
    parts = [f"{low:g} to {min(high, 1):g}" for low, high in AGES]
    late = mean(results, "stream", "late")
    gap = over(results, "stream", f"{ORACLE}/log_loss", f"{PRE_TRAINED}/log_loss")
    exact = gain_of(results, "log_loss", EXACT_MODELS, ES_DFM)
    return [
        "Labels that come soon: RCE, and predicted over true.",
        "",
        *table_lines(["learner", "loss", "RCE", "predicted / true"], soon),
        "",
        "Delays of a third of an ad's life: predicted over true by the age of the ad, as a share "
        "of its life.",
        "",
        *table_lines(["world", "loss", *parts], ages),
        "",
        "The stream of 30 days. Shares of a gap only beside raw values: they depend on both its "
        "ends and are not comparable between logs. Rows learnt are of the stream.",
        "",
        *_table_of_the_stream(results),
        "",
        f"Oracle against pre-trained: {percent(gap.value, 1)} of the log loss (Criteo, by ES-DFM's "
        f"table: -3.5 %). {percent(late.value, 0)} of the positives come after the observation "
        "window. With the true lateness and the true real-negative probability in place of its "
        f"models, ES-DFM gains {exact.value:.4f} ({interval_text(exact, 4)}) of log loss: a bound "
        "and no diagnosis, since the true real-negative probability tells the loss the rate.",
        "",
        "How we read it; only the tables are measured. The zero of ES-DFM depends on its "
        "real-negative model alone, a linear learner of labels that are a week old: while all "
        "models of delay had one timid rate, it was shrunk towards the mean, and ES-DFM stayed "
        "behind FNW. FNW and the hazard correction ask no such model, and DEFER is shown the real "
        "negatives. What separates FNW from the hazard correction is the age of "
        "an ad, as in the long world. The published window is a month: the longer labels are on "
        "their way, the more a stream of copies is behind, which would put vanilla and FNW lower "
        "there. FNC learns p / (1 + p), whose log odds are log p: linear in features only where "
        "rates are small, and above one half to be capped. Where all rates are equal, features "
        "tell nothing: what is learnt of them is noise, and a loss of smaller steps learns less of "
        "it than the oracle's, so there the alarm for leaks may ring without one.",
        "",
        "PU in bursts, largest logits; 5 % of the rows are positive, so -2.9 is right.",
        "",
        *_table_of_bursts(results),
    ]  # fmt: skip


def _table_of_the_stream(results: Sequence[Result]) -> list[str]:
    rows = []
    for loss in (*STREAMING, OTHER_DRAW, EXACT_MODELS):
        cells = [
            f"{mean(results, 'stream', f'{loss}/{name}').value:.{digits}f}"
            for name, digits in (
                ("log_loss", 4), ("pr_auc", 4), ("roc_auc", 4), ("calibration", 3), ("examples", 0),
            )
        ]  # fmt: skip
        cells += [
            "" if loss == since else _share(closed(results, loss, name, since))
            for since in (PRE_TRAINED, VANILLA)
            for name in ("log_loss", "pr_auc")
        ]
        rows.append([loss, *cells])
    header = [
        "arm", "log loss", "PR-AUC", "ROC-AUC", "predicted / true", "rows learnt",
        "closed since pre-trained: log loss", "PR-AUC", "closed since vanilla: log loss", "PR-AUC",
    ]  # fmt: skip
    return table_lines(header, rows)


def _share(found: Estimate) -> str:
    return f"{percent(found.value, 0)} ({percent_range(found, 0)})"


def _table_of_bursts(results: Sequence[Result]) -> list[str]:
    rows = [
        [family, name, *(
            f"{values_of(results, BURSTS, f'{family}/{name}/{how}')[0]:+.1f}"
            for how in ("bursts", "spread out")
        )]
        for family in FAMILIES
        for name in ("PU", "PU, clipped", "FNW")
    ]  # fmt: skip
    return table_lines(["learner", "loss", "in bursts", "spread out"], rows)


def picture_of_ages(results: Sequence[Result]) -> bytes:
    """Draw predicted over true by the age of an ad, one panel a base rate."""
    figure, panels = new_figure(2)
    middles = [100 * (low + min(high, 1)) / 2 for low, high in AGES]
    for axes, (world, named) in zip(panels, TAKES_LONG.items(), strict=True):
        axes.axhspan(*BY_AD_AGE, color="0.92")
        axes.axhline(1, color="0.7", linewidth=0.8)
        for loss in BY_AGE:
            found = by_age(results, world, loss)
            axes.errorbar(
                middles,
                [each.value for each in found],
                yerr=_bars(found),
                marker="o",
                markersize=3,
                capsize=2,
                label=loss,
            )
        axes.set_title(named, fontsize=9)
        axes.set_xlabel("age of the ad, % of its life")
    panels[0].set_ylabel("predicted / true")
    panels[1].legend(fontsize=7, frameon=False)
    return png(figure)


def picture_of_the_stream(results: Sequence[Result]) -> bytes:
    """Draw log loss and PR-AUC of the arms of the stream."""
    figure, panels = new_figure(2)
    drawn = (
        ORACLE, HAZARD, DEFER, ES_DFM, FNW, FNC, RECALIBRATED, VANILLA, VANILLA_IMMEDIATE,
        PRE_TRAINED,
    )  # fmt: skip
    measures = {"log_loss": "log loss less the oracle's", "pr_auc": "PR-AUC less the oracle's"}
    for axes, (measure, named) in zip(panels, measures.items(), strict=True):
        found = [
            difference(results, "stream", f"{loss}/{measure}", f"{ORACLE}/{measure}")
            for loss in drawn
        ]
        axes.errorbar(
            [each.value for each in found], range(len(drawn)), xerr=_bars(found), fmt="o",
            markersize=4, capsize=2,
        )  # fmt: skip
        axes.axvline(0, color="0.7", linewidth=0.8)
        axes.set_yticks(range(len(drawn)), drawn if axes is panels[0] else [""] * len(drawn))
        axes.tick_params(labelsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(named)
    return png(figure)


def _bars(found: Sequence[Estimate]) -> list[list[float]]:
    return [[each.value - each.low for each in found], [each.high - each.value for each in found]]
