"""The driver of the outside world: serves a day through `serving/current` and writes its logs.

It stands where a bidder would stand. It reads the pointer that promotion moves, scores the day's
requests in time order, and hands over files, as any other log writer would. It opens no warehouse
and tells the scorer nothing that a request does not know.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.simulation.identifiers import number_column
from ad_pipeline.simulation.log_files import TABLES, WholeFile, day_name
from ad_pipeline.simulation.marketplace import (
    Marketplace,
    Progress,
    hours_to_simulate,
    simulate_days,
)
from ad_pipeline.simulation.spec import MarketplaceSpec

DECISION_COLUMNS = (
    "request_id",
    "impression_id",
    "bundle_hash",
    "snapshot_hash",
    "features",
    "ages_us",
    "scores",
    "fallbacks",
)
"""Columns of `events.decisions`, all text; the clocks come on top."""

DECISIONS = "decisions"
BATCH_ROWS = 2048


class DecisionBatch(Protocol):
    """What a scorer answers: decisions in the order of the requests."""

    def to_log(self) -> pa.Table:
        """Return `DECISION_COLUMNS`, `impression_id` optional, of those that are to be logged."""
        ...


class RequestScorer(Protocol):
    """What the driver needs of `ad_pipeline.serving.scorer.Scorer`."""

    def score_many(self, requests: pa.Table, /) -> DecisionBatch:
        """Score requests; their `occurred_us` is when each one was made."""
        ...


@dataclass(frozen=True)
class DrivenDay:
    """What one driven day left behind.

    Attributes
    ----------
    decisions : int
        Requests scored.
    rows : dict of str to int
        Log rows by table, truth rows under "truth".
    files : tuple of Path
        Files in their final places, in the order in which they appeared.
    """

    decisions: int
    rows: dict[str, int]
    files: tuple[Path, ...]


def drive_day(
    spec: MarketplaceSpec,
    day: int,
    serving: Path,
    logs: Path,
    truth: Path,
    *,
    scorer: RequestScorer | None = None,
    tail_hours: int = 30,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
) -> DrivenDay:
    """Serve one day and write its decisions and its logs.

    Parameters
    ----------
    spec : MarketplaceSpec
    day : int
    serving : Path
        Folder of the pointers `current` and `snapshot`.
    logs, truth : Path
        As for `simulate_days`; `logs` also gets `decisions/day=<N>.parquet`.
    scorer : RequestScorer or None
        None takes whatever `serving` points at when the day begins.
    tail_hours : int
        See `simulate_days`.
    batch_rows : int
        Requests scored in one call.
    progress : callable or None
        Told about every hour served or simulated.

    Returns
    -------
    DrivenDay

    Notes
    -----
    Files are made in a folder beside `logs` and then renamed, impressions last: who sees the
    impressions of the day sees everything else of it. A killed driver leaves only that folder,
    which the next one clears.
    """

    def quiet(_: int) -> None:
        """Report to nobody: a scorer of the caller's is his own business."""

    report: Callable[[int], object] = quiet
    if scorer is None:
        # The scorer brings LightGBM; whoever passes a scorer of his own does without.
        from ad_pipeline.serving.scorer import Scorer

        scorer = current = Scorer.current(serving)
        report = current.report
    days = range(day, day + 1)
    total = 24 + hours_to_simulate(spec, days, tail_hours)

    def tell(done: int, _: int) -> None:
        if progress is not None:
            progress(done, total)

    def served(done: int, of: int) -> None:
        report(spec.hour_start_us(24 * day + done))
        tell(done, of)

    report(spec.hour_start_us(24 * day))
    draft = logs.parent / f".driving-day={day}"
    if draft.exists():
        rmtree(draft)
    with WholeFile(draft / "logs" / DECISIONS / day_name(day)) as file:
        serve_day(spec, day, scorer, file.write, batch_rows, served)
    summary = simulate_days(
        spec,
        draft / "logs",
        draft / "truth",
        days,
        tail_hours,
        progress=lambda done, of: tell(24 + done, of),
    )
    moved = [*_move(draft / "truth", truth), *_move(draft / "logs" / DECISIONS, logs / DECISIONS)]
    for name in reversed(TABLES):
        moved += _move(draft / "logs" / name, logs / name)
    rmtree(draft)
    return DrivenDay(file.rows, summary.rows, tuple(moved))


def serve_day(
    spec: MarketplaceSpec,
    day: int,
    scorer: RequestScorer,
    write: Callable[[pa.Table], None],
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
) -> None:
    """Score the requests of one day in time order.

    Parameters
    ----------
    spec : MarketplaceSpec
    day : int
    scorer : RequestScorer
    write : callable
        Gets one table of logged decisions per hour: `DECISION_COLUMNS`, `occurred_us` (the moment
        of the request) and `received_us`.
    batch_rows : int
    progress : callable or None

    Raises
    ------
    ValueError
        When the scorer answers other requests than it was asked.
    """
    market = Marketplace(spec)
    last_us = spec.hour_start_us(24 * (day + 1)) - 1
    for hour in range(24 * day, 24 * (day + 1)):
        requests = market.requests(hour)
        moment = requests["occurred_us"].to_numpy()
        tables: list[pa.Table] = []
        asked: list[np.ndarray] = []
        for start in range(0, len(requests), batch_rows):
            batch = requests.slice(start, batch_rows)
            logged, places = _decided(scorer.score_many(batch).to_log(), batch)
            tables.append(logged)
            asked.append(start + places)
        if tables:
            delay = spec.stream("decision log", hour).integers(1_000, 50_000, len(moment))
            # The scorer logs as it answers: a day's decisions are in the log by its end.
            received = np.minimum(moment + delay, last_us)
            decisions, rows = pa.concat_tables(tables), np.concatenate(asked)
            decisions = decisions.append_column("occurred_us", number_column(moment[rows]))
            write(decisions.append_column("received_us", number_column(received[rows])))
        if progress is not None:
            progress(hour + 1 - 24 * day, 24)


def _decided(answer: pa.Table, requests: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Bring an answer into the columns of `events.decisions`; return which requests it is about."""
    asked = requests["request_id"].combine_chunks()
    answered = answer["request_id"].cast(pa.string()).combine_chunks()
    found = pc.call_function("index_in", [answered], pc.SetLookupOptions(value_set=asked))
    places = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    if (np.diff(places, prepend=-1) <= 0).any():
        raise ValueError(
            f"the scorer answered {len(answered)} requests that are not, in this order, "
            f"among the {len(asked)} it was asked; the first one asked is {asked[0]}"
        )
    columns = {
        name: answer[name].cast(pa.string())
        for name in DECISION_COLUMNS
        if name in answer.column_names
    }
    # The exchange knows which impression a request led to; a scorer need not.
    columns["impression_id"] = requests["impression_id"].take(pa.array(places))
    return pa.table({name: columns[name] for name in DECISION_COLUMNS}), places


def _move(source: Path, target: Path) -> list[Path]:
    """Rename the files of one folder into another, in the order of their names."""
    target.mkdir(parents=True, exist_ok=True)
    return [path.replace(target / path.name) for path in sorted(source.glob("*.parquet"))]
