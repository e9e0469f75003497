"""Users dealt to parts by their hash: memory is that of a part, however many users there are.

What users did is read from the warehouse once, in batches, and each row is put into the file of its
user's part. A part is laid out when it is first opened; its arrays are kept beside the rows' file,
which they replace, and mapped into memory from then on, so that every further hour finds them laid
out. A log that fits into memory is one part and touches no disk.

Parts are numbered by the highest bits of the hash, as the shards of a store are: part after part is
the order of the hashes, and sums over users in that order have the same bits in any number of
parts. What is made of a part belongs to :mod:`.vector_hours`.

Measured for 4.4 million activities in 32 parts (two cores): reading them whole takes 1.0 s and 616
MB; split here 1.5 s and 315 MB, most of it what DuckDB keeps of the file and gives back at its
limit; DuckDB's own ``PARTITION_BY`` 3.0 s and 902 MB; a table sorted by part 3.1 s and 747 MB; a
scan of the log for each part 33 s.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ad_pipeline.datasets import Dataset, Deployment
from ad_pipeline.embeddings.activities import (
    Engagements,
    count_activities,
    engagements_of,
    history_of,
    read_activities,
    stream_activities,
)
from ad_pipeline.embeddings.published import USER, user_hashes
from ad_pipeline.embeddings.sequences import Activities, History
from ad_pipeline.settings import EncoderSettings, UserVectorSettings

if TYPE_CHECKING:
    from ad_pipeline.warehouse import Warehouse

MOST_BITS = 9
"""Files that are written at once are that many times doubled; a user may have 1,024 open."""

BYTES_PER_ACTIVITY = 250
"""What one takes while its part is laid out: its row, its arrays, and their sorted copies."""

_LEAST_SCAN_BYTES = 128 << 20
"""DuckDB needs so much to join and to spill."""

_BATCH_ROWS = 100_000
_ROWS_PER_PART = 2_000
"""Of a batch, so that a part is written in blocks and not in crumbs."""


@dataclass(frozen=True)
class Part:
    """What the users of a part did.

    Attributes
    ----------
    ids : ndarray of shape (n,), uint64
        Hashes of the history's users.
    history : History
    engagements : Engagements
    """

    ids: np.ndarray
    history: History
    engagements: Engagements

    @classmethod
    def of_rows(cls, rows: pa.Table, dataset: Dataset, encoder: EncoderSettings) -> "Part":
        """Lay rows of :func:`.activities.read_activities` out."""
        history = history_of(rows, dataset, encoder)
        return cls(user_hashes(history.users), history, engagements_of(rows, dataset))


@dataclass(frozen=True)
class Parts:
    """All users, a part at a time.

    Attributes
    ----------
    bits : int
        There are 2^bits parts.
    part : callable
        Told a number, returns the :class:`Part`; the last one is kept.
    """

    bits: int
    part: Callable[[int], Part]

    def __iter__(self) -> Iterator[Part]:
        """Yield the parts in the order of their users' hashes."""
        return map(self.part, range(2**self.bits))

    def of_shard(self, number: int, shard_bits: int) -> range:
        """Return the numbers of the parts that hold users of one of 2^shard_bits shards."""
        first = (number << self.bits) >> shard_bits
        last = (((number + 1) << self.bits) - 1) >> shard_bits
        return range(first, last + 1)


