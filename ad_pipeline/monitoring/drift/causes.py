"""From what changed to what is behind it and what fits: one table, and the rules that read it.

Everything here is data and pure functions. What is measured stands in :mod:`.inputs` and
:mod:`.losses`, reading it off a log in :mod:`.verdicts_of_log`, starting runs in ``defs``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.settings import Settings

DriftKind = Literal[
    "inputs", "season", "new_categories", "concept", "calibration", "label_delay", "grid"
]
Action = Literal["retrain", "raise_rate", "recalibrate", "refit_delays"]


@dataclass(frozen=True)
class Cause:
    """What stands behind a kind of drift.

    Attributes
    ----------
    says : str
        For people.
    actions : tuple of str
        What fits, first to last; none: it is only told.
    """

    says: str
    actions: tuple[Action, ...]


CAUSES: Mapping[DriftKind, Cause] = {
    "inputs": Cause("the inputs shifted", ("retrain",)),
    "season": Cause("another time of the week, as every week", ()),
    "new_categories": Cause("categories that no model knows", ("retrain",)),
    "concept": Cause("the same inputs lead to other outcomes", ("raise_rate", "retrain")),
    "calibration": Cause("as many more or fewer positives everywhere", ("recalibrate",)),
    "label_delay": Cause("labels come earlier or later", ("refit_delays",)),
    # The grid is judged anew every hour and has switched by itself when this is seen.
    "grid": Cause("another configuration of the grid serves", ()),
}
"""What each kind of drift is answered by."""


@dataclass(frozen=True)
class DriftFound:
    """The verdict on one kind of drift.

    Attributes
    ----------
    kind : str
        Key of ``CAUSES``.
    subject : str
        Goal and expert, or goal; '' of the inputs.
    drifted : bool
    value, threshold : float
        The effect, and from where on it counts.
    evidence : mapping
        What it rests on, JSON-serialisable.
    explained_by : str or None
        Another kind that is behind it: its remedy is this one's.
    """

    kind: DriftKind
    subject: str
    drifted: bool
    value: float
    threshold: float
    evidence: Mapping[str, Any]
    explained_by: DriftKind | None = None

    @property
    def cause(self) -> Cause:
        """What is behind it."""
        return CAUSES[self.explained_by or self.kind]

    @property
    def actions(self) -> tuple[Action, ...]:
        """What fits; nothing without drift."""
        return self.cause.actions if self.drifted else ()


def explained(found: Sequence[DriftFound]) -> list[DriftFound]:
    """Name what is behind a change of calibration: it is only that, or a symptom of another.

    Scores of a goal that are wrong in shape are off in number, too, and so are those whose labels
    come later than they used to; calibrating them anew would hide it.
    """
    behind = {
        one.subject.split(", ")[0]: one.kind
        for one in found
        if one.drifted and one.kind in ("label_delay", "concept")
    }
    return [
        replace(one, explained_by=behind.get(one.subject.split(", ")[0]))
        if one.kind == "calibration" and one.drifted
        else one
        for one in found
    ]


@dataclass(frozen=True)
class Seen:
    """What the sensor sees of verdicts and actions.

    Attributes
    ----------
    verdict_hour_us : int
        Of the newest verdicts.
    asked : mapping of str to sequence of mapping
        Action to the verdicts that ask for it.
    last_us : mapping of str to int
        Action to the last hour it was taken.
    """

    verdict_hour_us: int
    asked: Mapping[Action, Sequence[Mapping[str, Any]]]
    last_us: Mapping[str, int]


def due_action(
    seen: Seen, acted_on_us: Mapping[str, int], settings: Settings
) -> tuple[Action | None, str]:
    """Choose what to do about the newest verdicts.

    Parameters
    ----------
    seen : Seen
    acted_on_us : mapping of str to int
        Action to the hour of the last verdict that it was taken for.
    settings : Settings

    Returns
    -------
    action : str or None
        The first that is asked for, possible, not done for this verdict and not cooling down. One
        at a time: the next one is for the tick after the run.
    reason : str
        For people.
    """
    until = f"up to log hour {timestamp(seen.verdict_hour_us)}"
    if not seen.asked:
        return None, f"no drift to act on {until}"
    if not settings.drift_actions.act:
        return None, f"drift {until} asks for {', '.join(seen.asked)}; drift_actions.act is false"
    why_not = []
    for action in seen.asked:
        if reason := _impossible(action, settings):
            why_not.append(reason)
        elif seen.verdict_hour_us <= acted_on_us.get(action, -1):
            why_not.append(f"{action}: the verdict {until} was acted on already")
        elif (ready_us := _ready_us(action, seen, settings)) > seen.verdict_hour_us:
            why_not.append(f"{action}: cooling down until log hour {timestamp(ready_us)}")
        else:
            causes = sorted({str(one["cause"]) for one in seen.asked[action]})
            return action, f"{'; '.join(causes)}, {until}"
    return None, "; ".join(why_not)


def _impossible(action: Action, settings: Settings) -> str | None:
    if action == "raise_rate" and settings.online.rate_control is None:
        return "raise_rate: only told, there is no settings.online.rate_control to lower it again"
    return None


def _ready_us(action: Action, seen: Seen, settings: Settings) -> int:
    if action not in seen.last_us:
        return 0
    hours = settings.drift_actions.cooldown_hours.get(action, settings.drift.retrain_cooldown_hours)
    return seen.last_us[action] + hours * HOUR_US
