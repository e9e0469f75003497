"""``ad_pipeline check`` finds each planted fault, says what to do, and lets good logs be."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_pipeline import cli
from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.events.sample import MAXIMUM_BYTES, Sampler
from ad_pipeline.events.sample_check import Finding, check_dataset
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline_tests.strangers.runs import avazu, criteo, ipinyou

ROWS = 1_200
START_US = 1_772_409_600_000_000

DATASET = """\
name: shop
start: 2026-03-02T00:00Z
end: 2026-03-02T08:00Z
goals:
  click: {window: 1h, lateness: 1h}
sources:
  impressions:
    files: shown.csv
    columns:
      impression_id: id
      occurred_us: CAST(at AS BIGINT)
      received_us: CAST(at AS BIGINT) + 1000
      colour: colour
      size: CAST(size AS DOUBLE)
  engagements:
    files: clicks.csv
    columns:
      event_id: id
      impression_id: of
      goal: goal
      occurred_us: CAST(at AS BIGINT)
      received_us: CAST(at AS BIGINT)
features:
  categorical: [colour]
  numeric: [size]
entities: [colour]
"""

Row = dict[str, str]


def shown(count: int = ROWS) -> list[Row]:
    """Return impressions evenly over the eight hours."""
    step = 8 * HOUR_US // count
    return [
        {
            "id": f"i{n}",
            "at": str(START_US + n * step),
            "colour": f"c{n % 7}",
            "size": f"{n % 97}.5",
            "when": timestamp(START_US + n * step).removesuffix("Z").partition(".")[0],
        }
        for n in range(count)
    ]


def clicks(rows: Sequence[Row]) -> list[Row]:
    """Return a click a minute after every tenth impression."""
    return [
        {"id": f"e{row['id']}", "of": row["id"], "goal": "click", "at": later(row["at"], 60)}
        for row in rows[::10]
    ]


def later(at: str, seconds: int) -> str:
    return str(int(at) + seconds * 1_000_000)


def write(path: Path, rows: Sequence[Row], delimiter: str = ",") -> None:
    lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def found_in(
    folder: Path,
    change: Callable[[list[Row], list[Row]], None] | None = None,
    *edits: tuple[str, str],
) -> tuple[Finding, ...]:
    """Return what is found in a shop's log after a change of its rows and its dataset file."""
    rows = shown()
    events = clicks(rows)
    if change is not None:
        change(rows, events)
    write(folder / "shown.csv", rows)
    write(folder / "clicks.csv", events)
    text = DATASET
    for good, bad in edits:
        assert good in text
        text = text.replace(good, bad, 1)
    (folder / "dataset.yaml").write_text(text)
    return check_dataset(folder / "dataset.yaml", folder / "home")


def of_level(findings: Sequence[Finding], *levels: str) -> list[str]:
    return [str(finding) for finding in findings if finding.level in levels]


def test_a_clean_log_gives_no_error_and_no_warning(tmp_path: Path) -> None:
    findings = found_in(tmp_path)
    assert of_level(findings, "error", "warning") == []
    said = "\n".join(str(finding) for finding in findings)
    assert "1,200 rows, all rows of 1 files" in said
    assert "120 of 1,200 rows reach it (10 %), half within" in said
    assert "about 1,200 rows in 10 log hours" in said
    assert "counted in UTC: at = 1772409600000000 is 2026-03-02T00:00:00Z" in said


def every(rows: list[Row], column: str, value: Callable[[Row], str], share: int = 1) -> None:
    for row in rows[::share]:
        row[column] = value(row)


