"""One goal's log as every strategy shows it: anchors, final labels, and all emitted examples.

What the arms of :mod:`.arms` are replayed over. The examples are those of the label join's own
SELECTs, asked for all strategies at once, over tables in memory: those of a made world here, those
of a warehouse in :mod:`.log_stream`. So nothing is tested on a second definition of the stream.
Times stay int64 microseconds. Scoring is :mod:`.prequential`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, get_args

import duckdb
import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import hour_of
from ad_pipeline.datasets import Goal
from ad_pipeline.examples.label_join import GoalJoin, replace_goal
from ad_pipeline.examples.strategies import EmittedRows, emission_of
from ad_pipeline.examples.subsampling import draw_of
from ad_pipeline.examples.tables import LABEL_STATES, TABLES
from ad_pipeline.hashing import uniform
from ad_pipeline.settings import Settings, StrategyName
from ad_pipeline.warehouse import rows_of, select

ALL_STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)

UNKNOWN = -1
"""Label of an anchor that has not matured, and moment of what has not happened."""

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class LateStream:
    """Anchors in the order in which they were served, and what was emitted of them.

    Attributes
    ----------
    goal : Goal
    slots : ndarray of shape (n, F), uint32
    slot_bits : int
    served_us, anchor_us : ndarray of shape (n,), int64
        ``served_us`` rises.
    matured_us : ndarray of shape (n,), int64
        -1 where the log ends before.
    labels : ndarray of shape (n,), int8
        Final; -1 where it is not known.
    arrived_us : ndarray of shape (n,), int64
        When our log had the first engagement that counts; -1 without one. Of anchors that have not
        matured, the first that was emitted.
    groups : ndarray of shape (n,), int64
        Code of the campaign, or of whatever rates are kept by; for the base rate.
    ad_age_us : ndarray of shape (n,), int64
        Since the first impression of its ad; -1 if the log knows no ads.
    draws : ndarray of shape (n,), float64
        In [0, 1), by hash of the impression: a seed keeps a share of them.
    emitted : EmittedRows
        m rows in order of emission.
    emit_us : ndarray of shape (m,), int64
        Rising.
    anchor : ndarray of shape (m,), int64
        Place of each row's anchor.
    weights : ndarray of shape (m,), float64
        How many rows each stands for.
    end_us : int
        End of the log.
    """

    goal: Goal
    slots: np.ndarray
    slot_bits: int
    served_us: np.ndarray
    anchor_us: np.ndarray
    matured_us: np.ndarray
    labels: np.ndarray
    arrived_us: np.ndarray
    groups: np.ndarray
    ad_age_us: np.ndarray
    draws: np.ndarray
    emitted: EmittedRows
    emit_us: np.ndarray
    anchor: np.ndarray
    weights: np.ndarray
    end_us: int

    def __len__(self) -> int:
        """Return the number of anchors."""
        return len(self.served_us)

    @property
    def horizon_us(self) -> int:
        """Window plus lateness, microseconds."""
        return self.goal.window_us + self.goal.lateness_us

    @property
    def start_us(self) -> int:
        """When the first anchor was served."""
        return int(self.served_us[0])


@dataclass(frozen=True)
class WorldRows:
    """Anchors of a made world, before any label join; rows in order of ``served_us``.

    Attributes
    ----------
    slots : ndarray of shape (n, F), uint32
    slot_bits : int
    served_us : ndarray of shape (n,), int64
        The anchor occurs and is received at that moment.
    arrived_us : ndarray of shape (n,), int64
        When its engagement occurs and is received; -1 without one.
    ads, groups : ndarray of shape (n,), int64
        Codes of the ad and of the campaign.
    retracted_us : ndarray of shape (n,), int64, optional
        When its engagement was taken back; -1 if never. None: nothing was.
    """

    slots: np.ndarray
    slot_bits: int
    served_us: np.ndarray
    arrived_us: np.ndarray
    ads: np.ndarray
    groups: np.ndarray
    retracted_us: np.ndarray | None = None


def join_of(
    goal: Goal,
    settings: Settings,
    waits_us: Sequence[int],
    anchor_observation_us: int = 0,
    strategies: Sequence[StrategyName] = ALL_STRATEGIES,
) -> GoalJoin:
    """Return the label join of a goal for all strategies, and for more observation windows.

    Parameters
    ----------
    goal : Goal
    settings : Settings
        Of the deployment; negatives are not thinned here.
    waits_us : sequence of int
        Observation windows beside the goal's own and none, microseconds.
    anchor_observation_us : int
        Of the goal that anchors it.
    strategies : sequence of str
        Whose rows are emitted: fewer take less memory.
    """
    whole = settings.model_copy(update={"examples": type(settings.examples)()})
    emission = emission_of(whole, goal, strategies)
    emission["waits_us"] = sorted({*emission["waits_us"], *waits_us})
    return GoalJoin(goal, anchor_observation_us, draw_of(whole, goal.name), emission)


def ages_of(codes: np.ndarray, served_us: np.ndarray) -> np.ndarray:
    """Return the time since the first row of each code, int64 (n,); rows are in order of time."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return served_us - served_us[first][inverse]


