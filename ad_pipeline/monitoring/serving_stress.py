"""What serving does under the log's busiest minutes, faster than they were and with parts missing.

Logged requests arrive again in their own rhythm, some times as fast, and are scored by what
``serving/current`` names, one scorer on one core. Once as logged; then with all columns null for
two minutes, as a feature server under load answers; with counts some hours old; without counts. The
load is open: a request is due when it is due, whatever the scorer is still doing, and its latency
counts from there, so that a scorer that falls behind cannot hide it (Tene's coordinated omission).
What is measured is this machine's and this run's: seconds do not belong to the log, shares and
losses do. Which bundle may serve is not decided here.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.checkpoints import is_pointed, resolve
from ad_pipeline.clocks import HOUR_US, MINUTE_US, published_hour, timestamp
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings.published import PublishedVectors, read_published
from ad_pipeline.embeddings.published import pointer as vectors_pointer
from ad_pipeline.evaluation.metrics import log_loss
from ad_pipeline.features.encoding import IMPRESSION, FeatureContract
from ad_pipeline.features.rates import pointer as snapshot_pointer
from ad_pipeline.features.rates import snapshot_hour
from ad_pipeline.monitoring.tables import SERVING_STRESS, TABLES
from ad_pipeline.serving.bundle import Bundle
from ad_pipeline.serving.decisions import Decisions
from ad_pipeline.serving.scorer import PublishedSnapshot, Scorer
from ad_pipeline.settings import StressSettings
from ad_pipeline.warehouse import Warehouse, arrow_rows, rows_of, select

NULL_MINUTES = 2
"""Of the log, in the middle of what is replayed: as long as Pinterest's feature server was out."""

LARGEST_BATCH = 256
"""Requests that a scorer takes at once when it has fallen behind: more would only make the first of
them wait for the last."""


@dataclass(frozen=True)
class Scenario:
    """What is missing while requests are answered.

    Attributes
    ----------
    name : str
    nulls : bool
        All columns, for two minutes.
    counts : bool
        Whether there are any, and vectors of users.
    old : bool
        Whether they are.
    """

    name: str
    nulls: bool = False
    counts: bool = True
    old: bool = False


AS_LOGGED = Scenario("as logged")
SCENARIOS = (
    AS_LOGGED,
    Scenario("nulls", nulls=True),
    Scenario("old counts", old=True),
    Scenario("no counts", counts=False),
)


class RequestScorer(Protocol):
    """What is put under load: a :class:`ad_pipeline.serving.scorer.Scorer`."""

    def score_many(self, requests: pa.Table, /) -> Decisions:
        """Score requests by column."""
        ...


@dataclass(frozen=True)
class Clock:
    """The wall clock, or another one for tests.

    Attributes
    ----------
    now : callable
        Seconds.
    sleep : callable
        Of seconds.
    """

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Answered:
    """What a scorer answered under load.

    Attributes
    ----------
    latencies_us : ndarray of shape (n,), float64
        From when a request was due to when its score was there.
    probabilities : dict of str to ndarray of shape (n,), float64
        By goal.
    fallbacks : dict of str to int
        Requests by reason.
    behind_us : float
        By which the last answer came after the last request was due.
    """

    latencies_us: np.ndarray
    probabilities: dict[str, np.ndarray]
    fallbacks: dict[str, int]
    behind_us: float


@dataclass(frozen=True)
class Peak:
    """The busiest minutes of the log.

    Attributes
    ----------
    start_us, end_us : int
        Microseconds.
    requests : pyarrow.Table
        Impressions in order of occurrence.
    """

    start_us: int
    end_us: int
    requests: pa.Table


