"""The label join against a brute-force oracle that looks at one impression at a time.

The oracle reads the definitions of design.md §5 as a story: it walks through what the log received
about an impression, in order. The SQL works on sets and on short scans, so an error is unlikely to
be in both.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US, hour_of
from ad_pipeline.datasets import Dataset, Goal
from ad_pipeline.examples.label_join import GoalJoin, join_labels, replace_goal
from ad_pipeline.examples.strategies import KINDS, STRATEGIES, EmittedRows, rows_of_strategy
from ad_pipeline.examples.subsampling import draw_of, is_kept
from ad_pipeline.examples.tables import (
    LABEL_DELAYS,
    LABEL_STATES,
    LABELLED_IMPRESSIONS,
    TABLES,
    TRAINING_EXAMPLES,
)
from ad_pipeline.settings import DelaySettings, ExampleSettings, Settings, StrategyName
from ad_pipeline.warehouse import Table, Warehouse, rows_of, select

START_US = 500_000 * HOUR_US
HOURS = 24
END_US = START_US + HOURS * HOUR_US
STEP_US = 5 * MINUTE_US  # a coarse clock, so that moments coincide often

Rows = dict[str, set[tuple[Any, ...]]]

DELAYS = DelaySettings(refit_every_hours=3, lookback_hours=7, least_positives=5)
EVERYTHING = Settings(delays=DELAYS)
WINDOWED: tuple[StrategyName, ...] = ("windowed",)
ALL_STRATEGIES: tuple[StrategyName, ...] = tuple(STRATEGIES)


# --- facts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Impression:
    key: str
    occurred_us: int
    received_us: int
    request: str | None = None
    campaign: str | None = None


@dataclass(frozen=True)
class Engagement:
    key: str
    impression: str
    goal: str
    occurred_us: int
    received_us: int


@dataclass(frozen=True)
class Retraction:
    key: str
    engagement: str
    received_us: int


@dataclass(frozen=True)
class Facts:
    impressions: tuple[Impression, ...]
    engagements: tuple[Engagement, ...]
    retractions: tuple[Retraction, ...]

    def received_by(self, us: int) -> "Facts":
        return Facts(
            tuple(fact for fact in self.impressions if fact.received_us <= us),
            tuple(fact for fact in self.engagements if fact.received_us <= us),
            tuple(fact for fact in self.retractions if fact.received_us <= us),
        )


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - test data, no secret


def drawn_goals(rng: random.Random) -> tuple[Goal, ...]:
    """Draw click -> install -> open and a second goal on the impression, parents first.

    The second one may be without the first: a conversion credited to a view.
    """
    chain: list[Goal] = []
    horizon_us = 0
    for name, anchor in (("click", "impression"), ("install", "click"), ("open", "install")):
        window_us = rng.randrange(0, 25) * STEP_US
        lateness_us = rng.randrange(0, 13) * STEP_US
        window_us += max(0, horizon_us - window_us - lateness_us)
        horizon_us = window_us + lateness_us
        chain.append(_drawn_goal(rng, name, anchor, window_us, lateness_us))
    view = _drawn_goal(rng, "view", "impression", rng.randrange(0, 25) * STEP_US, STEP_US)
    return (*chain, view.model_copy(update={"without": rng.choice([None, "click"])}))


def _drawn_goal(
    rng: random.Random, name: str, anchor: str, window_us: int, lateness_us: int
) -> Goal:
    observation_us = rng.randrange(0, (window_us + lateness_us) // STEP_US + 1) * STEP_US
    counting = rng.choice(["first", "all"])
    return goal_of(name, anchor, window_us, lateness_us, observation_us, counting)


def goal_of(
    name: str, anchor: str, window_us: int, lateness_us: int, observation_us: int, counting: str
) -> Goal:
    return Goal.model_validate(
        {
            "name": name,
            "anchor": anchor,
            "window_us": window_us,
            "lateness_us": lateness_us,
            "observation_us": observation_us,
            "counting": counting,
        }
    )


def drawn_facts(rng: random.Random, impressions: int) -> Facts:
    """Draw impressions, engagements and retractions: late, held, too early, too late, retracted.

    What the events room promises is kept: nothing is received before it occurred, and an
    engagement is never of an earlier log hour than its impression (else it is held).
    """
    shown: list[Impression] = []
    engaged: list[Engagement] = []
    taken_back: list[Retraction] = []
    for number in range(impressions):
        occurred_us = START_US + rng.randrange(0, 96) * STEP_US
        late_us = rng.choice([0, 0, 1, 4, 13, 40]) * STEP_US
        request = rng.choice([None, "", f"q{number // 3}"])
        campaign = rng.choice([None, "", "c0", "c0", "c1"])
        received_us = occurred_us + late_us
        shown.append(Impression(f"i{number}", occurred_us, received_us, request, campaign))
        for goal in ("click", "install", "open", "view"):
            for _ in range(rng.choice([0, 1, 1, 2, 3])):
                engaged_us = max(START_US, occurred_us + rng.randrange(-3, 50) * STEP_US)
                received_us = engaged_us + rng.choice([0, 0, 1, 2, 6, 13, 40]) * STEP_US
                key = f"e{rng.getrandbits(40):010x}"
                engaged.append(
                    Engagement(
                        key,
                        f"i{number}",
                        goal,
                        engaged_us,
                        max(received_us, hour_of(occurred_us + late_us)),
                    )
                )
                for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 1, 2])):
                    retracted_us = received_us + rng.choice([-2, 0, 1, 5, 20, 90]) * STEP_US
                    taken_back.append(
                        Retraction(
                            f"r{rng.getrandbits(40):010x}", key, max(engaged_us, retracted_us)
                        )
                    )
    return Facts(tuple(shown), tuple(engaged), tuple(taken_back))


# --- the oracle --------------------------------------------------------------------------------


def expected(
    goals: Sequence[Goal],
    facts: Facts,
    end_us: int = END_US,
    drawn: Settings = EVERYTHING,
    shown: Sequence[StrategyName] = WINDOWED,
) -> Rows:
    """Work out all rows before ``end_us`` from all facts received before it."""
    known = facts.received_by(end_us - 1)
    engagements: dict[tuple[str, str], list[Engagement]] = defaultdict(list)
    for engagement in known.engagements:
        engagements[engagement.impression, engagement.goal].append(engagement)
    retracted_us: dict[str, int] = {}
    for retraction in known.retractions:
        earlier_us = retracted_us.get(retraction.engagement, retraction.received_us)
        retracted_us[retraction.engagement] = min(earlier_us, retraction.received_us)
    for goal in goals:
        for (impression, name), credited in list(engagements.items()):
            for engagement in credited if name == goal.name and goal.without else ():
                for other in engagements[impression, goal.without or ""]:
                    if other.occurred_us <= engagement.occurred_us:
                        earlier_us = retracted_us.get(engagement.key, other.received_us)
                        retracted_us[engagement.key] = min(earlier_us, other.received_us)
    rows: Rows = {table.name: set() for table in TABLES}
    anchors: dict[str, list[tuple[Impression, int, int]]] = defaultdict(list)
    for impression in known.impressions:
        _tell(goals, impression, engagements, retracted_us, end_us, rows, drawn, shown, anchors)
    campaigns = {impression.key: impression.campaign for impression in known.impressions}
    for goal in goals:
        fits = _fits(goal, rows, campaigns, end_us)
        rows[LABEL_DELAYS.name] |= {
            (goal.name, fitted_us, group, place, delay_us, positives)
            for (fitted_us, group), (delays, positives) in fits.items()
            for place, delay_us in enumerate(delays)
        }
        if "matched" in shown:
            _match(goal, fits, anchors[goal.name], end_us, rows, drawn)
    return rows


Fits = dict[tuple[int, str], tuple[list[int], int]]


def _fits(goal: Goal, rows: Rows, campaigns: dict[str, str | None], end_us: int) -> Fits:
    """Read the distribution of delays off the labels that had matured by each fit."""
    labels = [row for row in rows[LABELLED_IMPRESSIONS.name] if row[0] == goal.name and row[4] == 1]
    refit_us, lookback_us = DELAYS.refit_every_hours * HOUR_US, DELAYS.lookback_hours * HOUR_US
    found: Fits = {}
    for fitted_us in range(START_US, end_us, HOUR_US):
        if fitted_us % refit_us:
            continue
        delays: dict[str, list[int]] = defaultdict(list)
        for row in labels:
            matured_us, anchor_us, arrived_us = row[3], row[2], row[9]
            if fitted_us - lookback_us <= matured_us < fitted_us:
                for group in {"", campaigns[row[1]] or ""}:
                    delays[group].append(
                        min(arrived_us - anchor_us, goal.window_us + goal.lateness_us)
                    )
        for group, values in delays.items():
            values.sort()
            if group == "" or len(values) >= DELAYS.least_positives:
                places = [values[(2 * place + 1) * len(values) // 512] for place in range(256)]
                found[fitted_us, group] = (places, len(values))
    return found


def _match(
    goal: Goal,
    fits: Fits,
    anchors: Sequence[tuple[Impression, int, int]],
    end_us: int,
    rows: Rows,
    drawn: Settings,
) -> None:
    """Emit each anchor's negative after a delay drawn from those in force when it was known."""
    draw = draw_of(drawn, goal.name)
    for impression, anchor_us, known_us in anchors:
        if not is_kept(draw, impression.request, impression.key):
            continue
        fitted_us = known_us - known_us % (DELAYS.refit_every_hours * HOUR_US)
        delays, _ = fits.get((fitted_us, impression.campaign or "")) or fits.get(
            (fitted_us, ""), ([0] * 256, 0)
        )
        text = f"{drawn.seed} examples.training_examples.delays {impression.key}"
        place = hashlib.md5(text.encode(), usedforsecurity=False).digest()[0]
        us = max(anchor_us + delays[place], known_us)
        if us < end_us:
            rows[TRAINING_EXAMPLES.name].add(
                (
                    goal.name, impression.key, "matched_negative", 0, 0, "", anchor_us, None, us,
                    impression.received_us, 1 / draw["negative_rate"],
                )
            )  # fmt: skip


