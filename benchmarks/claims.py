"""What a study may say: claims whose verdict follows from numbers, and the section they stand in.

A claim is made by a function of stored results and holds or does not: nobody writes the verdict.
Every claim has a negative control, something that must *not* be found; where the control fails, the
claim does not hold however good its own figure is. Drawing them as Markdown is
:mod:`benchmarks.evidence_page`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.seed_intervals import Estimate
from benchmarks.studies import Result, Study


@dataclass(frozen=True)
class Claim:
    """One claim with all that is needed to doubt it.

    Attributes
    ----------
    key : str
        Its id on the page: ``drift_alarm.found``.
    says : str
        The claim, in one sentence.
    figure : str
    interval : str
        95 % unless it says otherwise; 'exact' for a count that may not vary.
    seeds : str
        Which and how many.
    met : bool
        Whether the figure is what the claim says: computed from results.
    control : str
        The negative control and what came out of it.
    control_met : bool
        Whether the control came out as it must.
    """

    key: str
    says: str
    figure: str
    interval: str
    seeds: str
    met: bool
    control: str
    control_met: bool

    @property
    def verdict(self) -> str:
        """'holds', or 'does not hold' and why."""
        if self.met and self.control_met:
            return "holds"
        return "does not hold" if self.control_met else "does not hold: its control fails"


@dataclass(frozen=True)
class Section:
    """A study's part of the page.

    Attributes
    ----------
    study : Study
    title : str
    method : str
        How it was measured, for people; plain Markdown.
    claims : callable
        From the results of a finished study to its claims.
    details : callable
        From the same results to further Markdown lines.
    pictures : mapping of str to callable
        By name, ``evidence_<name>.png``: from the same results to PNG bytes.
    """

    study: Study
    title: str
    method: str
    claims: Callable[[Sequence[Result]], list[Claim]]
    details: Callable[[Sequence[Result]], list[str]] = lambda _: []
    pictures: dict[str, Callable[[Sequence[Result]], bytes]] = field(default_factory=dict)


def percent(value: float, digits: int = 2) -> str:
    """Return a relative difference for people, signed: ``-1.20 %``."""
    return f"{100 * value:+.{digits}f} %"


def percent_range(estimate: Estimate, digits: int = 2) -> str:
    """Return the bounds of a relative difference: ``-1.50 % to -0.90 %``."""
    return f"{percent(estimate.low, digits)} to {percent(estimate.high, digits)}"


def seed_text(seeds: Sequence[int]) -> str:
    """Return seeds for people: ``20 (201–220)``."""
    ordered = sorted(seeds)
    if ordered and ordered == list(range(ordered[0], ordered[-1] + 1)) and len(ordered) > 1:
        return f"{len(ordered)} ({ordered[0]}–{ordered[-1]})"
    return f"{len(ordered)} ({', '.join(map(str, ordered))})"


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; a bar inside a cell is escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *(line(row) for row in rows)]