def replay_under_load(
    scorer: RequestScorer, requests: pa.Table, speed: float, clock: Clock | None = None
) -> Answered:
    """Let requests arrive in their rhythm, some times as fast, and answer each as soon as possible.

    Parameters
    ----------
    scorer : RequestScorer
    requests : pyarrow.Table
        n rows with ``occurred_us``, rising, and the scorer's columns.
    speed : float
        Seconds of the log in a second.
    clock : Clock, optional

    Returns
    -------
    Answered
        In the order of the requests.

    Raises
    ------
    ValueError
        If there is no request.
    """
    if not requests.num_rows:
        raise ValueError("no request to replay; the log has no impressions yet")
    clock = clock or Clock()
    occurred_us = requests.column("occurred_us").to_numpy()
    due = (occurred_us - occurred_us[0]) / 1e6 / speed
    latencies = np.empty(len(due))
    parts: list[Mapping[str, np.ndarray]] = []
    reasons: Counter[str] = Counter()
    # Compiled, and its pages touched, before the clock runs: a server is warm when traffic peaks.
    scorer.score_many(requests.slice(0, 1))
    started = clock.now()
    answered = 0
    while answered < len(due):
        early = due[answered] - (clock.now() - started)
        if early > 0:
            clock.sleep(early)
        # The next one is due now, whatever a clock's last digit says.
        waiting = int(np.searchsorted(due, clock.now() - started, side="right"))
        end = min(max(waiting, answered + 1), answered + LARGEST_BATCH)
        decisions = scorer.score_many(requests.slice(answered, end - answered))
        latencies[answered:end] = clock.now() - started - due[answered:end]
        parts.append(decisions.probabilities)
        for found in decisions.fallbacks:
            reasons[found.reason] += int(found.rows.sum())
        answered = end
    return Answered(
        latencies_us=latencies * 1e6,
        probabilities={goal: np.concatenate([p[goal] for p in parts]) for goal in parts[0]},
        fallbacks=dict(reasons),
        behind_us=float(latencies[-1] * 1e6),
    )


def latency_us(answered: Answered, share: float) -> float:
    """Return the time within which so many of the requests had their score, microseconds."""
    return float(np.quantile(answered.latencies_us, share))


