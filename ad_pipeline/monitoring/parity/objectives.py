"""What serving promised about its inputs, and whether an hour kept it.

Coverage of each feature, age of the rates, fallbacks and missing scores are measured on the log
alone: no recomputation can notice that a column is null at both ends. Objectives come from the
dataset's settings; what has none is measured all the same. Whether values are right is not asked
here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.settings import ParitySettings

Measure = Literal["coverage", "age_hours", "fallback_share", "error_share"]

AGE_QUANTILE = 0.95
"""Of the ages of an hour: one slow request is not a stale store."""


@dataclass(frozen=True)
class Measured:
    """One measure of one hour.

    Attributes
    ----------
    measure : str
    name : str
        Feature, kind of age, or reason of a fallback; '' for the scores.
    value : float
    objective : float or None
    rows : int
        Decisions measured.
    """

    measure: Measure
    name: str
    value: float
    objective: float | None
    rows: int

    @property
    def kept(self) -> bool:
        """Whether the objective is kept; what has none is."""
        if self.objective is None:
            return True
        if self.measure == "coverage":
            return self.value >= self.objective
        return self.value <= self.objective

    @property
    def in_words(self) -> str:
        """The measure beside its objective, for people."""
        bound = "at least" if self.measure == "coverage" else "at most"
        return f"{self.measure} {self.value:.4g}, objective {bound} {self.objective}"


def measured_objectives(
    settings: ParitySettings,
    features: Sequence[str],
    logged: Mapping[str, pa.Array],
    ages_us: Mapping[str, pa.Array],
    fallbacks: Mapping[str, int],
    scores: Sequence[pa.Array],
    rows: int,
) -> list[Measured]:
    """Measure the decisions of an hour and bundle.

    Parameters
    ----------
    settings : ParitySettings
    features : sequence of str
        Of the contract; one that was never logged has coverage 0.
    logged : mapping of str to Arrow array of shape (n,)
    ages_us : mapping of str to Arrow array of shape (n,)
        Microseconds, null where unknown.
    fallbacks : mapping of str to int
        Decisions by reason.
    scores : sequence of Arrow arrays of shape (n,)
        Of every goal; null where none was logged.
    rows : int
        n, at least 1.

    Returns
    -------
    list of Measured
    """
    found = [
        Measured(
            "coverage",
            name,
            1 - (logged[name].null_count if name in logged else rows) / rows,
            settings.coverage.get(name),
            rows,
        )
        for name in features
    ]
    for name, ages in ages_us.items():
        known = ages.drop_null()
        if len(known) and pa.types.is_float64(known.type):
            hours = float(np.quantile(known.to_numpy(), AGE_QUANTILE)) / HOUR_US
            found.append(Measured("age_hours", name, hours, settings.age_hours.get(name), rows))
    for reason, times in fallbacks.items():
        objective = next(
            (
                share
                for beginning, share in settings.fallback_share.items()
                if reason.startswith(beginning)
            ),
            None,
        )
        found.append(Measured("fallback_share", reason, times / rows, objective, rows))
    missing = np.zeros(rows, bool)
    for column in scores:
        missing |= column.is_null().to_numpy(zero_copy_only=False)
    share = float(missing.mean())
    found.append(Measured("error_share", "", share, settings.error_share, rows))
    return found
