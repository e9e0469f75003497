"""How simulated clicks are written: the formats of two public logs, their dataset file, the truth.

Codes become text here, and a file has its name only once it is whole. What a field means to the
pipeline is said by the dataset files under `data/`; which clicks there are is none of this module's
business.

*criteo* is Criteo's conversion log (Chapelle, KDD 2014): tab separated, no header; seconds to the
click and to its conversion, eight integers, nine hashed categories. *cascade* is Alimama's CASCADE
(Luo et al., WWW 2026) as its public preprocessing reads it (alimama-tech/NetCVR,
data/CASCADE/process_CASCADE.py): Unix seconds of the click, then the times of payments and of
refunds and 22 categories, each a Python list as text whose first element counts.
"""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ad_pipeline.clocks import DAY_US, timestamp
from ad_pipeline.datasets import DATA_FOLDER, load_dataset
from ad_pipeline.simulation.conversion_spec import LogFormat
from ad_pipeline.simulation.conversion_world import Clicks
from ad_pipeline.simulation.identifiers import fixed_width_column, number_column

DATASETS = {"criteo": "criteo_conversions", "cascade": "cascade_conversions"}
"""Dataset file of each format, under `data/`."""

CASCADE_START_S = 1_746_028_800
"""2025-05-01 00:00 in China."""

_PLAIN = "browser"
_QUOTED = "advertiser"
_HEX = np.array([f"{value:02x}".encode() for value in range(256)], dtype="S2").view(np.uint16)
_OPTIONS = {"include_header": False, "delimiter": "\t", "quoting_style": "none"}


class LogWriter:
    """Writes the log files of one format; they appear when the block ends without an error.

    Parameters
    ----------
    log_format : {'criteo', 'cascade'}
    folder : Path

    Attributes
    ----------
    files : tuple of Path
        Final places of what was written.

    Raises
    ------
    FileExistsError
        If the folder holds log files of the format already.
    """

    def __init__(self, log_format: LogFormat, folder: Path) -> None:
        self.log_format = log_format
        self.folder = folder
        pattern = "data.txt*" if log_format == "criteo" else "*.txt"
        taken = sorted(folder.glob(pattern))
        if taken:
            raise FileExistsError(
                f"{taken[0]} exists and stays as it is; name another folder, or move it away"
            )
        self.files: tuple[Path, ...] = ()
        self._drafts = folder / ".writing"
        self._writer: pyarrow.csv.CSVWriter | None = None

    def __enter__(self) -> Self:
        """Make the folder for unfinished files, empty."""
        shutil.rmtree(self._drafts, ignore_errors=True)
        self._drafts.mkdir(parents=True)
        return self

    def write(self, clicks: Clicks) -> None:
        """Write one day."""
        if self.log_format == "criteo":
            rows, name = criteo_rows(clicks), "data.txt"
        else:
            rows, name = cascade_rows(clicks), f"day-{len(self.files):02}.txt"
            self._close()
        writer = self._writer
        if writer is None:
            writer = self._writer = pyarrow.csv.CSVWriter(
                str(self._drafts / name),
                rows.schema,
                write_options=pyarrow.csv.WriteOptions(**_OPTIONS),
            )
            self.files += (self.folder / name,)
        writer.write_table(rows)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close, and give the files their names unless the block failed."""
        self._close()
        if kind is None:
            for path in self.files:
                (self._drafts / path.name).rename(path)
        shutil.rmtree(self._drafts)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class TruthFile:
    """Writes what only the simulator knows: a row for each click, in the order of the log.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._draft = path.with_name(f".{path.name}.writing")
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def __enter__(self) -> Self:
        """Make the folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(
        self,
        clicked_s: np.ndarray,
        probability: np.ndarray,
        net: np.ndarray,
        converted_s: np.ndarray,
        refunded_s: np.ndarray,
    ) -> None:
        """Write some clicks.

        Parameters
        ----------
        clicked_s, converted_s, refunded_s : ndarray of shape (n,), int64
            Seconds from the start; -1 for what never happens. Nothing is cut off here.
        probability : ndarray of shape (n,), float64
            Of a conversion within the window.
        net : ndarray of shape (n,), float64
            That a conversion is not refunded within the window after it.
        """
        count = len(clicked_s)
        table = pa.table(
            {
                "row": number_column(np.arange(self._rows + 1, self._rows + count + 1)),
                "clicked_s": number_column(clicked_s),
                "probability": number_column(probability),
                "net_probability": number_column(probability * net),
                "converted_s": number_column(converted_s),
                "refunded_s": number_column(refunded_s),
            }
        )
        self._rows += count
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._draft, table.schema)
        self._writer.write_table(table)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close, and give the file its name unless the block failed."""
        if self._writer is not None:
            self._writer.close()
        if kind is None:
            self._draft.rename(self.path)
        else:
            self._draft.unlink(missing_ok=True)