def stream_of_world(
    world: WorldRows,
    goal: Goal,
    end_us: int,
    settings: Settings | None = None,
    waits_us: Sequence[int] = (),
    strategies: Sequence[StrategyName] = ALL_STRATEGIES,
) -> LateStream:
    """Run the label join over a made world, in memory.

    Parameters
    ----------
    world : WorldRows
    goal : Goal
        Anchored on impressions.
    end_us : int
        End of the log, an hour; what arrives later is not known.
    settings : Settings, optional
        Of which delays and seed are read.
    waits_us, strategies : sequences
        See :func:`join_of`.
    """
    count = len(world.served_us)
    start_us = hour_of(int(world.served_us[0]))
    engaged = np.flatnonzero((world.arrived_us >= 0) & (world.arrived_us < end_us))
    with duckdb.connect(":memory:") as connection:
        _declare(connection, world, engaged, goal)
        join = join_of(goal, settings or Settings(), waits_us, strategies=strategies)
        join_in_memory(connection, join, start_us, end_us)
        places = pa.table(
            {"impression_id": np.arange(count).astype(str), "place": np.arange(count)}
        )
        joined = joined_rows(connection, goal, places)
    return LateStream(
        goal=goal,
        slots=world.slots,
        slot_bits=world.slot_bits,
        served_us=world.served_us,
        anchor_us=world.served_us,
        groups=world.groups,
        ad_age_us=ages_of(world.ads, world.served_us),
        draws=uniform(0, np.arange(count, dtype=np.uint64), "late streams"),
        end_us=end_us,
        **joined,
    )


class JoinedRows(TypedDict):
    """What the label join says of a goal's anchors: fields of :class:`LateStream`."""

    matured_us: np.ndarray
    labels: np.ndarray
    arrived_us: np.ndarray
    emitted: EmittedRows
    emit_us: np.ndarray
    anchor: np.ndarray
    weights: np.ndarray


