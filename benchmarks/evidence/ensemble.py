"""Whether the ensemble beats the best expert of hindsight, and only where there is cause.

The ensembles are the product's: fitted by ``learners.ensemble`` on matured rows, measured on the
test range that no fit has seen, against both experts' scores at serving time. The best expert of
hindsight is chosen on that very test range, which favours it. Two controls replace the batch
expert: by noise (the ensemble may lose nothing against the online expert alone, calibrated the same
way) and by a copy of the online expert (no gain may be found). Beside what the product chooses
stands every mixture that the settings can name.

    python -m benchmarks.evidence.ensemble [--seeds N] [--fresh] [--budget]
"""

from collections.abc import Sequence

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import DATA_FOLDER, load_dataset
from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.intervals import paired_difference
from ad_pipeline.learners.ensemble.ensemble import fit_ensemble
from benchmarks import small_markets
from benchmarks.claims import Claim, Section, percent, percent_range, seed_text, table_lines
from benchmarks.seed_intervals import Estimate, mean_over_seeds
from benchmarks.small_markets import DRIFTING, SEEDS, MarketRows
from benchmarks.studies import Result, Study, Values, command_line, values_of

GOALS = ("click", "purchase")
MARKET, NOISE, COPY = "market", "noise for batch", "copy for batch"
TOLERANCE = 0.001
"""Relative log loss below which a control counts as nothing lost and nothing found."""

NAMED = ("average", "voting", "stacked", "online", "batch")
"""Mixtures that ``settings.ensemble.mixture`` can name."""

REPLICATES = 400


def run(arm: str, seed: int) -> Values:
    """Measure the ensembles of one market, or those of a control.

    Parameters
    ----------
    arm : str
    seed : int

    Returns
    -------
    dict of str to float
        By goal: relative log loss of the ensemble against each opponent, with the bounds of the
        paired bootstrap over hours of maturity.
    """
    values: Values = {}
    for goal, market in small_markets.market_rows(DRIFTING, seed).items():
        measured = _market(market) if arm == MARKET else _control(market, arm, seed)
        values |= {f"{goal}/{name}": value for name, value in measured.items()}
    return values


def _market(market: MarketRows) -> Values:
    tested = np.isfinite(market.column("ensemble_probability"))
    labels, hours = market.column("label")[tested], _hours(market)[tested]
    ensemble = market.column("ensemble_probability")[tested]
    experts = {
        name: metrics.probabilities_of(market.column(f"{name}_logit")[tested])
        for name in ("online", "batch")
    }
    losses = {name: metrics.log_loss(labels, said) for name, said in experts.items()}
    best = min(losses, key=lambda name: losses[name])
    logits = _logits(market)
    opponents = {
        **experts,
        "best": experts[best],
        # What the same calibration makes of the best expert alone: the rest is due to mixing.
        "best_calibrated": _fitted({best: logits[best]}, market)[tested],
    }
    values: Values = {
        "rows": float(len(labels)),
        "positives": float(labels.sum()),
        "normalized_entropy": metrics.normalized_entropy(labels, ensemble),
        "best_is_batch": float(best == "batch"),
    }
    for name, said in opponents.items():
        values |= _difference(f"v_{name}", labels, ensemble, said, hours)
    for mixture in NAMED:
        said = _fitted(logits, market, mixture)[tested]
        values |= _difference(f"{mixture}_v_best", labels, said, experts[best], hours)
    return values


def _control(market: MarketRows, arm: str, seed: int) -> Values:
    logits = _logits(market)
    online, batch = logits["online"], logits["batch"]
    replaced = online
    if arm == NOISE:
        # As spread out as the batch expert and right on average, but it knows nothing.
        scored = batch[np.isfinite(batch)]
        draws = np.random.default_rng(seed).normal(scored.mean(), scored.std(), len(batch))
        replaced = np.where(np.isfinite(batch), draws, np.nan)
    tested = np.isfinite(market.column("ensemble_probability"))
    both = _fitted({"online": online, "batch": replaced}, market)[tested]
    alone = _fitted({"online": online}, market)[tested]
    labels, hours = market.column("label")[tested], _hours(market)[tested]
    return _difference("v_alone", labels, both, alone, hours)


def _logits(market: MarketRows) -> dict[str, np.ndarray]:
    """Return both experts' logits, NaN where either is missing, so that all fits see equal rows."""
    found = {name: market.column(f"{name}_logit") for name in ("online", "batch")}
    there = np.all([np.isfinite(values) for values in found.values()], axis=0)
    return {name: np.where(there, values, np.nan) for name, values in found.items()}


def _fitted(logits: dict[str, np.ndarray], market: MarketRows, mixture: str = "auto") -> np.ndarray:
    """Fit an ensemble as the product does, without provisional rows, and apply it; shape (n,)."""
    settings = _dataset_settings().ensemble.model_copy(update={"mixture": mixture})
    ensemble = fit_ensemble(logits, market.column("label"), market.column("matured_us"), settings)
    return ensemble.apply(logits)


