"""One impression with a click and a purchase, taken through the real label join, and its picture.

``docs/clocks.md`` explains the two clocks on it. Every moment in the page and in the picture comes
from here: the four times that happen are written down, all others are computed by the library, with
the goals of ``data/marketplace/dataset.yaml``. A test holds the page's table to it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ad_pipeline.clocks import HOUR_US, datetime_of, duration, hour_of, microseconds
from ad_pipeline.datasets import DATA_FOLDER, Dataset, load_dataset
from ad_pipeline.evaluation.drawing import COLOURS, GREY, PALE, blank_figure, png_of
from ad_pipeline.events.contract import event_tables
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.features.rates import snapshot_hour
from ad_pipeline.warehouse import Warehouse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DATASET = DATA_FOLDER / "marketplace" / "dataset.yaml"

COLOUR_OF = {"impression": GREY, "click": COLOURS[0], "purchase": COLOURS[1]}


def _moment(text: str) -> int:
    return microseconds(datetime.fromisoformat(f"2026-03-03T{text}Z"))


@dataclass(frozen=True)
class Happening:
    """Something that happened, with both clocks.

    Attributes
    ----------
    what : str
    occurred_us, received_us : int
        Microseconds since the epoch, UTC.
    """

    what: str
    occurred_us: int
    received_us: int


IMPRESSION = Happening("impression", _moment("10:05:00"), _moment("10:05:02"))
CLICK = Happening("click", _moment("10:40:00"), _moment("11:02:00"))
PURCHASE = Happening("purchase", _moment("14:30:00"), _moment("14:31:00"))


@dataclass(frozen=True)
class Fact:
    """One thing that the pipeline knows, and from when on.

    Attributes
    ----------
    what : str
        In words.
    where : str
        Table, and row of it.
    clock : str
        Column that holds the moment, or what the moment is.
    moment_us : int
    goal : str or None
        Goal that it is about; None for what enters the log.
    """

    what: str
    where: str
    clock: str
    moment_us: int
    goal: str | None = None

    @property
    def log_hour_us(self) -> int:
        """Start of the partition that the row is in, microseconds."""
        return hour_of(self.moment_us)


def dataset() -> Dataset:
    """Return the dataset whose goals and settings the example has."""
    return load_dataset(DATASET)


def facts() -> list[Fact]:
    """Take the impression through the label join, and return what comes out, in order of time."""
    found = [
        Fact(f"the {happening.what} enters the log", f"events.{table}", "received_us",
             happening.received_us)
        for happening, table in (
            (IMPRESSION, "impressions"), (CLICK, "engagements"), (PURCHASE, "engagements"),
        )
    ]  # fmt: skip
    examples, labels = _joined(IMPRESSION, CLICK, PURCHASE)
    found += [
        Fact(f"a learner may see: {goal}, {kind.replace('_', ' ')} (label {label})",
             "examples.training_examples", "emit_us", emit_us, goal)
        for goal, kind, label, emit_us in examples
    ]  # fmt: skip
    found += [
        Fact(f"{goal} is final: label {label}, delay {duration(delay_us)}",
             "examples.labelled_impressions", "matured_us", matured_us, goal)
        for goal, label, delay_us, matured_us in labels
    ]  # fmt: skip
    return sorted(found, key=lambda fact: (fact.moment_us, fact.where))


@cache
def _joined(impression: Happening, *engagements: Happening) -> tuple[list[tuple], list[tuple]]:
    """Run the label join; return ``(goal, kind, label, emit_us)`` and final labels."""
    world = dataset()
    with tempfile.TemporaryDirectory() as folder:
        warehouse = Warehouse(Path(folder) / "warehouse.duckdb")
        _write_events(warehouse, world, impression, engagements)
        start_us = hour_of(impression.occurred_us)
        join_labels(warehouse, world, start_us, start_us + world.maturity_us + HOUR_US)
        with warehouse.reader() as connection:
            return (
                connection.execute(
                    "SELECT goal, kind, label, emit_us FROM examples.training_examples"
                ).fetchall(),
                connection.execute(
                    "SELECT goal, label, delay_us, matured_us FROM examples.labelled_impressions"
                ).fetchall(),
            )


def counted_until_us() -> int:
    """Return the end of the hours that the impression's rate features count, microseconds."""
    contract = FeatureContract.from_dataset(dataset())
    return snapshot_hour(contract, IMPRESSION.occurred_us) + HOUR_US


