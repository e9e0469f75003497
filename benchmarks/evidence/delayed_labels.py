"""What losses of late labels correct, and what they do not: formulas, worlds, a stream of 30 days.

Four questions. Are the formulas right (zeros, expected slopes, bursts)? Where labels come soon, are
the corrections calibrated and the plain log loss not, and in which order do they stand (Ktena et
al., RecSys 2019)? Where labels take as long as an ad lives, how wrong is each at which age of an
ad? On a stream like that of ES-DFM (Yang et al., AAAI 2021), who closes how much of the gap between
the model as the stream began and an oracle? What is run stands in :mod:`benchmarks.late_cases`.

    python -m benchmarks.evidence.delayed_labels [--seeds N] [--fresh] [--budget]
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

from ad_pipeline.monitoring.late_labels import runs
from ad_pipeline.monitoring.late_labels.arms import (
    ORACLE,
    PRE_TRAINED,
    VANILLA,
    VANILLA_IMMEDIATE,
)
from benchmarks.claims import Claim, Section, percent, percent_range, seed_text
from benchmarks.fixed_points import WITHIN
from benchmarks.late_cases import (
    AGES,
    BURSTS,
    CASES,
    DEEP,
    DRAWS,
    ES_DFM,
    FAMILIES,
    FNC,
    FNW,
    FORMULAS,
    HAZARD,
    LONG,
    PU,
    REPLICATES,
    SHORT,
    STREAM,
    run,
)
from benchmarks.late_figures import (
    BY_AD_AGE,
    SOON,
    TAKES_LONG,
    by_age,
    closed,
    details,
    difference,
    figures_text,
    gain_of,
    inside,
    interval_text,
    limits_text,
    mean,
    over,
    picture_of_ages,
    picture_of_the_stream,
    reaches,
)
from benchmarks.late_worlds import OTHER_DRAW
from benchmarks.studies import Result, Study, command_line, values_of

SEEDS = tuple(range(711, 716))
"""The sizes of the worlds were tried on seeds 0 to 4; how much the stream drifts was set by the gap
between pre-trained and oracle alone, to be about Criteo's (3.5 % of the log loss)."""

STUDY = Study(
    name="delayed_labels",
    settings={
        "code_version": runs.CODE_VERSION,
        "cases": {
            name: asdict(case) | {"learners": repr(case.learners)} for name, case in CASES.items()
        },
        "bursts": {name: repr(learners) for name, learners in FAMILIES.items()},
        "ages": AGES,
        "draws": DRAWS,
        "replicates": REPLICATES,
    },
    seeds={FORMULAS: SEEDS, BURSTS: SEEDS[:1]} | dict.fromkeys(CASES, SEEDS),
    run=run,
    seconds=20.0,
)

STANDARD_ERRORS = 4.0
CALIBRATED, YOUNG = (0.98, 1.02), (1.2, 1.7)
NAIVE_WITHIN = 0.02
FAR_LOGIT = 5.0
"""Of a rate of 5 %, whose logit is -2.9."""