def _tell(
    goals: Sequence[Goal],
    impression: Impression,
    engagements: dict[tuple[str, str], list[Engagement]],
    retracted_us: dict[str, int],
    end_us: int,
    rows: Rows,
    drawn: Settings,
    shown: Sequence[StrategyName],
    anchors: dict[str, list[tuple[Impression, int, int]]],
) -> None:
    serving_us = impression.received_us
    at_once = (impression.occurred_us, impression.received_us, "")
    seen_anchor: dict[str, tuple[int, int, str] | None] = {"impression": at_once}
    final_anchor: dict[str, tuple[int, int] | None] = {"impression": at_once[:2]}
    starts_at_once = any(STRATEGIES[name].at_once for name in shown)
    confirms = any(STRATEGIES[name].confirmed for name in shown)

    def is_retracted(engagement: Engagement, by_us: int) -> bool:
        return engagement.key in retracted_us and retracted_us[engagement.key] <= by_us

    def in_window(goal: Goal, anchor_us: int, matured_us: int) -> list[Engagement]:
        return [
            engagement
            for engagement in engagements[impression.key, goal.name]
            if anchor_us <= engagement.occurred_us <= anchor_us + goal.window_us
            and engagement.received_us <= matured_us
        ]

    def tell_example(
        goal: Goal,
        kind: str,
        wait_us: int,
        source: str,
        anchor_us: int,
        arrived_us: int | None,
        us: int,
    ) -> None:
        weight = 1.0
        if kind in ("negative", "confirmed_negative"):
            draw = draw_of(drawn, goal.name)
            if not is_kept(draw, impression.request, impression.key):
                return
            weight = 1 / draw["negative_rate"]
        label = int(kind.endswith("positive"))
        rows[TRAINING_EXAMPLES.name].add(
            (
                goal.name, impression.key, kind, label, wait_us, source, anchor_us, arrived_us, us,
                serving_us, weight,
            )
        )  # fmt: skip

    for goal in goals:
        states: list[tuple[str, int, str, int]] = []
        seen_anchor[goal.name] = final_anchor[goal.name] = None

        anchor = seen_anchor[goal.anchor]
        if anchor is not None:
            anchor_us, known_us, cause = anchor
            anchors[goal.name].append((impression, anchor_us, known_us))
            matured_us = max(anchor_us + goal.window_us + goal.lateness_us, known_us)
            by_receipt = sorted(
                in_window(goal, anchor_us, matured_us), key=lambda e: (e.received_us, e.key)
            )
            states.append(("pending", known_us, cause, anchor_us))
            for wait_us in sorted({goal.observation_us} | ({0} if starts_at_once else set())):
                first_us = max(anchor_us + wait_us, known_us)
                emitted: list[tuple[str, Engagement | None, int]] = []
                positives: list[tuple[int, Engagement]] = []
                at_first = [
                    e
                    for e in by_receipt
                    if e.received_us <= first_us and not is_retracted(e, first_us)
                ]
                if at_first:
                    emitted.append(("immediate_positive", at_first[0], first_us))
                    positives.append((first_us, at_first[0]))
                else:
                    emitted.append(("negative", None, first_us))
                for engagement in by_receipt:
                    if engagement.received_us <= first_us:
                        continue
                    if is_retracted(engagement, engagement.received_us):
                        continue
                    if goal.counting == "first" and positives:
                        continue
                    emitted.append(("delayed_positive", engagement, engagement.received_us))
                    positives.append((engagement.received_us, engagement))
                for _, engagement in positives:
                    if engagement.key in retracted_us:
                        emitted.append(("retraction", engagement, retracted_us[engagement.key]))
                emitted = [row for row in emitted if row[2] < end_us]
                for kind, source, us in emitted:
                    key, arrived_us = (source.key, source.received_us) if source else ("", None)
                    tell_example(goal, kind, wait_us, key, anchor_us, arrived_us, us)
                if wait_us != goal.observation_us:
                    continue
                named = {"negative": "provisional_negative", "retraction": "retracted"}
                states += [
                    (named.get(kind, kind), us, source.key if source else "", anchor_us)
                    for kind, source, us in emitted
                ]
                positives = [(us, e) for us, e in positives if us < end_us]
                if positives:
                    us, engagement = min(positives, key=lambda p: (p[0], p[1].key))
                    seen_anchor[goal.name] = (engagement.occurred_us, us, engagement.key)

        final = final_anchor[goal.anchor]
        if final is not None:
            anchor_us, known_us = final
            matured_us = max(anchor_us + goal.window_us + goal.lateness_us, known_us)
            if matured_us < end_us:
                counted = sorted(
                    (
                        engagement
                        for engagement in in_window(goal, anchor_us, matured_us)
                        if not is_retracted(engagement, matured_us)
                    ),
                    key=lambda e: (e.occurred_us, e.key),
                )
                first = counted[0] if counted else None
                arrived_us = min((e.received_us for e in counted), default=None)
                number = len(counted) if goal.counting == "all" else min(len(counted), 1)
                rows[LABELLED_IMPRESSIONS.name].add(
                    (
                        goal.name, impression.key, anchor_us, matured_us, 1 if first else 0,
                        first.occurred_us - anchor_us if first else None, number,
                        first.key if first else None, first.occurred_us if first else None,
                        arrived_us, serving_us, hour_of(serving_us),
                    )
                )  # fmt: skip
                name = "matured_positive" if first else "matured_negative"
                states.append((name, matured_us, first.key if first else "", anchor_us))
                if first:
                    final_anchor[goal.name] = (first.occurred_us, matured_us)
                if confirms:
                    kind = "confirmed_positive" if first else "confirmed_negative"
                    horizon_us = goal.window_us + goal.lateness_us
                    key = first.key if first else ""
                    tell_example(goal, kind, horizon_us, key, anchor_us, arrived_us, matured_us)
        rows[LABEL_STATES.name] |= {
            (goal.name, impression.key, state, us, source, anchor_us, serving_us)
            for state, us, source, anchor_us in states
        }


