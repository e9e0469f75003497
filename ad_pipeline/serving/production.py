"""What was in production when, and why: the history of promotions read as intervals.

One interval a move, with the models that the bundle was made of and the words of the evidence that
the move rests on. All of it is read from files that are written once and named by their content, so
the same folder gives the same answer whenever it is asked. Times are log time, but for
:func:`seconds_to_pointer`, which the mover's own files tell.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ad_pipeline.checkpoints import read_checkpoint
from ad_pipeline.clocks import timestamp
from ad_pipeline.datasets import Deployment
from ad_pipeline.evaluation.progressive import EXPERTS
from ad_pipeline.serving.heartbeat import Heartbeat
from ad_pipeline.serving.pointers import CURRENT
from ad_pipeline.serving.promotion import Move, history

GATE = "promotion gate"
PERSON = "a person"


class NothingServedThen(LookupError):
    """No bundle had been promoted by the moment asked for."""


@dataclass(frozen=True)
class Interval:
    """A bundle in production, from one move of the pointer to the next.

    Attributes
    ----------
    move : Move
        The one it began with.
    until : Move or None
        The one it ended with; None while it serves.
    label_watermark_us : int
        Labels up to here had been learnt, microseconds: when its model hour closed.
    models : dict of str to dict of str to str
        By goal and expert: the digest of the checkpoint that it was made of.
    why : str
        The evidence in words.
    decided_by : str
    """

    move: Move
    until: Move | None
    label_watermark_us: int
    models: dict[str, dict[str, str]]
    why: str
    decided_by: str

    @property
    def from_us(self) -> int:
        """Log time from which it served, microseconds."""
        return self.move.watermark_us

    @property
    def until_us(self) -> int | None:
        """Log time up to which it served, microseconds; None while it serves."""
        return None if self.until is None else self.until.watermark_us

    @property
    def models_in_words(self) -> str:
        """Return every model it was made of, for people."""
        return "; ".join(
            f"{goal}: " + ", ".join(f"{expert} {digest[:12]}" for expert, digest in experts.items())
            for goal, experts in self.models.items()
        )


def intervals(serving: Path, bundles: Path) -> list[Interval]:
    """Return what has been in production, oldest first.

    Parameters
    ----------
    serving : Path
        The deployment's serving folder.
    bundles : Path
        Root of the bundles; one that has served is never swept.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        If a bundle that served is not there, or its manifest was changed.
    FileNotFoundError
        If the evidence of a move is gone.
    """
    moves = history(serving)
    return [
        _interval(serving, bundles, move, until)
        for move, until in zip(moves, [*moves[1:], None], strict=False)
    ]


def served_at(found: Sequence[Interval], at_us: int) -> Interval:
    """Return what was in production at a moment of log time.

    Parameters
    ----------
    found : sequence of Interval
        Oldest first.
    at_us : int
        Microseconds.

    Raises
    ------
    NothingServedThen
        If nothing had been promoted by then.
    """
    begun = [each for each in found if each.from_us <= at_us]
    if not begun:
        first = f"the first was promoted at {timestamp(found[0].from_us)}" if found else "nor since"
        raise NothingServedThen(f"no bundle served at {timestamp(at_us)}: {first}")
    return begun[-1]


def seconds_to_pointer(deployment: Deployment, move: Move) -> dict[str, float]:
    """Return the wall-clock seconds from each online model's checkpoint to the pointer's move.

    By the times that the file system keeps of the files: nothing else of a move knows a wall clock.
    A checkpoint that retention has removed has none.

    Parameters
    ----------
    deployment : Deployment
    move : Move
        The last one: the pointer has no times of earlier moves.

    Returns
    -------
    dict of str to float
        By goal.
    """
    moved = (deployment.serving / CURRENT).stat().st_mtime
    manifest = read_checkpoint(deployment.bundles, move.digest, verify=False).manifest
    written = {
        goal["goal"]: deployment.checkpoints
        / "objects"
        / goal["online"]["checkpoint"]
        / "manifest.json"
        for goal in manifest["goals"]
    }
    return {goal: moved - path.stat().st_mtime for goal, path in written.items() if path.is_file()}


def lagging(found: Sequence[Heartbeat], moves: Sequence[Move], grace_us: int) -> list[Heartbeat]:
    """Return the scorers that serve another bundle than the pointer names, after a grace.

    Parameters
    ----------
    found : sequence of Heartbeat
    moves : sequence of Move
        The history, oldest first.
    grace_us : int
        Log time after the last move in which a scorer may not have followed yet, microseconds.
    """
    if not moves:
        return []
    last = moves[-1]
    return [
        each
        for each in found
        if each.bundle_hash != last.digest and each.at_us > last.watermark_us + grace_us
    ]


def production_lines(found: Sequence[Interval]) -> list[str]:
    """Return intervals as a terminal shows them."""
    lines = []
    for each in found:
        until = "now" if each.until_us is None else timestamp(each.until_us)
        lines += [
            f"{each.move.sequence}. {timestamp(each.from_us)} to {until}: bundle "
            f"{each.move.digest[:12]} ({each.move.action} by {each.decided_by})",
            f"   why: {each.why}",
            f"   models: {each.models_in_words}",
        ]
    return lines


def _interval(serving: Path, bundles: Path, move: Move, until: Move | None) -> Interval:
    # The manifest's hash is its name, so nothing else needs to be read.
    manifest = read_checkpoint(bundles, move.digest, verify=False).manifest
    path = serving / "evidence" / f"{move.evidence}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is gone, the evidence of move {move.sequence}; put a copy of it back"
        )
    evidence = json.loads(path.read_bytes())
    return Interval(
        move=move,
        until=until,
        label_watermark_us=manifest["label_watermark_us"],
        models={
            goal["goal"]: {
                expert: goal[expert]["checkpoint"]
                for expert in EXPERTS
                if goal.get(expert) is not None
            }
            | ({} if goal["ensemble"] is None else {"ensemble": goal["ensemble_checkpoint"]})
            for goal in manifest["goals"]
        },
        why=_in_words(evidence, move),
        decided_by=evidence.get("by", GATE if move.action == "promote" else PERSON),
    )


def _in_words(evidence: Mapping[str, Any], move: Move) -> str:
    if evidence.get("why"):
        return evidence["why"]
    if verdicts := evidence.get("verdicts"):
        return "; ".join(f"{goal}: {found['reason']}" for goal, found in verdicts.items())
    back = (
        f", back from {move.previous[:12]}" if move.action == "rollback" and move.previous else ""
    )
    return f"no reason was given{back}"
