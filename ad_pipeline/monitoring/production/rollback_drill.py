"""The drill of going back: a fault in a copy of what serves, refused, undone, and timed.

What serves is copied to a scratch folder (the bundle, its snapshot, pointers and history) and only
the copy is ever written to. There a fault is planted, the guard that must refuse it is asked, the
move that undoes it is made by the same functions as in earnest, and the same requests are scored
again. What is drilled are :mod:`ad_pipeline.serving`'s guards; none is made here.
"""

import shutil
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ad_pipeline.checkpoints import (
    Checkpoint,
    CorruptCheckpoint,
    MissingCheckpoint,
    read_checkpoint,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.features.rates import read_snapshot, write_snapshot
from ad_pipeline.monitoring.tables import ROLLBACK_DRILL, TABLES
from ad_pipeline.serving.audit import is_audit_file
from ad_pipeline.serving.bundle import KIND, CorruptBundle, export_bundle, open_bundle
from ad_pipeline.serving.pointers import (
    CURRENT,
    SNAPSHOT,
    NothingServed,
    Pointer,
    move_pointer,
    publish_snapshot,
    read_pointer,
)
from ad_pipeline.serving.promotion import history, promote, rollback, settle
from ad_pipeline.serving.proof import prove_bundle
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline.warehouse import Warehouse, arrow_rows

T = TypeVar("T")

CANARY_SHIFT = 1e-9
"""By which a canary's score is moved: far below what any measure of quality would notice."""

SHOWN_LETTERS = 240
"""Of a refusal."""

WHY = {"why": "a rollback drill", "by": "the drill"}

REFUSALS = (CorruptBundle, CorruptCheckpoint, MissingCheckpoint, ValueError)
"""What opening something unsound raises; the drill asks for it."""


class UnknownFault(LookupError):
    """There is no such fault to drill."""


@dataclass(frozen=True)
class Step:
    """One step of a drill.

    Attributes
    ----------
    fault, name : str
    passed : bool
        It came out as it must.
    said : str
    seconds : float
    """

    fault: str
    name: str
    passed: bool
    said: str
    seconds: float


@dataclass(frozen=True)
class Copy:
    """What serves, copied, and what it scored before anything was planted.

    Attributes
    ----------
    original : Deployment
        The real one; it is only read.
    deployment : Deployment
        The copy: a bundle, a snapshot, pointers and history.
    bundle : str
        Digest of the bundle that served.
    snapshot : Pointer or None
    requests : tuple of mapping
        The bundle's own canary requests, made when its snapshot was due.
    scores : mapping
        Their probabilities before.
    running : Scorer
        A serving process that was started before.
    """

    original: Deployment
    deployment: Deployment
    bundle: str
    snapshot: Pointer | None
    requests: tuple[Mapping[str, Any], ...]
    scores: dict[str, list[float]]
    running: Scorer


@dataclass(frozen=True)
class Fault:
    """Something that can go wrong with what serves.

    Attributes
    ----------
    plant : callable
        Puts it into the copy; says what it did.
    guards : callable
        Asks all that must refuse it; says by name what each answered, "" for one that let it pass.
    recover : callable
        Undoes it; says how.
    """

    plant: Callable[[Copy], str]
    guards: Callable[[Copy], dict[str, str]]
    recover: Callable[[Copy], str]


def drill(deployment: Deployment, fault: str) -> list[Step]:
    """Plant one fault in a copy of what serves, and go back.

    Parameters
    ----------
    deployment : Deployment
        Only read.
    fault : str
        One of :data:`FAULTS`.

    Returns
    -------
    list of Step
        copy, plant, guard, recover and verify.

    Raises
    ------
    UnknownFault
    NothingServed
        If no bundle was ever promoted.
    """
    if fault not in FAULTS:
        raise UnknownFault(f"there is no fault {fault!r}; name one of {', '.join(FAULTS)}")
    chosen = FAULTS[fault]
    steps: list[Step] = []

    def timed(name: str, act: Callable[[], T], judge: Callable[[T], tuple[bool, str]]) -> T:
        started = time.monotonic()
        given = act()
        seconds = time.monotonic() - started
        steps.append(Step(fault, name, *judge(given), seconds))
        return given

    with tempfile.TemporaryDirectory(prefix="rollback-drill-") as scratch:
        copied = timed(
            "copy",
            lambda: _copied(deployment, Path(scratch)),
            lambda found: (True, f"bundle {found.bundle[:12]} and its pointers are copied"),
        )
        timed("plant", lambda: chosen.plant(copied), lambda said: (True, said))
        timed("guard", lambda: chosen.guards(copied), _refused)
        timed("recover", lambda: chosen.recover(copied), lambda said: (True, said))
        timed("verify", lambda: _scores(copied), lambda scores: _same(copied, scores))
    return steps


def record_drills(
    warehouse: Warehouse, deployment: Deployment, faults: Sequence[str] = ()
) -> list[Step]:
    """Drill some faults, all unless named, and put the steps into ``monitoring.rollback_drill``.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    faults : sequence of str
    """
    steps = [step for fault in faults or tuple(FAULTS) for step in drill(deployment, fault)]
    places: dict[str, int] = {}
    records = []
    for step in steps:
        places[step.fault] = places.get(step.fault, 0) + 1
        records.append({**vars(step), "step": places[step.fault]})
    warehouse.create(TABLES)
    with warehouse.writer() as connection:
        connection.execute(f"DELETE FROM {ROLLBACK_DRILL.name}")
        connection.register("drilled", arrow_rows(ROLLBACK_DRILL, records))
        connection.execute(f"INSERT INTO {ROLLBACK_DRILL.name} BY NAME SELECT * FROM drilled")
    return steps


def flip_byte(path: Path, offset: int) -> None:
    """Change every bit of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(bytes(content))


def with_canary_off(source: Checkpoint, bundles: Path, shift: float = CANARY_SHIFT) -> str:
    """Write a bundle whose hashes are right and whose first canary's score is not.

    Parameters
    ----------
    source : Checkpoint
        Of a sound bundle.
    bundles : Path
        Root to write into.
    shift : float
        Added to the first canary's first probability.

    Returns
    -------
    str
        Its digest.
    """
    canaries = source.manifest["canaries"]
    scores = canaries["scores"]
    goal, (first, *others) = next(iter(scores["probabilities"].items()))
    shifted = {**scores["probabilities"], goal: [first + shift, *others]}
    changed = {"canaries": {**canaries, "scores": {**scores, "probabilities": shifted}}}
    return _rewritten(source, bundles, changed)


def _rewritten(source: Checkpoint, bundles: Path, changes: Mapping[str, Any]) -> str:
    manifest = {
        name: value for name, value in source.manifest.items() if name not in ("files", "format")
    }
    files = {name: path.read_bytes() for name, path in source.files.items()}
    return write_checkpoint(bundles, KIND, source.arrays, {**manifest, **changes}, files).digest


def _copied(original: Deployment, home: Path) -> Copy:
    current = read_pointer(original.serving, CURRENT)
    if current is None:
        raise NothingServed(f"{original.dataset.name} serves nothing yet; promote a bundle first")
    snapshot = read_pointer(original.serving, SNAPSHOT)
    deployment = replace(original, home=home)
    shutil.copytree(original.serving, deployment.serving)
    named = [(original.bundles, deployment.bundles, current.digest)]
    if snapshot is not None:
        named.append((original.snapshots, deployment.snapshots, snapshot.digest))
    for source, target, digest in named:
        shutil.copytree(source / "objects" / digest, target / "objects" / digest)
    if original.vectors.is_dir():  # read by scorers only: no fault is planted in them
        deployment.vectors.symlink_to(original.vectors)
    running = Scorer.current(deployment.serving)
    contract = running.bundle.contract
    at_us = 0 if snapshot is None else snapshot.position + contract.rate_lag_hours * HOUR_US
    requests = tuple(
        {name: row[name] for name in contract.text_columns}
        | {name: None if row[name] is None else float(row[name]) for name in contract.numeric}
        | {"occurred_us": at_us}
        for row in running.bundle.manifest["canaries"]["features"]
    )
    copied = Copy(original, deployment, current.digest, snapshot, requests, {}, running)
    return replace(copied, scores=_scores(copied))


def _scores(copied: Copy) -> dict[str, list[float]]:
    """Score the requests as a process that starts now would."""
    decided = Scorer.current(copied.deployment.serving).score_requests(copied.requests)
    return {goal: p.tolist() for goal, p in decided.probabilities.items()}


def _same(copied: Copy, scores: dict[str, list[float]]) -> tuple[bool, str]:
    if scores == copied.scores:
        return True, f"{len(copied.requests)} requests score to the bit what they scored before"
    return False, f"requests score {scores}, before the fault {copied.scores}"


def _refused(answers: Mapping[str, str]) -> tuple[bool, str]:
    return all(answers.values()), "; ".join(
        f"{guard} refused: {answer}" if answer else f"{guard} let it pass"
        for guard, answer in answers.items()
    )


def _answer(act: Callable[[], object]) -> str:
    """Return why something was refused; "" if it was not."""
    try:
        act()
    except REFUSALS as refusal:
        # A canary's message lists every score.
        return textwrap.shorten(str(refusal), SHOWN_LETTERS)
    return ""


def _by_load(copied: Copy) -> dict[str, str]:
    """Ask the two ways in which a serving process opens what the pointers name."""
    return {
        "a scorer that starts": _answer(lambda: Scorer.current(copied.deployment.serving)),
        "a running scorer, which goes on as it was,": _answer(copied.running.refresh),
    }


def _twin(copied: Copy) -> str:
    """Write another bundle of the same models, and promote it."""
    source = read_checkpoint(copied.deployment.bundles, copied.bundle)
    twin = _rewritten(source, copied.deployment.bundles, {"facts": source.manifest["facts"] | WHY})
    _promoted(copied, twin)
    return twin


def _promoted(copied: Copy, digest: str) -> None:
    watermark_us = history(copied.deployment.serving)[-1].watermark_us
    promote(
        copied.deployment.serving, copied.deployment.bundles, digest, WHY, watermark_us=watermark_us
    )


def _rolled_back(copied: Copy) -> str:
    move = rollback(copied.deployment.serving, copied.deployment.bundles, WHY)
    return f"rollback: serving/current names {move.digest[:12]} again"


def _plant_flipped_byte(copied: Copy) -> str:
    twin = copied.deployment.bundles / "objects" / _twin(copied)
    largest = max(
        (path for path in twin.glob("*.npy") if not is_audit_file(path.name)),
        key=lambda path: (path.stat().st_size, path.name),
    )
    flip_byte(largest, largest.stat().st_size // 2)
    return f"one byte of {largest.name} of the promoted bundle {twin.name[:12]} is flipped"


def _flipped_byte_guards(copied: Copy) -> dict[str, str]:
    digest = history(copied.deployment.serving)[-1].digest
    return {"promotion": _answer(lambda: _promoted(copied, digest))} | _by_load(copied)


def _plant_canary_off(copied: Copy) -> str:
    source = read_checkpoint(copied.deployment.bundles, copied.bundle)
    digest = with_canary_off(source, copied.deployment.bundles)
    # Past the promotion, which is asked among the guards.
    move_pointer(
        copied.deployment.serving, CURRENT, Pointer(digest, len(history(copied.deployment.serving)))
    )
    return f"the pointer names {digest[:12]}, one of whose canary scores is {CANARY_SHIFT:g} off"


def _canary_off_guards(copied: Copy) -> dict[str, str]:
    pointer = read_pointer(copied.deployment.serving, CURRENT)
    digest = "" if pointer is None else pointer.digest
    return {"promotion": _answer(lambda: _promoted(copied, digest))} | _by_load(copied)


def _settled(copied: Copy) -> str:
    (copied.deployment.serving / CURRENT).unlink()
    settle(copied.deployment.serving)
    return "the pointer is made anew from the history of promotions"


def _plant_torn_pointer(copied: Copy) -> str:
    path = copied.deployment.serving / CURRENT
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return f"half of serving/current is left: {path.stat().st_size} bytes"


def _plant_poisoned_model(copied: Copy) -> str:
    sound = open_bundle(copied.deployment.bundles, copied.bundle)
    poisoned = export_bundle(
        copied.deployment.bundles,
        contract=sound.contract,
        goals=[
            replace(each, online=replace(each.online, values=-each.online.values), mixture=None)
            for each in sound.goals
        ],
        dataset=sound.dataset,
        label_watermark_us=sound.label_watermark_us,
        canaries=copied.requests,
        fitted_ranges=sound.fitted_ranges,
    )
    _promoted(copied, poisoned.digest)
    return f"bundle {poisoned.digest[:12]} serves, with every online weight of opposite sign"


def _poisoned_model_guards(copied: Copy) -> dict[str, str]:
    poisoned = open_bundle(copied.deployment.bundles, history(copied.deployment.serving)[-1].digest)
    faults = [f for proof in prove_bundle(copied.original, poisoned) for f in proof.faults]
    return {"the proof against the checkpoints that it names": "; ".join(faults)}


def _plant_stale_snapshot(copied: Copy) -> str:
    if copied.snapshot is None:
        return "nothing: no rates were ever published"
    counts = read_snapshot(copied.deployment.snapshots, copied.snapshot.digest)
    older = write_snapshot(
        copied.deployment.snapshots, replace(counts, hour_us=counts.hour_us - 3 * HOUR_US)
    )
    stale = Pointer(older.digest, copied.snapshot.position - 3 * HOUR_US)
    move_pointer(copied.deployment.serving, SNAPSHOT, stale)
    return "serving/snapshot names rates that end three hours before those due"


def _stale_snapshot_guards(copied: Copy) -> dict[str, str]:
    decided = Scorer.current(copied.deployment.serving).score_requests(copied.requests)
    said = [
        found.reason
        for found in decided.fallbacks
        if found.reason.startswith("stale snapshot") and found.rows.all()
    ]
    return {"every decision": "; ".join(said)}


def _published_again(copied: Copy) -> str:
    if copied.snapshot is None:
        return "nothing was to be undone"
    publish_snapshot(copied.deployment.serving, copied.snapshot.digest, copied.snapshot.position)
    return f"snapshot {copied.snapshot.digest[:12]} is published again"


FAULTS: Mapping[str, Fault] = {
    "flipped_byte": Fault(_plant_flipped_byte, _flipped_byte_guards, _rolled_back),
    "canary_off": Fault(_plant_canary_off, _canary_off_guards, _settled),
    "poisoned_model": Fault(_plant_poisoned_model, _poisoned_model_guards, _rolled_back),
    "torn_pointer": Fault(_plant_torn_pointer, _by_load, _settled),
    "stale_snapshot": Fault(_plant_stale_snapshot, _stale_snapshot_guards, _published_again),
}
"""By name, as the job's configuration names them."""
