"""Every format gives the same rows, and a bad row is refused by itself, with its reason."""

import gzip
import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import DatasetError, Deployment
from ad_pipeline.events.accounting import accounting_gaps
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.readers import UnreadableLog
from ad_pipeline_tests.events.worlds import (
    COLUMNS,
    DATASET,
    LAST_US,
    START_US,
    close_log,
    deployment_in,
    engagement,
    impression,
    warehouse_of,
    write_rows,
)

NAMES = list(COLUMNS["impressions"])
ROWS = [
    ["a", "x", "red", 1.5, 0.25, 9_007_199_254_740_993, START_US, START_US],
    ["b", None, 'a "quoted", one', None, None, None, START_US, START_US + 1],
]


def put(deployment: Deployment, name: str, content: bytes) -> Path:
    path = deployment.logs / "impressions" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(deployment: Deployment, end_us: int = START_US + HOUR_US) -> list[tuple]:
    """Ingest and return (reason, key) of the refused and the kept impressions of ``end_us``."""
    warehouse = warehouse_of(deployment)
    ingest_hours(warehouse, deployment, START_US, end_us)
    with warehouse.reader() as connection:
        assert accounting_gaps(connection) == ()
        return connection.execute(
            "SELECT reason, key FROM events.quarantine "
            "UNION ALL SELECT 'kept', impression_id FROM events.impressions "
            "WHERE impression_id <> 'last' ORDER BY ALL"
        ).fetchall()


def as_csv(rows: list[list], delimiter: str = ",") -> bytes:
    def field(value: object) -> str:
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if set(text) & set('",;\t') else text

    lines = [delimiter.join(NAMES), *(delimiter.join(map(field, row)) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


def as_json(rows: list[list]) -> bytes:
    return "".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in rows).encode()


def compressed(content: bytes, folder: Path) -> bytes:
    """Compress with Zstandard, which Python 3.11 cannot: DuckDB writes the lines as a column."""
    plain, packed = folder / "plain.txt", folder / "packed.csv.zst"
    plain.write_bytes(content)
    duckdb.sql(
        f"COPY (SELECT * FROM read_csv('{plain}', columns = {{'line': 'VARCHAR'}}, header = false, "
        f"delim = '\x01', quote = '', escape = '', auto_detect = false)) TO '{packed}' "
        "(FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\x01', COMPRESSION zstd)"
    )
    return packed.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "a.csv",
        "a.tsv",
        "a.csv.gz",
        "a.csv.zst",
        "a.jsonl",
        "a.ndjson.gz",
        "a.jsonl.zst",
        "a.parquet",
    ],
)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    if name == "a.parquet":
        write_rows(
            deployment, "impressions", "a", [dict(zip(NAMES, row, strict=True)) for row in ROWS]
        )
    else:
        content = as_json(ROWS) if "json" in name else as_csv(ROWS, "\t" if "tsv" in name else ",")
        if name.endswith(".gz"):
            content = gzip.compress(content)
        if name.endswith(".zst"):
            content = compressed(content, tmp_path)
        put(deployment, name, content)
    assert read(deployment) == [("kept", "a"), ("kept", "b")]
    with warehouse_of(deployment).reader() as connection:
        found = connection.execute(
            f"SELECT {', '.join(NAMES)} FROM events.impressions ORDER BY 1"
        ).fetchall()
    assert found == [tuple(row) for row in ROWS]


BAD_ROWS = [
    ("missing impression_id", {"impression_id": None}),
    ("missing impression_id", {"impression_id": ""}),
    ("missing occurred_us", {"occurred_us": None}),
    ("missing received_us", {"received_us": None}),
    ("clock out of range", {"received_us": START_US * 1000}),
    ("wrong type: received_us", {"received_us": "yesterday"}),
    ("wrong type: occurred_us", {"occurred_us": f"{START_US}.5"}),
    ("wrong type: bid_price", {"bid_price": "cheap"}),
    ("wrong type: bid_price", {"bid_price": 1.5}),
    ("wrong type: size", {"size": "large"}),
    ("not finite: size", {"size": "inf"}),
    ("propensity outside (0, 1]", {"propensity": 0.0}),
    ("propensity outside (0, 1]", {"propensity": 1.5}),
    ("received before it occurred", {"occurred_us": START_US + 60}),
    ("too late", {"occurred_us": START_US - 3 * HOUR_US - 1}),
    ("kept", {"size": "nan"}),
    ("kept", {"occurred_us": START_US - 3 * HOUR_US}),
]


