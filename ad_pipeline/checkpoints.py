"""Durable, content-addressed folders of plain arrays: the one format of all model state.

A checkpoint is a folder named by the SHA-256 of its manifest; the manifest names the SHA-256 of
every file, so the same inputs give the same bytes, the same name, and nothing to overwrite. A
pointer is a small file that names a checkpoint, moved atomically. What no pointer names can be
swept, by whoever knows what else is needed. What a checkpoint *means* (learner, snapshot, bundle),
and how long it is kept, belongs to the room that writes it; pickles and wall-clock times belong
nowhere.

Layout below a root::

    objects/<digest>/manifest.json  <array>.npy  <other files>
    pointers/<name>.json            {"digest": "..."}
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1

BLOCK_BYTES = 1 << 20
"""Hashed and written in one go, while it is still in the core's cache."""

_POLL_SECONDS = 0.02


class MissingCheckpoint(LookupError):
    """No checkpoint, or no pointer, of the asked name."""


class CorruptCheckpoint(Exception):
    """A file of a checkpoint does not have the bytes that its manifest names."""


class CheckpointsBusy(TimeoutError):
    """A sweep and somebody who writes stayed in each other's way until the waiter's deadline."""


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


@dataclass(frozen=True)
class Swept:
    """What a sweep removed.

    Attributes
    ----------
    removed : int
        Checkpoints.
    removed_bytes : int
        Of their files.
    kept : int
        Checkpoints that stay.
    kept_bytes : int
    """

    removed: int
    removed_bytes: int
    kept: int
    kept_bytes: int


