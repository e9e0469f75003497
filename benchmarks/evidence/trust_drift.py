"""Whether drift is found, named and answered, by kind; and what the answer gains against none.

Each run is a made stream of three weeks, served by a model that was fitted on its first week; on
the last Saturday one thing changes, or nothing. From a day before to a day after, every
:data:`EVERY_HOURS` hours, the pure functions behind ``monitoring.drift`` and
``monitoring.drift_verdicts`` judge what a log would hold by then: the inputs of the last day
against the same hours of earlier weeks, matured labels, delays. Found is a change whose own kind
drifts within a day and the maturity of its labels; false is a kind that drifts before it, or ever
where nothing changed. The season arm has another mix of devices on weekends, every week.

What an action gains is paired: the same rows of the day after it, scored with it and without.

Thresholds are the defaults, fixed before any run. Other seeds say what tuning that of the loss
detector would give: the geometric middle of the highest threshold at which it still finds every
drift of concept, and the lowest at which it is silent on every quiet run, on :data:`LADDER`.

    python -m benchmarks.evidence.trust_drift [--seeds N] [--fresh] [--budget]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.monitoring.drift.causes import DriftFound, explained
from ad_pipeline.monitoring.drift.inputs import Kind, drift_report
from ad_pipeline.monitoring.drift.losses import deviations, page_hinkley
from ad_pipeline.monitoring.drift.reference import fixed_sample, matched_reference
from ad_pipeline.monitoring.drift.verdicts import delay_verdict, input_verdicts, loss_verdicts
from ad_pipeline.monitoring.tables import drift_rows
from ad_pipeline.settings import Configuration, DriftActionSettings, DriftSettings, Settings
from ad_pipeline.simulation.streams import random_stream
from benchmarks.claims import Claim, Section, seed_text, table_lines
from benchmarks.seed_intervals import mean_over_seeds, share
from benchmarks.studies import Result, Study, Values, command_line, values_of

START_US = 1_772_409_600_000_000
"""A Monday, 2026-03-02, UTC."""

HOURS = 24 * 21
ROWS_PER_HOUR = 300
CHANGE_HOUR = 24 * 19
"""The Saturday of the third week: the hardest place for whoever knows no week."""

EVERY_HOURS = 6
MATURITY_HOURS = 8
SITES, DEVICES = 40, 4
COLUMNS: dict[str, Kind] = {"site": "categorical", "device": "categorical", "price": "numeric"}

QUIET, SEASON = "quiet", "season"
CHANGES = {
    "sudden": "inputs",
    "gradual": "inputs",
    "new category": "new_categories",
    "label delay": "label_delay",
    "concept": "concept",
    "calibration": "calibration",
}
"""Arm to the kind of drift that it is."""

TUNING = {"tuning quiet": QUIET, "tuning concept": "concept"}
LADDER = (4.0, 6.0, 9.0, 13.0, 20.0, 30.0)
TUNING_SEEDS = tuple(range(301, 311))
TEST_SEEDS = tuple(range(401, 421))

SETTINGS = Settings(drift=DriftSettings(sample_rows=5_000))


@dataclass(frozen=True)
class Stream:
    """A made stream.

    Attributes
    ----------
    rows : pyarrow.Table
        impression_id, received_us and the columns.
    received_us, matured_us, delay_us : ndarray of shape (n,), int64
    labels : ndarray of shape (n,), 0 or 1
    slots : ndarray of shape (n, 4), uint32
        Site, device, band of the price, intercept.
    """

    rows: pa.Table
    received_us: NDArray[np.int64]
    matured_us: NDArray[np.int64]
    delay_us: NDArray[np.int64]
    labels: NDArray[np.int8]
    slots: NDArray[np.uint32]


def made(kind: str, seed: int) -> Stream:
    """Draw the stream of an arm; before the change all arms but the season are the same."""
    count = HOURS * ROWS_PER_HOUR
    drawn = {
        purpose: random_stream(seed, purpose).random(count)
        for purpose in ("site", "device", "moved", "label", "delay", "moment")
    }
    hour = np.repeat(np.arange(HOURS), ROWS_PER_HOUR)
    moments = np.sort(drawn["moment"].reshape(HOURS, -1), axis=1).ravel()
    received_us = START_US + hour * HOUR_US + (moments * HOUR_US).astype(np.int64)
    after = hour >= CHANGE_HOUR
    weekend = hour // 24 % 7 >= 5
    # Days differ by themselves: a market is no sequence of independent rows.
    days = random_stream(seed, "days").normal(0, 0.05, (HOURS // 24 + 1, SITES))
    popularity = np.exp(-0.08 * np.arange(SITES) + days)
    popularity /= popularity.sum(axis=1, keepdims=True)
    edges = np.cumsum(popularity, axis=1)[hour // 24]
    site = (drawn["site"][:, None] > edges).sum(axis=1)
    share = {
        "sudden": after * 0.5,
        "gradual": np.clip((hour - CHANGE_HOUR) / 24, 0, 1) * 0.6,
        "new category": after * 0.1,
    }.get(kind, np.zeros(count))
    moved = drawn["moved"] < share
    to = SITES + 1 if kind == "new category" else SITES - 1 - site // 8
    site = np.where(moved, to, np.minimum(site, SITES - 1))
    phones = np.where(weekend, 0.75, 0.45) if kind == SEASON else np.full(count, 0.45)
    device = np.where(drawn["device"] < phones, 0, 1 + (drawn["device"] * 997).astype(int) % 3)
    band = random_stream(seed, "price").integers(0, 8, count)
    weights = random_stream(seed, "weights")
    of_site, of_device = weights.normal(0, 0.6, SITES + 2), weights.normal(0, 0.4, DEVICES)
    of_band = weights.normal(0, 0.6, 8)
    strength = np.where(after & (kind == "concept"), -1.0, 1.0)
    shift = np.where(after & (kind == "calibration"), -0.7, 0.0)
    z = -2.2 + strength * of_site[site] + of_device[device] + of_band[band] + shift
    labels = (drawn["label"] < 1 / (1 + np.exp(-z))).astype(np.int8)
    median = np.where(after & (kind == "label delay"), 2.5, 1.0)
    delay = np.minimum(-np.log1p(-drawn["delay"]) * median / np.log(2), MATURITY_HOURS)
    rows = pa.table(
        {
            "impression_id": np.char.add(f"{seed}-", np.arange(count).astype(str)),
            "received_us": received_us,
            "site": np.char.add("s", site.astype(str)),
            "device": np.char.add("d", device.astype(str)),
            "price": np.exp(band / 2),
        }
    )
    slots = np.column_stack(
        [site, SITES + 2 + device, SITES + 2 + DEVICES + band, np.full(count, 63)]
    ).astype(np.uint32)
    return Stream(
        rows,
        received_us,
        received_us + MATURITY_HOURS * HOUR_US,
        (delay * HOUR_US).astype(np.int64),
        labels,
        slots,
    )


def fitted(stream: Stream, first_hour: int, end_hour: int) -> NDArray[np.float64]:
    """Return the weights of a logistic regression on rows served in some hours, shape (64,)."""
    rows = slice(first_hour * ROWS_PER_HOUR, end_hour * ROWS_PER_HOUR)
    slots, labels = stream.slots[rows], stream.labels[rows]
    weights = np.zeros(64)
    for _ in range(8):
        p = 1 / (1 + np.exp(-weights[slots].sum(axis=1)))
        hessian, gradient = np.eye(64), -weights.copy()
        for left in range(slots.shape[1]):
            gradient += np.bincount(slots[:, left], labels - p, 64)
            for right in range(slots.shape[1]):
                cell = slots[:, left].astype(np.int64) * 64 + slots[:, right]
                hessian += np.bincount(cell, p * (1 - p), 64 * 64).reshape(64, 64)
        weights += np.linalg.solve(hessian, gradient)
    return weights


def log_loss(labels: NDArray[np.int8], logits: NDArray[np.float64]) -> float:
    """Return the mean log loss, nats."""
    return float((np.logaddexp(0, logits) - labels * logits).mean())


def judged(
    stream: Stream, logits: NDArray[np.float64], hour: int, columns: bool = True
) -> list[DriftFound]:
    """Return the verdicts that a log would have at the end of an hour."""
    end_us = START_US + hour * HOUR_US
    found: list[DriftFound] = []
    if columns:
        reference = matched_reference(end_us - DAY_US, end_us, START_US)
        hours_us = stream.received_us // HOUR_US * HOUR_US
        chosen = pa.array(np.isin(hours_us, reference.hours_us))
        size = SETTINGS.drift.sample_rows
        before = fixed_sample(stream.rows.filter(chosen), size, 1)
        now = fixed_sample(
            stream.rows.slice((hour - 24) * ROWS_PER_HOUR, 24 * ROWS_PER_HOUR), size, 1
        )
        periods = reference.periods_of(before.column("received_us").to_numpy(), end_us)
        verdict = drift_report(before, now, COLUMNS, SETTINGS.drift, periods)
        rows = drift_rows(verdict, reference, end_us - DAY_US, end_us).to_pylist()
        found += input_verdicts(rows, SETTINGS)
    matured = slice(
        max(hour - MATURITY_HOURS - SETTINGS.drift_actions.lookback_hours, 24 * 7) * ROWS_PER_HOUR,
        (hour - MATURITY_HOURS) * ROWS_PER_HOUR,
    )
    labels, matured_us = stream.labels[matured], stream.matured_us[matured]
    found += loss_verdicts("goal, batch", matured_us, labels, logits[matured], end_us, SETTINGS)
    positive = labels == 1
    late, when = stream.delay_us[matured][positive].astype(float), matured_us[positive]
    recent = when >= end_us - DAY_US
    back = (end_us - DAY_US - 1 - when[~recent]) // DAY_US
    threshold = SETTINGS.drift_actions.delay_index
    found.append(delay_verdict("goal", late[~recent], back, late[recent], threshold))
    return explained(found)


def run(arm: str, seed: int) -> Values:
    """Make a stream, judge it hour by hour, and measure what the action that fits would gain.

    Parameters
    ----------
    arm : str
    seed : int

    Returns
    -------
    dict of str to float
        "found" (0 or 1), "hours" to it (NaN: never), "false" kinds that drifted, "gain/<action>";
        of tuning arms "rings/<threshold>".
    """
    kind = TUNING.get(arm, arm)
    stream = made(kind, seed)
    logits = fitted(stream, 0, 24 * 7)[stream.slots].sum(axis=1)
    if arm in TUNING:
        return _ladder(stream, logits)
    own = CHANGES.get(kind)
    values: Values = {"found": 0.0, "hours": float("nan"), "false": 0.0}
    false: set[str] = set()
    for hour in range(CHANGE_HOUR - 24, CHANGE_HOUR + 25 + MATURITY_HOURS, EVERY_HOURS):
        drifted = {one.kind for one in judged(stream, logits, hour) if one.drifted}
        if hour <= CHANGE_HOUR or own is None:
            false |= drifted
        elif own in drifted and not values["found"]:
            values |= {"found": 1.0, "hours": float(hour - CHANGE_HOUR)}
    values["false"] = float(len(false))
    return values | _gains(stream, logits, kind, values["hours"])


def _ladder(stream: Stream, logits: NDArray[np.float64]) -> Values:
    """Return at which thresholds the loss detector rings within a day and its maturity."""
    end_hour = CHANGE_HOUR + 24
    first = 24 * 12
    rows = slice(first * ROWS_PER_HOUR, end_hour * ROWS_PER_HOUR)
    off = deviations(stream.matured_us[rows], stream.labels[rows], logits[rows])
    values: Values = {}
    for threshold in LADDER:
        settings = DriftActionSettings(loss_threshold=threshold)
        rings = [
            page_hinkley(off.until_us, series, settings, 24).rang_us is not None
            for series in (off.concept, off.calibration)
        ]
        values[f"rings/{threshold:g}"] = float(rings[0] if len(rings) else 0)
        values[f"any/{threshold:g}"] = float(any(rings))
    return values


def _gains(stream: Stream, logits: NDArray[np.float64], kind: str, hours: float) -> Values:
    """Return log loss without an action less with it, on rows of the day after it.

    The action starts when the change was found, and learns what had matured by then.
    """
    if kind not in CHANGES or np.isnan(hours):
        return {}
    act = min(CHANGE_HOUR + int(hours), HOURS - 12)
    known = act - MATURITY_HOURS
    later = slice(act * ROWS_PER_HOUR, min(act + 24, HOURS) * ROWS_PER_HOUR)
    labels, old = stream.labels[later], log_loss(stream.labels[later], logits[later])
    if kind == "label delay":
        return _late_gain(stream, act, known)
    if kind == "calibration":
        recent = slice(max(CHANGE_HOUR, known - 24) * ROWS_PER_HOUR, known * ROWS_PER_HOUR)
        if recent.stop <= recent.start:
            return {}
        shift = 0.0
        for _ in range(8):
            p = 1 / (1 + np.exp(-(logits[recent] + shift)))
            shift += float((stream.labels[recent] - p).sum() / (p * (1 - p)).sum())
        return {"gain/recalibrate": old - log_loss(labels, logits[later] + shift)}
    retrained = fitted(stream, known - 72, known)[stream.slots[later]].sum(axis=1)
    values = {"gain/retrain": old - log_loss(labels, retrained)}
    if kind == "concept":
        values["gain/raise_rate"] = _raised_gain(stream, act, known)
    return values


def _raised_gain(stream: Stream, act: int, known: int) -> float:
    """Return what FTRL gains by a raised rate, learning each hour as it matures."""
    losses = []
    for doublings in (0, SETTINGS.drift_actions.raise_rate_doublings):
        expert = FTRLExpert(6, (Configuration(),), "float64")
        total = 0.0
        for hour in range(MATURITY_HOURS, min(act + 24, HOURS)):
            if hour == act:
                expert.raise_rate(0, doublings)
            rows = slice(hour * ROWS_PER_HOUR, (hour + 1) * ROWS_PER_HOUR)
            if hour >= act:
                total += log_loss(stream.labels[rows], expert.logits(stream.slots[rows])[:, 0])
            old = slice(rows.start - MATURITY_HOURS * ROWS_PER_HOUR,
                        rows.stop - MATURITY_HOURS * ROWS_PER_HOUR)  # fmt: skip
            expert.learn(stream.slots[old], stream.labels[old], np.ones(ROWS_PER_HOUR))
        losses.append(total / (min(act + 24, HOURS) - act))
    return losses[0] - losses[1]


def _late_gain(stream: Stream, act: int, known: int) -> Values:
    """Return how much nearer the share of labels expected within an hour is after a fit."""

    def early(first: int, end: int) -> float:
        rows = slice(first * ROWS_PER_HOUR, end * ROWS_PER_HOUR)
        late = stream.delay_us[rows][stream.labels[rows] == 1]
        return float((late <= HOUR_US).mean())

    truth = early(act, min(act + 24, HOURS))
    old, new = early(CHANGE_HOUR - 168, CHANGE_HOUR), early(max(CHANGE_HOUR, known - 24), known)
    return {"gain/refit_delays": abs(old - truth) - abs(new - truth)}


def tuned_threshold(results: Sequence[Result]) -> float:
    """Return the threshold that the rule of this module draws from the tuning runs."""

    def rung(arm: str, name: str, threshold: float) -> float:
        return sum(values_of(results, arm, f"{name}/{threshold:g}"))

    silent = [t for t in LADDER if rung("tuning quiet", "any", t) == 0]
    finds = [t for t in LADDER if rung("tuning concept", "rings", t) == len(TUNING_SEEDS)]
    return round(float(np.sqrt(min(silent) * max(finds))), 1)


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what the test seeds say."""
    runs = len(TEST_SEEDS)
    false = {arm: sum(v > 0 for v in values_of(results, arm, "false")) for arm in (QUIET, SEASON)}
    stated = []
    for arm in CHANGES:
        hits = round(sum(values_of(results, arm, "found")))
        where = share(hits, runs)
        stated.append(
            Claim(
                key=f"trust_drift.{arm.replace(' ', '_')}",
                says=f"A planted drift ({arm}) is found and its kind named in 19 of 20 streams.",
                figure=f"{hits} of {runs}",
                interval=f"{where.low:.2f}–{where.high:.2f}",
                seeds=seed_text(TEST_SEEDS),
                met=hits >= 19,
                control=f"quiet streams that ring: {false[QUIET]} of {runs}, at most 1 allowed",
                control_met=false[QUIET] <= 1,
            )
        )
    where = share(false[SEASON], runs)
    found = round(sum(values_of(results, "sudden", "found")))
    stated.append(
        Claim(
            key="trust_drift.season",
            says="A week that goes its way, with other weekends, rings at most once in 20 streams.",
            figure=f"{false[SEASON]} of {runs}",
            interval=f"{where.low:.2f}–{where.high:.2f}",
            seeds=seed_text(TEST_SEEDS),
            met=false[SEASON] <= 1,
            control=f"the alarm is not dumb: {found} of {runs} sudden shifts are found",
            control_met=found >= 19,
        )
    )
    return stated