@pytest.mark.parametrize(("reason", "change"), BAD_ROWS)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_bad_row_is_refused_by_itself_with_its_reason(
    reason: str, change: dict, ending: str, tmp_path: Path
) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    bad = dict(zip(NAMES, ["z", *ROWS[0][1:]], strict=True)) | change
    rows = [ROWS[0], [bad[name] for name in NAMES]]
    put(deployment, f"a.{ending}", as_json(rows) if ending == "jsonl" else as_csv(rows))
    found = read(deployment)
    assert ("kept", "a") in found
    assert reason in [refused for refused, key in found if key != "a"]
    assert len(found) == 2


def test_not_a_number_means_missing(tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    row = impression("a", START_US, size=float("nan"), propensity=float("nan"))
    write_rows(deployment, "impressions", "a", [row])
    read(deployment)
    with warehouse_of(deployment).reader() as connection:
        assert connection.execute(
            "SELECT size, propensity FROM events.impressions WHERE impression_id = 'a'"
        ).fetchall() == [(None, None)]


@pytest.mark.parametrize(
    ("ending", "line"),
    [
        ("csv", "too,few"),
        ("csv", ",".join(["too", "many"] * 9)),
        ("jsonl", '{"impression_id": "torn'),
        ("jsonl", "no json at all"),
    ],
)
def test_an_unreadable_line_is_quarantined_with_its_text(
    ending: str, line: str, tmp_path: Path
) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    content = as_json(ROWS) if ending == "jsonl" else as_csv(ROWS)
    put(deployment, f"a.{ending}", content + line.encode() + b"\n")
    assert read(deployment) == [("kept", "a"), ("kept", "b"), ("unreadable line", None)]
    with warehouse_of(deployment).reader() as connection:
        quarantined = connection.execute("SELECT row_json, file FROM events.quarantine").fetchall()
    assert line.split(",")[0].split('"')[0] in quarantined[0][0]
    assert quarantined[0][1] == f"{{home}}/logs/impressions/a.{ending}"


def test_a_quarantined_row_keeps_what_stood_in_the_file(tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    put(deployment, "a.csv", as_csv([["", *ROWS[0][1:]]]))
    read(deployment)
    with warehouse_of(deployment).reader() as connection:
        (text,) = connection.execute("SELECT row_json FROM events.quarantine").fetchall()[0]
    assert json.loads(text)["colour"] == "red"
    assert json.loads(text)["bid_price"] == "9007199254740993"


MAPPED = """
      occurred_us: epoch_us(CAST(at AS TIMESTAMPTZ))
      received_us: epoch_us(CAST(at AS TIMESTAMPTZ)) + 1000 * CAST(delay_ms AS BIGINT)
"""


def test_clocks_with_a_zone_are_mapped_by_the_documented_words(tmp_path: Path) -> None:
    deployment = deployment_in(
        tmp_path,
        DATASET.replace(
            "      occurred_us: occurred_us\n      received_us: received_us\n", MAPPED[1:], 1
        ),
    )
    names = "impression_id,arm,colour,size,propensity,bid_price,at,delay_ms"
    rows = [
        "a,,,,,,2026-03-02T01:30:00.000001+01:00,2",
        "b,,,,,,2026-03-01T22:30:00-02:00,0",
        "c,,,,,,soon,0",
        "last,,,,,,2026-03-02T07:00:00Z,0",
    ]
    put(deployment, "a.csv", "\n".join([names, *rows]).encode())
    assert read(deployment) == [
        ("kept", "a"), ("kept", "b"), ("wrong type: occurred_us", "c"),
    ]  # fmt: skip
    with warehouse_of(deployment).reader() as connection:
        assert connection.execute(
            "SELECT occurred_us - $start, received_us - occurred_us FROM events.impressions "
            "ORDER BY impression_id LIMIT 2",
            {"start": START_US},
        ).fetchall() == [(HOUR_US // 2 + 1, 2000), (HOUR_US // 2, 0)]


def test_only_rows_that_meet_the_condition_are_part_of_the_log(tmp_path: Path) -> None:
    text = DATASET.replace(
        "    columns:\n", "    where: CAST(size AS DOUBLE) > 1\n    columns:\n", 1
    )
    deployment = deployment_in(tmp_path, text)
    rows = [
        [key, "", "", size, "", "", START_US, START_US]
        for key, size in zip("abcd", ["2", "1", "", "x"], strict=True)
    ]
    rows.append(["last", "", "", "2", "", "", START_US + 7 * HOUR_US, START_US + 7 * HOUR_US])
    put(deployment, "a.csv", as_csv(rows))
    assert read(deployment) == [("kept", "a"), ("wrong type: size", "d")]


def test_text_used_as_a_number_is_explained_with_its_line(tmp_path: Path) -> None:
    text = DATASET.replace("    columns:\n", "    where: size > 1\n    columns:\n", 1)
    deployment = deployment_in(tmp_path, text)
    put(deployment, "a.csv", as_csv(ROWS))
    line = text[: text.index("where: size")].count("\n") + 1
    with pytest.raises(DatasetError, match=rf"dataset.yaml:{line}: .*write for example CAST"):
        read(deployment)


def test_a_column_that_the_files_lack_is_named_with_its_line(tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path, DATASET.replace("colour: colour", "colour: color"))
    close_log(deployment)
    line = DATASET[: DATASET.index("colour: colour")].count("\n") + 1
    with pytest.raises(DatasetError, match=rf"dataset.yaml:{line}: .*'color'; write 'colour'"):
        read(deployment)


def test_a_timestamp_where_microseconds_are_wanted_is_explained(tmp_path: Path) -> None:
    text = DATASET.replace("occurred_us: occurred_us", "occurred_us: to_timestamp(occurred_us)", 1)
    deployment = deployment_in(tmp_path, text)
    close_log(deployment)
    with pytest.raises(DatasetError, match="epoch_us"):
        read(deployment)


def test_files_with_different_columns_are_read_side_by_side(tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    put(deployment, "a.csv", as_csv(ROWS[:1]))
    shuffled = [NAMES[::-1], ROWS[1][::-1]]
    content = "\n".join(
        ",".join('"' + str(v or "").replace('"', '""') + '"' for v in row) for row in shuffled
    )
    put(deployment, "b.csv", content.encode())
    put(deployment, "empty.csv", b"")
    put(deployment, "header_only.csv", as_csv([]))
    put(deployment, "empty.jsonl", b"")
    assert read(deployment) == [("kept", "a"), ("kept", "b")]


def test_a_blank_header_is_called_by_its_place(tmp_path: Path) -> None:
    text = DATASET.replace(
        "impression_id: impression_id", "impression_id: source_file || column0", 1
    )
    deployment = deployment_in(tmp_path, text)
    names = ",".join(["", *NAMES[1:]])
    last = START_US + 7 * HOUR_US
    put(
        deployment,
        "a.csv",
        f"{names}\n7,,,,,,{last},{last}\n8,,,,,,{START_US},{START_US}\n".encode(),
    )
    assert read(deployment) == [("kept", "a.csv8")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"no parquet", "no readable parquet"),
        ("a.log", b"x", "write 'format:'"),
        ("a.csv", b"x,y,x\n1,2,3\n", "two columns named"),
        ("a.csv.gz", b"no gzip", "no readable gzip"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_named(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    path = put(deployment, name, content)
    with pytest.raises(UnreadableLog, match=words) as caught:
        read(deployment)
    assert str(path) in str(caught.value)


def test_an_unknown_goal_and_a_missing_goal_are_refused(tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    write_rows(deployment, "impressions", "a", [impression("i", START_US)])
    write_rows(
        deployment,
        "engagements",
        "a",
        [
            engagement("e", "i", START_US, goal="install"),
            engagement("f", "i", START_US) | {"goal": None},
        ],
    )
    assert read(deployment, LAST_US) == [
        ("kept", "i"), ("missing goal", "f"), ("unknown goal", "e"),
    ]  # fmt: skip


def test_names_with_quotes_and_spaces_are_read(tmp_path: Path) -> None:
    text = DATASET.replace("colour: colour", "colour: '\"its colour\" || ''!'''", 1)
    folder = tmp_path / "it's a folder"
    deployment = deployment_in(folder, text)
    names = ",".join(NAMES).replace("colour", "its colour")
    last = START_US + 7 * HOUR_US
    put(
        deployment,
        "a'b.csv",
        f"{names}\nlast,,red,,,,{last},{last}\nb,,red,,,,{START_US},{START_US}\n".encode(),
    )
    assert read(deployment) == [("kept", "b")]
    with warehouse_of(deployment).reader() as connection:
        assert connection.execute("SELECT colour FROM events.impressions").fetchall() == [("red!",)]


def test_a_file_that_lacks_a_column_is_named_and_the_log_is_whole_once_it_is_mended(
    tmp_path: Path,
) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    put(deployment, "a.csv", as_csv(ROWS))
    content = as_csv([["c", *ROWS[0][1:]]])
    path = put(deployment, "b.csv", content.replace(b"bid_price", b"bid", 1))
    with pytest.raises(
        DatasetError,
        match=rf"dataset.yaml:\d+: .*{path} has no column 'bid_price'; write .*\bbid\b",
    ):
        read(deployment)
    path.write_bytes(content)
    assert read(deployment) == [("kept", "a"), ("kept", "b"), ("kept", "c")]


def test_a_json_line_without_a_required_key_is_refused_by_itself(tmp_path: Path) -> None:
    """Keys may differ from line to line: a key that may be null is null where it is missing."""
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    lines = [json.loads(line) for line in as_json([ROWS[0], ROWS[0], ROWS[1]]).splitlines()]
    del lines[0]["colour"], lines[1]["impression_id"]
    put(deployment, "a.jsonl", "\n".join(map(json.dumps, lines)).encode())
    assert read(deployment) == [("kept", "a"), ("kept", "b"), ("missing impression_id", None)]


TYPES = {
    "bid_price": pa.array([7, 8, 9], pa.int32()),
    "size": pa.array([1.5, float("nan"), float("inf")], pa.float32()),
    "propensity": pa.array(["0.5", "often", "0.25"]),
    "colour": pa.array(["red", None, "blue"]).dictionary_encode(),
}


def test_a_parquet_file_with_other_types_is_read_as_far_as_its_values_fit(tmp_path: Path) -> None:
    """Beside files with the types of the contract; what does not fit is refused row by row."""
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    write_rows(deployment, "impressions", "b", [impression("d", START_US)])
    table = pa.table(
        {
            "impression_id": pa.array(["a", "b", "c"]),
            "arm": pa.nulls(3),
            **TYPES,
            "occurred_us": pa.array([START_US] * 3),
            "received_us": pa.array([START_US] * 3, pa.uint64()),
        }
    )
    pq.write_table(table, deployment.logs / "impressions" / "a.parquet")
    assert read(deployment) == [
        ("kept", "a"), ("kept", "d"), ("not finite: size", "c"), ("wrong type: propensity", "b"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "column",
    [pa.array([[1]]), pa.array([{"x": 1}]), pa.array([b"1"]), pa.array([True])],
    ids=["list", "struct", "bytes", "boolean"],
)
def test_a_parquet_column_that_is_no_number_is_explained(column: pa.Array, tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    write_rows(deployment, "impressions", "a", [impression("a", START_US)])
    path = deployment.logs / "impressions" / "a.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("bid_price")
    pq.write_table(table.set_column(place, "bid_price", column), path)
    with pytest.raises(DatasetError, match=r"bid_price: .* of .*a\.parquet where BIGINT is wanted"):
        read(deployment)


ZONED = DATASET.replace(
    "      occurred_us: occurred_us\n      received_us: received_us\n",
    "      occurred_us: epoch_us(CAST(occurred AS TIMESTAMPTZ))\n"
    "      received_us: epoch_us(CAST(received AS TIMESTAMPTZ))\n",
    1,
)
LAST_HOUR = "2026-03-02T07:00:00Z"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("no time zone: occurred_us", "2026-03-02T00:30:00"),
        ("no time zone: occurred_us", "2026-03-02 00:30:00.123456"),
        ("no time zone: occurred_us", "2026-03-02"),
        ("wrong type: occurred_us", "soon"),
        ("wrong type: occurred_us", "2026-03-02T00:30:00 of Mars"),
        ("kept", "2026-03-02T00:30:00Z"),
        ("kept", "2026-03-02 00:30:00.123456+00"),
        ("kept", "2026-03-02T01:30:00+01:00"),
        ("kept", "2026-03-01 22:30:00-0200"),
        ("kept", "2026-03-02 01:30:00 Europe/Berlin"),
        ("kept", "2026-03-02 00:30:00 UTC"),
    ],
)
def test_a_moment_without_its_zone_is_refused_by_itself(
    reason: str, text: str, ending: str, tmp_path: Path
) -> None:
    """DuckDB would take it for one in the zone of the session."""
    deployment = deployment_in(tmp_path, ZONED)
    rows = [
        {"impression_id": "a", "occurred": text, "received": "2026-03-02T00:30:01Z"},
        {"impression_id": "b", "occurred": LAST_HOUR, "received": LAST_HOUR},
        {"impression_id": "c", "occurred": "2026-03-02T00:00Z", "received": "2026-03-02T00:00Z"},
    ]
    rows = [dict.fromkeys(NAMES, "") | row for row in rows]
    if ending == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    put(deployment, f"a.{ending}", "\n".join(lines).encode())
    assert sorted(read(deployment)) == sorted([(reason, "a"), ("kept", "c")])


def test_a_zone_is_asked_for_only_where_a_text_is_cast(tmp_path: Path) -> None:
    """The dataset file may put a zone to texts that lack one, by a condition or for all."""
    text = ZONED.replace(
        "CAST(occurred AS TIMESTAMPTZ)",
        "CASE WHEN occurred LIKE '%Z' THEN CAST(occurred AS TIMESTAMPTZ) "
        "ELSE CAST(occurred || '+01:00' AS TIMESTAMPTZ) END",
    )
    deployment = deployment_in(tmp_path, text)
    names = "impression_id,arm,colour,size,propensity,bid_price,occurred,received"
    rows = [
        "a,,,,,,2026-03-02T01:30:00,2026-03-02T00:30:00Z",
        "b,,,,,,2026-03-02T00:30:00Z,2026-03-02T00:30:00Z",
        f"last,,,,,,{LAST_HOUR},{LAST_HOUR}",
    ]
    put(deployment, "a.csv", "\n".join([names, *rows]).encode())
    assert read(deployment) == [("kept", "a"), ("kept", "b")]
    with warehouse_of(deployment).reader() as connection:
        assert connection.execute(
            "SELECT DISTINCT occurred_us FROM events.impressions"
        ).fetchall() == [(START_US + HOUR_US // 2,)]


def timestamps_in_parquet(deployment: Deployment, type_: pa.DataType) -> Path:
    moments = pa.array([START_US, START_US + 7 * HOUR_US], pa.timestamp("us")).cast(type_)
    table = pa.table(
        {name: pa.nulls(2, pa.string()) for name in NAMES[1:6]}
        | {"impression_id": ["a", "last"], "occurred": moments, "received": moments}
    )
    path = deployment.logs / "impressions" / "a.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("type_", [pa.timestamp("us"), pa.timestamp("ms"), pa.timestamp("ns")])
@pytest.mark.parametrize("written", ["CAST({} AS TIMESTAMPTZ)", "{}"])
def test_a_parquet_timestamp_without_a_zone_is_explained(
    written: str, type_: pa.DataType, tmp_path: Path
) -> None:
    text = ZONED.replace("CAST(occurred AS TIMESTAMPTZ)", written.format("occurred"))
    deployment = deployment_in(tmp_path, text)
    path = timestamps_in_parquet(deployment, type_)
    with pytest.raises(
        DatasetError,
        match=rf"occurred_us: column 'occurred' of {path} is a TIMESTAMP\w*, which has no time "
        r"zone; write epoch_us\(occurred AT TIME ZONE 'UTC'\)",
    ):
        read(deployment)


@pytest.mark.parametrize(
    "written",
    [
        "{} AT TIME ZONE 'UTC'",
        "timezone('UTC', {})",
        "CAST(CAST({} AS VARCHAR) || 'Z' AS TIMESTAMPTZ)",
    ],
)
def test_a_parquet_timestamp_is_read_once_its_zone_is_said(written: str, tmp_path: Path) -> None:
    text = ZONED
    for column in ("occurred", "received"):
        text = text.replace(f"CAST({column} AS TIMESTAMPTZ)", written.format(column))
    deployment = deployment_in(tmp_path, text)
    timestamps_in_parquet(deployment, pa.timestamp("us"))
    assert read(deployment) == [("kept", "a")]


def test_a_parquet_timestamp_with_a_zone_needs_no_other_words(tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path, ZONED)
    timestamps_in_parquet(deployment, pa.timestamp("us", "Europe/Berlin"))
    assert read(deployment) == [("kept", "a")]


def test_not_a_number_is_missing_and_an_infinite_feature_is_refused_in_parquet_too(
    tmp_path: Path,
) -> None:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    sizes = {"a": 1.5, "b": float("nan"), "c": float("inf"), "d": float("-inf")}
    rows = [impression(key, START_US, size=size) for key, size in sizes.items()]
    write_rows(deployment, "impressions", "a", rows)
    assert read(deployment) == [
        ("kept", "a"), ("kept", "b"), ("not finite: size", "c"), ("not finite: size", "d"),
    ]  # fmt: skip


def reformed(folder: Path, *lines: str, key: str = "impression_id") -> Deployment:
    """Return a deployment whose impressions are written in another form of CSV."""
    form = "".join(f"    {line}\n" for line in lines)
    text = DATASET.replace("    columns:\n", f"{form}    columns:\n", 1)
    return deployment_in(
        folder, text.replace("impression_id: impression_id", f"impression_id: {key}", 1)
    )


def fields(key: str, at_us: int, *, arm: str = "") -> list:
    return [key, arm, "red", "1.5", "", "", at_us, at_us]


def tabbed(*rows: list) -> bytes:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def test_a_file_without_a_header_is_read_by_the_listed_names(tmp_path: Path) -> None:
    listed = f"names: [{', '.join(NAMES)}]"
    deployment = reformed(tmp_path, "header: false", "delimiter: tab", listed)
    rows = tabbed(fields("a", START_US), fields("last", START_US + 7 * HOUR_US))
    put(deployment, "a.csv", rows)
    assert read(deployment) == [("kept", "a")]


def test_unnamed_fields_are_called_by_their_place(tmp_path: Path) -> None:
    text = DATASET
    for place, name in enumerate(NAMES):
        text = text.replace(f"      {name}: {name}\n", f"      {name}: column{place}\n", 1)
    text = text.replace("    columns:\n", "    header: false\n    columns:\n", 1)
    deployment = deployment_in(tmp_path, text)
    rows = tabbed(fields("a", START_US), fields("last", START_US + 7 * HOUR_US))
    put(deployment, "a.tsv", rows)
    assert read(deployment) == [("kept", "a")]


def test_names_that_do_not_fit_the_fields_are_an_error_that_counts_them(tmp_path: Path) -> None:
    deployment = reformed(tmp_path, "header: false", "delimiter: comma", f"names: {NAMES}")
    path = put(deployment, "a.csv", tabbed(fields("a", START_US)))
    with pytest.raises(UnreadableLog, match=r"has 1 fields .* lists 8; .*'delimiter: ") as caught:
        read(deployment)
    assert str(path) in str(caught.value)


def test_the_form_of_a_csv_is_refused_for_other_files(tmp_path: Path) -> None:
    deployment = reformed(tmp_path, "header: false")
    put(deployment, "a.jsonl", as_json(ROWS))
    with pytest.raises(UnreadableLog, match=r"is read as jsonl, .*write 'format: csv'"):
        read(deployment)


def test_words_that_mean_null_are_null_and_quotes_may_be_plain_text(tmp_path: Path) -> None:
    deployment = reformed(tmp_path, "delimiter: tab", "quote: none", "nulls: ['null', '-']")
    rows = [
        ["a", '5" wide', "null", "-", "", "", START_US, START_US],
        fields("last", START_US + 7 * HOUR_US),
    ]
    put(deployment, "a.csv", tabbed(NAMES, *rows))
    assert read(deployment) == [("kept", "a")]
    with warehouse_of(deployment).reader() as connection:
        assert connection.execute(
            "SELECT arm, colour, size FROM events.impressions WHERE impression_id = 'a'"
        ).fetchall() == [('5" wide', None, None)]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "parquet"])
def test_equal_rows_without_an_id_are_told_apart_by_their_place(
    ending: str, tmp_path: Path
) -> None:
    """Per file, from 1, and the same in every source of the file and every reading of an hour."""
    deployment = reformed(tmp_path, key="source_file || ':' || source_row")
    rows = [fields("", START_US), fields("", START_US), fields("", START_US + 7 * HOUR_US)]
    for name in ("a", "b"):
        if ending == "parquet":
            named = [dict(zip(NAMES, row, strict=True)) for row in rows]
            for row in named:
                row.update(size=1.5, propensity=None, bid_price=None)
            write_rows(deployment, "impressions", name, named)
            continue
        content = as_json(rows) if ending == "jsonl" else as_csv(rows)
        put(deployment, f"{name}.{ending}",
            gzip.compress(content) if ending.endswith("gz") else content)  # fmt: skip
    kept = [f"{name}.{ending}:{row}" for name in "ab" for row in (1, 2)]
    assert read(deployment) == [("kept", key) for key in kept]
    warehouse = warehouse_of(deployment)
    ingest_hours(warehouse, deployment, START_US + HOUR_US, START_US + 8 * HOUR_US)
    with warehouse.reader() as connection:
        assert accounting_gaps(connection) == ()
        last = connection.execute(
            "SELECT impression_id FROM events.impressions WHERE received_us > $at ORDER BY 1",
            {"at": START_US + HOUR_US},
        ).fetchall()
    assert last == [(f"a.{ending}:3",), (f"b.{ending}:3",)]


def test_the_place_of_a_row_counts_readable_lines_whatever_the_condition(tmp_path: Path) -> None:
    text = DATASET.replace("    columns:\n", "    where: arm = 'x'\n    columns:\n", 1).replace(
        "impression_id: impression_id", "impression_id: CAST(source_row AS VARCHAR)", 1
    )
    deployment = deployment_in(tmp_path, text)
    rows = [
        fields("", START_US),
        fields("", START_US, arm="x"),
        fields("", START_US + 7 * HOUR_US, arm="x"),
    ]
    content = as_csv(rows).splitlines(keepends=True)
    put(deployment, "a.csv", b"".join([*content[:2], b"torn\n", *content[2:]]))
    assert read(deployment) == [("kept", "2"), ("unreadable line", None)]