# --- the SQL -----------------------------------------------------------------------------------

EVENTS = {
    "events.impressions": (
        "impression_id VARCHAR, request_id VARCHAR, ad_id VARCHAR, campaign_id VARCHAR, "
        "advertiser_id VARCHAR"
    ),
    "events.engagements": "event_id VARCHAR, impression_id VARCHAR, goal VARCHAR, value BIGINT",
    "events.retractions": "event_id VARCHAR, engagement_event_id VARCHAR, reason VARCHAR",
}
CLOCKS = "occurred_us BIGINT, received_us BIGINT, logged_us BIGINT"


def filled(connection: duckdb.DuckDBPyConnection, facts: Facts) -> duckdb.DuckDBPyConnection:
    """Write facts into new tables of events."""
    connection.execute("CREATE SCHEMA IF NOT EXISTS events")
    for name, columns in EVENTS.items():
        connection.execute(f"CREATE TABLE {name} ({columns}, {CLOCKS})")
    rows = {
        "events.impressions": [
            (i.key, i.request, "a", i.campaign, None, i.occurred_us, i.received_us, i.received_us)
            for i in facts.impressions
        ],
        "events.engagements": [
            (e.key, e.impression, e.goal, 0, e.occurred_us, e.received_us, e.received_us)
            for e in facts.engagements
        ],
        "events.retractions": [
            (r.key, r.engagement, "refund", r.received_us, r.received_us, r.received_us)
            for r in facts.retractions
        ],
    }
    for name, values in rows.items():
        if values:
            marks = ", ".join(["?"] * len(values[0]))
            text = ", ".join([f"({marks})"] * len(values))
            connection.execute(
                f"INSERT INTO {name} VALUES {text}", [x for row in values for x in row]
            )
    return connection


def warehouse_of(facts: Facts) -> duckdb.DuckDBPyConnection:
    """Return a connection with events and the room's empty tables."""
    connection = filled(duckdb.connect(config={"threads": 1}), facts)
    connection.execute("CREATE SCHEMA examples")
    for table in TABLES:
        columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
        connection.execute(f"CREATE TABLE {table.name} ({columns})")
    return connection


def run(
    connection: duckdb.DuckDBPyConnection,
    goals: Iterable[Goal],
    first_hour: int = 0,
    last_hour: int = HOURS,
    *,
    queries: dict[str, str] | None = None,
    drawn: Settings = EVERYTHING,
    shown: Sequence[StrategyName] = WINDOWED,
) -> None:
    """Compute the hours [first, last), counted from the start."""
    dataset = dataset_of(*goals, settings=drawn)
    for goal in dataset.goals:
        for table in TABLES:
            replace_goal(
                connection,
                table,
                GoalJoin.of(dataset, goal, shown),
                START_US + first_hour * HOUR_US,
                START_US + last_hour * HOUR_US,
                query=(queries or {}).get(table.name),
            )


def found(connection: duckdb.DuckDBPyConnection) -> Rows:
    """Read the tables, failing if a key is there twice."""
    rows: Rows = {}
    for table in TABLES:
        read = connection.execute(f"SELECT * FROM {table.name}").fetchall()
        keys = [table.column_names.index(column) for column in table.key]
        counted = Counter(tuple(row[k] for k in keys) for row in read)
        assert not [key for key, number in counted.items() if number > 1], table.name
        rows[table.name] = set(read)
    return rows


def by_then(rows: Rows, us: int) -> Rows:
    """Keep the rows whose clock is at most a moment."""
    kept: Rows = {}
    for table in TABLES:
        clock = table.column_names.index(str(table.clock))
        kept[table.name] = {row for row in rows[table.name] if row[clock] <= us}
    return kept


def assert_no_row_knew_the_future(
    goals: Sequence[Goal],
    facts: Facts,
    cuts: Iterable[int],
    queries: dict[str, str] | None = None,
    shown: Sequence[StrategyName] = ALL_STRATEGIES,
) -> None:
    """Check that what is emitted by a cut is the same without the facts received after it."""
    with warehouse_of(facts) as connection:
        run(connection, goals, queries=queries, shown=shown)
        everything = found(connection)
    for cut_us in cuts:
        with warehouse_of(facts.received_by(cut_us)) as connection:
            run(connection, goals, queries=queries, shown=shown)
            assert by_then(found(connection), cut_us) == by_then(everything, cut_us)


