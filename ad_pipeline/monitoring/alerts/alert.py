"""One thing that is wrong now, and what a source of such things is given.

An alert is the same whoever asks, and when: it follows from tables, files and log time. What is
wrong in a deployment is for :mod:`.sources`, who has been told of it for :mod:`.delivery`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import duckdb

from ad_pipeline.datasets import Deployment

Severity = Literal["page", "warn", "info"]

SEVERITIES: tuple[Severity, ...] = ("page", "warn", "info")
"""page: what serves is wrong or goes stale, somebody is to act. warn: look at it today. info: it
was seen to already."""


@dataclass(frozen=True)
class Alert:
    """Something that is wrong.

    Attributes
    ----------
    source : str
        Of :data:`ad_pipeline.monitoring.alerts.sources.SOURCES`.
    severity : {"page", "warn", "info"}
    subject : str
        What it is about: a goal, feature, hour or advertiser.
    found : str
        With its figures, for people.
    since_us : int
        Log time, microseconds.
    act : str
        The command, job or page that ends it.
    """

    source: str
    severity: Severity
    subject: str
    found: str
    since_us: int
    act: str

    @property
    def key(self) -> str:
        """What it is told by, once, and what its end is told by. Figures may change under it."""
        return f"{self.severity}/{self.source}/{self.subject}"


@dataclass(frozen=True)
class FailedCheck:
    """An asset check whose last evaluation did not pass.

    Attributes
    ----------
    asset, check : str
    blocks : bool
        Its failure is an error, not a warning.
    found : str
    """

    asset: str
    check: str
    blocks: bool
    found: str


@dataclass(frozen=True)
class Seen:
    """What a source may look at.

    Attributes
    ----------
    connection : DuckDBPyConnection
        Read-only.
    tables : frozenset of str
        Those that are there, ``room.table``: a new deployment has few.
    deployment : Deployment
    known_until_us : int
        End of the last sealed log hour, microseconds: the only "now" there is.
    failed_checks : sequence of FailedCheck
        Of the orchestrator, which only ``defs`` can ask.
    """

    connection: duckdb.DuckDBPyConnection
    tables: frozenset[str]
    deployment: Deployment
    known_until_us: int
    failed_checks: Sequence[FailedCheck] = ()


Source = Callable[[Seen], Iterable[Alert]]


def in_order(alerts: Iterable[Alert]) -> list[Alert]:
    """Return alerts as they are told: the severest first, then the oldest."""
    return sorted(alerts, key=lambda a: (SEVERITIES.index(a.severity), a.since_us, a.key))
