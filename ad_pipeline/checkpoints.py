"""Durable, content-addressed folders of plain arrays: the one format of all model state.

A checkpoint is a folder named by the SHA-256 of its manifest; the manifest names the SHA-256 of
every file, so the same inputs give the same bytes, the same name, and nothing to overwrite. A
pointer is a small file that names a checkpoint, moved atomically. What a checkpoint *means*
(learner, snapshot, bundle) belongs to the room that writes it; pickles and wall-clock times belong
nowhere.

Layout below a root::

    objects/<digest>/manifest.json  <array>.npy  <other files>
    pointers/<name>.json            {"digest": "..."}
"""

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1


class MissingCheckpoint(LookupError):
    """No checkpoint, or no pointer, of the asked name."""


class CorruptCheckpoint(Exception):
    """A file of a checkpoint does not have the bytes that its manifest names."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk.

    Attributes
    ----------
    digest : str
        SHA-256 of the manifest, hexadecimal; also the folder's name.
    path : Path
        The folder.
    manifest : dict
        What the writer said, plus ``format``, ``kind`` and ``files`` (name → SHA-256).
    arrays : dict of str to ndarray
        Memory-mapped, read-only.
    files : dict of str to Path
        Files that are no arrays.
    """

    digest: str
    path: Path
    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]
    files: dict[str, Path]


def write_checkpoint(
    root: Path,
    kind: str,
    arrays: Mapping[str, np.ndarray],
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> Checkpoint:
    """Write a checkpoint durably; a second write of the same content is a verified no-op.

    Everything is written to a scratch folder beside the target, flushed to disk, and renamed: a
    process killed at any point leaves either the whole checkpoint or none.

    Parameters
    ----------
    root : Path
        Folder that holds ``objects/`` and ``pointers/``.
    kind : str
        What it is, e.g. ``"learners.online_model"``.
    arrays : mapping of str to ndarray
        Any shapes and plain dtypes; object arrays are refused.
    manifest : mapping
        JSON-serialisable facts: parent, stream position, label watermark, settings digest, canary
        scores. No wall-clock time: it would change the bytes of a re-run.
    files : mapping of str to bytes, optional
        Other files, e.g. ``{"model.txt": b"..."}``.

    Raises
    ------
    ValueError
        If an array holds Python objects.
    OSError
        If the disk is full or not writable, naming the file; the scratch folder is removed.
    """
    contents = {f"{name}.npy": _npy_bytes(name, array) for name, array in arrays.items()}
    contents |= dict(files or {})
    described = dict(manifest) | {
        "format": FORMAT,
        "kind": kind,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    manifest_bytes = json.dumps(described, sort_keys=True, indent=1, allow_nan=False).encode()
    digest = hashlib.sha256(manifest_bytes).hexdigest()
    objects = root / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    target = objects / digest
    if target.exists():
        try:
            return read_checkpoint(root, digest)
        except CorruptCheckpoint:
            # The true bytes are at hand: what a failing disk left behind is replaced by them.
            shutil.rmtree(target)
    # Not mkdtemp: its folders are closed to other users, and the bidder may be one.
    scratch = objects / f".writing-{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        for name, data in {**contents, "manifest.json": manifest_bytes}.items():
            _write_durably(scratch / name, data)
        _flush_folder(scratch)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    _flush_folder(objects)
    return read_checkpoint(root, digest, verify=False)


def read_checkpoint(root: Path, digest: str, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint, its arrays memory-mapped.

    Parameters
    ----------
    root : Path
        Folder that holds ``objects/``.
    digest : str
        Name of the checkpoint.
    verify : bool
        Check the SHA-256 of every file first.

    Raises
    ------
    MissingCheckpoint
        If there is no such folder.
    CorruptCheckpoint
        If a file is missing, is not named by the manifest, or has other bytes.
    """
    folder = root / "objects" / digest
    if not folder.is_dir():
        raise MissingCheckpoint(f"{folder} does not exist; materialize what writes it, then retry")
    return open_folder(folder, verify=verify)


def open_folder(folder: Path, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint by its folder, wherever it was copied to; see :func:`read_checkpoint`."""
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        raise CorruptCheckpoint(f"{manifest_path} is missing; restore the folder or write it again")
    manifest_bytes = manifest_path.read_bytes()
    digest = hashlib.sha256(manifest_bytes).hexdigest()
    if digest != folder.name:
        raise CorruptCheckpoint(
            f"{manifest_path} has SHA-256 {digest}, but its folder says {folder.name}; "
            "restore the folder or write it again"
        )
    manifest = json.loads(manifest_bytes)
    named = manifest["files"]
    present = {path.name for path in folder.iterdir()} - {"manifest.json"}
    if present != set(named):
        difference = ", ".join(sorted(present ^ set(named)))
        raise CorruptCheckpoint(f"{folder} and its manifest disagree about: {difference}")
    if verify:
        for name, expected in named.items():
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if found != expected:
                raise CorruptCheckpoint(
                    f"{folder / name} has SHA-256 {found}, the manifest says {expected}; "
                    "restore the folder or write it again"
                )
    return Checkpoint(
        digest=digest,
        path=folder,
        manifest=manifest,
        arrays={
            name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r", allow_pickle=False)
            for name in named
            if name.endswith(".npy")
        },
        files={name: folder / name for name in named if not name.endswith(".npy")},
    )


def point(root: Path, name: str, digest: str) -> None:
    """Move the pointer ``name`` (may hold slashes) to a checkpoint, atomically and durably.

    Raises
    ------
    MissingCheckpoint
        If the checkpoint is not there: a pointer never dangles.
    """
    if not (root / "objects" / digest / "manifest.json").is_file():
        raise MissingCheckpoint(f"cannot point {name} at {digest}: no such checkpoint in {root}")
    replace_file(_pointer(root, name), json.dumps({"digest": digest}).encode())


def resolve(root: Path, name: str) -> str:
    """Return the digest that a pointer names.

    Raises
    ------
    MissingCheckpoint
        If there is no such pointer.
    """
    path = _pointer(root, name)
    if not path.is_file():
        raise MissingCheckpoint(f"no checkpoint {name} in {root}; materialize that hour first")
    return json.loads(path.read_bytes())["digest"]


def is_pointed(root: Path, name: str) -> bool:
    """Tell whether the pointer exists."""
    return _pointer(root, name).is_file()


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file atomically and durably; readers see the old bytes or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        _write_durably(scratch, data)
        Path(scratch).replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _pointer(root: Path, name: str) -> Path:
    return root / "pointers" / f"{name.replace(':', '')}.json"


def _npy_bytes(name: str, array: np.ndarray) -> bytes:
    if array.dtype.hasobject:
        raise ValueError(f"array {name!r} holds Python objects; store numbers or bytes")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _write_durably(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # A failed write does not say to which file.
        problem = f"{error.strerror}: {len(data):,} bytes could not be written; make room, then run"
        raise OSError(
            error.errno, f"{problem} it again, nothing was replaced", str(path)
        ) from error


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
