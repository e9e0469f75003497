"""What a speed benchmark prints: a table for people, then one JSON object on the last line.

How something is measured stands in the modules of ``benchmarks/speed``; how their figures become
a page stands in :mod:`benchmarks.performance_page`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One measured figure beside what it should reach and what bounds it.

    Attributes
    ----------
    key : str
        Its name in the JSON object, with its unit: ``impressions_per_s``, ``touch_ratio``.
    value : float
    says : str
        What was measured, in a line.
    reach : float or None
        What it should reach; None for a figure that only explains another.
    better : {'higher', 'lower'}
        On which side of `reach` it should be.
    limit : str
        What bounds it on this machine and how far away that is; '' if nothing is known.
    """

    key: str
    value: float
    says: str
    reach: float | None = None
    better: Literal["higher", "lower"] = "higher"
    limit: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the value is on the right side of `reach`; None without one."""
        if self.reach is None:
            return None
        return self.value >= self.reach if self.better == "higher" else self.value <= self.reach


def shown(value: float) -> str:
    """Return a figure for people: three digits, and never fewer than its whole part."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_figures(figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print the table, unless only the JSON is wanted, then the JSON object of all figures.

    Parameters
    ----------
    figures : sequence of Figure
    as_json : bool
        Leave the table out. The object maps each key to its value, and "figures" to all that is
        known of each.
    """
    if not as_json:
        for figure in figures:
            sign = {"higher": "≥", "lower": "≤"}[figure.better]
            wanted = "" if figure.reach is None else f"{sign} {shown(figure.reach)}"
            verdict = {None: "", True: "met", False: "NOT MET"}[figure.reached]
            sys.stdout.write(
                f"{figure.key:<26}{shown(figure.value):>16}  {wanted:<12}{verdict:<9}"
                f"{figure.says}\n"
            )
            if figure.limit:
                sys.stdout.write(f"{'':<26}{'':>16}  limit: {figure.limit}\n")
    document = {figure.key: figure.value for figure in figures}
    whole = document | {"figures": [asdict(figure) for figure in figures]}
    sys.stdout.write(json.dumps(whole) + "\n")