# --- properties --------------------------------------------------------------------------------

few = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(0, 40)


choices = st.lists(st.sampled_from(ALL_STRATEGIES), unique=True, max_size=3)


@few
@given(seed=seeds, size=sizes, shown=choices)
def test_the_tables_are_those_of_the_oracle_under_any_strategies(
    seed: int, size: int, shown: list[StrategyName]
) -> None:
    rng = seeded(seed)
    goals, facts = drawn_goals(rng), drawn_facts(rng, size)
    with warehouse_of(facts) as connection:
        run(connection, goals, shown=shown)
        assert found(connection) == expected(goals, facts, shown=shown)


@few
@given(
    seed=seeds,
    cuts=st.lists(st.integers(1, HOURS - 1), unique=True, max_size=6),
    again=st.lists(st.tuples(st.integers(0, HOURS), st.integers(0, HOURS)), max_size=3),
)
def test_any_split_into_ranges_and_any_rerun_gives_the_same_tables(
    seed: int, cuts: list[int], again: list[tuple[int, int]]
) -> None:
    rng = seeded(seed)
    goals, facts = drawn_goals(rng), drawn_facts(rng, 30)
    bounds = [0, *sorted(cuts), HOURS]
    whole = expected(goals, facts, shown=ALL_STRATEGIES)
    with warehouse_of(facts) as connection:
        for first, last in pairwise(bounds):
            run(connection, goals, first, last, shown=ALL_STRATEGIES)
        assert found(connection) == whole
        for first, last in again:
            run(connection, goals, min(first, last), max(first, last), shown=ALL_STRATEGIES)
        assert found(connection) == whole


@few
@given(seed=seeds, hours=st.lists(st.integers(0, HOURS * 12), min_size=1, max_size=4))
def test_no_row_uses_a_fact_received_after_its_cut_off(seed: int, hours: list[int]) -> None:
    rng = seeded(seed)
    goals, facts = drawn_goals(rng), drawn_facts(rng, 30)
    cuts = [START_US + step * STEP_US for step in hours]
    assert_no_row_knew_the_future(goals, facts, cuts)


@pytest.mark.parametrize(
    ("table", "honest", "leaking"),
    [
        (
            LABELLED_IMPRESSIONS,
            "AND engagements.received_us <= maturing.matured_us",
            "",
        ),
        (LABELLED_IMPRESSIONS, "OR first_retractions.retracted_us > maturing.matured_us", ""),
        (LABELLED_IMPRESSIONS, "received_us) AS matured_us", "0) AS matured_us"),
        (
            TRAINING_EXAMPLES,
            "engagements.received_us, anchors.anchor_us + waits.wait_us, anchors.known_us\n        "
            ") AS emit_us",
            "anchors.anchor_us + waits.wait_us, anchors.known_us\n        ) AS emit_us",
        ),
        (
            TRAINING_EXAMPLES,
            "        parent.known_us,",
            "        engagement.occurred_us AS known_us,",
        ),
        (TRAINING_EXAMPLES, "labelled.matured_us AS emit_us", "labelled.anchor_us AS emit_us"),
        (LABEL_DELAYS, "AND labelled.matured_us < fits.fitted_us", ""),
    ],
    ids=[
        "a label counts an engagement received after maturity",
        "a label heeds a retraction known after maturity",
        "a label matures before its impression is known",
        "a positive is emitted before its engagement is known",
        "a chain is anchored before its anchor is known",
        "a negative is confirmed at its anchor",
        "delays are fitted on labels that mature later",
    ],
)
def test_a_leaking_query_is_caught(table: Table, honest: str, leaking: str) -> None:
    """Negative control of the property above, on planted leaks."""
    text = select(table.name)
    assert honest in text
    rng = seeded(7)
    goals = (
        goal_of("click", "impression", HOUR_US, HOUR_US, HOUR_US // 2, "first"),
        goal_of("install", "click", 2 * HOUR_US, HOUR_US, HOUR_US // 2, "all"),
    )
    facts = drawn_facts(rng, 150)
    cuts = [START_US + hour * HOUR_US + 30 * MINUTE_US for hour in range(1, 14, 2)]
    assert_no_row_knew_the_future(goals, facts, cuts)
    with pytest.raises(AssertionError):
        assert_no_row_knew_the_future(
            goals, facts, cuts, queries={table.name: text.replace(honest, leaking)}
        )


@few
@given(seed=seeds)
def test_any_order_of_receipt_within_lateness_gives_the_same_final_labels(seed: int) -> None:
    rng = seeded(seed)
    goals, facts = drawn_goals(rng), drawn_facts(rng, 30)
    lateness = min(goal.lateness_us for goal in goals) // STEP_US
    occurred_us = {engagement.key: engagement.occurred_us for engagement in facts.engagements}
    prompt = {r.key for r in facts.retractions if rng.random() < 0.5}

    def received_in_some_order() -> Facts:
        def late() -> int:
            return rng.randrange(0, lateness + 1) * STEP_US

        shown = {i.key: replace(i, received_us=i.occurred_us + late()) for i in facts.impressions}
        engaged = tuple(
            replace(
                e, received_us=max(e.occurred_us + late(), hour_of(shown[e.impression].received_us))
            )
            for e in facts.engagements
            if e.occurred_us >= shown[e.impression].occurred_us
        )
        # A retraction is kept on its side of maturity; by when it is known is what it changes.
        retracted = tuple(
            replace(
                r,
                received_us=occurred_us[r.engagement] + (late() if r.key in prompt else DAY_US * 9),
            )
            for r in facts.retractions
        )
        return Facts(tuple(shown.values()), engaged, retracted)

    labels = []
    for _ in range(3):
        with warehouse_of(received_in_some_order()) as connection:
            run(connection, goals)
            labels.append(
                connection.execute(
                    "SELECT * EXCLUDE (arrived_us, serving_us, serving_hour_us) "
                    "FROM examples.labelled_impressions ORDER BY ALL"
                ).fetchall()
            )
    assert labels[0] == labels[1] == labels[2]


@few
@given(seed=seeds)
def test_every_anchor_is_pending_once_and_has_one_first_emission(seed: int) -> None:
    rng = seeded(seed)
    goals, facts = drawn_goals(rng), drawn_facts(rng, 30)
    with warehouse_of(facts) as connection:
        run(connection, goals)
        rows = found(connection)
    pending = Counter(row[:2] for row in rows[LABEL_STATES.name] if row[2] == "pending")
    assert {row[4] for row in rows[TRAINING_EXAMPLES.name]} <= {g.observation_us for g in goals}
    emitted = Counter(
        row[:2]
        for row in rows[TRAINING_EXAMPLES.name]
        if row[2] in ("immediate_positive", "negative")
    )
    assert set(pending.values()) <= {1}
    assert set(emitted.values()) <= {1}
    assert emitted.keys() <= pending.keys()
    on_impressions = {goal.name for goal in goals if goal.anchor == "impression"}
    matured = {row[:2] for row in rows[LABELLED_IMPRESSIONS.name] if row[0] in on_impressions}
    assert matured <= emitted.keys()


@pytest.mark.slow
def test_many_logs_hour_by_hour_are_those_of_the_oracle() -> None:
    for seed in range(20):
        rng = seeded(seed)
        goals, facts = drawn_goals(rng), drawn_facts(rng, 150)
        with warehouse_of(facts) as connection:
            for hour in range(HOURS):
                run(connection, goals, hour, hour + 1, shown=ALL_STRATEGIES)
            assert found(connection) == expected(goals, facts, shown=ALL_STRATEGIES), seed


HORIZON = "$start_us - $window_us - $lateness_us"
SHORT = "$start_us - $window_us"
SINCE_START = "received_us >= $start_us"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "honest", "short"),
    [
        (TRAINING_EXAMPLES, f"AND received_us >= {HORIZON}", f"AND received_us >= {SHORT}"),
        (
            TRAINING_EXAMPLES,
            f"engagements.received_us >= {HORIZON}",
            f"engagements.received_us >= {SHORT}",
        ),
        (TRAINING_EXAMPLES, f"parent.known_us >= {HORIZON}", f"parent.known_us >= {SHORT}"),
        (
            TRAINING_EXAMPLES,
            "kept.known_us >= $start_us - waits.wait_us",
            "kept.known_us >= $start_us",
        ),
        (
            TRAINING_EXAMPLES,
            "$window_us - $window_us - $lateness_us - $lateness_us",
            "$lateness_us",
        ),
        (
            TRAINING_EXAMPLES,
            "emitted.emit_us < $start_us",
            f"emitted.emit_us < $start_us AND emitted.emit_us >= {HORIZON}",
        ),
        (LABELLED_IMPRESSIONS, f"AND received_us >= {HORIZON}", f"AND received_us >= {SHORT}"),
        (LABEL_DELAYS, ">= $start_us - $lookback_us", ">= $start_us"),
        (LABELLED_IMPRESSIONS, f"AND matured_us >= {HORIZON}", f"AND matured_us >= {SHORT}"),
        (
            LABEL_STATES,
            "AND emit_us >= $start_us - $observation_us - $window_us - $lateness_us",
            "AND emit_us >= $start_us - $observation_us",
        ),
        (LABEL_STATES, "AND received_us >= $start_us - $observation_us", f"AND {SINCE_START}"),
        (
            LABEL_STATES,
            "AND parent.known_us >= $start_us - $observation_us",
            "AND parent.known_us >= $start_us",
        ),
        (
            LABEL_STATES,
            f"engagement.received_us >= {HORIZON}",
            "engagement.received_us >= $start_us",
        ),
    ],
)
def test_a_scan_that_is_too_short_is_caught(table: Table, honest: str, short: str) -> None:
    """Negative control of the comparison with the oracle, hour by hour."""
    text = select(table.name)
    assert honest in text
    queries = {table.name: text.replace(honest, short)}

    def is_caught(seed: int) -> bool:
        rng = seeded(seed)
        goals, facts = drawn_goals(rng), drawn_facts(rng, 60)
        with warehouse_of(facts) as connection:
            for hour in range(HOURS):
                run(connection, goals, hour, hour + 1, queries=queries, shown=ALL_STRATEGIES)
            clean = all(
                connection.execute(
                    f"SELECT count(*) = count(DISTINCT ({', '.join(table.key)})) FROM {table.name}"
                ).fetchone()
                == (True,)
                for table in TABLES
            )
            told = expected(goals, facts, shown=ALL_STRATEGIES)
            return not clean or found(connection) != told

    assert any(is_caught(seed) for seed in range(40))


