"""A log file that is cut off, damaged, empty or lies about itself is named; the others are kept.

Such a file stops the reading before any file is entered, so the log is read whole once it is mended
or taken away. A row that is too long is refused by itself.
"""

import gzip
import json
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.events.accounting import accounting_gaps
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.readers import LONGEST_TEXT, UnreadableLog
from ad_pipeline_tests.events.worlds import (
    COLUMNS,
    START_US,
    close_log,
    deployment_in,
    impression,
    warehouse_of,
    write_rows,
)

NAMES = list(COLUMNS["impressions"])
MANY = 5_000
TEN_MB = "z" * 10_000_000


def many_rows() -> list[dict]:
    """Return impressions of the first hour, enough for several pages and buffers."""
    return [
        impression(f"i{number}", START_US + number, size=float(number * 7919 % 1009))
        for number in range(MANY)
    ]


def csv_of(rows: list[dict]) -> bytes:
    lines = [",".join(NAMES)]
    lines += [",".join(str(row.get(name, "")) for name in NAMES) for row in rows]
    return ("\n".join(lines) + "\n").encode()


def json_lines_of(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet_of(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    schema = pa.schema(list(COLUMNS["impressions"].items()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="snappy")
    return sink.getvalue().to_pybytes()


def put(deployment: Deployment, name: str, content: bytes) -> Path:
    path = deployment.logs / "impressions" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(deployment: Deployment) -> tuple[int, list[tuple]]:
    """Ingest the first hour; return the rows kept, and reason and key of those refused."""
    warehouse = warehouse_of(deployment)
    ingest_hours(warehouse, deployment, START_US, START_US + HOUR_US)
    with warehouse.reader() as connection:
        assert accounting_gaps(connection) == ()
        kept = connection.execute("SELECT count(*) FROM events.impressions").fetchall()[0][0]
        refused = connection.execute(
            "SELECT reason, key FROM events.quarantine ORDER BY ALL"
        ).fetchall()
    return kept, refused


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_its_end(content: bytes) -> bytes:
    return content[:-1]


def without_its_middle(content: bytes) -> bytes:
    """Cut out data and leave the footer, as a copy that lost a block does."""
    return content[:200] + content[-len(content) // 2 :]


def with_a_flipped_bit(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 16
    return bytes(damaged)


def nothing(content: bytes) -> bytes:
    return content[:0]


WRITTEN: dict[str, Callable[[list[dict]], bytes]] = {
    "a.parquet": parquet_of,
    "a.csv.gz": lambda rows: gzip.compress(csv_of(rows), mtime=0),
    "a.jsonl.gz": lambda rows: gzip.compress(json_lines_of(rows), mtime=0),
    "a.csv.zst": lambda rows: zstd(csv_of(rows)),
    "a.jsonl.zst": lambda rows: zstd(json_lines_of(rows)),
}

DAMAGES = [
    *((name, damage) for name in WRITTEN for damage in (half, without_its_end)),
    ("a.parquet", without_its_middle),
    ("a.parquet", nothing),
    ("a.csv.gz", nothing),
    ("a.csv.gz", with_a_flipped_bit),
    ("a.jsonl.gz", with_a_flipped_bit),
]


@pytest.mark.parametrize(
    ("name", "damage"), DAMAGES, ids=[f"{name}, {damage.__name__}" for name, damage in DAMAGES]
)
def test_a_damaged_file_is_named_and_the_log_is_whole_once_it_is_mended(
    name: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    write_rows(deployment, "impressions", "b", [impression("sound", START_US)])
    content = WRITTEN[name](many_rows())
    path = put(deployment, name, damage(content))
    with pytest.raises(UnreadableLog, match="mend it, or take it out") as caught:
        read(deployment)
    assert str(caught.value).startswith(f"{path} is no readable ")
    with warehouse_of(deployment).reader() as connection:
        assert connection.execute("SELECT count(*) FROM events.files").fetchall() == [(0,)]
    path.write_bytes(content)
    assert read(deployment) == (MANY + 1, [])


def test_the_damaged_file_is_the_one_named_among_many(tmp_path: Path) -> None:
    """All are read by one SELECT, whose error does not always say which file it is about."""
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    for number in range(4):
        put(deployment, f"sound{number}.parquet", parquet_of(many_rows()))
    path = put(deployment, "torn.parquet", without_its_middle(parquet_of(many_rows())))
    with pytest.raises(UnreadableLog) as caught:
        read(deployment)
    assert str(caught.value).startswith(f"{path} is no readable parquet file")
    path.unlink()
    assert read(deployment)[0] == MANY


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b""),
        ("a.csv", csv_of([])),
        ("a.csv", csv_of([]).rstrip()),
        ("a.jsonl", b""),
        ("a.jsonl", b"\n"),
        ("a.csv.gz", gzip.compress(b"")),
        ("a.csv.gz", gzip.compress(csv_of([]))),
        ("a.jsonl.gz", gzip.compress(b"")),
        ("a.csv.zst", zstd(csv_of([]))),
        ("a.parquet", parquet_of([])),
    ],
    ids=[
        "no byte", "header only", "header without its line end", "no line", "a blank line",
        "gz of nothing", "gz of a header", "gz of no line", "zst of a header", "Parquet of no row",
    ],
)  # fmt: skip
def test_an_empty_file_adds_no_row_and_takes_none_away(
    name: str, content: bytes, tmp_path: Path
) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    put(deployment, name, content)
    write_rows(deployment, "impressions", "b", [impression("sound", START_US)])
    assert read(deployment) == (1, [])
    with warehouse_of(deployment).reader() as connection:
        assert connection.execute(
            "SELECT rows FROM events.files WHERE path LIKE $path", {"path": f"%{name}"}
        ).fetchall() == [(0,)]


def varint(number: int) -> bytes:
    """Return a number as Thrift's compact protocol writes it (zigzag, seven bits a byte)."""
    rest, written = number << 1, bytearray()
    while rest >= 0x80:
        written.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*written, rest])


def claiming(content: bytes, rows: int, claimed: int, only_rows: bool) -> bytes:
    """Return a Parquet file whose footer claims another number of rows; its pages stay as they are.

    The number stands first for the file and last for the row group; unless ``only_rows``, it is
    replaced in every column chunk too. Compact Thrift has no lengths of structs, so only the
    footer's own length changes.
    """
    length = struct.unpack("<I", content[-8:-4])[0]
    body, footer = content[: -8 - length], content[-8 - length : -8]
    if only_rows:
        first, last = footer.find(varint(rows)), footer.rfind(varint(rows))
        places = [first, last]
    else:
        places = [p for p in range(len(footer)) if footer.startswith(varint(rows), p)]
    for place in reversed(places):
        footer = footer[:place] + varint(claimed) + footer[place + len(varint(rows)) :]
    return body + footer + struct.pack("<I", len(footer)) + b"PAR1"


READ_IN_A_PROCESS = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    from ad_pipeline.events.readers import UnreadableLog
    from ad_pipeline.events.ingest import ingest_hours
    from ad_pipeline_tests.events.worlds import START_US, deployment_in, warehouse_of
    from ad_pipeline.clocks import HOUR_US
    deployment = deployment_in(Path(sys.argv[1]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        ingest_hours(warehouse_of(deployment), deployment, START_US, START_US + HOUR_US)
    except UnreadableLog as error:
        print(error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
""")


def read_in_a_process(folder: Path) -> tuple[str, int]:
    """Ingest the first hour in a process of its own; return what it said and the MB it grew by."""
    ran = subprocess.run(
        [sys.executable, "-c", READ_IN_A_PROCESS, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    *said, grown_mb = ran.stdout.splitlines()
    return "\n".join(said), int(grown_mb)


@pytest.mark.parametrize("only_rows", [True, False], ids=["rows claimed", "values claimed too"])
def test_a_parquet_file_that_claims_a_billion_rows_is_named_and_costs_no_memory(
    only_rows: bool, tmp_path: Path
) -> None:
    """A billion impressions would take tens of GB; the file's pages hold 12,345 of them."""
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    rows = [impression(f"i{number}", START_US + number) for number in range(12_345)]
    content = parquet_of(rows)
    path = put(deployment, "a.parquet", claiming(content, 12_345, 1_000_000_000, only_rows))
    claims = pq.ParquetFile(path).metadata
    assert claims.num_rows == claims.row_group(0).num_rows == 1_000_000_000
    assert claims.row_group(0).column(0).num_values == (12_345 if only_rows else 1_000_000_000)
    said, grown_mb = read_in_a_process(tmp_path)
    assert said.startswith(f"{path} is no readable parquet file")
    assert grown_mb < 400
    path.write_bytes(content)
    assert read(deployment)[0] == 12_345


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("column", ["impression_id", "colour"])
def test_a_text_of_ten_megabytes_is_refused_by_itself_and_costs_little_memory(
    column: str, ending: str, tmp_path: Path
) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    rows = many_rows()
    rows[MANY // 2] = rows[MANY // 2] | {column: TEN_MB}
    rows[MANY // 2 + 1] = rows[MANY // 2 + 1] | {"colour": "r" * LONGEST_TEXT}
    write = {"parquet": parquet_of, "csv": csv_of, "jsonl": json_lines_of}[ending]
    put(deployment, f"a.{ending}", write(rows))
    said, grown_mb = read_in_a_process(tmp_path)
    assert said == ""
    assert grown_mb < 600
    with warehouse_of(deployment).reader() as connection:
        assert accounting_gaps(connection) == ()
        assert connection.execute("SELECT count(*) FROM events.impressions").fetchall() == [
            (MANY - 1,)
        ]
        (refused,) = connection.execute(
            "SELECT reason, strlen(row_json), coalesce(strlen(key), 0) FROM events.quarantine"
        ).fetchall()
    # A line of more than 2 MB is not even taken apart.
    assert refused[0] == (f"text too long: {column}" if ending == "parquet" else "line too long")
    assert refused[1] <= LONGEST_TEXT
    assert refused[2] <= LONGEST_TEXT


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_text_one_byte_over_the_limit_is_refused_with_its_column(
    ending: str, tmp_path: Path
) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    rows = [
        impression("long", START_US, colour="ä" * (LONGEST_TEXT // 2) + "b"),
        impression("longest", START_US, colour="ä" * (LONGEST_TEXT // 2)),
    ]
    write = {"parquet": parquet_of, "csv": csv_of, "jsonl": json_lines_of}[ending]
    put(deployment, f"a.{ending}", write(rows))
    assert read(deployment) == (1, [("text too long: colour", "long")])
    with warehouse_of(deployment).reader() as connection:
        (text,) = connection.execute("SELECT row_json FROM events.quarantine").fetchall()[0]
    assert "long" in json.loads(text)
    assert len(text.encode()) <= LONGEST_TEXT
