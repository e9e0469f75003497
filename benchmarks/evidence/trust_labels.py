"""Whether suspect labels are found in their hour, clean ones left in peace, and flips withstood.

Two kinds of runs. *Logs*: a small simulated exchange of four days goes from log files through the
ingest and the label join, and ``monitoring.label_quality`` judges every hour of both goals, with
the product's defaults; then each fault is planted in a copy of the events, the labels are joined
anew, and the hours are judged again. *Flips*: a stream of rows with known probabilities, some of
whose labels are flipped, is learnt by FTRL in four ways, each held against the true probabilities:
plain; with smoothed labels (each row a second time with the other label and half of epsilon for
its weight); by a bounded loss, (1 - f^q) / q of what the label was given (Zhang and Sabuncu,
NeurIPS 2018), whose slope is that of the log loss times f^q, read by the link at which it is
unbiased, (1 - q) times its log odds; and plain, with the known share of flips taken out of its
forecasts.

    python -m benchmarks.evidence.trust_labels [--seeds N] [--fresh] [--budget]
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.learners.online.step import new_expert
from ad_pipeline.monitoring.label_quality import ALL, SUSPECT
from ad_pipeline.monitoring.label_quality_hours import record_label_quality
from ad_pipeline.settings import LabelQualitySettings, OnlineSettings
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.warehouse import Warehouse
from benchmarks.claims import Claim, Section, percent, percent_range, seed_text, table_lines
from benchmarks.label_faults import FLOOD, LATE, REFUNDS, STALL, plant
from benchmarks.seed_intervals import Estimate, mean_over_seeds, share
from benchmarks.studies import Result, Study, Values, command_line, values_of

SPEC = MarketplaceSpec(
    days=5,
    impressions_per_day=12_000,
    users=500,
    advertisers=8,
    campaigns=16,
    ads=80,
    publishers=12,
    click_rate=0.15,
    drift=False,
)
DAYS = 4
"""Days written: the world is one day longer, so that its tail does not count as traffic."""

SPOILT_HOUR = 60
"""Of the log: the noon of its third day."""

BEFORE_HOURS, AFTER_HOURS = 3, 12
"""Around it: joined and judged anew once a fault is planted."""

LOGS = "logs"
FAULTS: Mapping[str, tuple[str, str, str]] = {
    "click flood of one advertiser": (FLOOD, "advertiser_id", "jumped"),
    "stalled click stream": (STALL, ALL, "stalled"),
    "refund wave": (REFUNDS, ALL, "retracted a lot"),
    "late labels": (LATE, ALL, "late"),
}
"""By name: what is planted, the slice that it is to be found in, and its verdict."""

FLIPS = {"no flips": 0.0, "5 % flips": 0.05, "10 % flips": 0.1, "20 % flips": 0.2}
EPSILON = 0.1
TEMPER = 0.3
"""q of the bounded loss."""
ROWS, FIELDS, VALUES_OF_FIELD, SLICE = 200_000, 8, 50, 1_000
MEAN_LOGIT, SPREAD = -2.6, 0.35
WAYS = ("plain", "smoothed", "bounded", "share known")

LEAST = 1e-3
"""Of a forecast once the share of flips is taken out of it."""

SEEDS = tuple(range(401, 421))
FLIP_SEEDS = tuple(range(431, 436))


def run(arm: str, seed: int) -> Values:
    """Judge one log, clean and with each fault, or learn one stream of flipped labels.

    Parameters
    ----------
    arm : str
    seed : int

    Returns
    -------
    dict of str to float
        Of a log: "suspect" rows and "judged" ones of the clean log, and by fault "found" (1: in its
        hour, in its slice, by its name) and "elsewhere" (suspect hours that it cannot have
        spoilt). Of a stream: by loss, log loss above the truth's, "excess", and "calibration", mean
        forecast over mean probability, on the second half.
    """
    return judged_log(seed) if arm == LOGS else learnt_stream(FLIPS[arm], seed)


def judged_log(seed: int) -> Values:
    """Return what is said of one log; see :func:`run`."""
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    values: Values = {}
    log = (SPEC.start_us, SPEC.start_us + DAYS * DAY_US)
    spoilt_us = SPEC.start_us + SPOILT_HOUR * HOUR_US
    with tempfile.TemporaryDirectory(prefix="trust_labels-") as folder:
        clean = Deployment(dataset, Path(folder) / "clean")
        simulate_days(replace(SPEC, seed=seed), clean.logs, Path(folder) / "truth", range(DAYS))
        ingest_hours(Warehouse(clean.warehouse), clean, *log)
        join_labels(Warehouse(clean.warehouse), dataset, *log)
        rows = record_label_quality(Warehouse(clean.warehouse), clean, *log)
        # Nothing before the fault changes, and what is said of it stands in the copy.
        touched = (spoilt_us - BEFORE_HOURS * HOUR_US, spoilt_us + AFTER_HOURS * HOUR_US)
        for name, (statement, slice_of, verdict) in FAULTS.items():
            spoilt = Deployment(dataset, Path(folder) / "spoilt")
            spoilt.warehouse.parent.mkdir()
            shutil.copy(clean.warehouse, spoilt.warehouse)
            warehouse = Warehouse(spoilt.warehouse)
            plant(warehouse, dataset, statement, (spoilt_us, spoilt_us + HOUR_US), touched)
            judged = record_label_quality(warehouse, spoilt, *touched)
            suspect = [row for row in judged if row["verdict"] in SUSPECT]
            values[f"{name}/found"] = float(
                any(
                    (row["goal"], row["hour_us"], row["slice_of"], row["verdict"])
                    == ("click", spoilt_us, slice_of, verdict)
                    for row in suspect
                )
            )
            # Labels missed two hours before are the same fault; purchases hang on the clicks.
            values[f"{name}/elsewhere"] = float(
                sum(
                    row["goal"] == "click"
                    and not spoilt_us - 2 * HOUR_US <= row["hour_us"] <= spoilt_us + HOUR_US
                    for row in suspect
                )
            )
            shutil.rmtree(spoilt.warehouse.parent)
    values["suspect"] = float(sum(row["verdict"] in SUSPECT for row in rows))
    values["judged"] = float(sum(row["verdict"] != "warming up" for row in rows))
    return values


def learnt_stream(rate: float, seed: int) -> Values:
    """Return how far three learners are from the truth; see :func:`run`."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0.0, SPREAD, (FIELDS, VALUES_OF_FIELD))
    drawn = (3 * rng.pareto(1.2, (ROWS, FIELDS))).astype(np.int64)
    places = np.minimum(drawn, VALUES_OF_FIELD - 1)
    p = _probability(MEAN_LOGIT + weights[np.arange(FIELDS), places].sum(axis=1))
    labels = (rng.random(ROWS) < p) ^ (rng.random(ROWS) < rate)
    slots = np.zeros((ROWS, FIELDS + 1), dtype=np.uint32)  # the first one is in every row
    slots[:, 1:] = 1 + np.arange(FIELDS) * VALUES_OF_FIELD + places
    values: Values = {}
    for loss in WAYS:
        expert = new_expert(OnlineSettings(bits=10, l1=0.0))
        logits = np.empty(ROWS)
        for first in range(0, ROWS, SLICE):
            rows = slice(first, first + SLICE)
            logits[rows] = expert.logits(slots[rows])[:, 0]
            own, shown = labels[rows].astype(np.float64), slots[rows]
            factor = np.ones(SLICE)
            if loss == "smoothed":
                shown = np.repeat(shown, 2, axis=0)
                own = np.column_stack([own, 1.0 - own]).ravel()
                factor = np.tile([1.0 - EPSILON / 2, EPSILON / 2], SLICE)
            if loss == "bounded":
                factor = _probability(np.where(own > 0, logits[rows], -logits[rows])) ** TEMPER
            expert.learn(shown, own, factor)
        late = slice(ROWS // 2, ROWS)
        truth = p[late]
        forecast = _probability(logits[late] * (1.0 - TEMPER if loss == "bounded" else 1.0))
        if loss == "share known":
            forecast = np.clip((forecast - rate) / (1.0 - 2.0 * rate), LEAST, 1.0 - LEAST)
        values[f"{loss}/excess"] = _log_loss(truth, forecast) - _log_loss(truth, truth)
        values[f"{loss}/calibration"] = float(forecast.mean() / truth.mean())
    return values


def _probability(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def _log_loss(truth: np.ndarray, forecast: np.ndarray) -> float:
    """Return the expected log loss of forecasts under true probabilities, nats."""
    return float(-(truth * np.log(forecast) + (1 - truth) * np.log1p(-forecast)).mean())


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what the runs say."""
    suspect = values_of(results, LOGS, "suspect")
    judged = sum(values_of(results, LOGS, "judged"))
    quiet = sum(count == 0 for count in suspect)
    runs = len(suspect)
    found = {name: round(sum(values_of(results, LOGS, f"{name}/found"))) for name in FAULTS}
    elsewhere = {name: sum(values_of(results, LOGS, f"{name}/elsewhere")) for name in FAULTS}
    least = min(found.values())
    said = [
        Claim(
            key="trust_labels.clean",
            says="Of 20 logs without a fault, in at most one any label is suspect.",
            figure=f"{quiet} of {runs} quiet, {sum(suspect):.0f} suspect of {judged:,.0f} judged",
            interval=_share_range(quiet, runs),
            seeds=seed_text(SEEDS),
            met=quiet >= runs - 1,
            control=f"the alarm is not dumb: each fault is found in at least {least} of {runs}",
            control_met=least >= runs - 2,
        )
    ]
    said += [
        Claim(
            key=f"trust_labels.{name.replace(' ', '_')}",
            says=(
                f"Planted, {name}: found in its hour and named rightly in 18 of 20 logs, at least."
            ),
            figure=f"{found[name]} of {runs}",
            interval=_share_range(found[name], runs),
            seeds=seed_text(SEEDS),
            met=found[name] >= runs - 2,
            control=f"{elsewhere[name]:.0f} suspect rows in hours that it did not touch, at most "
            f"{runs // 10} allowed",
            control_met=elsewhere[name] <= runs // 10,
        )
        for name in FAULTS
    ]
    flipped = list(FLIPS)[1:]
    plain = float(np.mean(values_of(results, "no flips", "plain/calibration")))
    gains = {way: [_gain(results, arm, way) for arm in flipped] for way in WAYS[1:]}
    known = "; ".join(percent_range(gain, 0) for gain in gains["share known"])
    said += [
        Claim(
            key="trust_labels.smoothed",
            says="Smoothed labels leave it further from the truth at every share of flips.",
            figure=_in_words(gains["smoothed"]),
            interval="; ".join(percent_range(gain, 0) for gain in gains["smoothed"]),
            seeds=seed_text(FLIP_SEEDS),
            met=all(gain.low > 0 for gain in gains["smoothed"]),
            control=f"without flips the plain learner's mean is {plain:.3f} of the true one",
            control_met=abs(plain - 1.0) < 0.03,
        ),
        Claim(
            key="trust_labels.bounded",
            says="A bounded loss does not bring it nearer by more than 5 % at any share of flips.",
            figure=_in_words(gains["bounded"]),
            interval="; ".join(percent_range(gain, 0) for gain in gains["bounded"]),
            seeds=seed_text(FLIP_SEEDS),
            met=all(gain.low > -0.05 for gain in gains["bounded"]),
            control=f"a gain would be seen: with the share of flips known it is {known}",
            control_met=all(gain.high < -0.2 for gain in gains["share known"]),
        ),
    ]
    return said


def _in_words(gains: Sequence[Estimate]) -> str:
    """Return the relative excess log loss at every share of flips."""
    shown = zip(list(FLIPS)[1:], gains, strict=True)
    return "; ".join(f"{percent(gain.value, 0)} at {arm}" for arm, gain in shown)


def _gain(results: Sequence[Result], arm: str, loss: str) -> Estimate:
    """Return the excess log loss of a way against the plain one's, relative, over the seeds."""
    plain = values_of(results, arm, "plain/excess")
    other = values_of(results, arm, f"{loss}/excess")
    return mean_over_seeds([one / base - 1.0 for one, base in zip(other, plain, strict=True)])


def _share_range(hits: int, trials: int) -> str:
    found = share(hits, trials)
    return f"{found.low:.2f}–{found.high:.2f}"


def details(results: Sequence[Result]) -> list[str]:
    """Return how far every loss is from the truth under every share of flips."""
    rows = []
    for arm in FLIPS:
        for loss in WAYS:
            excess = mean_over_seeds(values_of(results, arm, f"{loss}/excess"))
            mean = np.mean(values_of(results, arm, f"{loss}/calibration"))
            rows.append(
                [arm, loss, f"{excess.value:.4f} ({excess.low:.4f} to {excess.high:.4f})",
                 f"{mean:.2f}"]
            )  # fmt: skip
    return table_lines(
        ["labels", "learnt by", "log loss above the truth's, nats", "mean forecast over true"], rows
    )


STUDY = Study(
    name="trust_labels",
    settings={
        "spec": {name: value for name, value in asdict(SPEC).items() if name != "seed"},
        "days": DAYS,
        "spoilt_hour": [SPOILT_HOUR, BEFORE_HOURS, AFTER_HOURS],
        "faults": {name: list(fault) for name, fault in FAULTS.items()},
        "label_quality": LabelQualitySettings().model_dump(mode="json"),
        "flips": FLIPS,
        "stream": [ROWS, FIELDS, VALUES_OF_FIELD, SLICE, MEAN_LOGIT, SPREAD, EPSILON, TEMPER],
    },
    seeds={LOGS: SEEDS, **dict.fromkeys(FLIPS, FLIP_SEEDS)},
    run=run,
    seconds=15.0,
)

SECTION = Section(
    study=STUDY,
    title="Labels that can be trusted",
    method=(
        "Twenty small exchanges of four days go from log files to `monitoring.label_quality`, "
        "clean and with each of four faults planted in one hour: every impression of one "
        "advertiser clicked, no click for an hour, nearly two hours of clicks taken back at once, "
        "an hour of clicks that comes two hours late. All hours of both goals and all advertisers "
        "are judged by the default settings. Flips: 200,000 rows of known probabilities (some "
        "7 %), some labels flipped either way, learnt by FTRL; the loss of the second half against "
        "the truth. Thresholds and choices were fixed on other seeds."
    ),
    claims=claims,
    details=details,
)


if __name__ == "__main__":
    command_line([STUDY], __doc__)