# --- single cases, and the runner ---------------------------------------------------------------

CLICK = goal_of("click", "impression", HOUR_US, HOUR_US, 10 * MINUTE_US, "first")


def story(*engaged: Engagement, retracted: Sequence[Retraction] = ()) -> Facts:
    return Facts((Impression("i", START_US, START_US),), engaged, tuple(retracted))


def click(minutes: int, received: int | None = None, key: str = "e") -> Engagement:
    received_us = START_US + (minutes if received is None else received) * MINUTE_US
    return Engagement(key, "i", "click", START_US + minutes * MINUTE_US, received_us)


def kinds(
    facts: Facts, goal: Goal = CLICK, shown: StrategyName = "windowed"
) -> list[tuple[str, int]]:
    """Return what a strategy shows of a story, and after how many minutes."""
    with warehouse_of(facts) as connection:
        run(connection, (goal,), shown=(shown,))
        emitted = rows_of(
            connection, "SELECT * FROM examples.training_examples ORDER BY emit_us, kind"
        )
    rows = EmittedRows.of(emitted)
    chosen = np.flatnonzero(rows_of_strategy(shown, goal, rows))
    minutes = (emitted.column("emit_us").to_numpy()[chosen] - START_US) // MINUTE_US
    names = [KINDS[place] for place in rows.kinds[chosen]]
    return list(zip(names, minutes.tolist(), strict=True))


def label(facts: Facts) -> tuple[int, int | None]:
    with warehouse_of(facts) as connection:
        run(connection, (CLICK,))
        row = connection.execute(
            "SELECT label, delay_us FROM examples.labelled_impressions"
        ).fetchone()
    assert row is not None
    return row


EARLY, LATE, NEVER = (9,), (30,), ()

SHOWN: dict[StrategyName, tuple[list[tuple[str, int]], ...]] = {
    "immediate": (
        [("negative", 0), ("delayed_positive", 9)],
        [("negative", 0), ("delayed_positive", 30)],
        [("negative", 0)],
    ),
    "immediate_confirmed": (
        [("negative", 0), ("delayed_positive", 9)],
        [("negative", 0), ("delayed_positive", 30)],
        [("negative", 0), ("confirmed_negative", 120)],
    ),
    "windowed": (
        [("immediate_positive", 10)],
        [("negative", 10), ("delayed_positive", 30)],
        [("negative", 10)],
    ),
    "windowed_confirmed": (
        [("immediate_positive", 10)],
        [("negative", 10), ("delayed_positive", 30)],
        [("negative", 10), ("confirmed_negative", 120)],
    ),
    "two_copies": (
        [("immediate_positive", 10), ("confirmed_positive", 120)],
        [("negative", 10), ("delayed_positive", 30)],
        [("negative", 10), ("confirmed_negative", 120)],
    ),
    "wait_observation": ([("immediate_positive", 10)], [("negative", 10)], [("negative", 10)]),
    "wait_maturity": (
        [("confirmed_positive", 120)],
        [("confirmed_positive", 120)],
        [("confirmed_negative", 120)],
    ),
    # Nothing has matured that a delay could be drawn from: the negative comes at once.
    "matched": (
        [("matched_negative", 0), ("delayed_positive", 9)],
        [("matched_negative", 0), ("delayed_positive", 30)],
        [("matched_negative", 0)],
    ),
}


