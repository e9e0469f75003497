"""A simulated log of clicks whose conversions come late, in the formats of two public logs.

The public logs cannot be fetched from everywhere, and of none is the truth known. This one has
their shape (delays from minutes to weeks that depend on the campaign, campaigns that are born and
die, categories of many values) and a truth: each click's probability of a conversion within the
window, in a file that only a study reads. A day is a function of (spec, day), so that memory does
not grow with the log. The formats are in `conversion_files.py`; the exchange with auctions and
faults is another world, in `marketplace.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ad_pipeline.simulation.conversion_files import LogWriter, TruthFile, write_dataset_file
from ad_pipeline.simulation.conversion_spec import DAY_S, ConversionSpec, LogFormat
from ad_pipeline.simulation.conversion_world import (
    ADS_OF_A_CAMPAIGN,
    BROWSERS,
    DEVICES,
    PLACEMENTS_OF_A_PUBLISHER,
    WEAR,
    WEAR_DAYS,
    Clicks,
    ConversionWorld,
    conversion_world,
    draw_delays,
    draw_refunds,
)

PILOT_ROWS = 60_000
"""Clicks that the intercept is solved on; they are in no log."""

MISSING_SHARES = (0.0, 0.05, 0.1, 0.3, 0.0, 0.45, 0.1, 0.2)
"""Of each number: the log's field is empty."""

MISSING = -1


@dataclass(frozen=True)
class SimulatedLog:
    """What was written.

    Attributes
    ----------
    files : tuple of Path
        Log files.
    truth : Path
    dataset_file : Path
        Describes the log to the pipeline.
    rows, conversions, refunds : int
        In the log files.
    """

    files: tuple[Path, ...]
    truth: Path
    dataset_file: Path
    rows: int
    conversions: int
    refunds: int

    @property
    def described(self) -> tuple[str, str]:
        """What is in it, and where the files lie that are no part of the log."""
        return (
            f"{self.rows:,} clicks, {self.conversions:,} conversions and {self.refunds:,} refunds "
            f"in {len(self.files)} files",
            f"dataset file {self.dataset_file}; the truth, which nothing else reads, {self.truth}",
        )