def with_nulls(contract: FeatureContract, requests: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return requests whose features are null in some rows, bool (n,), as a dead server answers."""
    kept = pa.array(~rows)
    for name in contract.columns:
        place = requests.column_names.index(name)
        column = requests.column(name)
        nulls = pa.nulls(len(column), column.type)
        values = pc.call_function("if_else", [kept, column, nulls])
        requests = requests.set_column(place, name, values)
    return requests


@dataclass(frozen=True)
class UnderLoad:
    """One scenario of a bundle, as far as one goal's labels can tell.

    Attributes
    ----------
    scenario : Scenario
    answered : Answered
    goal : str
    labelled : int
        Requests that lost something and whose label has matured.
    loss, loss_as_logged : float
        Their mean log loss, and what it is when nothing is lost; NaN without labels.
    """

    scenario: "Scenario"
    answered: Answered
    goal: str
    labelled: int
    loss: float
    loss_as_logged: float


def record_stress(
    warehouse: Warehouse, deployment: Deployment, say: Callable[[str], None]
) -> list[UnderLoad]:
    """Put the serving bundle under load in every scenario and keep what was found.

    Parameters
    ----------
    warehouse : Warehouse
        With impressions; labels that have matured say what a scenario costs.
    deployment : Deployment
    say : callable
        Receives a line a scenario.

    Returns
    -------
    list of UnderLoad
        In place of the rows of ``monitoring.serving_stress``.

    Raises
    ------
    NothingServed
        If no bundle was ever promoted.
    ValueError
        If the log has no impressions.
    """
    settings = deployment.dataset.settings.stress
    bundle = Scorer.current(
        deployment.serving,
        bundles=deployment.bundles,
        snapshots=deployment.snapshots,
        vectors=deployment.vectors,
    ).bundle
    warehouse.create(TABLES)
    peak = busiest_minutes(warehouse, settings.minutes)
    seconds = (peak.end_us - peak.start_us) / 1e6 / settings.speed
    say(
        f"serving stress: {peak.requests.num_rows:,} requests from {timestamp(peak.start_us)} on, "
        f"each of {len(SCENARIOS)} times in {seconds:.0f} s"
    )
    answered = {
        scenario: _answered(deployment, bundle, peak, scenario, settings) for scenario in SCENARIOS
    }
    found = [
        each
        for goal in deployment.dataset.goals
        if goal.anchor == IMPRESSION
        for each in _judged(goal.name, labels_of(warehouse, goal.name, peak), peak, answered)
    ]
    rows = arrow_rows(
        SERVING_STRESS, [_row(each, bundle.digest, peak, settings.speed) for each in found]
    )
    with warehouse.writer() as connection:
        connection.register("stressed", rows)
        connection.execute(f"DELETE FROM {SERVING_STRESS.name}")
        connection.execute(f"INSERT INTO {SERVING_STRESS.name} BY NAME SELECT * FROM stressed")
    return found


def busiest_minutes(warehouse: Warehouse, minutes: int) -> Peak:
    """Return so many minutes in a row with the most impressions; the first of several.

    Raises
    ------
    ValueError
        If the log has no impressions.
    """
    with warehouse.reader() as connection:
        starts = rows_of(connection, select("monitoring.busiest_minutes"), {"minutes": minutes})
        if not starts.num_rows:
            raise ValueError("no request to replay; the log has no impressions yet")
        start_us = starts.column("start_us")[0].as_py()
        span = {"start_us": start_us, "end_us": start_us + minutes * MINUTE_US}
        requests = rows_of(connection, select("monitoring.impressions_occurred"), span)
    return Peak(span["start_us"], span["end_us"], requests)


def labels_of(warehouse: Warehouse, goal: str, peak: Peak) -> np.ndarray:
    """Return the label of each request, float64 (n,); NaN while it has not matured."""
    span = {"goal": goal, "start_us": peak.start_us, "end_us": peak.end_us}
    with warehouse.reader() as connection:
        matured = rows_of(connection, select("monitoring.matured_labels"), span).to_pylist()
    known = {row["impression_id"]: float(row["label"]) for row in matured}
    ids = peak.requests.column("impression_id").to_pylist()
    return np.array([known.get(one, np.nan) for one in ids])


def _answered(
    deployment: Deployment, bundle: Bundle, peak: Peak, scenario: Scenario, settings: StressSettings
) -> Answered:
    contract = bundle.contract
    requests = peak.requests.select(["occurred_us", *contract.columns])
    if scenario.nulls:
        requests = with_nulls(contract, requests, in_burst(peak))
    scorer = Scorer(bundle)
    if scenario.counts:
        older_us = settings.older_hours * HOUR_US if scenario.old else 0
        at_us = peak.start_us - older_us
        scorer = Scorer(
            bundle,
            _published(deployment, contract, at_us),
            _published_vectors(deployment, contract, at_us),
        )
    return replay_under_load(scorer, requests, settings.speed)


def in_burst(peak: Peak) -> np.ndarray:
    """Tell which requests arrive in the two minutes in the middle, bool (n,)."""
    occurred_us = peak.requests.column("occurred_us").to_numpy()
    start_us = (peak.start_us + peak.end_us - NULL_MINUTES * MINUTE_US) // 2
    return (occurred_us >= start_us) & (occurred_us < start_us + NULL_MINUTES * MINUTE_US)


def _published(
    deployment: Deployment, contract: FeatureContract, occurred_us: int
) -> PublishedSnapshot | None:
    name = snapshot_pointer(snapshot_hour(contract, occurred_us))
    if not is_pointed(deployment.snapshots, name):
        return None
    return PublishedSnapshot.read(deployment.snapshots, resolve(deployment.snapshots, name))


def _published_vectors(
    deployment: Deployment, contract: FeatureContract, occurred_us: int
) -> PublishedVectors | None:
    if contract.vectors is None:
        return None
    name = vectors_pointer(published_hour(contract.vectors.lag_hours, occurred_us))
    if not is_pointed(deployment.vectors, name):
        return None
    return read_published(deployment.vectors, resolve(deployment.vectors, name))


def _judged(
    goal: str, labels: np.ndarray, peak: Peak, answered: Mapping[Scenario, Answered]
) -> Iterator[UnderLoad]:
    whole = answered[AS_LOGGED].probabilities[goal]
    for scenario, found in answered.items():
        rows = np.isfinite(labels)
        if scenario.nulls:
            rows &= in_burst(peak)
        yield UnderLoad(
            scenario,
            found,
            goal,
            int(rows.sum()),
            log_loss(labels[rows], found.probabilities[goal][rows]),
            log_loss(labels[rows], whole[rows]),
        )


def _row(one: UnderLoad, bundle: str, peak: Peak, speed: float) -> dict[str, int | float | str]:
    return {
        "scenario": one.scenario.name,
        "goal": one.goal,
        "bundle_hash": bundle,
        "start_us": peak.start_us,
        "end_us": peak.end_us,
        "speed": speed,
        "requests": len(one.answered.latencies_us),
        "latency_p50_us": latency_us(one.answered, 0.5),
        "latency_p99_us": latency_us(one.answered, 0.99),
        "latency_p999_us": latency_us(one.answered, 0.999),
        "behind_us": one.answered.behind_us,
        "fallbacks": json.dumps(one.answered.fallbacks, sort_keys=True, ensure_ascii=False),
        "labelled": one.labelled,
        "log_loss": one.loss,
        "log_loss_as_logged": one.loss_as_logged,
    }
