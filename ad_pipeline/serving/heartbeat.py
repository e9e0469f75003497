"""What each scorer says it serves: one small file a scorer, beside the pointers.

The pointer says what should serve; only the process that scores knows what does. It says so when
it chooses (:meth:`ad_pipeline.serving.scorer.Scorer.report`), in log time, and
:func:`ad_pipeline.serving.production.lagging` holds it against the pointer. A scorer that never
reports is not missed here: nobody told how many there are. Nothing here reads a clock or moves a
pointer.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ad_pipeline.checkpoints import replace_file

FOLDER = "scorers"


@dataclass(frozen=True)
class Heartbeat:
    """What one scorer serves.

    Attributes
    ----------
    scorer : str
        Its name; a deployment has as many as it runs.
    bundle_hash, snapshot_hash : str
        ``snapshot_hash`` is empty without a snapshot.
    since_us : int
        Log time of its first report of this bundle, microseconds.
    at_us : int
        Log time of this report, microseconds.
    """

    scorer: str
    bundle_hash: str
    snapshot_hash: str
    since_us: int
    at_us: int


def beat(serving: Path, scorer: str, bundle_hash: str, snapshot_hash: str, at_us: int) -> Heartbeat:
    """Write what a scorer serves now; readers see the old report or the new one.

    Parameters
    ----------
    serving : Path
        The deployment's serving folder.
    scorer : str
        Its name, and its file's.
    bundle_hash, snapshot_hash : str
    at_us : int
        Log time, microseconds: that of the request at hand.

    Raises
    ------
    ValueError
        If its earlier report cannot be read.
    """
    path = serving / FOLDER / f"{scorer}.json"
    before = _read(path) if path.is_file() else None
    since_us = at_us if before is None or before.bundle_hash != bundle_hash else before.since_us
    found = Heartbeat(scorer, bundle_hash, snapshot_hash, since_us, at_us)
    replace_file(path, json.dumps(asdict(found), sort_keys=True).encode())
    return found


def heartbeats(serving: Path) -> list[Heartbeat]:
    """Return the last report of every scorer, by name.

    Raises
    ------
    ValueError
        If a file is no report.
    """
    return [
        _read(path)
        for path in sorted((serving / FOLDER).glob("*.json"))
        if not path.name.startswith(".")
    ]


def _read(path: Path) -> Heartbeat:
    try:
        return Heartbeat(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no report of a scorer; remove it, the next one is") from error