def _difference(
    name: str, labels: np.ndarray, left: np.ndarray, right: np.ndarray, hours: np.ndarray
) -> Values:
    found = paired_difference(labels, left, right, hours, seed=1, replicates=REPLICATES)
    return {name: found.relative, f"{name}/low": found.low, f"{name}/high": found.high}


def _hours(market: MarketRows) -> np.ndarray:
    matured_us = market.column("matured_us")
    return matured_us - matured_us % HOUR_US


def _dataset_settings():
    return load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml").settings


STUDY = Study(
    name="ensemble",
    settings={
        "markets": small_markets.settings(),
        "replicates": REPLICATES,
        "mixtures": NAMED,
    },
    seeds=dict.fromkeys((MARKET, NOISE, COPY), SEEDS),
    run=run,
    seconds=4.0,
    shared=lambda arm, seed: small_markets.shared(DRIFTING, seed),
)

_OPPONENTS = {
    "best": "the better expert of hindsight",
    "online": "the online expert",
    "batch": "the batch expert",
    "best_calibrated": "the better expert of hindsight, calibrated as it is",
}


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return one claim per goal and opponent."""
    made: list[Claim] = []
    for goal in GOALS:
        noise = mean_over_seeds(values_of(results, NOISE, f"{goal}/v_alone"))
        copy = mean_over_seeds(values_of(results, COPY, f"{goal}/v_alone"))
        control = (
            f"noise in place of the batch expert loses {percent(noise.value)} "
            f"({percent_range(noise)}), a copy of the online expert {percent(copy.value)} "
            f"({percent_range(copy)}); {100 * TOLERANCE:g} % allowed"
        )
        for opponent, named in _OPPONENTS.items():
            found = mean_over_seeds(values_of(results, MARKET, f"{goal}/v_{opponent}"))
            made.append(
                Claim(
                    key=f"ensemble.{goal}.v_{opponent}",
                    says=f"For {goal}s the ensemble's log loss is below that of {named}.",
                    figure=percent(found.value),
                    interval=percent_range(found),
                    seeds=seed_text(SEEDS),
                    met=found.high < 0,
                    control=control,
                    control_met=noise.value <= TOLERANCE and abs(copy.value) <= TOLERANCE,
                )
            )
    return made


def details(results: Sequence[Result]) -> list[str]:
    """Return every seed's own figures, with its bootstrap interval, and the named mixtures."""
    rows = []
    for result in results:
        if result.arm != MARKET:
            continue
        for goal in GOALS:
            values = {
                name.removeprefix(f"{goal}/"): value
                for name, value in result.values.items()
                if name.startswith(f"{goal}/")
            }
            better = "batch" if values["best_is_batch"] else "online"
            rows.append(
                [
                    str(result.seed),
                    goal,
                    f"{values['rows']:,.0f}",
                    f"{values['positives']:,.0f}",
                    f"{values['normalized_entropy']:.4f}",
                    better,
                    *(_with_bounds(values, f"v_{name}") for name in ("best", "online", "batch")),
                ]
            )
    header = ["seed", "goal", "test rows", "positives", "NE of the ensemble", "better expert",
              "v. better", "v. online", "v. batch"]  # fmt: skip
    return [
        "Each seed's own test range, with 95 % intervals of a paired bootstrap over its hours:",
        "",
        *table_lines(header, rows),
        "",
        "Mixtures that the settings can name instead of the choice, calibrated alike, against the "
        "better expert of hindsight; means over the seeds with Student's t interval:",
        "",
        *table_lines(["goal", "as chosen", *NAMED], _named_rows(results)),
    ]


def _named_rows(results: Sequence[Result]) -> list[list[str]]:
    rows = []
    for goal in GOALS:
        found = [
            mean_over_seeds(values_of(results, MARKET, f"{goal}/{name}"))
            for name in ("v_best", *(f"{mixture}_v_best" for mixture in NAMED))
        ]
        rows.append([goal, *(f"{percent(each.value)} ({percent_range(each)})" for each in found)])
    return rows


def _with_bounds(values: dict[str, float], name: str) -> str:
    bounds = Estimate(values[name], values[f"{name}/low"], values[f"{name}/high"], 1)
    return f"{percent(bounds.value)} ({percent_range(bounds)})"


SECTION = Section(
    study=STUDY,
    title="Ensemble against the experts",
    method=(
        "Six small drifting markets of seeds that no default was tuned on go through the whole "
        "path. Figures are relative log losses of the ensemble on the test range of each "
        "(negative: the ensemble is better), means over the seeds with Student's t interval: each "
        "seed is a market of its own. The better expert of hindsight is chosen on the test range "
        "itself."
    ),
    claims=claims,
    details=details,
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