FAULTS = [
    # name, change of (impressions, clicks), edits of the file, level, subject, words
    ("seconds", lambda i, e: every(i, "at", lambda r: str(int(r["at"]) // 1_000_000)), (),
     "error", "impressions.occurred_us", "looks like seconds -> write 1000000 *"),
    ("milliseconds", lambda i, e: every(i, "at", lambda r: str(int(r["at"]) // 1_000)), (),
     "error", "impressions.occurred_us", "looks like milliseconds -> write 1000 *"),
    ("nanoseconds", lambda i, e: every(i, "at", lambda r: r["at"] + "000"), (),
     "error", "impressions.occurred_us", "looks like nanoseconds"),
    ("from the start", lambda i, e: every(i, "at", lambda r: r["at"][7:10]), (),
     "error", "impressions.occurred_us", "seconds from the start of the log -> write epoch_us"),
    ("received before", None, (("AS BIGINT) + 1000", "AS BIGINT) - 1000"),),
     "error", "impressions", "received before it occurred: 1,200 of 1,200 rows (100 %)"),
    ("other start", None, (("2026-03-02T00", "2026-03-02T07"),),
     "error", "impressions.received_us", "received before the start and left out"),
    ("other end", None, (("2026-03-02T08", "2026-03-02T02"),),
     "error", "impressions.received_us", "received after the end"),
    ("end not reached", None, (("2026-03-02T08", "2026-03-03T08"),),
     "warning", "end", "write 'end: 2026-03-02T08:00:00Z'"),
    ("no such file", None, (("shown.csv", "shwn.csv"),),
     "error", "sources.impressions.files", "there is clicks.csv, shown.csv"),
    ("no such column", None, (("colour: colour", "colour: color"),),
     "error", "sources.impressions.columns.colour (line 13)", "write 'colour'"),
    ("broken YAML", None, (("window: 1h", "windw: 1h"),),
     "error", "goals.click.windw (line 5)", "write 'window'"),
    ("unknown function", None, (("colour: colour", "colour: lowr(colour)"),),
     "error", "sources.impressions.columns.colour (line 13)", "write lower()"),
    ("failing expression", lambda i, e: every(i, "size", lambda r: "large", 3), (),
     "error", "impressions.size", "wrong type: size: 400 of 1,200 rows (33.3 %)"),
    ("few failing", lambda i, e: every(i, "size", lambda r: "large", 100), (),
     "warning", "impressions.size", "wrong type: size: 12 of 1,200 rows (1 %)"),
    ("missing id", lambda i, e: every(i, "id", lambda r: "", 2), (),
     "error", "impressions.impression_id", "source_file || ':' || source_row"),
    ("repeated id", lambda i, e: every(i, "id", lambda r: r["id"][:2]), (),
     "error", "impressions.impression_id", "repeat a key"),
    ("delivered twice", lambda i, e: i.extend([dict(row) for row in i[:30]]), (),
     "warning", "impressions.impression_id", "30 of 1,230 rows"),
    ("unknown goal", lambda i, e: every(e, "goal", lambda r: "klick"), (),
     "error", "engagements.goal", "the log says klick: write one of the goals"),
    ("orphans", lambda i, e: every(e, "of", lambda r: r["of"] + "x"), (),
     "error", "goals.click", "name an impression that is not in the log, such as i0x"),
    ("before", lambda i, e: every(e, "at", lambda r: later(r["at"], -120)), (),
     "error", "goals.click", "come before their impression"),
    ("outside", lambda i, e: every(e, "at", lambda r: later(r["at"], 7_200), 3), (),
     "warning", "goals.click", "40 of 120 engagements (33.3 %) come after the window of 1h"),
    ("never clicked", lambda i, e: e.__delitem__(slice(1, None)),
     (("    files: clicks.csv\n", "    files: clicks.csv\n    where: of = 'none'\n"),),
     "warning", "engagements", "no row in 1 files"),
    ("wrong way round", lambda i, e: e.extend(
        {"id": f"x{r['id']}", "of": r["id"], "goal": "click", "at": r["at"]} for r in i), (),
     "warning", "goals.click", "is 'where' the wrong way round?"),
    ("constant", lambda i, e: every(i, "colour", lambda r: "red"), (),
     "warning", "impressions.colour", "the same in every row"),
    ("an id", lambda i, e: every(i, "colour", lambda r: r["id"]), (),
     "warning", "impressions.colour", "1,200 different values in 1,200 rows: an id"),
    ("codes", lambda i, e: every(i, "size", lambda r: str(int(r["id"][1:]) % 3)), (),
     "warning", "impressions.size", "list it as categorical if they are codes"),
    ("empty", lambda i, e: every(i, "colour", lambda r: ""), (),
     "error", "impressions.colour", "null in every row, first in shown.csv: colour = None"),
    ("not a number", lambda i, e: every(i, "size", lambda r: "nan" if r["id"][-1] != "0" else "1"),
     (), "warning", "impressions.size", "(90 %), first in shown.csv: size = nan"),
    ("no zone", None, (("CAST(at AS BIGINT)", 'epoch_us(CAST("when" AS TIMESTAMPTZ))'),),
     "error", "impressions.occurred_us", "say whose time it is: epoch_us(timezone("),
    ("no zone in the format", None, (
        ("CAST(at AS BIGINT)", "epoch_us(strptime(\"when\", '%Y-%m-%dT%H:%M:%S'))"),
        ("CAST(at AS BIGINT)", "epoch_us(strptime(\"when\", '%Y-%m-%dT%H:%M:%S'))")),
     "warning", "impressions.occurred_us", "text without a zone, taken as UTC: when = 2026-03-02"),
    ("in Berlin", None, (
        ("CAST(at AS BIGINT)", "epoch_us(timezone('Europe/Berlin', \"when\"::TIMESTAMP))"),),
     "ok", "impressions.occurred_us", "times of Europe/Berlin: when = 2026-03-02T00:00:00 is "
     "2026-03-01T23:00:00Z"),
    ("only the hour", lambda i, e: every(
        i, "at", lambda r: str(int(r["at"]) // HOUR_US * HOUR_US)),
     (("AS BIGINT) + 1000", "AS BIGINT)"),),
     "warning", "impressions.received_us", "add 3599999999"),
    ("many hours", None, (("start: 2026", "start: 2025"),),
     "warning", "run", "'start' and 'end' nearer to each other"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "edits", "level", "subject", "words"),
    [fault[1:] for fault in FAULTS],
    ids=[fault[0] for fault in FAULTS],
)
def test_a_planted_fault_is_found_and_says_what_to_do(
    change: Callable[[list[Row], list[Row]], None] | None,
    edits: tuple[tuple[str, str], ...],
    level: str,
    subject: str,
    words: str,
    tmp_path: Path,
) -> None:
    findings = found_in(tmp_path, change, *edits)
    fitting = [f for f in findings if (f.level, f.subject) == (level, subject)]
    assert any(words in str(finding) for finding in fitting), "\n".join(map(str, findings))
    assert all(finding.remedy for finding in findings if finding.level == "error")


def test_lines_that_cannot_be_taken_apart_are_found(tmp_path: Path) -> None:
    found_in(tmp_path)
    with (tmp_path / "shown.csv").open("a") as file:
        file.write("torn\n" * 200)
    said = of_level(check_dataset(tmp_path / "dataset.yaml", tmp_path), "error")
    assert any("200 of 1,400 rows" in line and "'header: false'" in line for line in said), said


@pytest.mark.parametrize("make", [criteo, avazu, ipinyou])
def test_a_clean_log_of_a_stranger_gives_no_error(make: Callable, tmp_path: Path) -> None:
    stranger = make(tmp_path, rows=2_000, hours=12)
    findings = check_dataset(stranger.dataset_file, stranger.root)
    assert of_level(findings, "error") == []
    goal = next(f for f in findings if f.subject == f"goals.{stranger.goal}" and f.level == "ok")
    planted = stranger.planted
    assert f"{planted.positives:,} of {planted.rows:,} rows reach it" in str(goal)


def test_the_real_log_gives_no_error() -> None:
    findings = check_dataset(DATA_FOLDER / "open_bandit" / "dataset.yaml", Path("nowhere"))
    assert of_level(findings, "error") == []
    assert of_level(findings, "warning") == []


def test_a_simulated_market_gives_no_error(tmp_path: Path) -> None:
    path = DATA_FOLDER / "marketplace" / "dataset.yaml"
    deployment = Deployment(load_dataset(path), tmp_path / "marketplace")
    spec = MarketplaceSpec(days=2, impressions_per_day=3_000, users=200)
    simulate_days(spec, deployment.logs, deployment.truth, range(1))
    findings = check_dataset(path, tmp_path)
    assert of_level(findings, "error") == []
    assert any("no file matches {home}/logs/decisions" in line for line in map(str, findings))


@pytest.mark.parametrize("name", ["shown.csv", "shown.csv.gz", "shown.parquet"])
def test_of_a_large_file_only_pieces_are_read(name: str, tmp_path: Path) -> None:
    """The pieces of plain text come from all over the file, and no row comes twice."""
    count = 1_300_000
    path = tmp_path / name
    if name.endswith("parquet"):
        table = pa.table({"id": pa.array(range(count)), "text": ["x" * 20] * count})
        pq.write_table(table, path, row_group_size=50_000)
    else:
        content = ("id,text\n" + "".join(f"{n},{'x' * 24}\n" for n in range(count))).encode()
        path.write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    (tmp_path / "dataset.yaml").write_text(DATASET.replace("shown.csv", name))
    deployment = Deployment(load_dataset(tmp_path / "dataset.yaml"), tmp_path / "home")
    (tmp_path / "scratch").mkdir()
    source = deployment.dataset.sources[0]
    sample = Sampler(tmp_path / "scratch").sample(deployment, source, [path])
    assert not sample.is_whole
    assert sample.files[0].disk_path.name == name
    (piece,) = [file.disk_path for file in sample.files]
    if name.endswith("parquet"):
        ids = pq.read_table(piece)["id"].to_pylist()
    else:
        packed = piece.read_bytes()
        text = gzip.decompress(packed) if name.endswith("gz") else packed
        assert len(text) <= MAXIMUM_BYTES + 1
        lines = text.decode().splitlines()
        assert {len(line.split(",")) for line in lines} == {2}
        ids = [int(line.split(",")[0]) for line in lines[1:]]
    assert len(ids) == len(set(ids))
    assert 50_000 < len(ids) < count
    assert ids[0] == 0
    assert (max(ids) > 0.9 * count) == (not name.endswith("gz"))


def test_the_command_prints_the_findings_and_fails_on_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found_in(tmp_path)
    assert cli.main(["check", str(tmp_path / "dataset.yaml")]) == 0
    assert "no error and 0 warnings" in capsys.readouterr().out
    found_in(tmp_path, None, ("colour: colour", "colour: color"))
    assert cli.main(["check", str(tmp_path / "dataset.yaml")]) == 1
    said = capsys.readouterr()
    assert "error   sources.impressions.columns.colour" in said.out
    assert "1 errors" in said.err
    assert cli.main(["check", str(tmp_path / "nowhere.yaml")]) == 1
    assert "there is no" in capsys.readouterr().err
