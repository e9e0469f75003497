"""The simulated exchange: writes the log files of any of its days, and the truth about them.

The exchange has no state that passes from hour to hour: an hour's impressions, and all that ever
comes of them, are a function of (spec, hour). A day's file holds what the log received that day,
which includes what earlier hours caused; written alone, a day re-derives those hours, so it comes
out byte for byte as when all days are written at once. Memory is that of one hour, plus the rows
that have not reached the log yet.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US, SECOND_US
from ad_pipeline.simulation.delays import draw_ingestion
from ad_pipeline.simulation.faults import faulty_engagements, faulty_impressions
from ad_pipeline.simulation.identifiers import tagged
from ad_pipeline.simulation.log_files import TABLES, LogText, WholeFile, day_name
from ad_pipeline.simulation.outcomes import Outcomes, draw_outcomes, label_chances
from ad_pipeline.simulation.rows import Backlog, Rows, row_count, stacked
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.simulation.traffic import Traffic, draw_traffic, logistic, solve_intercepts
from ad_pipeline.simulation.truth import truth_table
from ad_pipeline.simulation.world import CONTENT_PER_CATEGORY, build_world

LOOKBACK_HOURS = 96
"""A row reaches the log at most this long after its impression: 6 h to the click, 48 h to the
purchase, 36 h to the refund, and the way to the log."""

LOST_TAG, VIEW_TAG, CONTENT_TAG = 1, 2, 3

Progress = Callable[[int, int], None]
"""Called with hours done and hours to do."""


@dataclass(frozen=True)
class HourOfLogs:
    """All that one hour's impressions send to the log, whenever it arrives.

    Attributes
    ----------
    traffic : Traffic
    outcomes : Outcomes
    rows : dict of str to Rows
        By table, with faults.
    """

    traffic: Traffic
    outcomes: Outcomes
    rows: dict[str, Rows]


@dataclass
class SimulationSummary:
    """What `simulate_days` wrote.

    Attributes
    ----------
    rows : dict of str to int
        Log rows by table, truth rows under "truth".
    files : list of Path
        Files written, in order.
    """

    rows: dict[str, int] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


class Marketplace:
    """One exchange, ready to tell any of its hours.

    Parameters
    ----------
    spec : MarketplaceSpec

    Attributes
    ----------
    spec : MarketplaceSpec
    world : World
    text : LogText
    """

    def __init__(self, spec: MarketplaceSpec) -> None:
        self.spec = spec
        self.world = build_world(spec)
        self.text = LogText(self.world)
        self._intercepts = solve_intercepts(spec, self.world)
        self._chances = label_chances(spec, self.world)

    def hour(self, hour: int) -> HourOfLogs:
        """Simulate one hour.

        Parameters
        ----------
        hour : int
            Hour of the world, 0 <= hour < 24 * days.

        Returns
        -------
        HourOfLogs
        """
        spec = self.spec
        traffic = draw_traffic(spec, self.world, hour)
        outcomes = draw_outcomes(spec, self.world, self._intercepts, self._chances, traffic)
        impressions = self._impressions(traffic)
        rows = {
            "impressions": impressions,
            "engagements": outcomes.engagements,
            "retractions": outcomes.retractions,
            "user_activities": self._activities(traffic, outcomes),
            "auctions": self._auctions(impressions, hour),
        }
        if spec.faults:
            rows["impressions"] = faulty_impressions(spec, impressions, hour)
            rows["engagements"] = faulty_engagements(spec, outcomes.engagements, impressions, hour)
        return HourOfLogs(traffic, outcomes, rows)

    def requests(self, hour: int) -> pa.Table:
        """Tell the ad requests of one hour as the exchange sees them: no faults, none missing.

        Parameters
        ----------
        hour : int

        Returns
        -------
        pyarrow.Table
            The columns of the log's impressions without outcomes of the auction (`paid_price`)
            and of the log (`received_us`), in the order of `occurred_us`.
        """
        traffic = draw_traffic(self.spec, self.world, hour)
        table = self.text.impressions(self._impressions(traffic))
        table = table.drop_columns(["paid_price", "received_us"])
        # Dictionaries save writing a file; a request carries plain text.
        plain = [
            pa.field(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type)
            for field in table.schema
        ]
        return table.cast(pa.schema(plain))

    def _impressions(self, traffic: Traffic) -> Rows:
        spec, world, count = self.spec, self.world, len(traffic)
        rng = spec.stream("prices", traffic.hour)
        campaigns = world.campaigns
        # The bidders know campaigns and placements, not the truth.
        believed = logistic(
            (campaigns.click_effect[:, None] + world.placement_effect)[
                traffic.campaign, traffic.placement
            ]
            + self._intercepts.click
        )
        worth = campaigns.cost_per_click_micro[traffic.campaign] * believed
        floor = np.rint(traffic.floor_price * 1_000.0).astype(np.int64)
        bid = np.rint(worth * np.exp(0.35 * rng.standard_normal(count))).astype(np.int64)
        bid = np.maximum(bid, floor)
        # Second price: the runner-up's bid, or the floor.
        runner_up = (bid * (1.0 - 0.6 * rng.random(count))).astype(np.int64)
        return {
            "impression": traffic.number,
            "request": traffic.number,
            "user": traffic.user,
            "ad": traffic.ad,
            "publisher": traffic.publisher,
            "placement": traffic.placement,
            "device": traffic.device,
            "size": traffic.size,
            "ad_age_hours": traffic.ad_age_hours,
            "floor_price": traffic.floor_price,
            "session_depth": traffic.session_depth,
            "explored": traffic.explored,
            "propensity": traffic.propensity,
            "bid_price": bid,
            "paid_price": np.maximum(runner_up, floor),
            "occurred_us": traffic.occurred_us,
            "received_us": traffic.occurred_us
            + draw_ingestion(rng, count, spec.fault_rates, spec.faults),
        }

    def _auctions(self, impressions: Rows, hour: int) -> Rows:
        rng = self.spec.stream("auctions", hour)
        count = row_count(impressions)
        lost = np.flatnonzero(rng.random(count) < self.spec.lost_auctions)
        # A lost auction looks like a won one, for a lower bid.
        lost_bid = impressions["paid_price"][lost] * (1.0 - 0.5 * rng.random(len(lost)))
        lost_us = impressions["occurred_us"][lost] + rng.integers(0, SECOND_US, len(lost))
        occurred = np.concatenate([impressions["occurred_us"], lost_us])
        return {
            "request": np.concatenate(
                [impressions["request"], tagged(LOST_TAG, impressions["request"][lost])]
            ),
            "bid_price": np.concatenate([impressions["bid_price"], lost_bid.astype(np.int64)]),
            "won": np.arange(len(occurred)) < count,
            "clearing_price": np.concatenate(
                [impressions["paid_price"], np.zeros(len(lost), dtype=np.int64)]
            ),
            "occurred_us": occurred,
            # The exchange logs its own auctions: no detour through anybody's browser.
            "received_us": occurred + rng.integers(20_000, 400_000, len(occurred)),
        }

    def _activities(self, traffic: Traffic, outcomes: Outcomes) -> Rows:
        spec, world, hour = self.spec, self.world, traffic.hour
        rng = spec.stream("activities", hour)
        viewed = np.flatnonzero(rng.random(len(traffic)) < spec.viewed_ads)
        read = np.flatnonzero(rng.random(len(traffic)) < spec.organic_views)
        segment = world.users.segment[traffic.user[read]]
        slots = world.content_slots[int(spec.drifted(hour))]
        category = slots[segment, rng.integers(0, slots.shape[1], len(read))]
        # Few items are popular: the square of a uniform draw.
        item = (CONTENT_PER_CATEGORY * rng.random(len(read)) ** 2).astype(np.int64)
        content = spec.ads + category * CONTENT_PER_CATEGORY + item
        moment = traffic.occurred_us
        parts = [
            (outcomes.clicked, 0, traffic.ad[outcomes.clicked], outcomes.click_us),
            (viewed, 1, traffic.ad[viewed], moment[viewed] + SECOND_US),
            (read, 2, content, moment[read] + rng.integers(0, 60 * SECOND_US, len(read))),
        ]
        rows = stacked(
            [
                {
                    "event": tagged(modality + 1, traffic.number[where]),
                    "user": traffic.user[where],
                    "modality": np.full(len(where), modality, dtype=np.int16),
                    "content": what,
                    "occurred_us": when,
                }
                for where, modality, what, when in parts
            ]
        )
        ingestion = draw_ingestion(rng, row_count(rows), spec.fault_rates, spec.faults)
        return {**rows, "received_us": rows["occurred_us"] + ingestion}


def simulate_days(
    spec: MarketplaceSpec,
    logs: Path,
    truth: Path,
    days: range,
    tail_hours: int = 30,
    progress: Progress | None = None,
) -> SimulationSummary:
    """Write the log files and the truth of some days.

    Parameters
    ----------
    spec : MarketplaceSpec
    logs : Path
        Gets `<table>/day=<N>.parquet` for what the log received on day N, rows in the order of
        `received_us`, a row group per hour; after the last day of the world also
        `<table>/tail.parquet`.
    truth : Path
        Gets `day=<N>.parquet` for the impressions that occurred on day N.
    days : range
        Days to write, of step 1. The same bytes come out whether days are written together or
        apart.
    tail_hours : int
        Length of the tail; what arrives later than that is in no file.
    progress : callable or None
        Told about every hour.

    Returns
    -------
    SimulationSummary

    Raises
    ------
    ValueError
        When `days` is empty, has another step, or goes beyond the spec's days.
    """
    if days.step != 1 or not days or days.start < 0 or days.stop > spec.days:
        raise ValueError(f"{days} is not a range of days within 0..{spec.days} with step 1")
    market = Marketplace(spec)
    summary = SimulationSummary()
    backlogs = {name: Backlog() for name in TABLES}
    start, stop = _simulated(spec, days, tail_hours)

    def tell(hour: int) -> None:
        if progress is not None:
            progress(hour + 1 - start, stop - start)

    for hour in range(start, 24 * days.start):
        _advance(market, hour, backlogs)
        tell(hour)
    periods: list[tuple[int | None, range]] = [
        (day, range(24 * day, 24 * day + 24)) for day in days
    ]
    periods.append((None, range(24 * days.stop, stop)))
    for day, hours in periods:
        if not hours:
            continue
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(WholeFile(logs / name / day_name(day))) for name in TABLES
            }
            if day is not None:
                files["truth"] = stack.enter_context(WholeFile(truth / day_name(day)))
            for hour in hours:
                simulated, arrived = _advance(market, hour, backlogs)
                for name, rows in arrived.items():
                    files[name].write(market.text.table(name, rows))
                if simulated is not None:
                    files["truth"].write(truth_table(simulated.traffic, simulated.outcomes))
                tell(hour)
        for name, file in files.items():
            summary.rows[name] = summary.rows.get(name, 0) + file.rows
            if file.rows:
                summary.files.append(file.path)
    return summary


def hours_to_simulate(spec: MarketplaceSpec, days: range, tail_hours: int = 30) -> int:
    """How many hours `simulate_days` has to go through for these days, earlier ones included."""
    start, stop = _simulated(spec, days, tail_hours)
    return stop - start


def _simulated(spec: MarketplaceSpec, days: range, tail_hours: int) -> tuple[int, int]:
    start = max(0, 24 * days.start - LOOKBACK_HOURS)
    return start, 24 * days.stop + (tail_hours if days.stop == spec.days else 0)


def _advance(
    market: Marketplace, hour: int, backlogs: dict[str, Backlog]
) -> tuple[HourOfLogs | None, dict[str, Rows]]:
    """Let one hour pass: what happened in it, and the rows that reached the log in it."""
    simulated = None
    if hour < market.spec.hours:
        simulated = market.hour(hour)
        for name, rows in simulated.rows.items():
            backlogs[name].add(rows)
    end_us = market.spec.hour_start_us(hour) + HOUR_US
    arrived = {name: backlog.due(end_us) for name, backlog in backlogs.items()}
    return simulated, {name: rows for name, rows in arrived.items() if rows is not None}