def part_bits(activities: int, in_memory: int) -> int:
    """Return how often users are halved until no part is expected to hold more activities."""
    return min(max(-(-activities // in_memory) - 1, 0).bit_length(), MOST_BITS)


@contextmanager
def read_parts(
    warehouse: "Warehouse",
    deployment: Deployment,
    settings: UserVectorSettings,
    from_us: int,
    as_of_us: int,
) -> Iterator[Parts]:
    """Read what users did within a range, and deal it to as many parts as memory asks for.

    Parameters
    ----------
    warehouse : Warehouse
        Held while the log is read, not while parts are laid out.
    deployment : Deployment
        In whose home the parts' files are, as ``.parts-…``, until the block ends.
    settings : UserVectorSettings
    from_us, as_of_us : int
        Received in ``[from_us, as_of_us]``, microseconds.

    Yields
    ------
    Parts
        To be read inside the block.
    """
    dataset, encoder = deployment.dataset, settings.encoder
    span = (from_us, as_of_us)
    with ExitStack() as stack:
        with warehouse.reader() as connection:
            memory = max(settings.activities_in_memory * BYTES_PER_ACTIVITY, _LEAST_SCAN_BYTES)
            # By itself DuckDB caches the file, and joins, up to four fifths of the machine.
            connection.execute(f"SET memory_limit = '{memory} B'")
            count = count_activities(connection, dataset, encoder, *span)
            bits = part_bits(count, settings.activities_in_memory)
            rows = folder = None
            if not bits:
                connection.execute("RESET memory_limit")
                rows = read_activities(connection, dataset, encoder, *span)
            else:
                scratch = TemporaryDirectory(dir=deployment.home, prefix=".parts-")
                folder = Path(stack.enter_context(scratch))
                most = max(_BATCH_ROWS, _ROWS_PER_PART << bits)
                _deal(stream_activities(connection, dataset, encoder, *span, most), folder, bits)
        if rows is not None:
            only = Part.of_rows(rows, dataset, encoder)
            del rows
            yield Parts(0, lambda _: only)
        elif folder is not None:
            laid_out = partial(_laid_out, folder, dataset, encoder)
            yield Parts(bits, lru_cache(maxsize=1)(laid_out))


def _deal(batches: pa.RecordBatchReader, folder: Path, bits: int) -> None:
    """Put each row into its part's file, ``<part>/rows.arrow``."""
    writers = []
    try:
        for number in range(2**bits):
            (folder / str(number)).mkdir()
            path = folder / str(number) / "rows.arrow"
            writers.append(pa.ipc.new_file(str(path), batches.schema))
        for batch in batches:
            users = pa.chunked_array([batch.column(USER)])
            of_part = (user_hashes(users) >> np.uint64(64 - bits)).astype(np.int64)
            order = np.argsort(of_part, kind="stable")
            dealt = batch.take(pa.array(order))
            ends = np.searchsorted(of_part[order], np.arange(2**bits + 1))
            for number in np.flatnonzero(np.diff(ends)):
                start, end = int(ends[number]), int(ends[number + 1])
                writers[number].write_batch(dealt.slice(start, end - start))
    finally:
        for writer in writers:
            writer.close()


def _laid_out(parts: Path, dataset: Dataset, encoder: EncoderSettings, number: int) -> Part:
    """Open a part, its arrays mapped; the first time they are made of its rows."""
    folder = parts / str(number)
    rows = folder / "rows.arrow"
    if rows.exists():
        with pa.OSFile(str(rows)) as file:
            found = pa.ipc.open_file(file).read_all()
        for name, array in _arrays(Part.of_rows(found, dataset, encoder)).items():
            np.save(folder / f"{name}.npy", array)
        rows.unlink()
    return _mapped(folder, encoder)


def _arrays(part: Part) -> dict[str, np.ndarray]:
    """Return a part as named arrays."""
    _, offsets, texts = part.history.users.buffers()
    users = len(part.history.users)
    arrays = {
        "ids": part.ids,
        "user_offsets": np.frombuffer(offsets or b"", np.int64)[: users + 1],
        "user_texts": np.frombuffer(texts or b"", np.uint8),
    }
    for place, of in enumerate(part.history.modalities.values()):
        arrays |= {f"modality{place}.{each.name}": getattr(of, each.name) for each in fields(of)}
    of = part.engagements
    return arrays | {f"engagements.{each.name}": getattr(of, each.name) for each in fields(of)}


def _mapped(folder: Path, encoder: EncoderSettings) -> Part:
    """Return the part of :func:`_arrays`, mapped into memory."""

    def array(name: str) -> np.ndarray:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

    ids = array("ids")
    texts = (pa.py_buffer(array(name)) for name in ("user_offsets", "user_texts"))
    users = pa.LargeStringArray.from_buffers(len(ids), *texts)
    modalities = {
        modality.name: Activities(
            *(array(f"modality{place}.{each.name}") for each in fields(Activities))
        )
        for place, modality in enumerate(encoder.modalities)
    }
    engagements = Engagements(*(array(f"engagements.{each.name}") for each in fields(Engagements)))
    return Part(ids, History(users, modalities), engagements)