def click_counts_from_us() -> int:
    """Return from when on impressions may use the count that holds the click, microseconds."""
    contract = FeatureContract.from_dataset(dataset())
    first = hour_of(CLICK.received_us)
    while snapshot_hour(contract, first) < hour_of(CLICK.received_us):
        first += HOUR_US
    return first


def clock_of(us: int) -> str:
    """Return a moment of the example for people; the second day is marked."""
    later = (
        " next day" if datetime_of(us).date() > datetime_of(IMPRESSION.occurred_us).date() else ""
    )
    return f"{datetime_of(us):%H:%M:%S}{later}"


def table() -> str:
    """Return the facts as the Markdown table of ``docs/clocks.md``."""
    lines = ["| moment | what | row of | clock | log hour |", "|---|---|---|---|---|"]
    lines += [
        f"| {clock_of(fact.moment_us)} | {fact.what} | `{fact.where}` | `{fact.clock}` "
        f"| {datetime_of(fact.log_hour_us):%H:00} |"
        for fact in facts()
    ]
    return "\n".join(lines)


LANES = (
    "it happened\n(occurred_us)",
    "window and lateness\n(of occurred_us)",
    "our log had it\n(received_us)",
    "a learner may see it\n(emit_us)",
    "the label is final\n(matured_us)",
    "counts in rates\n(of published snapshots)",
)
HAPPENED, WINDOWS, RECEIVED, EMITTED, FINAL, RATES = range(len(LANES))


def picture() -> bytes:
    """Draw what happened, what was known and what a learner may see, a lane each, as PNG."""
    world = dataset()
    told = facts()
    figure = blank_figure(11.5, 5.6)
    near, far = figure.subplots(1, 2, sharey=True, width_ratios=(3.4, 1.0))
    for axes in (near, far):
        _draw(axes, world, told)
    near.set_ylim(len(LANES) - 0.5, -0.7)
    near.set_yticks(range(len(LANES)), LANES)
    near.set_xlim(8.6, 16)
    near.set_xticks(range(9, 17), [f"{hour:02d}:00" for hour in range(9, 17)])
    far.set_xlim(35.7, 37.4)
    far.set_xticks([36, 37], ["12:00", "13:00"])
    near.set_xlabel("2026-03-03, UTC")
    far.set_xlabel("the next day")
    _annotate(near, far, world, told)
    figure.suptitle(
        "A fact counts from when our log had it; a label is final when nothing can change it"
    )
    return png_of(figure)