@pytest.mark.parametrize("shown", ALL_STRATEGIES)
def test_a_strategy_shows_its_copies_at_their_times(shown: StrategyName) -> None:
    for minutes, copies in zip((EARLY, LATE, NEVER), SHOWN[shown], strict=True):
        assert kinds(story(*map(click, minutes)), shown=shown) == copies


def test_a_matched_negative_waits_as_long_as_some_matured_positive_took() -> None:
    """Ten clicks after 7 and after 40 minutes: later impressions wait one of the two."""
    shown = [Impression(f"i{n}", START_US + n * 3 * MINUTE_US, START_US + n * 3 * MINUTE_US)
             for n in range(200)]  # fmt: skip
    clicks = [
        Engagement(
            f"e{n}", i.key, "click", i.occurred_us, i.occurred_us + (7, 40)[n % 2] * MINUTE_US
        )
        for n, i in enumerate(shown[:10])
    ]
    with warehouse_of(Facts(tuple(shown), tuple(clicks), ())) as connection:
        run(connection, (CLICK,), shown=("matched",))
        rows = connection.execute(
            "SELECT anchor_us, (emit_us - anchor_us) // 60000000 FROM examples.training_examples "
            "WHERE kind = 'matched_negative'"
        ).fetchall()
    fitted_us = START_US + 3 * HOUR_US + (-START_US) % (3 * HOUR_US)
    assert {wait for us, wait in rows if us < fitted_us - 3 * HOUR_US} <= {0}
    waits = Counter(wait for us, wait in rows if fitted_us <= us < fitted_us + 3 * HOUR_US)
    assert set(waits) == {7, 40}
    assert abs(waits[7] - waits[40]) < 30


def test_a_retraction_days_later_is_emitted_and_leaves_the_label() -> None:
    facts = story(click(9), retracted=[Retraction("r", "e", START_US + 20 * HOUR_US)])
    assert kinds(facts) == [("immediate_positive", 10), ("retraction", 1200)]
    assert label(facts) == (1, 9 * MINUTE_US)


def test_a_click_retracted_before_its_emission_was_never_a_positive() -> None:
    facts = story(click(5), retracted=[Retraction("r", "e", START_US + 10 * MINUTE_US)])
    assert kinds(facts) == [("negative", 10)]
    assert kinds(facts, shown="wait_maturity") == [("confirmed_negative", 120)]
    assert label(facts) == (0, None)


def test_a_click_received_past_lateness_or_occurring_past_the_window_does_not_count() -> None:
    assert label(story(click(60, received=121))) == (0, None)
    assert label(story(click(61))) == (0, None)
    assert label(story(click(60, received=120))) == (1, HOUR_US)


VIEWED = goal_of("view", "impression", HOUR_US, HOUR_US, 10 * MINUTE_US, "first").model_copy(
    update={"without": "click"}
)
"""Conversions credited to an impression that was seen and not clicked."""
BOUGHT = goal_of("buy", "click", HOUR_US, HOUR_US, 10 * MINUTE_US, "first")
"""Conversions credited to a click; the log names each conversion once for either goal."""


def conversions(minutes: int) -> tuple[Engagement, Engagement]:
    """Return one conversion as the log has it for both goals."""
    us = START_US + minutes * MINUTE_US
    return Engagement("v", "i", "view", us, us), Engagement("b", "i", "buy", us, us)


def labels(facts: Facts, *goals: Goal) -> dict[str, int]:
    with warehouse_of(facts) as connection:
        run(connection, goals)
        return dict(
            connection.execute("SELECT goal, label FROM examples.labelled_impressions").fetchall()
        )


def test_a_conversion_without_a_click_is_the_views_and_one_after_it_is_the_clicks() -> None:
    """Two goals with their own anchors: one conversion is a positive of one of them only."""
    goals = (CLICK, BOUGHT, VIEWED)
    assert labels(story(*conversions(40)), *goals) == {"click": 0, "view": 1}
    assert labels(story(click(5), *conversions(40)), *goals) == {"click": 1, "buy": 1, "view": 0}


def test_a_conversion_before_the_click_stays_the_views() -> None:
    facts = story(click(50), *conversions(40))
    assert labels(facts, CLICK, BOUGHT, VIEWED) == {"click": 1, "buy": 0, "view": 1}


def test_a_click_that_our_log_has_late_takes_the_conversion_back_when_it_comes() -> None:
    facts = story(click(5, received=55), *conversions(40))
    assert kinds(facts, VIEWED) == [
        ("negative", 10), ("delayed_positive", 40), ("retraction", 55),
    ]  # fmt: skip
    assert labels(facts, VIEWED) == {"view": 0}
    known = story(click(5), *conversions(40))
    assert kinds(known, VIEWED) == [("negative", 10)]


@pytest.mark.parametrize(("without", "arrived"), [("click", [None]), ("", [40])])
def test_what_is_known_of_a_view_before_it_matures_is_without_the_clicks_conversions(
    without: str, arrived: list[int | None]
) -> None:
    """Read by the delay report; without the exclusion, the control, the conversion has arrived."""
    facts = story(click(5), *conversions(40))
    with warehouse_of(facts) as connection:
        run(connection, (CLICK, BOUGHT, VIEWED), 0, 1)
        known = connection.execute(
            f"SELECT (arrived_us - {START_US}) / {MINUTE_US} FROM ({{}}) WHERE NOT matured".format(
                select("monitoring.label_arrivals")
            ),
            {
                "goal": "view",
                "start_us": START_US,
                "now_us": START_US + HOUR_US,
                "window_us": VIEWED.window_us,
                "lateness_us": VIEWED.lateness_us,
                "without_goal": without,
                "delay_group": "ad_id",
                "one_in": 1,
            },
        ).fetchall()
    assert [minutes for (minutes,) in known] == arrived


def arrivals_as_of(
    connection: duckdb.DuckDBPyConnection, spans: dict[str, Any], now_us: int
) -> list[tuple[Any, ...]]:
    """Return what was known of anchors at a moment, by the query of a moment."""
    names = "impression_id, anchor_us, serving_us, arrived_us, matured, delay_group"
    parameters = {key: us for key, us in spans.items() if key not in ("first_now_us", "end_us")}
    return connection.execute(
        f"SELECT {names} FROM ({select('monitoring.label_arrivals')}) ORDER BY ALL",
        parameters | {"now_us": now_us},
    ).fetchall()