def details(results: Sequence[Result]) -> list[str]:
    """Return rates, delays and gains by arm."""
    rows = []
    for arm in (QUIET, SEASON, *CHANGES):
        hours = [v for v in values_of(results, arm, "hours") if not np.isnan(v)]
        rows.append(
            [
                arm,
                CHANGES.get(arm, "none"),
                f"{sum(values_of(results, arm, 'found')):.0f} of {len(TEST_SEEDS)}",
                f"{np.median(hours):.0f} ({min(hours):.0f}–{max(hours):.0f})" if hours else "–",
                f"{sum(v > 0 for v in values_of(results, arm, 'false'))} of {len(TEST_SEEDS)}",
            ]
        )
    gains = []
    for arm in CHANGES:
        mine = [result.values for result in results if result.arm == arm]
        for name in sorted({key for values in mine for key in values if key.startswith("gain/")}):
            paired = [values[name] for values in mine if name in values]
            mean = mean_over_seeds(paired)
            gains.append(
                [
                    arm,
                    name.removeprefix("gain/"),
                    f"{mean.value:+.5f}",
                    f"{mean.low:+.5f} to {mean.high:+.5f}",
                    str(len(paired)),
                    "gains" if mean.low > 0 else "loses" if mean.high < 0 else "no gain shown",
                ]
            )
    return [
        "Detection by kind of change: hours from the change to the verdict, median (range); labels "
        f"mature after {MATURITY_HOURS} hours. False: runs with a kind that drifted before the "
        "change, or ever where nothing changed.",
        "",
        *table_lines(["arm", "kind", "found", "hours", "false"], rows),
        "",
        "What the action gained on the day after it against doing nothing, paired over the streams "
        "in which the change was found: log loss, nats; of refit_delays, the error of the share of "
        "labels expected within an hour.",
        "",
        *table_lines(["arm", "action", "gain", "95 %", "streams", "verdict"], gains),
        "",
        f"The tuning seeds give a threshold of {tuned_threshold(results):g} for the loss detector; "
        f"the default is {DriftActionSettings().loss_threshold:g}.",
    ]  # fmt: skip


STUDY = Study(
    name="trust_drift",
    settings={
        "hours": HOURS,
        "rows_per_hour": ROWS_PER_HOUR,
        "change_hour": CHANGE_HOUR,
        "every_hours": EVERY_HOURS,
        "maturity_hours": MATURITY_HOURS,
        "ladder": LADDER,
        "drift": SETTINGS.drift.model_dump(mode="json"),
        "drift_actions": SETTINGS.drift_actions.model_dump(mode="json"),
    },
    seeds={
        **dict.fromkeys(TUNING, TUNING_SEEDS),
        **dict.fromkeys((QUIET, SEASON, *CHANGES), TEST_SEEDS),
    },
    run=run,
    seconds=3.0,
)

SECTION = Section(
    study=STUDY,
    title="From drift to action",
    method=(
        "Streams of three weeks with daily noise, served by a model of their first week; on a "
        "Saturday one thing changes, or nothing. The functions behind `monitoring.drift` and "
        "`monitoring.drift_verdicts` judge every six hours what a log would hold by then. "
        "Thresholds are the defaults; ten other seeds say what tuning that of the loss detector "
        "would give."
    ),
    claims=claims,
    details=details,
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