def hourly_clicks(spec: ConversionSpec, rows: int, purpose: str = "traffic") -> np.ndarray:
    """Draw how many clicks each hour has, int64 (24 * days,); they sum to `rows`."""
    hours = np.arange(24 * spec.days)
    share = 1.0 - 0.55 * np.cos(2 * np.pi * (hours % 24 - 4) / 24)
    share *= np.where(hours // 24 % 7 >= 5, 0.85, 1.0)
    return spec.stream(purpose).multinomial(rows, share / share.sum())


def draw_clicks(
    spec: ConversionSpec,
    world: ConversionWorld,
    day: int,
    counts: np.ndarray,
    intercept: float,
    purpose: str = "",
) -> Clicks:
    """Draw the clicks of one day and all that follows them.

    Parameters
    ----------
    spec : ConversionSpec
    world : ConversionWorld
    day : int
    counts : ndarray of shape (24,), int64
        Clicks of each hour.
    intercept : float
        Of the log-odds.
    purpose : str
        Set before the name of every stream.
    """
    rows = int(counts.sum())
    rng = spec.stream(f"{purpose}clicks", day)
    hour = np.repeat(np.arange(24), counts)
    within = np.sort(rng.random(rows) + hour) - hour  # sorts inside the hours alone
    clicked_s = ((24 * day + hour) * 3600 + within * 3600).astype(np.int64)
    campaign = np.empty(rows, dtype=np.int64)
    luck = rng.random(rows)
    first = 0
    for place, count in enumerate(counts.tolist()):
        start_s = (24 * day + place) * 3600.0
        running = world.running(start_s, start_s + 3600.0)
        cut = np.cumsum(world.weight[running])
        chosen = np.searchsorted(cut, luck[first : first + count] * cut[-1], side="right")
        campaign[first : first + count] = running[chosen]
        first += count
    ad = campaign * ADS_OF_A_CAMPAIGN + rng.integers(0, ADS_OF_A_CAMPAIGN, rows)
    publisher = np.searchsorted(world.publisher_cut, rng.random(rows))
    publisher = np.minimum(publisher, spec.publishers - 1)
    placement = publisher * PLACEMENTS_OF_A_PUBLISHER + rng.integers(
        0, PLACEMENTS_OF_A_PUBLISHER, rows
    )
    country = _skewed(rng, rows, spec.countries)
    device, browser = _skewed(rng, rows, DEVICES), _skewed(rng, rows, BROWSERS)
    product = world.product[campaign]
    numbers = _numbers(world, campaign, clicked_s, spec.stream(f"{purpose}numbers", day))
    age_days = (clicked_s - world.birth_s[campaign]) / DAY_S
    log_odds = (
        intercept
        + world.effect[campaign]
        + world.ad_effect[ad]
        + world.publisher_effect[publisher]
        + world.appeal_of(product, country, clicked_s)
        + world.device_effect[device]
        + 0.15 * np.sin(2 * np.pi * (clicked_s % DAY_S / DAY_S - 0.6))
        - WEAR * -np.expm1(-age_days / WEAR_DAYS)
        + 0.5 * (np.log1p(numbers[0]) - 1.0)
        - 0.6 * (numbers[1] / 30.0 - 0.3)
        + 0.3 * (np.log1p(numbers[2]) - 2.0)
    )
    converts = spec.stream(f"{purpose}conversions", day).random(rows) < _logistic(log_odds)
    delay_s = draw_delays(spec, world, campaign, spec.stream(f"{purpose}delays", day))
    refund_s = draw_refunds(spec, world, campaign, spec.stream(f"{purpose}refunds", day))
    empty = spec.stream(f"{purpose}empty fields", day).random((len(numbers) + 1, rows))
    shown = tuple(
        np.where(luck < share, MISSING, values)
        for values, share, luck in zip(numbers, MISSING_SHARES, empty[1:], strict=True)
    )
    return Clicks(
        clicked_s=clicked_s,
        campaign=campaign,
        categories={
            "product": product,
            "device": device,
            "campaign": campaign,
            "publisher": publisher,
            "country": country,
            "ad": ad,
            "placement": np.where(empty[0] < 0.05, MISSING, placement),
            "browser": browser,
            "advertiser": world.advertiser[campaign],
        },
        numbers=shown,
        log_odds=log_odds,
        converted_s=np.where(converts, clicked_s + delay_s, -1),
        refunded_s=np.where(converts & (refund_s >= 0), clicked_s + delay_s + refund_s, -1),
        net=1.0 - world.refund_rate[campaign],
    )


def solved_intercept(spec: ConversionSpec, world: ConversionWorld) -> float:
    """Return the intercept under which clicks of all days convert at `base_rate`."""
    counts = hourly_clicks(spec, PILOT_ROWS, "pilot traffic").reshape(spec.days, 24)
    log_odds = np.concatenate(
        [
            draw_clicks(spec, world, day, counts[day], 0.0, "pilot ").log_odds
            for day in range(spec.days)
        ]
    )
    low, high = -20.0, 20.0
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        if _logistic(log_odds + middle).mean() < spec.base_rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def days_of_clicks(spec: ConversionSpec) -> Iterator[Clicks]:
    """Yield the clicks of each day, as they happen, whatever was recorded of them."""
    world = conversion_world(spec)
    intercept = solved_intercept(spec, world)
    counts = hourly_clicks(spec, spec.rows).reshape(spec.days, 24)
    for day in range(spec.days):
        yield draw_clicks(spec, world, day, counts[day], intercept)


def simulate_conversions(spec: ConversionSpec, log_format: LogFormat, folder: Path) -> SimulatedLog:
    """Write a log, a dataset file that describes it, and its truth.

    Parameters
    ----------
    spec : ConversionSpec
    log_format : {'criteo', 'cascade'}
    folder : Path
        Gets the log's files, `dataset.yaml`, and `truth/truth.parquet`.

    Returns
    -------
    SimulatedLog

    Raises
    ------
    FileExistsError
        If the folder has log files already: a real log is easily overwritten and not easily
        fetched again.
    """
    written = LogWriter(log_format, folder)
    conversions = refunds = 0
    with TruthFile(folder / "truth" / "truth.parquet") as truth, written:
        for clicks in days_of_clicks(spec):
            truth.write(
                clicks.clicked_s,
                _logistic(clicks.log_odds),
                clicks.net,
                clicks.converted_s,
                clicks.refunded_s,
            )
            recorded = as_recorded(spec, clicks)
            written.write(recorded)
            conversions += int((recorded.converted_s >= 0).sum())
            refunds += int((recorded.refunded_s >= 0).sum())
    dataset_file = write_dataset_file(log_format, folder, spec.days)
    return SimulatedLog(written.files, truth.path, dataset_file, spec.rows, conversions, refunds)


def as_recorded(spec: ConversionSpec, clicks: Clicks) -> Clicks:
    """Return clicks without what happened after the log was written down."""
    if spec.recorded_days is None:
        return clicks
    end_s = spec.recorded_days * DAY_S
    return replace(
        clicks,
        converted_s=np.where(clicks.converted_s < end_s, clicks.converted_s, -1),
        refunded_s=np.where(clicks.refunded_s < end_s, clicks.refunded_s, -1),
    )


def _numbers(
    world: ConversionWorld, campaign: np.ndarray, clicked_s: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Draw the eight numbers of each click, int64; most of their mass is near 0, as of counts."""
    rows = len(campaign)
    days = clicked_s / DAY_S
    drawn = (
        rng.lognormal(0.8, 0.9, rows),  # visits before
        30.0 * rng.random(rows) ** 2,  # days since the last one
        rng.lognormal(2.0, 0.7, rows),  # items looked at
        world.price[campaign] * (0.8 + 0.4 * rng.random(rows)),
        rng.lognormal(3.0, 1.0, rows),  # this one and the next two tell nothing
        rng.exponential(12.0, rows),
        rng.lognormal(1.0, 1.5, rows),
        # A counter that goes on counting: the log's end has values that its beginning has not.
        6.0 * days + rng.exponential(30.0, rows),
    )
    return tuple(np.floor(values).astype(np.int64) for values in drawn)


def _skewed(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """Draw codes in [0, size), int64, the first ones frequent."""
    return np.minimum((size * rng.random(rows) ** 2.0).astype(np.int64), size - 1)


def _logistic(log_odds: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-log_odds))