def cut(rows: list[dict[str, Any]], now_us: int, waits_us: int) -> list[tuple[Any, ...]]:
    """Return what was known at a moment by rows that say from when to when they hold."""
    known = []
    for row in rows:
        held = row["known_us"] < now_us <= row["until_us"]
        if not held or not (row["matured"] or row["anchor_us"] >= now_us - waits_us):
            continue
        counted = zip(row["arrivals_us"] or (), row["retractions_us"] or (), strict=True)
        so_far = [
            came_us for came_us, gone_us in counted
            if now_us - waits_us <= came_us < now_us <= gone_us
        ]  # fmt: skip
        arrived_us = row["arrived_us"] if row["matured"] else min(so_far, default=None)
        known.append(
            (
                row["impression_id"], row["anchor_us"], row["serving_us"], arrived_us,
                row["matured"], row["delay_group"],
            )
        )  # fmt: skip
    return sorted(known, key=lambda row: tuple((each is None, each) for each in row))


@given(seeds)
@settings(few, max_examples=4)
def test_a_range_that_is_read_once_says_of_each_hour_what_was_known_then(seed: int) -> None:
    """Against the query of a moment, which shares no cut with it."""
    rng = seeded(seed)
    goals = drawn_goals(rng)
    with warehouse_of(drawn_facts(rng, 12)) as connection:
        run(connection, goals)
        first, last = sorted(rng.sample(range(1, HOURS + 1), 2))
        for goal in goals:
            spans = {
                "goal": goal.name, "window_us": goal.window_us, "lateness_us": goal.lateness_us,
                "without_goal": goal.without or "", "delay_group": "campaign_id", "one_in": 1,
                "start_us": START_US, "first_now_us": START_US + first * HOUR_US,
                "end_us": START_US + last * HOUR_US,
            }  # fmt: skip
            query = select("monitoring.label_arrivals_over_time")
            rows = rows_of(connection, query, spans).to_pylist()
            for hour in {first, last, rng.randint(first, last)}:
                now_us = START_US + hour * HOUR_US
                expected = arrivals_as_of(connection, spans, now_us)
                assert cut(rows, now_us, goal.window_us + goal.lateness_us) == expected


def test_a_range_knows_a_taken_back_engagement_before_and_not_after() -> None:
    """The control does not look when it was taken back, and believes in it."""
    facts = story(click(5), retracted=[Retraction("r", "e", START_US + 90 * MINUTE_US)])
    spans = {
        "goal": "click", "window_us": HOUR_US, "lateness_us": HOUR_US, "without_goal": "",
        "delay_group": None, "one_in": 1, "start_us": START_US,
        "first_now_us": START_US + HOUR_US, "end_us": START_US + 2 * HOUR_US,
    }  # fmt: skip
    with warehouse_of(facts) as connection:
        run(connection, (CLICK,))
        query = select("monitoring.label_arrivals_over_time")
        rows = rows_of(connection, query, spans).to_pylist()

    def arrived(rows: list[dict[str, Any]]) -> list[Any]:
        moments = (START_US + hour * HOUR_US for hour in (1, 2))
        return [row[3] for now_us in moments for row in cut(rows, now_us, 2 * HOUR_US)]

    came_us = START_US + 5 * MINUTE_US
    assert arrived(rows) == [came_us, None]
    assert arrived([row | {"retractions_us": [spans["end_us"]]} for row in rows]) == [came_us] * 2


def test_a_view_through_goal_that_forgets_the_click_counts_the_conversion_twice() -> None:
    """The negative control: without the exclusion one conversion is two goals' positive."""
    forgetful = VIEWED.model_copy(update={"without": None})
    facts = story(click(5), *conversions(40))
    assert labels(facts, CLICK, BOUGHT, forgetful) == {"click": 1, "buy": 1, "view": 1}


def test_counting_all_gives_every_later_engagement_an_emission() -> None:
    facts = story(click(20, key="a"), click(40, key="b"))
    every = CLICK.model_copy(update={"counting": "all"})
    assert kinds(facts)[1:] == [("delayed_positive", 20)]
    assert kinds(facts, every)[1:] == [("delayed_positive", 20), ("delayed_positive", 40)]


def test_a_later_positive_of_the_parent_is_no_second_anchor() -> None:
    """The parent's first positive lies further back than what the child's own rows need."""
    goals = (
        goal_of("click", "impression", 3 * HOUR_US, 0, 0, "all"),
        goal_of("install", "click", 3 * HOUR_US, 0, 0, "first"),
    )
    facts = story(click(5, key="a"), click(150, key="b"))
    with warehouse_of(facts) as connection:
        for hour in range(HOURS):
            run(connection, goals, hour, hour + 1)
        assert found(connection) == expected(goals, facts)


@dataclass(frozen=True)
class GoalsOnly:
    """What the label join asks of a dataset."""

    goals: tuple[Goal, ...]
    settings: Settings

    def goals_in_chain_order(self) -> tuple[Goal, ...]:
        return self.goals


def dataset_of(*goals: Goal, settings: Settings = EVERYTHING) -> Dataset:
    return GoalsOnly(goals, settings)  # type: ignore[return-value]


def test_the_runner_chunks_a_range_counts_by_hour_and_may_be_repeated(tmp_path: Path) -> None:
    rng = seeded(3)
    goals, facts = drawn_goals(rng), drawn_facts(rng, 40)
    warehouse = Warehouse(tmp_path / "warehouse.duckdb", wait_seconds=5)
    with warehouse.writer() as connection:
        filled(connection, facts)
    dataset = dataset_of(*goals)
    first = join_labels(warehouse, dataset, START_US, END_US, chunk_hours=7)
    again = join_labels(warehouse, dataset, START_US, END_US)
    with warehouse.reader() as connection:
        rows = found(connection)
    assert rows == expected(goals, facts)
    assert first == again
    assert [(hour.hour_us, hour.goal) for hour in first] == [
        (START_US + hour * HOUR_US, goal.name) for hour in range(HOURS) for goal in goals
    ]
    assert sum(sum(hour.emitted.values()) for hour in first) == len(rows[TRAINING_EXAMPLES.name])
    assert sum(hour.matured for hour in first) == len(rows[LABELLED_IMPRESSIONS.name])
    assert sum(hour.matured_positives for hour in first) == sum(
        row[4] for row in rows[LABELLED_IMPRESSIONS.name]
    )
    assert sum(sum(hour.states.values()) for hour in first) == len(rows[LABEL_STATES.name])