def write_checkpoint(
    root: Path,
    kind: str,
    arrays: Mapping[str, np.ndarray],
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> Checkpoint:
    """Write a checkpoint durably; a second write of the same content is a verified no-op.

    Everything is written to a scratch folder beside the target, hashed on the way, flushed to disk,
    and renamed: a process killed at any point leaves either the whole checkpoint or none. Whoever
    points at it later does both inside :func:`unswept`.

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
    CorruptCheckpoint
        If a file reads back otherwise than it was written; the scratch folder is removed.
    OSError
        If the disk is full or not writable, naming the file; the scratch folder is removed.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"array {name!r} holds Python objects; store numbers or bytes")
    with unswept(root):
        return _write_checkpoint(root, kind, arrays, manifest, files or {})


def _write_checkpoint(
    root: Path,
    kind: str,
    arrays: Mapping[str, np.ndarray],
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> Checkpoint:
    objects = root / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    # Not mkdtemp: its folders are closed to other users, and the bidder may be one.
    scratch = objects / f".writing-{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        sums = {
            f"{name}.npy": _write(scratch / f"{name}.npy", _npy_blocks(array))
            for name, array in arrays.items()
        }
        for name, data in files.items():
            sums[name] = _write(scratch / name, iter([data]))
        described = dict(manifest) | {"format": FORMAT, "kind": kind, "files": sums}
        digest = _write(scratch / "manifest.json", iter([_manifest_bytes(described)]))
        target = objects / digest
        if target.exists():
            try:
                found = read_checkpoint(root, digest)
            except CorruptCheckpoint:
                # The true bytes are at hand: what a failing disk left behind is replaced by them.
                shutil.rmtree(target)
            else:
                shutil.rmtree(scratch)
                return found
        for path in scratch.iterdir():
            _flush_file(path)
        _flush_folder(scratch)
        # Read again before it gets its name: what the disk took is what was hashed on the way.
        _verify(scratch, sums | {"manifest.json": digest})
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    _flush_folder(objects)
    return read_checkpoint(root, digest, verify=False)


def read_checkpoint(
    root: Path, digest: str, *, verify: bool = True, unread: Callable[[str], bool] | None = None
) -> Checkpoint:
    """Open a checkpoint, its arrays memory-mapped.

    Parameters
    ----------
    root : Path
        Folder that holds ``objects/``.
    digest : str
        Name of the checkpoint.
    verify : bool
        Check the SHA-256 of every file first.
    unread : callable, optional
        Tells by name which files not to check: whoever opens one of them checks it then.

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
    return open_folder(folder, verify=verify, unread=unread)


def open_folder(
    folder: Path, *, verify: bool = True, unread: Callable[[str], bool] | None = None
) -> Checkpoint:
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
        _verify(folder, {n: found for n, found in named.items() if unread is None or not unread(n)})
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


def _verify(folder: Path, named: Mapping[str, str]) -> None:
    """Compare files with their SHA-256, named by file; the one way at write and at every load."""
    for name, expected in named.items():
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise CorruptCheckpoint(
                f"{folder / name} has SHA-256 {found}, the manifest says {expected}; "
                "restore the folder or write it again"
            )


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest of the checkpoint that has a manifest, wherever the manifest is kept."""
    return hashlib.sha256(_manifest_bytes(manifest)).hexdigest()


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode()


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


def unpoint(root: Path, name: str) -> None:
    """Remove a pointer durably; one that is not there is no error. The checkpoint stays."""
    path = _pointer(root, name)
    if path.exists():
        path.unlink()
        _flush_folder(path.parent)


def pointed_names(root: Path, below: str) -> list[str]:
    """Return the names of the pointers below a name, sorted.

    Parameters
    ----------
    root : Path
    below : str
        Whole parts of a name, such as ``"learners.online_model/click"``; ``""`` for all.

    Returns
    -------
    list of str
        As :func:`resolve` takes them; a colon of a name is not in its file's, and so not here.
    """
    pointers = root / "pointers"
    return sorted(
        path.relative_to(pointers).with_suffix("").as_posix()
        for path in (pointers / below.replace(":", "")).rglob("*.json")
        if not path.name.startswith(".")
    )


def manifests(root: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield digest and manifest of each checkpoint of a kind, pointed at or not, by digest.

    Inside :func:`unswept`, or some may be gone before they are read.
    """
    for path in sorted((root / "objects").glob("[!.]*/manifest.json")):
        manifest = json.loads(path.read_bytes())
        if manifest["kind"] == kind:
            yield path.parent.name, manifest


@contextmanager
def unswept(root: Path, wait_seconds: float = 600.0) -> Iterator[None]:
    """Keep sweeps away from checkpoints that are written and not pointed at yet.

    Any number of writers may be inside at once. The lock is the operating system's and dies with
    its process.

    Raises
    ------
    CheckpointsBusy
        If a sweep goes on past the deadline.
    """
    with _locked(root, fcntl.LOCK_SH, wait_seconds, "is being swept"):
        yield


def sweep(root: Path, needed: Collection[str] = (), wait_seconds: float = 600.0) -> Swept:
    """Remove every checkpoint that no pointer names, and what killed writers left.

    A process killed at any point leaves each checkpoint whole or without a name, and the next sweep
    removes the rest.

    Parameters
    ----------
    root : Path
    needed : collection of str
        Digests that stay although no pointer of this root names them.
    wait_seconds : float
        How long to wait for writers; see :func:`unswept`.

    Raises
    ------
    CheckpointsBusy
        If somebody writes past the deadline.
    """
    removed = removed_bytes = kept = kept_bytes = 0
    objects = root / "objects"
    if not objects.is_dir():
        return Swept(0, 0, 0, 0)
    with _locked(root, fcntl.LOCK_EX, wait_seconds, "is being written to"):
        named = {resolve(root, name) for name in pointed_names(root, "")} | set(needed)
        for folder in sorted(objects.iterdir()):
            if folder.name.startswith("."):
                shutil.rmtree(folder)
            elif folder.name in named:
                kept += 1
                kept_bytes += _size(folder)
            else:
                removed += 1
                removed_bytes += _size(folder)
                remove(root, folder.name)
        _flush_folder(objects)
    return Swept(removed, removed_bytes, kept, kept_bytes)


def remove(root: Path, digest: str) -> None:
    """Remove one checkpoint that nothing names any more, whole or not at all.

    It loses its name first, in one step, and then its files.
    """
    folder = root / "objects" / digest
    nameless = folder.with_name(f".removing-{digest}")
    folder.rename(nameless)
    shutil.rmtree(nameless)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file atomically and durably; readers see the old bytes or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        _write(scratch, iter([data]))
        _flush_file(scratch)
        Path(scratch).replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _pointer(root: Path, name: str) -> Path:
    return root / "pointers" / f"{name.replace(':', '')}.json"


def _npy_blocks(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a ``.npy`` file, those of the array without a copy."""
    # Not in Fortran's order, and at least one-dimensional: equal values have equal bytes.
    plain = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(plain))
    yield header.getvalue()
    if plain.size:
        content = plain.reshape(-1).view(np.uint8).data
        for start in range(0, len(content), BLOCK_BYTES):
            yield content[start : start + BLOCK_BYTES]


def _write(path: Path, blocks: Iterator[bytes | memoryview]) -> str:
    """Write a file, not yet durably, and return its SHA-256."""
    digest, written = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            digest.update(block)
            left = memoryview(block)
            with _naming(path, written + len(left)):
                while len(left):
                    left = left[file.write(left) :]
            written += len(block)
    return digest.hexdigest()


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _naming(path, path.stat().st_size):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path, size: int) -> Iterator[None]:
    """Let a write that fails name its file, which the error itself does not."""
    try:
        yield
    except OSError as error:
        problem = f"{error.strerror}: {size:,} bytes could not be written; make room, then run"
        raise OSError(
            error.errno, f"{problem} it again, nothing was replaced", str(path)
        ) from error


@contextmanager
def _locked(root: Path, mode: int, wait_seconds: float, why: str) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    descriptor = os.open(root / ".sweeping.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while True:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                if time.monotonic() >= deadline:
                    raise CheckpointsBusy(
                        f"{root} {why} by another process for {wait_seconds:g} s; wait for it or "
                        "stop it, then run it again"
                    ) from error
                time.sleep(_POLL_SECONDS)
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
