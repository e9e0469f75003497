"""A checkpoint inside an hour, so that a process that dies goes on where it was and not before.

It holds what the hour's own checkpoint will be made from: the state after the last slice that was
learnt, the exact position in the stream, and the scores given so far. It is worth something only to
the same hour of the same input, continued from the same parent by the same learner; anything else
is as if there were none. Once the hour is whole it is dropped: nothing else may continue from it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ad_pipeline.checkpoints import (
    CorruptCheckpoint,
    is_pointed,
    point,
    read_checkpoint,
    remove,
    resolve,
    unpoint,
    unswept,
    write_checkpoint,
)
from ad_pipeline.learners.online.step import Position

KIND = "learners.online_model_within_hour"
SCORES = "scores"


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint inside an hour gives back.

    Attributes
    ----------
    position : Position
    arrays : dict of str to ndarray
        Of the learner, as they were kept.
    manifest : dict
        Of the learner, as it was kept.
    """

    position: Position
    arrays: dict[str, np.ndarray]
    manifest: dict[str, Any]


def digest_of(arrays: Iterable[np.ndarray]) -> str:
    """Return a SHA-256 of arrays' bytes: that an hour's input is the one it was."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


@dataclass(frozen=True)
class WithinHour:
    """The checkpoint inside an hour of one goal: at most one at a time.

    Parameters
    ----------
    root : Path
        Root of the checkpoints.
    goal : str
    identity : mapping
        All that must be equal for it to be continued: ``hour_us``, parent, input, learner. JSON.
    """

    root: Path
    goal: str
    identity: Mapping[str, Any]

    @property
    def _name(self) -> str:
        return f"{KIND}/{self.goal}"

    def resume(self) -> Resumed | None:
        """Return what was kept of this very hour, every byte verified; None if nothing was.

        Raises
        ------
        CorruptCheckpoint
            If it is not intact; the message says that it may be dropped.
        """
        if not is_pointed(self.root, self._name):
            return None
        digest = resolve(self.root, self._name)
        if read_checkpoint(self.root, digest, verify=False).manifest["identity"] != self.identity:
            return None
        try:
            found = read_checkpoint(self.root, digest)
        except CorruptCheckpoint as error:
            raise CorruptCheckpoint(
                f"{error}; it is inside an hour: remove {self.root / 'pointers' / self._name}.json "
                "and the hour is learnt from its start"
            ) from error
        described = found.manifest
        arrays = {name: array for name, array in found.arrays.items() if name != SCORES}
        return Resumed(
            Position(
                described["stream_position"]["next_slice"],
                described["stream_position"]["examples"],
                np.array(found.arrays[SCORES]),
            ),
            arrays,
            described["learner"],
        )

    def keep(
        self, position: Position, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
    ) -> None:
        """Put a new position in the place of the last one, durably.

        Parameters
        ----------
        position : Position
        arrays : mapping of str to ndarray
            Of the learner.
        manifest : mapping
            Of the learner, JSON.
        """
        last = resolve(self.root, self._name) if is_pointed(self.root, self._name) else None
        with unswept(self.root):
            digest = write_checkpoint(
                self.root,
                KIND,
                {**arrays, SCORES: position.logits},
                {
                    "identity": dict(self.identity),
                    "stream_position": {
                        "next_slice": position.next_slice,
                        "examples": position.examples,
                    },
                    "learner": dict(manifest),
                },
            ).digest
            point(self.root, self._name, digest)
            if last not in (None, digest):
                remove(self.root, last)

    def drop(self) -> None:
        """Remove it now that its hour is whole; one of an earlier hour goes, too."""
        if not is_pointed(self.root, self._name):
            return
        with unswept(self.root):
            digest = resolve(self.root, self._name)
            described = read_checkpoint(self.root, digest, verify=False).manifest
            if described["identity"]["hour_us"] <= self.identity["hour_us"]:
                unpoint(self.root, self._name)
                remove(self.root, digest)
