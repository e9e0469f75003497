"""Which copies of an impression a learner is shown, and when: emission strategies.

A label that comes late can be waited for, corrected, or both, and every published way of learning
from delayed feedback begins with a choice of copies: one at serving time, one after an observation
window, one when the engagement arrives, one at maturity. Here a strategy is what it asks of
``dbt_like_sql/examples/training_examples.sql``, whose one join makes the rows of all of them, and
which rows of the table are its own. What is learnt from a row, with which weight, belongs to the
learners.

References
----------
Ktena et al., RecSys 2019 (arXiv 1907.06558): ``immediate``. Yang et al., ES-DFM, AAAI 2021:
``windowed``. Gu et al., Real Negatives Matter (DEFER), KDD 2021: ``two_copies`` and the two with
real negatives. ``matched`` is ours (docs/adr/0010).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Self, TypedDict

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Goal
from ad_pipeline.settings import Settings, StrategyName

FIRST_KINDS = ("negative", "immediate_positive")
"""What is emitted when a wait is over, whichever the label is by then."""

KINDS = (
    *FIRST_KINDS,
    "delayed_positive",
    "matched_negative",
    "confirmed_negative",
    "confirmed_positive",
    "retraction",
)

PLACES = 256
"""Quantiles of a distribution of delays; two hexadecimal digits draw one."""

_DELAY_PURPOSE = "examples.training_examples.delays"


@dataclass(frozen=True)
class Strategy:
    """The rows that a learner is shown.

    Attributes
    ----------
    at_once : bool
        Whether the stream begins at serving time; else when the goal's observation window is over.
    kinds : frozenset of str
        Of that stream. Retractions belong to every strategy that is shown positives as they come.
    confirmed : frozenset of str
        Kinds at maturity.
    only_first_positives : bool
        Of confirmed positives, only those that were positive at their first emission already: the
        second copy of a positive that came late is its arrival.
    """

    at_once: bool
    kinds: frozenset[str]
    confirmed: frozenset[str] = frozenset()
    only_first_positives: bool = False


_STREAM = frozenset({*FIRST_KINDS, "delayed_positive", "retraction"})
_ARRIVALS = frozenset({"immediate_positive", "delayed_positive", "retraction"})
_BOTH = frozenset({"confirmed_negative", "confirmed_positive"})
_REAL_NEGATIVES = frozenset({"confirmed_negative"})

STRATEGIES: dict[StrategyName, Strategy] = {
    # A negative at serving time, a positive when it arrives: b(y = 1 | x) = p / (1 + p).
    "immediate": Strategy(True, _STREAM),
    # The same, and real negatives once more at maturity.
    "immediate_confirmed": Strategy(True, _STREAM, _REAL_NEGATIVES),
    # The label as it is after the observation window, a positive again if it arrives later.
    "windowed": Strategy(False, _STREAM),
    "windowed_confirmed": Strategy(False, _STREAM, _REAL_NEGATIVES),
    # Each anchor twice: after the observation window, and when its label is known.
    "two_copies": Strategy(False, _STREAM, _BOTH, only_first_positives=True),
    # Each anchor once, after the observation window; later positives are lost.
    "wait_observation": Strategy(False, frozenset(FIRST_KINDS)),
    # Each anchor once, with its final label.
    "wait_maturity": Strategy(False, frozenset(), _BOTH),
    # A negative after a delay that is drawn as positives' delays are, a positive when it arrives.
    "matched": Strategy(True, _ARRIVALS | {"matched_negative"}),
}


class Emission(TypedDict):
    """The SQL parameters of what is emitted of one goal.

    Attributes
    ----------
    waits_us : list of int
        Observation windows, microseconds; the goal's own is always among them, since label states
        and chains are read off its stream.
    confirmed, matched : bool
        Whether any strategy asks for rows at maturity, and for matched negatives.
    delay_group : str
        Column of ``events.impressions`` whose values have delays of their own; '' for none.
    delay_draw : str
        What is hashed before an impression's id to draw its delay.
    refit_us, lookback_us, least_positives : int
        When delays are fitted anew, on what matured since how long, and from how many positives on
        a group has its own.
    """

    waits_us: list[int]
    confirmed: bool
    matched: bool
    delay_group: str
    delay_draw: str
    refit_us: int
    lookback_us: int
    least_positives: int


def emission_of(settings: Settings, goal: Goal, strategies: Iterable[StrategyName]) -> Emission:
    """Return what has to be emitted of a goal for some strategies.

    Parameters
    ----------
    settings : Settings
        Of the deployment.
    goal : Goal
    strategies : iterable of str
        Names of :data:`STRATEGIES`.
    """
    wanted = [STRATEGIES[name] for name in strategies]
    at_once = {0} if any(strategy.at_once for strategy in wanted) else set()
    delays = settings.delays
    return Emission(
        waits_us=sorted({goal.observation_us} | at_once),
        confirmed=any(strategy.confirmed for strategy in wanted),
        matched=any("matched_negative" in strategy.kinds for strategy in wanted),
        delay_group=delays.group_by or "",
        delay_draw=f"{settings.seed} {_DELAY_PURPOSE} ",
        refit_us=delays.refit_every_hours * HOUR_US,
        lookback_us=delays.lookback_hours * HOUR_US,
        least_positives=delays.least_positives,
    )


@dataclass(frozen=True)
class EmittedRows:
    """What tells the rows of ``examples.training_examples`` of one goal apart.

    Attributes
    ----------
    kinds : ndarray of shape (n,), int8
        Places in :data:`KINDS`.
    wait_us, anchor_us, serving_us : ndarray of shape (n,), int64
    arrived_us : ndarray of shape (n,), int64
        When our log had the row's engagement; -1 without one.
    """

    kinds: np.ndarray
    wait_us: np.ndarray
    anchor_us: np.ndarray
    serving_us: np.ndarray
    arrived_us: np.ndarray

    @classmethod
    def of(cls, rows: pa.Table) -> Self:
        """Return them of rows that have the table's columns.

        Raises
        ------
        ValueError
            If a kind is unknown.
        """
        kinds = rows.column("kind").combine_chunks()
        coded = kinds if pa.types.is_dictionary(kinds.type) else kinds.dictionary_encode()
        names = coded.dictionary.to_pylist()
        unknown = [name for name in names if name not in KINDS]
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r}; known are {', '.join(KINDS)}")
        places = np.array([KINDS.index(name) for name in names], dtype=np.int8)
        return cls(
            places[coded.indices.to_numpy()],
            rows.column("wait_us").to_numpy(),
            rows.column("anchor_us").to_numpy(),
            rows.column("serving_us").to_numpy(),
            rows.column("arrived_us").fill_null(-1).to_numpy(),
        )


def among(kinds: np.ndarray, named: Collection[str]) -> np.ndarray:
    """Return which of some places in :data:`KINDS`, (n,), are of the kinds named, bool (n,)."""
    return np.array([kind in named for kind in KINDS])[kinds]


def rows_of_strategy(name: StrategyName, goal: Goal, rows: EmittedRows) -> np.ndarray:
    """Return which rows a strategy shows, bool (n,).

    Parameters
    ----------
    name : str
        Of :data:`STRATEGIES`.
    goal : Goal
    rows : EmittedRows
    """
    strategy = STRATEGIES[name]
    wait_us = 0 if strategy.at_once else goal.observation_us
    found = among(rows.kinds, strategy.kinds) & (rows.wait_us == wait_us)
    confirmed = among(rows.kinds, strategy.confirmed)
    if strategy.only_first_positives:
        first_us = np.maximum(rows.anchor_us + goal.observation_us, rows.serving_us)
        confirmed &= rows.arrived_us <= first_us
    return found | confirmed