def _draw(axes: "Axes", world: Dataset, told: list[Fact]) -> None:
    for happening in (IMPRESSION, CLICK, PURCHASE):
        colour = COLOUR_OF[happening.what]
        ends = [_hour(happening.occurred_us), _hour(happening.received_us)]
        axes.plot(ends, [HAPPENED, RECEIVED], color=colour, linewidth=1, alpha=0.6, zorder=1)
        axes.plot(ends[0], HAPPENED, "o", color=colour, markersize=9)
        axes.plot(ends[1], RECEIVED, "s", color=colour, markersize=8)
    for goal, place in zip(world.goals_in_chain_order(), (-0.18, 0.18), strict=True):
        anchor = IMPRESSION if goal.anchor == "impression" else CLICK
        window_end = anchor.occurred_us + goal.window_us
        for begin, end, alpha in (
            (anchor.occurred_us, window_end, 1.0),
            (window_end, window_end + goal.lateness_us, 0.35),
        ):
            axes.plot(
                [_hour(begin), _hour(end)],
                [WINDOWS + place] * 2,
                color=COLOUR_OF[goal.name],
                alpha=alpha,
                linewidth=6,
                solid_capstyle="butt",
            )
    for fact in told:
        if fact.goal is None:
            continue
        lane, marker = (EMITTED, "^") if fact.clock == "emit_us" else (FINAL, "D")
        fill = "none" if "label 0" in fact.what else "full"
        colour = COLOUR_OF[fact.goal]
        axes.plot(_hour(fact.moment_us), lane, marker, color=colour, markersize=9, fillstyle=fill)
    for begin, end, colour, alpha in (
        (0.0, _hour(counted_until_us()), PALE, 1.0),
        (_hour(click_counts_from_us()), 99.0, COLOUR_OF["click"], 0.35),
    ):
        axes.plot(
            [begin, end],
            [RATES] * 2,
            color=colour,
            alpha=alpha,
            linewidth=14,
            solid_capstyle="butt",
        )
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _annotate(near: "Axes", far: "Axes", world: Dataset, told: list[Fact]) -> None:
    right, above, below = (9, -3), (0, 9), (0, -17)
    notes: list[tuple[str, int, float, tuple[int, int]]] = [
        ("impression", IMPRESSION.occurred_us, HAPPENED, above),
        ("click", CLICK.occurred_us, HAPPENED, above),
        ("purchase", PURCHASE.occurred_us, HAPPENED, above),
        (f"{duration(CLICK.received_us - CLICK.occurred_us)} late", CLICK.received_us, RECEIVED,
         right),
        (f"its rates count up to {clock_of(counted_until_us())[:5]}", counted_until_us(), RATES,
         right),
        (f"the click counts from {clock_of(click_counts_from_us())[:5]}",
         click_counts_from_us(), RATES, (4, -3)),
    ]  # fmt: skip
    for fact in told:
        if fact.clock == "emit_us":
            text = fact.what.removeprefix("a learner may see: ").split(" (")[0].replace(", ", "\n")
            # Three stand close to each other: the one in the middle is named above.
            offset = above if text.startswith("click\ndelayed") else (0, -26)
            notes.append((text, fact.moment_us, EMITTED, offset))
        elif fact.goal == "click" and fact.clock == "matured_us":
            notes.append((f"click, {clock_of(fact.moment_us)[:5]}", fact.moment_us, FINAL, right))
        elif fact.clock == "matured_us":
            where = (_hour(fact.moment_us), FINAL)
            text = f"purchase, {clock_of(fact.moment_us)[:5]}"
            far.annotate(text, where, xytext=above, textcoords="offset points", ha="center",
                         fontsize=9)  # fmt: skip
    for goal, place in zip(world.goals_in_chain_order(), (-0.18, 0.18), strict=True):
        anchor = IMPRESSION if goal.anchor == "impression" else CLICK
        ends = anchor.occurred_us + goal.window_us + goal.lateness_us
        text = f"{goal.name}: {duration(goal.window_us)} + {duration(goal.lateness_us)}"
        if _hour(ends) < near.get_xlim()[1]:
            notes.append((text, ends, WINDOWS + place, (5, -3)))
        else:
            notes.append((text, CLICK.occurred_us, WINDOWS + place, below))
    for text, us, lane, offset in notes:
        near.annotate(
            text,
            (_hour(us), lane),
            xytext=offset,
            textcoords="offset points",
            ha="center" if offset[0] == 0 and lane != WINDOWS + 0.18 else "left",
            fontsize=9,
        )


def _hour(us: int) -> float:
    """Return a moment as hours after midnight of the example's first day."""
    return (us - _moment("00:00:00")) / HOUR_US


def _write_events(
    warehouse: Warehouse,
    world: Dataset,
    impression: Happening,
    engagements: Sequence[Happening],
) -> None:
    """Write the impression and its engagements as the room ``events`` would."""
    warehouse.create(tuple(event_tables(world).values()))
    with warehouse.writer() as connection:
        connection.execute(
            "INSERT INTO events.impressions (impression_id, occurred_us, received_us, logged_us) "
            "VALUES ('one', $occurred, $received, $received)",
            {"occurred": impression.occurred_us, "received": impression.received_us},
        )
        for happening in engagements:
            connection.execute(
                "INSERT INTO events.engagements (event_id, impression_id, goal, occurred_us, "
                "received_us, logged_us, read_us) "
                "VALUES ($what, 'one', $what, $occurred, $received, $received, $received)",
                {
                    "what": happening.what,
                    "occurred": happening.occurred_us,
                    "received": happening.received_us,
                },
            )