def write_dataset_file(log_format: LogFormat, folder: Path, days: int) -> Path:
    """Copy a format's dataset file beside a log of it, with the end of that log.

    Parameters
    ----------
    log_format : {'criteo', 'cascade'}
    folder : Path
    days : int
        Of clicks.

    Raises
    ------
    ValueError
        If the shipped file does not say its end once, on a line of its own.
    """
    shipped = DATA_FOLDER / DATASETS[log_format] / "dataset.yaml"
    lines = shipped.read_text().splitlines()
    ends = [place for place, line in enumerate(lines) if line.startswith("end: ")]
    if len(ends) != 1:
        raise ValueError(f"{shipped} has {len(ends)} lines that begin with 'end: ', not one")
    end_us = load_dataset(shipped).start_us + days * DAY_US
    lines[ends[0]] = f"end: {timestamp(end_us)} # {days} days of clicks, simulated"
    path = folder / "dataset.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def criteo_rows(clicks: Clicks) -> pa.Table:
    """Return clicks as columns of Criteo's format, in its order."""
    columns: dict[str, pa.Array] = {
        "click": number_column(clicks.clicked_s),
        "conversion": number_column(clicks.converted_s, clicks.converted_s < 0),
    }
    for place, values in enumerate(clicks.numbers, start=1):
        columns[f"int_{place}"] = number_column(values, values < 0)
    for place, codes in enumerate(clicks.categories.values(), start=1):
        columns[f"cat_{place}"] = _hexadecimal(codes, place)
    return pa.table(columns)


def cascade_rows(clicks: Clicks) -> pa.Table:
    """Return clicks as columns of CASCADE's raw format, in its order.

    Its numbers stand there as categories, so the eight of this world are cut into cells.
    """
    clicked_s = clicks.clicked_s + CASCADE_START_S
    columns: dict[str, pa.Array] = {
        "click": number_column(clicked_s),
        "pay": _times(clicks.converted_s),
        "refund": _times(clicks.refunded_s),
    }
    for place, (name, codes) in enumerate(clicks.categories.items()):
        columns[name] = (
            _hexadecimal(codes, place)
            if name == _PLAIN
            else _listed(codes, place, "['{}']" if name == _QUOTED else "[{}]")
        )
    for place, values in enumerate(clicks.numbers, start=len(columns)):
        cells = np.where(values < 0, -1, np.floor(4.0 * np.log1p(np.maximum(values, 0))))
        columns[f"cell_{place}"] = _listed(cells.astype(np.int64), place, "[{}]")
    local_s = clicked_s + 8 * 3600
    rest = {
        "hour": local_s // 3600 % 24,
        "weekday": local_s // 86_400 % 7,
        "quarter": local_s // 900 % 96,
        "section": clicks.categories["publisher"] % 16,
    }
    for place, (name, codes) in enumerate(rest.items(), start=len(columns)):
        columns[name] = _listed(codes, place, "[{}]")
    columns["tags"] = _listed(clicks.categories["product"], 24, "[{}, 7]")
    return pa.table(columns)


def _times(at_s: np.ndarray) -> pa.Array:
    """Return times as lists of text; one that never came is an empty list or an empty field."""
    import pyarrow.compute as pc

    never = at_s < 0
    texts = _listed(np.where(never, 0, at_s + CASCADE_START_S), None, "[{}]", never)
    count = len(at_s)
    empty_list = fixed_width_column(
        np.tile(np.frombuffer(b"[]", dtype=np.uint8), (count, 1)), np.arange(count) % 2 == 1
    )
    return pc.call_function("coalesce", [texts, empty_list])


def _listed(
    codes: np.ndarray, column: int | None, form: str, nulls: np.ndarray | None = None
) -> pa.Array:
    """Return codes as ten digits inside a text, null where they are negative.

    Parameters
    ----------
    codes : ndarray of shape (n,), int64
        Below 2^32.
    column : int or None
        Each column writes a code as another number; None writes the code itself.
    form : str
        With one pair of braces.
    nulls : ndarray of shape (n,), bool, optional
    """
    before, after = (part.encode() for part in form.split("{}"))
    numbers = codes if column is None else 10**9 + _mixed(codes, column)
    data = np.empty((len(codes), len(before) + 10 + len(after)), dtype=np.uint8)
    data[:, : len(before)] = np.frombuffer(before, dtype=np.uint8)
    data[:, len(before) + 10 :] = np.frombuffer(after, dtype=np.uint8)
    rest = numbers
    for place in range(9, -1, -1):
        tens = rest // 10
        data[:, len(before) + place] = rest - 10 * tens + ord("0")
        rest = tens
    return fixed_width_column(data, codes < 0 if nulls is None else nulls)


def _hexadecimal(codes: np.ndarray, column: int) -> pa.Array:
    """Return codes as eight hexadecimal digits that differ by column, null where negative."""
    mixed = _mixed(codes, column).astype(">u4").view(np.uint8).reshape(-1, 4)
    return fixed_width_column(_HEX[mixed].view(np.uint8).reshape(-1, 8), codes < 0)


def _mixed(codes: np.ndarray, column: int) -> np.ndarray:
    """Return numbers in [0, 2^32), int64, another one for each code and column."""
    words = codes.astype(np.uint64) + np.uint64(1_000_003 * column + 1)
    return ((words * np.uint64(2_654_435_761)) & np.uint64(0xFFFFFFFF)).astype(np.int64)