def declare_examples(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the tables that the label join writes, in memory."""
    connection.execute("CREATE SCHEMA examples")
    for table in TABLES:
        columns = ", ".join(f'"{column.name}" {column.type}' for column in table.columns)
        connection.execute(f"CREATE TABLE {table.name} ({columns})")


def join_in_memory(
    connection: duckdb.DuckDBPyConnection, join: GoalJoin, start_us: int, end_us: int
) -> None:
    """Fill the tables of examples but the states of labels, which no learner is shown."""
    for table in TABLES:
        if table is not LABEL_STATES:
            replace_goal(connection, table, join, start_us, end_us)


def joined_rows(connection: duckdb.DuckDBPyConnection, goal: Goal, places: pa.Table) -> JoinedRows:
    """Return what the tables of examples in memory say of a goal.

    Parameters
    ----------
    connection : DuckDBPyConnection
    goal : Goal
    places : pyarrow.Table
        ``impression_id`` and ``place`` of n anchors, places 0 to n - 1.
    """
    connection.register("places", places)
    parameters = {"goal": goal.name}
    labelled = rows_of(connection, select("monitoring.placed_labels"), parameters)
    emitted = rows_of(connection, select("monitoring.placed_examples"), parameters)
    connection.unregister("places")
    count = places.num_rows
    rows, anchor = EmittedRows.of(emitted), emitted.column("place").to_numpy()
    came = rows.arrived_us >= 0
    arrived_us = np.full(count, NEVER)
    np.minimum.at(arrived_us, anchor[came], rows.arrived_us[came])
    arrived_us[arrived_us == NEVER] = UNKNOWN
    matured_us, labels = np.full(count, UNKNOWN), np.full(count, UNKNOWN, dtype=np.int8)
    matured = labelled.column("place").to_numpy()
    matured_us[matured] = labelled.column("matured_us").to_numpy()
    labels[matured] = labelled.column("label").to_numpy()
    arrived_us[matured] = labelled.column("arrived_us").fill_null(UNKNOWN).to_numpy()
    return JoinedRows(
        matured_us=matured_us,
        labels=labels,
        arrived_us=arrived_us,
        emitted=rows,
        emit_us=emitted.column("emit_us").to_numpy(),
        anchor=anchor,
        weights=emitted.column("weight").to_numpy(),
    )


def without_anchors(stream: LateStream, kept: np.ndarray) -> LateStream:
    """Return the stream without what was emitted of some anchors, which stay to be scored.

    Parameters
    ----------
    stream : LateStream
    kept : ndarray of shape (n,), bool
    """
    rows = np.flatnonzero(kept[stream.anchor])
    return replace(
        stream,
        emitted=EmittedRows(
            **{name: values[rows] for name, values in vars(stream.emitted).items()}
        ),
        emit_us=stream.emit_us[rows],
        anchor=stream.anchor[rows],
        weights=stream.weights[rows],
    )


def _declare(
    connection: duckdb.DuckDBPyConnection, world: WorldRows, engaged: np.ndarray, goal: Goal
) -> None:
    """Write the world as the tables that the join reads."""
    impressions = pa.table(
        {
            "place": np.arange(len(world.served_us)),
            "ad": world.ads,
            "campaign": world.groups,
            "at_us": world.served_us,
        }
    )
    engagements = pa.table({"place": engaged, "at_us": world.arrived_us[engaged]})
    connection.execute("CREATE SCHEMA events")
    connection.register("made_impressions", impressions)
    connection.register("made_engagements", engagements)
    connection.execute(
        "CREATE TABLE events.impressions AS SELECT CAST(place AS VARCHAR) AS impression_id, "
        "NULL::VARCHAR AS request_id, CAST(ad AS VARCHAR) AS ad_id, "
        "CAST(campaign AS VARCHAR) AS campaign_id, NULL::VARCHAR AS advertiser_id, "
        "at_us AS occurred_us, at_us AS received_us FROM made_impressions"
    )
    connection.execute(
        "CREATE TABLE events.engagements AS SELECT CAST(place AS VARCHAR) AS event_id, "
        "CAST(place AS VARCHAR) AS impression_id, CAST($goal AS VARCHAR) AS goal, "
        "at_us AS occurred_us, at_us AS received_us FROM made_engagements",
        {"goal": goal.name},
    )
    retracted_us = np.zeros(0) if world.retracted_us is None else world.retracted_us[engaged]
    taken_back = np.flatnonzero(retracted_us >= 0)
    connection.register(
        "made_retractions",
        pa.table(
            {
                "place": engaged[taken_back],
                "at_us": retracted_us[taken_back].astype(np.int64),
            }
        ),
    )
    connection.execute(
        "CREATE TABLE events.retractions AS SELECT CAST(place AS VARCHAR) AS engagement_event_id, "
        "at_us AS received_us FROM made_retractions"
    )
    declare_examples(connection)