PUBLISHED = {"roc_auc": 0.66, "pr_auc": 0.65, "log_loss": 0.60}
"""Shares of the gap that ES-DFM closes on Criteo, by the table of its authors' code."""


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return all claims; what is said of a world is over its seeds."""
    return [
        *_of_formulas(results),
        *(_bursts(results, family) for family in ("linear, alpha 0.5", "deep")),
        *_of_short_delays(results),
        *(claim for world in TAKES_LONG for claim in _by_ad_age(results, world)),
        *_of_the_stream(results),
        _no_leak(results),
    ]


# --- formulas ------------------------------------------------------------------------------------


def _of_formulas(results: Sequence[Result]) -> list[Claim]:
    first = next(result.values for result in results if result.arm == FORMULAS)
    errors, defects = _named(first, "error/"), _named(first, "defect/")
    worst, mildest = max(errors, key=errors.__getitem__), min(defects, key=defects.__getitem__)
    inverse, plain = errors[FNC], defects["log loss, immediate"]
    damped, other = first["damping/1 - f^2"], first["damping/1 - f"]
    made = [
        Claim(
            key="delayed_labels.fixed_points",
            says=(
                f"Every loss has its zero within {100 * WITHIN:g} % of the rate, for every rate "
                "and lateness of the grid."
            ),
            figure=f"largest relative error {errors[worst]:.1e} ({worst})",
            interval="exact",
            seeds="none: computed",
            met=errors[worst] <= WITHIN,
            control=f"defective variants; the mildest, {mildest}: {percent(defects[mildest], 0)}",
            control_met=defects[mildest] > WITHIN,
        ),
        Claim(
            key="delayed_labels.inverse",
            says="The inverse of fake-negative calibration gives the rate exactly (to 1e-9).",
            figure=f"largest relative error {inverse:.1e}",
            interval="exact",
            seeds="none: computed",
            met=inverse <= 1e-9,
            control=f"the same forecast without the inverse: {percent(plain, 0)}",
            control_met=plain > WITHIN,
        ),
        Claim(
            key="delayed_labels.damping",
            says="The slope of FNW is that of PU times 1 - f^2 (to 1e-9).",
            figure=f"largest relative error {damped:.1e}",
            interval="exact",
            seeds="none: computed",
            met=damped <= 1e-9,
            control=f"times 1 - f: {other:.1e}",
            control_met=other > WITHIN,
        ),
    ]
    for name, says in {
        "FNW": "With weights of the true rate, the mean FNW slope of an event of the biased stream "
        "is the mean slope of the log loss on final labels",
        "FNW, own weights": "With weights of its own forecast it is that times (1 - f^2) / (1 + p)",
    }.items():
        found = max(values_of(results, FORMULAS, f"slope/{name}"))
        control = min(values_of(results, FORMULAS, "slope/log loss"))
        made.append(
            Claim(
                key=f"delayed_labels.slope.{'true' if name == 'FNW' else 'own'}_weights",
                says=f"{says}: within {STANDARD_ERRORS:g} standard errors of {DRAWS:,} draws.",
                figure=f"at most {found:.1f} standard errors",
                interval="Monte Carlo, 5 rates x 3 scores a seed",
                seeds=seed_text(SEEDS),
                met=found <= STANDARD_ERRORS,
                control=f"log loss on the same stream: {control:.0f} standard errors",
                control_met=control > STANDARD_ERRORS,
            )
        )
    return made


def _named(values: dict[str, float], prefix: str) -> dict[str, float]:
    return {
        key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)
    }


def _bursts(results: Sequence[Result], family: str) -> Claim:
    largest = {
        name: values_of(results, BURSTS, f"{family}/{name}/bursts")[0]
        for name in ("PU", "PU, clipped", "FNW")
    }
    spread_out = values_of(results, BURSTS, f"{family}/PU/spread out")[0]
    return Claim(
        key=f"delayed_labels.bursts.{family.split(',')[0]}",
        says=(
            f"Positives of 5 % in bursts throw PU off (largest logit above {FAR_LOGIT:g}, where "
            f"-2.9 is right), and its clip and FNW stay below: {family}."
        ),
        figure=", ".join(f"{name} {value:+.1f}" for name, value in largest.items()),
        interval="exact",
        seeds="none: no draws",
        met=largest["PU"] > FAR_LOGIT > max(largest["PU, clipped"], largest["FNW"]),
        control=f"PU, the same positives spread out: {spread_out:+.1f}",
        control_met=spread_out < 0,
    )


# --- labels that come soon -----------------------------------------------------------------------


def _of_short_delays(results: Sequence[Result]) -> list[Claim]:
    made: list[Claim] = []
    for world, named in SOON.items():
        key = f"delayed_labels.{world.replace(', ', '.').replace(' ', '_')}"
        naive = mean(results, world, f"{VANILLA_IMMEDIATE}/calibration")
        off = difference(results, world, f"{VANILLA_IMMEDIATE}/calibration", "naive")
        control = difference(results, world, f"{FNW}/calibration", "naive")
        expected = mean(results, world, "naive").value
        made.append(
            Claim(
                key=f"{key}.naive",
                says=(
                    "Predicted over true of the plain log loss on the biased stream is within "
                    f"{NAIVE_WITHIN:g} of E[p / (1 + p)] / E[p]: {named}."
                ),
                figure=f"{naive.value:.3f}, expected {expected:.3f}",
                interval=f"difference {interval_text(off)}",
                seeds=seed_text(SEEDS),
                met=off.low >= -NAIVE_WITHIN and off.high <= NAIVE_WITHIN,
                control=f"FNW's difference from the same: {control.value:+.3f}",
                control_met=control.low > NAIVE_WITHIN,
            )
        )
        for loss in (PU, FNW, FNC):
            found = mean(results, world, f"{loss}/calibration")
            made.append(
                Claim(
                    key=f"{key}.{loss}",
                    says=f"{loss} is calibrated within {limits_text(CALIBRATED)}: {named}.",
                    figure=f"{found.value:.3f}",
                    interval=interval_text(found),
                    seeds=seed_text(SEEDS),
                    met=inside(found, CALIBRATED),
                    control=f"plain log loss: {naive.value:.3f}",
                    control_met=naive.high < CALIBRATED[0],
                )
            )
    return [*made, _order_of_rce(results, "short"), _order_of_rce(results, "short, deep"),
            _rare(results)]  # fmt: skip


def _order_of_rce(results: Sequence[Result], world: str) -> Claim:
    gains = {
        loss: difference(results, world, f"{loss}/rce", f"{VANILLA_IMMEDIATE}/rce")
        for loss in (PU, FNW, FNC)
    }
    oracle = difference(results, world, f"{ORACLE}/rce", f"{VANILLA_IMMEDIATE}/rce")
    smallest = min(gain.value for gain in gains.values())
    return Claim(
        key=f"delayed_labels.{world.replace(', ', '.')}.order",
        says=f"In RCE, the plain log loss is below PU, FNW and FNC: {SOON[world]}.",
        figure=", ".join(f"{loss} {gain.value:+.2f}" for loss, gain in gains.items()),
        interval=", ".join(interval_text(gain, 2) for gain in gains.values()),
        seeds=seed_text(SEEDS),
        met=all(gain.low > 0 for gain in gains.values()),
        control=(
            f"log loss on final labels, which no stream has biased, gains {oracle.value:+.2f}: no "
            "less than the least of them"
        ),
        control_met=oracle.value >= smallest,
    )


def _rare(results: Sequence[Result]) -> Claim:
    change, common = (
        over(results, world, f"{FNW}/calibration", f"{VANILLA_IMMEDIATE}/calibration")
        for world in ("rare", "short")
    )
    return Claim(
        key="delayed_labels.rare",
        says="At a base rate of 0.005, FNW changes mean predictions by less than 1 %.",
        figure=percent(change.value),
        interval=percent_range(change),
        seeds=seed_text(SEEDS),
        met=max(abs(change.low), abs(change.high)) < 0.01,
        control=f"at a base rate of 0.345: {percent(common.value, 0)}",
        control_met=common.low > 0.1,
    )


# --- labels that take as long as an ad lives -----------------------------------------------------


def _by_ad_age(results: Sequence[Result], world: str) -> list[Claim]:
    ages = {loss: by_age(results, world, loss) for loss in (ORACLE, FNW, HAZARD)}
    key = f"delayed_labels.long.{CASES[world].world.rate:.2f}"
    outside = [each for each in ages[FNW] if not reaches(each, BY_AD_AGE)]
    calm = all(inside(each, BY_AD_AGE) for each in ages[ORACLE])
    oracle = f"log loss on final labels, same ads: {figures_text(ages[ORACLE])}"
    young = ages[FNW][0]
    return [
        Claim(
            key=f"{key}.hazard",
            says=(
                "With delays of a third of an ad's life, the hazard correction is calibrated "
                f"within {limits_text(BY_AD_AGE)} at every age of an ad: {TAKES_LONG[world]}."
            ),
            figure=figures_text(ages[HAZARD]),
            interval=", ".join(map(interval_text, ages[HAZARD])),
            seeds=seed_text(SEEDS),
            met=all(inside(each, BY_AD_AGE) for each in ages[HAZARD]),
            control=f"FNW, which must be outside somewhere: {figures_text(ages[FNW])}",
            control_met=bool(outside),
        ),
        Claim(
            key=f"{key}.fnw",
            says=f"There FNW is outside these limits at some age: {TAKES_LONG[world]}.",
            figure=figures_text(ages[FNW]),
            interval=", ".join(map(interval_text, ages[FNW])),
            seeds=seed_text(SEEDS),
            met=bool(outside),
            control=oracle,
            control_met=calm,
        ),
        Claim(
            key=f"{key}.fnw.young",
            says=(
                "There FNW predicts "
                f"{limits_text(YOUNG)} times the truth of ads in the first 5 % of their life: "
                f"{TAKES_LONG[world]}."
            ),
            figure=f"{young.value:.2f}",
            interval=interval_text(young, 2),
            seeds=seed_text(SEEDS),
            met=inside(young, YOUNG),
            control=oracle,
            control_met=calm,
        ),
    ]


# --- the stream of 30 days -----------------------------------------------------------------------


def _of_the_stream(results: Sequence[Result]) -> list[Claim]:
    by_pr_auc = (ORACLE, ES_DFM, FNW, VANILLA, PRE_TRAINED)
    made = [
        _ordered(
            results,
            "pr_auc",
            list(pairwise(by_pr_auc)),
            "In PR-AUC: oracle > ES-DFM > FNW >= vanilla, duplicated > pre-trained, as published.",
            may_be_equal=((FNW, VANILLA),),
        ),
        _ordered(
            results,
            "log_loss",
            [(ORACLE, ES_DFM), *((ES_DFM, each) for each in (FNW, FNC, VANILLA, PRE_TRAINED))],
            "In log loss the oracle is better than ES-DFM, and ES-DFM than FNW, FNC, vanilla and "
            "pre-trained, as published.",
        ),
    ]
    made += [
        _ordered(
            results,
            "log_loss",
            [(PRE_TRAINED, loss)],
            f"In log loss, {loss} is worse than pre-trained, as published.",
            key=f"worse.{loss.split(',')[0]}",
        )
        for loss in (VANILLA, FNW)
    ]
    other = {name: closed(results, OTHER_DRAW, name) for name in PUBLISHED}
    for name, least in PUBLISHED.items():
        found = closed(results, ES_DFM, name)
        made.append(
            Claim(
                key=f"delayed_labels.stream.closed.{name}",
                says=(
                    f"ES-DFM closes at least {100 * least:.0f} % of the gap between pre-trained "
                    f"and oracle in {name}, what it closes on Criteo."
                ),
                figure=percent(found.value, 0),
                interval=percent_range(found, 0),
                seeds=seed_text(SEEDS),
                met=found.low >= least,
                control=f"the oracle with other rows left out: {percent(other[name].value, 0)}",
                control_met=inside(other[name], (0.9, 1.1)),
            )
        )
    made.append(
        _ordered(
            results,
            "log_loss",
            [(HAZARD, ES_DFM)],
            "In log loss, the hazard correction is better than ES-DFM.",
            key="hazard",
        )
    )
    ages = by_age(results, "stream", HAZARD)
    made.append(
        Claim(
            key="delayed_labels.stream.hazard.ages",
            says=(
                "On the stream, the hazard correction is calibrated within "
                f"{limits_text(BY_AD_AGE)} at every age of an ad."
            ),
            figure=figures_text(ages),
            interval=", ".join(map(interval_text, ages)),
            seeds=seed_text(SEEDS),
            met=all(inside(each, BY_AD_AGE) for each in ages),
            control=f"vanilla, duplicated: {figures_text(by_age(results, 'stream', VANILLA))}",
            control_met=any(
                not reaches(each, BY_AD_AGE) for each in by_age(results, "stream", VANILLA)
            ),
        )
    )
    return made


def _ordered(
    results: Sequence[Result],
    measure: str,
    steps: Sequence[tuple[str, str]],
    says: str,
    may_be_equal: Sequence[tuple[str, str]] = (),
    key: str = "order",
) -> Claim:
    """Return the claim that the first of every step is better than the second.

    Its control is two arms that are the same but for the rows left out.
    """
    gains = {step: gain_of(results, measure, *step) for step in steps}
    control = gain_of(results, measure, ORACLE, OTHER_DRAW)
    met = all(
        gain.high >= 0 if step in may_be_equal else gain.low > 0 for step, gain in gains.items()
    )
    return Claim(
        key=f"delayed_labels.stream.{measure}.{key}",
        says=says,
        figure="; ".join(
            f"{better} over {worse} {gain.value:+.4f}" for (better, worse), gain in gains.items()
        ),
        interval="; ".join(interval_text(gain, 4) for gain in gains.values()),
        seeds=seed_text(SEEDS),
        met=met,
        control=f"oracle over itself with other rows left out: {control.value:+.5f}",
        control_met=not control.excludes_zero
        or abs(control.value) < min(abs(gain.value) for gain in gains.values()) / 2,
    )


def _no_leak(results: Sequence[Result]) -> Claim:
    of_worlds = [result for result in results if result.arm in CASES]
    leaking = [each for each in of_worlds if each.values["leaks"]]
    planted = sum(each.values["planted leak"] for each in of_worlds)
    named = "; ".join(f"{each.arm}, seed {each.seed}" for each in leaking)
    return Claim(
        key="delayed_labels.leaks",
        says="In no world does an arm that could be deployed beat the oracle beyond noise.",
        figure=f"{len(leaking)} of {len(of_worlds)} worlds{f' ({named})' if leaking else ''}",
        interval="99.9 % in each world, over its blocks of time",
        seeds=seed_text(SEEDS),
        met=not leaking,
        control=f"the true rates as an arm are found in {planted:.0f} of {len(of_worlds)}",
        control_met=planted == len(of_worlds),
    )


SECTION = Section(
    study=STUDY,
    title="Labels that come late",
    method=(
        "Formulas first: zeros of the expected slope on streams given by their masses, for the "
        "rates and latenesses on which public code was compared, and the public variants that miss "
        "them. Then made worlds, one a seed, in which ads come and go, labels arrive late, and the "
        "true rate of every row is known; calibration is the sum of what was predicted over the "
        "sum of true rates. Rows are shown to the learners by the label join itself, an anchor is "
        "scored before anything of it is learnt, and all arms go on from one checkpoint that has "
        "seen no label from behind the split. "
        f"*Soon*: base rate {SHORT.rate:g}, labels after 6 minutes, ads live {SHORT.life_hours} h, "
        f"{SHORT.judged_hours * SHORT.rows_an_hour:,} rows judged; linear (FTRL) and wide & deep "
        f"(layers {', '.join(map(str, DEEP.layers))}, batches of {DEEP.batch_rows}). *Long*: "
        f"labels after {LONG.delays[0][1]:g} h, ads live {LONG.life_hours} h, "
        f"{LONG.judged_hours * LONG.rows_an_hour:,} rows judged. *The stream*: "
        f"{STREAM.judged_hours // 24} days behind {STREAM.before_hours // 24}, base rate "
        f"{STREAM.rate:g}, {STREAM.judged_hours * STREAM.rows_an_hour:,} rows judged, attribution "
        f"window {STREAM.window_hours // 24} days, observation window "
        f"{STREAM.observation_minutes} minutes, delays of minutes, hours and days by campaign; "
        "each arm's learning rate is chosen before the split from the same three. How much the "
        "stream drifts was set by the gap between pre-trained and oracle alone, to be about "
        "Criteo's; sizes were tried on seeds 0 to 4, which are none of the study's, and there all "
        "arms were seen. Then the whole study was tried on one or two worlds of each kind, of "
        "other seeds again, and twice as many rows of *soon* were judged from then on, to narrow "
        "its intervals. Unlike the published runs, models of delay and the checkpoint have seen "
        "matured labels only, the window is a week and no month, and the learner is linear."
    ),
    claims=claims,
    details=details,
    pictures={
        "delayed_labels_ages": picture_of_ages,
        "delayed_labels_stream": picture_of_the_stream,
    },
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
