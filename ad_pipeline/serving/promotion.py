"""Which bundle may serve, and the one way the pointer to it moves.

:func:`verdict` is the rule, a pure function of matured rows. :func:`promote` and :func:`rollback`
move ``serving/current``. A move is written to ``serving/history.jsonl`` first and then done, so
the history is the truth and the pointer its last line: a process killed between the two leaves the
old bundle serving and a line that the next call carries out. Training, replay and the checks that
must have passed before do not belong here, and no wall clock does: a line carries the log position
of the evidence it was decided on.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ad_pipeline.checkpoints import replace_file
from ad_pipeline.evaluation.intervals import PairedDifference, paired_difference
from ad_pipeline.serving.bundle import open_bundle
from ad_pipeline.serving.pointers import (
    CURRENT,
    Pointer,
    move_pointer,
    only_mover,
    read_pointer,
)

HISTORY = "history.jsonl"

MARGIN = 0.05
"""Relative log loss by which a candidate must be shown not to be worse."""


class NothingToRollBackTo(LookupError):
    """No bundle served before the current one."""


@dataclass(frozen=True)
class PromotionVerdict:
    """Whether a candidate may replace what serves, for one goal.

    Attributes
    ----------
    promote : bool
    reason : str
        For people; says what decided.
    against : {"current bundle", "base rate"}
        What the candidate was compared with.
    difference : float
        (candidate's − other's) / other's mean log loss; negative when the candidate is better.
    low, high : float
        Its block-bootstrap interval; NaN with fewer than two blocks.
    rows, blocks : int
        Matured rows, and distinct blocks among them.
    """

    promote: bool
    reason: str
    against: Literal["current bundle", "base rate"]
    difference: float
    low: float
    high: float
    rows: int
    blocks: int


@dataclass(frozen=True)
class Move:
    """One line of the history.

    Attributes
    ----------
    sequence : int
        1, 2, … without gaps.
    action : {"promote", "rollback"}
    digest : str
        Bundle that serves from here on.
    previous : str or None
        Bundle that served before.
    evidence : str
        SHA-256 of the evidence; the evidence itself is ``serving/evidence/<evidence>.json``.
    watermark_us : int
        Log position of the evidence, microseconds.
    """

    sequence: int
    action: Literal["promote", "rollback"]
    digest: str
    previous: str | None
    evidence: str
    watermark_us: int


def verdict(
    labels: ArrayLike,
    candidate: ArrayLike,
    current: ArrayLike | None,
    blocks: ArrayLike,
    *,
    base_rate: float | None = None,
    margin: float = MARGIN,
    seed: int = 0,
    replicates: int = 400,
    level: float = 0.95,
) -> PromotionVerdict:
    """Judge a candidate on matured rows that neither bundle was fitted on.

    Refused when the interval of the difference lies wholly above zero (it is worse, however
    little), or reaches beyond the margin (non-inferiority: with so few rows it may be much worse).
    Too few blocks for an interval is a refusal too: nothing was shown. Else it is better or a tie.

    Parameters
    ----------
    labels : array_like of {0, 1}, shape (n,)
        Final labels.
    candidate : array_like of float64, shape (n,)
        The candidate's probabilities.
    current : array_like of float64, shape (n,), or None
        The serving bundle's, None if none serves.
    blocks : array_like of int64, shape (n,)
        Hour of each row; whole blocks are resampled.
    base_rate : float, optional
        The constant to beat when nothing serves, known before these rows; without it the rows'
        own rate is taken, which no forecast could have known: the stricter comparison.
    margin : float
        Relative log loss by which the candidate must be shown not to be worse.
    seed, replicates, level
        As for :func:`ad_pipeline.evaluation.intervals.paired_difference`.

    Returns
    -------
    PromotionVerdict

    Raises
    ------
    ValueError
        If shapes differ, or a label, a probability or the base rate is out of range.
    """
    y = np.asarray(labels, dtype=np.float64)
    against: Literal["current bundle", "base rate"]
    if current is None:
        against = "base rate"
        rate = float(y.mean()) if base_rate is None and len(y) else (base_rate or 0.0)
        other = np.full(len(y), rate)
    else:
        against = "current bundle"
        other = np.asarray(current, dtype=np.float64)
    found = paired_difference(y, candidate, other, blocks, seed, replicates, level)
    promotes, reason = _judged(found, against, margin, level)
    return PromotionVerdict(
        promote=promotes,
        reason=reason,
        against=against,
        difference=found.relative,
        low=found.low,
        high=found.high,
        rows=found.rows,
        blocks=found.blocks,
    )


def decide(verdicts: Mapping[str, PromotionVerdict]) -> tuple[bool, str]:
    """Say whether a bundle of several goals may serve: only if each goal's verdict allows it.

    Returns
    -------
    promote : bool
        False for no goals at all.
    reason : str
        Every goal's, for people.
    """
    if not verdicts:
        return False, "no goal has matured rows to compare on"
    reasons = "; ".join(f"{goal}: {found.reason}" for goal, found in verdicts.items())
    return all(found.promote for found in verdicts.values()), reasons


def promote(
    serving: Path,
    bundles: Path,
    digest: str,
    evidence: Mapping[str, Any],
    *,
    watermark_us: int,
) -> Move:
    """Let a bundle serve. Safe to repeat: what serves already is not promoted again.

    Parameters
    ----------
    serving : Path
        The deployment's serving folder.
    bundles : Path
        Root of the bundles.
    digest : str
        The bundle; every byte and every canary score is verified first.
    evidence : mapping
        JSON-serialisable facts that the decision rests on: verdicts, replay report.
    watermark_us : int
        Log position of the evidence, microseconds.

    Returns
    -------
    Move
        The last line of the history, which names this bundle.

    Raises
    ------
    MissingCheckpoint, CorruptBundle
        If the bundle is not there or not intact.
    """
    open_bundle(bundles, digest)
    with only_mover(serving):
        moves = _settled(serving)
        if moves and moves[-1].digest == digest:
            return moves[-1]
        return _moved(serving, moves, "promote", digest, evidence, watermark_us)


def rollback(
    serving: Path,
    bundles: Path,
    evidence: Mapping[str, Any] | None = None,
    *,
    away_from: str | None = None,
    watermark_us: int | None = None,
) -> Move:
    """Let the bundle that served before the current one serve again.

    Parameters
    ----------
    serving, bundles : Path
    evidence : mapping, optional
        Why.
    away_from : str, optional
        The bundle to leave. When something else serves (a killed rollback got that far already)
        nothing is moved, so a caller that names it may repeat the call.
    watermark_us : int, optional
        Log position, microseconds; that of the last move if not given.

    Returns
    -------
    Move
        The last line of the history.

    Raises
    ------
    NothingToRollBackTo
        If nothing served before.
    MissingCheckpoint, CorruptBundle
        If the earlier bundle is not there or not intact.
    """
    with only_mover(serving):
        moves = _settled(serving)
        if moves and away_from is not None and moves[-1].digest != away_from:
            return moves[-1]
        served = _served(moves)
        if len(served) < 2:
            raise NothingToRollBackTo(
                f"{serving / HISTORY} names no bundle before the current one; promote one instead"
            )
        open_bundle(bundles, served[-2])
        watermark = moves[-1].watermark_us if watermark_us is None else watermark_us
        return _moved(serving, moves, "rollback", served[-2], evidence or {}, watermark)


def settle(serving: Path) -> Move | None:
    """Carry out a move that a killed process wrote down but did not do; a no-op otherwise.

    Returns
    -------
    Move or None
        The last line of the history, None if there is none.
    """
    with only_mover(serving):
        moves = _settled(serving)
        return moves[-1] if moves else None


def history(serving: Path) -> list[Move]:
    """Return every move, oldest first.

    Raises
    ------
    ValueError
        If a line that is not the last one cannot be read, or the sequence has a gap.
    """
    path = serving / HISTORY
    if not path.is_file():
        return []
    moves = [Move(**json.loads(line)) for line in path.read_bytes().split(b"\n")[:-1]]
    for number, move in enumerate(moves, start=1):
        if move.sequence != number:
            raise ValueError(
                f"line {number} of {path} has sequence number {move.sequence}; restore the file"
            )
    return moves


def _judged(found: PairedDifference, against: str, margin: float, level: float) -> tuple[bool, str]:
    if found.rows == 0:
        return False, "no matured rows to compare on; wait for labels to mature"
    measured = (
        f"log loss {found.relative:+.3%} against the {against} "
        f"[{found.low:+.3%}, {found.high:+.3%}] on {found.rows:,} matured rows"
    )
    if not (np.isfinite(found.low) and np.isfinite(found.high) and np.isfinite(found.relative)):
        return False, f"{measured}: {found.blocks} block(s) carry no interval; wait for more hours"
    if found.low > 0:
        return False, f"{measured}: worse, the {level:.0%} interval lies wholly above zero"
    if found.high > margin:
        return False, f"{measured}: too few rows to rule out that it is {margin:.0%} worse"
    return True, f"{measured}: {'better' if found.high < 0 else 'a tie'}"


def _served(moves: Sequence[Move]) -> list[str]:
    """Return the bundles that a rollback would walk back through, the current one last."""
    served: list[str] = []
    for move in moves:
        if move.action == "promote":
            served.append(move.digest)
        else:
            served.pop()
    return served


def _moved(
    serving: Path,
    moves: Sequence[Move],
    action: Literal["promote", "rollback"],
    digest: str,
    evidence: Mapping[str, Any],
    watermark_us: int,
) -> Move:
    text = json.dumps(evidence, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    move = Move(
        sequence=len(moves) + 1,
        action=action,
        digest=digest,
        previous=moves[-1].digest if moves else None,
        evidence=sha256(text).hexdigest(),
        watermark_us=watermark_us,
    )
    # In this order: a line never names evidence that is not there, and the pointer never names a
    # bundle that the history does not.
    replace_file(serving / "evidence" / f"{move.evidence}.json", text)
    _append(serving / HISTORY, move)
    move_pointer(serving, CURRENT, Pointer(digest, move.sequence))
    return move


def _settled(serving: Path) -> list[Move]:
    """Return the moves, after dropping a torn last line and doing a move that was left undone."""
    path = serving / HISTORY
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            replace_file(path, content[:whole])
    moves = history(serving)
    if moves:
        last = Pointer(moves[-1].digest, moves[-1].sequence)
        if read_pointer(serving, CURRENT) != last:
            move_pointer(serving, CURRENT, last)
    return moves


def _append(path: Path, move: Move) -> None:
    line = json.dumps(asdict(move), sort_keys=True).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
