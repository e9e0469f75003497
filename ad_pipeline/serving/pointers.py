"""The pointers that a serving process follows, and nothing that moves the first of them.

``serving/current`` names the bundle that serves, ``serving/snapshot`` the newest published rate
snapshot, ``serving/user_vectors`` and ``serving/candidate_index`` the newest published vectors and
candidates of ads, if there are any. They are small files replaced atomically: a reader sees the old
name or the new one, never half of either. The bundle's pointer is moved only by
:mod:`ad_pipeline.serving.promotion`; which of the others is newest is decided here, by the end of
the hours they know.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ad_pipeline.checkpoints import replace_file

CURRENT = "current"
SNAPSHOT = "snapshot"
USER_VECTORS = "user_vectors"
CANDIDATE_INDEX = "candidate_index"


class NothingServed(LookupError):
    """The pointer asked for has never been moved."""


@dataclass(frozen=True)
class Pointer:
    """What a pointer names.

    Attributes
    ----------
    digest : str
        Bundle, snapshot, published vectors or candidate index.
    position : int
        What the pointer's move was: the sequence number in the history of promotions for
        ``current``, the end of the known hours in microseconds for the others.
    """

    digest: str
    position: int


def read_pointer(serving: Path, name: str) -> Pointer | None:
    """Return what a pointer names, or None if it has never been moved.

    Parameters
    ----------
    serving : Path
        The deployment's serving folder.
    name : {"current", "snapshot", "user_vectors", "candidate_index"}

    Raises
    ------
    ValueError
        If the file is there but is no pointer.
    """
    path = serving / name
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_bytes())
        return Pointer(str(stored["digest"]), int(stored["position"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no pointer; remove it and promote or publish again") from error


def move_pointer(serving: Path, name: str, pointer: Pointer) -> None:
    """Replace a pointer atomically and durably."""
    content = json.dumps({"digest": pointer.digest, "position": pointer.position}, sort_keys=True)
    replace_file(serving / name, content.encode())


def publish_snapshot(serving: Path, digest: str, end_us: int) -> bool:
    """Point serving at a rate snapshot, unless a later one is already served.

    Parameters
    ----------
    serving : Path
    digest : str
        Snapshot to serve.
    end_us : int
        End of the hours it counts, microseconds.

    Returns
    -------
    bool
        Whether the snapshot is served now.
    """
    return _publish(serving, SNAPSHOT, Pointer(digest, end_us))


def publish_vectors(serving: Path, digest: str, end_us: int) -> bool:
    """Point serving at published vectors, unless later ones are already served.

    Parameters
    ----------
    serving : Path
    digest : str
        Of :func:`ad_pipeline.embeddings.published.write_published`.
    end_us : int
        End of the hour they know, microseconds.

    Returns
    -------
    bool
        Whether the vectors are served now.
    """
    return _publish(serving, USER_VECTORS, Pointer(digest, end_us))


def publish_index(serving: Path, digest: str, end_us: int) -> bool:
    """Point serving at a candidate index, unless a later one is already served.

    Parameters
    ----------
    serving : Path
    digest : str
        Of :func:`ad_pipeline.embeddings.candidate_index.write_index`.
    end_us : int
        End of the hours that it knows, microseconds.

    Returns
    -------
    bool
        Whether the index is served now.
    """
    return _publish(serving, CANDIDATE_INDEX, Pointer(digest, end_us))


def _publish(serving: Path, name: str, pointer: Pointer) -> bool:
    """Move a pointer, but never back in time.

    A backfill publishes old hours again; serving must not go back in time with it. What is
    published of the same hour replaces what is there: a late file may have changed it.
    """
    with only_mover(serving):
        served = read_pointer(serving, name)
        if served is not None and served.position > pointer.position:
            return False
        if served != pointer:
            move_pointer(serving, name, pointer)
        return True


@contextmanager
def only_mover(serving: Path) -> Iterator[None]:
    """Hold the lock that makes this process the only one to move a pointer.

    The operating system drops the lock with the process, so a kill leaves nothing to clean up.
    """
    serving.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(serving / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
