"""Small pieces of log files, however large those are: heads, middles and tails under the same name.

A piece is a file of its own in a scratch folder, written as the log is, so that the readers read it
as they would read the log. Which rows are right or wrong is not for this module to say.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.datasets import Deployment, Source
from ad_pipeline.events.readers import LogFile, UnreadableLog, format_of

MAXIMUM_FILES = 16
"""Files looked at of one source: the first, the last and some between."""

MAXIMUM_BYTES = 24_000_000
"""Of text, before compression, over all files of one source."""

MAXIMUM_ROWS = 120_000
"""Of Parquet, over all files of one source."""

_BLOCKS = 6
"""Places of a plain text file that pieces are taken from."""


@dataclass(frozen=True)
class Sample:
    """Pieces of the files of one source.

    Attributes
    ----------
    files : tuple of LogFile
        Named as in the ledger, lying in the scratch folder.
    of_files : int
        How many files the source has.
    bytes, of_bytes : int
        Size of the pieces and of all files, as they lie on the disk.
    """

    files: tuple[LogFile, ...]
    of_files: int
    bytes: int
    of_bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether the pieces are the whole log."""
        return self.of_files == len(self.files) and self.bytes >= self.of_bytes


class Sampler:
    """Takes pieces of log files, each file once: two sources of one file see the same rows.

    Parameters
    ----------
    scratch : Path
        Folder for the pieces.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._taken: dict[tuple[Path, str], tuple[Path, int]] = {}

    def sample(self, deployment: Deployment, source: Source, paths: Sequence[Path]) -> Sample:
        """Return pieces of a source's files.

        Raises
        ------
        UnreadableLog
            If neither the source nor a file's ending tells the format, or a compressed file is
            damaged where it is read.
        """
        chosen = _spread(paths, MAXIMUM_FILES)
        files: list[LogFile] = []
        taken_bytes = 0
        for path in chosen:
            piece, read_bytes = self._piece(path, format_of(source, path), len(chosen))
            files.append(LogFile(deployment.log_path(path), piece, 0))
            taken_bytes += read_bytes
        return Sample(
            files=tuple(files),
            of_files=len(paths),
            bytes=taken_bytes,
            of_bytes=sum(path.stat().st_size for path in paths),
        )

    def _piece(self, path: Path, format_: str, files: int) -> tuple[Path, int]:
        if (path, format_) not in self._taken:
            # A folder a file: the base name stays, since expressions may read it.
            folder = self.scratch / str(len(self._taken))
            folder.mkdir()
            target = folder / path.name
            take = _take_parquet if format_ == "parquet" else _take_text
            self._taken[path, format_] = (target, take(path, target, files))
        return self._taken[path, format_]


def first_lines(path: Path, most: int) -> list[str]:
    """Return the first lines of a text file, without their ends, an unfinished one left out.

    Raises
    ------
    UnreadableLog
        If the file is compressed and damaged.
    """
    content = _opening(path, 1 << 20)
    whole = _whole_lines(content).decode("utf-8", errors="replace").lstrip("\ufeff")
    return [line for line in whole.splitlines()[:most] if line]


def _spread(paths: Sequence[Path], most: int) -> list[Path]:
    """Return at most so many of some files, the first and the last among them."""
    if len(paths) <= most:
        return list(paths)
    places = {round(place * (len(paths) - 1) / (most - 1)) for place in range(most)}
    return [paths[place] for place in sorted(places)]


def _take_parquet(path: Path, target: Path, files: int) -> int:
    """Copy the first rows of row groups spread over a file; return the bytes that stand for them.

    A file that is not Parquet is linked as it is: the reader says what is wrong with it.
    """
    try:
        opened = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError):
        target.symlink_to(path)
        return path.stat().st_size
    wanted = max(MAXIMUM_ROWS // files, 1)
    with opened:
        rows = opened.metadata.num_rows
        if rows <= wanted:
            target.symlink_to(path)
            return path.stat().st_size
        groups = opened.num_row_groups
        chosen = sorted({round(p * (groups - 1) / max(_BLOCKS - 1, 1)) for p in range(_BLOCKS)})
        share = max(wanted // len(chosen), 1)
        with pq.ParquetWriter(target, opened.schema_arrow) as writer:
            for group in chosen:
                left = share
                for batch in opened.iter_batches(batch_size=share, row_groups=[group]):
                    writer.write_batch(batch.slice(0, left))
                    left -= min(left, batch.num_rows)
                    if left == 0:
                        break
    return path.stat().st_size * min(wanted, rows) // rows


def _take_text(path: Path, target: Path, files: int) -> int:
    """Copy lines from a text file; return the bytes of the file that were read for them."""
    wanted = max(MAXIMUM_BYTES // files, 1 << 16)
    codec = _codec(path)
    size = path.stat().st_size
    if codec is None and size <= wanted:
        target.symlink_to(path)
        return size
    if codec is None:
        head = _whole_lines(_read(path, 0, wanted // 2))
        pieces = [head]
        if not _spans_lines(head):
            share = wanted // 2 // (_BLOCKS - 1)
            for place in range(_BLOCKS - 1):  # apart from each other, the last one at the end
                offset = len(head) + place * (size - len(head) - share) // (_BLOCKS - 2)
                # From the end of the line that the offset fell into.
                block = _read(path, offset, share).partition(b"\n")[2]
                pieces.append(_whole_lines(block) if offset + share < size else block)
        target.write_bytes(b"".join(pieces))
        return sum(len(piece) for piece in pieces)
    content = _opening(path, wanted + 1)
    ended = len(content) <= wanted
    with pa.OSFile(str(target), "wb") as file, pa.CompressedOutputStream(file, codec) as stream:
        stream.write(content if ended else _whole_lines(content))
    return size if ended else min(target.stat().st_size, size - 1)


def _codec(path: Path) -> str | None:
    return {"gz": "gzip", "zst": "zstd"}.get(path.name.lower().rpartition(".")[2])


def _opening(path: Path, count: int) -> bytes:
    """Return the first bytes of a text file, as they were before compression."""
    codec = _codec(path)
    if codec is None:
        return _read(path, 0, count)
    try:
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, codec) as stream:
            return stream.read(count)
    except OSError as error:
        raise UnreadableLog(
            f"{path} is no readable {codec} file ({error}); fetch it again, or take it out of the "
            "globs in the dataset file"
        ) from error


def _read(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def _whole_lines(content: bytes) -> bytes:
    """Return the content up to the end of its last whole line."""
    cut = content.rfind(b"\n")
    return content if cut < 0 else content[: cut + 1]


def _spans_lines(content: bytes) -> bool:
    """Return whether a quoted field goes on over the end of a line, as far as quotes tell."""
    lines: Iterable[bytes] = content.splitlines()
    return any(line.count(b'"') % 2 for line in lines)