def test_half_an_hour_and_a_wait_past_maturity_are_refused(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    with pytest.raises(ValueError, match="start of an hour"):
        join_labels(warehouse, dataset_of(CLICK), START_US, START_US + 1)
    patient = CLICK.model_copy(update={"observation_us": 3 * HOUR_US})
    with pytest.raises(ValueError, match="at most window \\+ lateness"):
        join_labels(warehouse, dataset_of(patient), START_US, END_US)


# --- thinned negatives --------------------------------------------------------------------------


def thinned(rate: float, by_goal: dict[str, float] | None = None, seed: int = 1) -> Settings:
    examples = ExampleSettings(negative_rate=rate, negative_rate_by_goal=by_goal or {})
    return Settings(seed=seed, examples=examples, delays=DELAYS)


@few
@given(
    seed=seeds,
    rate=st.sampled_from([0.05, 0.3, 0.8, 1.0]),
    of_installs=st.sampled_from([0.1, 0.5, 1.0]),
    cuts=st.lists(st.integers(1, HOURS - 1), unique=True, max_size=4),
)
def test_thinned_tables_are_those_of_the_oracle_in_any_split(
    seed: int, rate: float, of_installs: float, cuts: list[int]
) -> None:
    """The labels and their states are those of the whole log: only examples are thinned."""
    rng = seeded(seed)
    goals, facts = drawn_goals(rng), drawn_facts(rng, 40)
    drawn = thinned(rate, {"install": of_installs}, seed % 5)
    with warehouse_of(facts) as connection:
        for first, last in pairwise([0, *sorted(cuts), HOURS]):
            run(connection, goals, first, last, drawn=drawn, shown=ALL_STRATEGIES)
        rows = found(connection)
    whole = expected(goals, facts)
    assert rows == expected(goals, facts, drawn=drawn, shown=ALL_STRATEGIES)
    for table in (LABELLED_IMPRESSIONS, LABEL_STATES):
        assert rows[table.name] == whole[table.name]


@pytest.mark.parametrize(
    ("honest", "faulty"),
    [
        ("THEN 1 / $negative_rate", "THEN 1"),
        ("(nullif(request_id, ''), impression_id)", "(request_id, impression_id)"),
        ("(nullif(request_id, ''), impression_id)", "(impression_id, request_id)"),
        ("(nullif(shown.request_id, ''), parent", "(parent.impression_id, parent"),
        ("OR $negative_rate >= 1\n            OR md5", "OR TRUE OR md5"),
        ("md5($draw || drawn_id)", "md5(drawn_id)"),
        ("md5($delay_draw || impression_id), 2", "md5(impression_id), 2"),
        ("AND own.place = drawn.place", "AND own.place = 255 - drawn.place"),
    ],
    ids=[
        "a kept negative weighs 1",
        "an empty request id is a request",
        "impressions are drawn, not requests",
        "a chain goal draws impressions",
        "confirmed negatives are all kept",
        "the seed does not enter the draw",
        "nor the draw of a delay",
        "long delays are drawn for short ones",
    ],
)
def test_a_faulty_draw_is_caught(honest: str, faulty: str) -> None:
    """Negative control of the comparison above."""
    text = select(TRAINING_EXAMPLES.name)
    assert honest in text
    goals = (
        goal_of("click", "impression", HOUR_US, HOUR_US, HOUR_US // 2, "first"),
        goal_of("install", "click", 2 * HOUR_US, HOUR_US, HOUR_US // 2, "first"),
    )
    facts, drawn = drawn_facts(seeded(8), 200), thinned(0.3)
    right = expected(goals, facts, drawn=drawn, shown=ALL_STRATEGIES)
    for queries, same in (({}, True), ({TRAINING_EXAMPLES.name: text.replace(honest, faulty)}, 0)):
        with warehouse_of(facts) as connection:
            run(connection, goals, queries=queries, drawn=drawn, shown=ALL_STRATEGIES)
            assert (found(connection) == right) == same


def test_a_request_has_one_fate_in_all_its_negatives_and_what_is_kept_stays_at_a_higher_rate() -> (
    None
):
    facts = drawn_facts(seeded(9), 300)
    requests = {i.key: i.request or i.key for i in facts.impressions}
    goals = drawn_goals(seeded(9))
    kept: list[set[str]] = []
    for rate in (0.2, 0.6, 1.0):
        with warehouse_of(facts) as connection:
            run(connection, goals, drawn=thinned(rate), shown=ALL_STRATEGIES)
            rows = connection.execute(
                "SELECT impression_id FROM examples.training_examples "
                "WHERE kind IN ('negative', 'confirmed_negative', 'matched_negative')"
            ).fetchall()
        kept.append({requests[key] for (key,) in rows})
        draw = draw_of(thinned(rate), "click")
        assert kept[-1] == {r for r in kept[-1] if is_kept(draw, r, "")}
    assert kept[0] < kept[1] < kept[2]


def test_sql_and_python_draw_alike_and_every_negative_weighs_one_in_expectation() -> None:
    """Over 200,000 requests the share kept is within 4.5 standard deviations of the rate."""
    n, rate = 200_000, 0.1
    draw = draw_of(thinned(rate, seed=-3), "click")
    with duckdb.connect() as connection:
        rows = rows_of(
            connection,
            "SELECT 'é-' || number AS id, md5($draw || 'é-' || number) < $kept_below AS kept "
            "FROM range(200000) AS numbers(number)",
            draw,
        )
    kept = rows.column("kept").to_pylist()
    assert kept == [is_kept(draw, key, "other") for key in rows.column("id").to_pylist()]
    weight = sum(kept) / draw["negative_rate"] / n
    assert abs(weight - 1) < 4.5 * ((1 - rate) / (rate * n)) ** 0.5
    halved = draw_of(thinned(rate / 2, seed=-3), "click")
    wrong = sum(kept) / halved["negative_rate"] / n  # the control: another rate's weight
    assert abs(wrong - 1) > 4.5 * ((1 - rate) / (rate * n)) ** 0.5


def test_the_draw_is_of_seed_and_request_and_never_changes() -> None:
    """Written down, so that no new version of anything keeps other rows of an old log."""
    draw = draw_of(thinned(0.5, {"install": 1.0}), "click")
    assert draw == {
        "negative_rate": 0.5,
        "draw": "1 examples.training_examples.negatives ",
        "kept_below": "8000000000000000",
    }
    assert [is_kept(draw, f"q{n}", "i") for n in range(10)] == [
        False, False, True, False, True, True, False, False, False, True,
    ]  # fmt: skip
    other = draw_of(thinned(0.5, seed=2), "click")
    pairs = [(is_kept(draw, f"q{n}", "i"), is_kept(other, f"q{n}", "i")) for n in range(4_000)]
    assert all(900 < pairs.count((a, b)) < 1_100 for a in (True, False) for b in (True, False))
    everything = draw_of(thinned(0.5, {"install": 1.0}), "install")
    assert all(is_kept(everything, None, f"i{n}") for n in range(1_000))
