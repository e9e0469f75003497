"""The arms of the benchmark: ways of learning from late labels that are compared on one stream.

Controls first: a base rate, the model as it stood when the stream began, one that is told the final
label at once and can never be deployed, ones that only wait, ones that take the stream as it comes,
and one that is recalibrated on matured labels, since part of what a loss gains may be the base rate
alone. Then the candidates: every loss of ``STRATEGY_OF_LOSS``. How an arm is replayed is
:mod:`.prequential`.

References
----------
The arms of Yang et al. (ES-DFM, AAAI 2021) and Ktena et al. (RecSys 2019), with a name for each of
the three things that papers call vanilla.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US
from ad_pipeline.datasets import Goal
from ad_pipeline.learners.delayed.losses import COEFFICIENTS, TWO_HEADED
from ad_pipeline.settings import STRATEGY_OF_LOSS, Objective

Role = Literal["learner", "frozen", "oracle", "base_rate", "recalibrated"]

BASE_RATE, PRE_TRAINED, ORACLE = "base rate", "pre-trained", "oracle"
VANILLA, VANILLA_IMMEDIATE = "vanilla, duplicated", "vanilla, immediate"
RECALIBRATED = "vanilla, recalibrated"

WAITS_US = (15 * MINUTE_US, HOUR_US, DAY_US)
"""Observation windows of the arms that only wait, beside the goal's own."""


LOG_LOSS = Objective()


@dataclass(frozen=True)
class Arm:
    """One way of learning.

    Attributes
    ----------
    name : str
    says : str
        What it is, for people.
    role : str
        ``learner`` is shown the stream of its objective; ``frozen`` stays as it was when the stream
        began; ``oracle`` is shown the final label at serving time; ``base_rate`` is no learner;
        ``recalibrated`` is the arm :data:`VANILLA` with a line fitted to matured labels.
    objective : Objective
        Of a learner.
    wait_us : int or None
        Observation window; None: the goal's own.
    rate : float
        Factor on the learning rates of its family.
    """

    name: str
    says: str
    role: Role = "learner"
    objective: Objective = LOG_LOSS
    wait_us: int | None = None
    rate: float = 1.0

    @property
    def learns(self) -> bool:
        """Whether it is shown rows of the stream."""
        return self.role in ("learner", "oracle")

    @property
    def deployable(self) -> bool:
        """Whether it could serve: the oracle knows what nobody can."""
        return self.role != "oracle"


CONTROLS = (
    Arm(BASE_RATE, "mean of matured labels by campaign", "base_rate"),
    Arm(PRE_TRAINED, "the model as the stream began", "frozen"),
    Arm(ORACLE, "the final label, at serving time", "oracle"),
    Arm(
        "wait for maturity",
        "one copy, when the label is final",
        objective=Objective(strategy="wait_maturity"),
    ),
    Arm(
        VANILLA_IMMEDIATE,
        "a negative at serving time, a positive when it arrives; log loss",
        objective=Objective(strategy="immediate"),
    ),
    Arm(
        VANILLA,
        "the label after the window, a positive again when it arrives; log loss",
        objective=Objective(strategy="windowed"),
    ),
    Arm(RECALIBRATED, "the same, with a line fitted to matured labels", "recalibrated"),
)

CANDIDATES = tuple(
    Arm(loss, f"loss {loss} on stream {STRATEGY_OF_LOSS[loss]}", objective=Objective(loss=loss))
    for loss in (*COEFFICIENTS, *TWO_HEADED)
)

CLIPPED = Arm(
    "positive_unlabelled, clipped",
    "loss positive_unlabelled with the non-negative clip",
    objective=Objective(loss="positive_unlabelled", non_negative=True),
)


def waiting_arms(goal: Goal, waits_us: Sequence[int] = WAITS_US) -> tuple[Arm, ...]:
    """Return the arms that show each anchor once, after a window shorter than its maturity."""
    horizon_us = goal.window_us + goal.lateness_us
    waits = sorted({goal.observation_us, *waits_us} - {0})
    return tuple(
        Arm(
            f"wait {_duration(wait_us)}",
            f"one copy, with the label as it is after {_duration(wait_us)}",
            objective=Objective(strategy="wait_observation"),
            wait_us=wait_us,
        )
        for wait_us in waits
        if wait_us < horizon_us
    )


def arms_of(goal: Goal, waits_us: Sequence[int] = WAITS_US) -> tuple[Arm, ...]:
    """Return all arms of a goal, controls first."""
    return (*CONTROLS, *waiting_arms(goal, waits_us), *CANDIDATES, CLIPPED)


def arms_named(arms: Sequence[Arm], names: Sequence[str]) -> tuple[Arm, ...]:
    """Return some arms by name.

    Raises
    ------
    LookupError
        If there is none of a name; the message lists those there are.
    """
    known = {arm.name: arm for arm in arms}
    missing = [name for name in names if name not in known]
    if missing:
        raise LookupError(f"no arm {missing[0]!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in names)


def _duration(us: int) -> str:
    for unit, size in (("d", DAY_US), ("h", HOUR_US), ("min", MINUTE_US)):
        if us % size == 0:
            return f"{us // size} {unit}"
    return f"{us / 1e6:g} s"
