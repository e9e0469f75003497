"""``ad_pipeline init`` drafts a dataset file that loads, passes its check and says its guesses."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_pipeline import cli
from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.datasets import DATA_FOLDER, Dataset, load_dataset
from ad_pipeline.events.draft import draft_dataset, draft_name
from ad_pipeline.events.readers import UnreadableLog
from ad_pipeline.events.sample_check import check_dataset
from ad_pipeline_tests.strangers.runs import Stranger, avazu, criteo, ipinyou

START_US = 1_772_409_600_000_000


def drafted(folder: Path, *files: Path) -> tuple[Dataset, str]:
    """Return a draft that was loaded and checked without an error, and its text."""
    text = draft_dataset(files, "drafted", folder)
    path = folder / "drafted.yaml"
    path.write_text(text)
    errors = [str(f) for f in check_dataset(path, folder / "home") if f.level == "error"]
    assert errors == [], text
    return load_dataset(path), text


@pytest.mark.parametrize("make", [criteo, avazu, ipinyou])
def test_the_draft_of_a_stranger_passes_its_check(
    make: Callable[..., Stranger], tmp_path: Path
) -> None:
    stranger = make(tmp_path, rows=3_000, hours=12)
    dataset, text = drafted(tmp_path, stranger.log)
    shipped = stranger.deployment.dataset
    assert dataset.goal_names == (stranger.goal,)
    assert dataset.end_us is not None
    assert (dataset.end_us - dataset.start_us) == 12 * HOUR_US
    assert len(dataset.feature_columns) >= len(shipped.feature_columns) - 5
    assert str(tmp_path) not in text, "the files are named from where the draft lies"


def test_a_conversion_log_without_a_header_is_understood(tmp_path: Path) -> None:
    stranger = criteo(tmp_path, rows=3_000, hours=12)
    dataset, text = drafted(tmp_path, stranger.log)
    source, engagement = dataset.sources
    assert (source.delimiter, source.header, len(source.names)) == ("\t", False, 19)
    assert source.columns["impression_id"] == "source_file || ':' || source_row"
    assert engagement.where == "field_2 IS NOT NULL"
    assert "field_2" in engagement.columns["occurred_us"]
    assert len(dataset.features.numeric) == 8
    assert len(dataset.features.categorical) == 9
    assert "TODO the day it starts on is made up" in text


def test_a_log_with_only_an_hour_is_received_when_the_hour_has_ended(tmp_path: Path) -> None:
    dataset, _ = drafted(tmp_path, avazu(tmp_path, rows=3_000, hours=12).log)
    assert dataset.whole_hours
    assert dataset.sources[0].columns["received_us"].endswith("+ 3599999999")
    assert dataset.sources[0].columns["impression_id"] == "id"
    assert dataset.features.numeric == ()


def test_a_bid_log_keeps_prices_out_of_the_features(tmp_path: Path) -> None:
    dataset, text = drafted(tmp_path, ipinyou(tmp_path, rows=3_000, hours=12).log)
    columns = dataset.sources[0].columns
    assert (columns["bid_price"], columns["paid_price"]) == (
        "CAST(bidprice AS BIGINT)",
        "CAST(payprice AS BIGINT)",
    )
    assert not {"bidprice", "payprice", "click", "bidid"} & set(dataset.feature_columns)
    assert (dataset.sources[0].quote, dataset.sources[0].nulls) == ("", ("null",))
    assert columns["user_id"] == "ipinyouid"
    assert "TODO the zone, if it is not UTC" in text


def test_the_real_log_is_drafted_from_files_of_different_columns(tmp_path: Path) -> None:
    files = sorted((DATA_FOLDER / "open_bandit").glob("*_*.csv.gz"))
    dataset, _ = drafted(tmp_path, *files)
    shipped = load_dataset(DATA_FOLDER / "open_bandit" / "dataset.yaml")
    assert len(dataset.sources[0].files) == 6
    assert (dataset.start_us, dataset.end_us) == (shipped.start_us, shipped.end_us)
    assert dataset.goal_names == ("click",)
    assert dataset.sources[0].columns["impression_id"] == "source_file || ':' || column0"
    assert dataset.sources[0].columns["propensity"] == "propensity_score"


def impressions(count: int) -> list[dict]:
    return [
        {
            "impression_id": f"i{n}",
            "user_id": f"u{n % 50}",
            "shown_at": timestamp(START_US + n * 9_000_000),
            "site name": f"s{n % 9}",
            "price": round(0.5 + n % 83 / 100, 2),
        }
        for n in range(count)
    ]


def clicks(rows: list[dict]) -> list[dict]:
    return [
        {"click_no": f"e{n}", "shown": row["impression_id"], "clicked_at": row["shown_at"]}
        for n, row in enumerate(rows[::9])
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_a_file_of_engagements_is_told_by_its_ids(ending: str, tmp_path: Path) -> None:
    rows = impressions(2_000)
    for name, content in (("shown", rows), ("clicks", clicks(rows))):
        path = tmp_path / f"{name}.{ending}"
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(content), path)
        elif ending == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            lines = [",".join(content[0]), *(",".join(map(str, r.values())) for r in content)]
            path.write_text("\n".join(lines) + "\n")
    dataset, text = drafted(tmp_path, tmp_path / f"clicks.{ending}", tmp_path / f"shown.{ending}")
    shown, engagement = dataset.sources
    assert shown.files == (f"shown.{ending}",)
    assert engagement.files == (f"clicks.{ending}",)
    assert engagement.columns["impression_id"] == "shown"
    assert dataset.goal_names == ("click",)
    assert shown.columns["site_name"] == '"site name"'
    assert "price" in dataset.features.numeric
    assert "TODO how long after the impression one counts" in text


def test_local_times_are_marked_as_a_guess(tmp_path: Path) -> None:
    lines = [f"i{n},2026-03-02 {n // 60 % 24:02d}:{n % 60:02d}:00,c{n % 5}" for n in range(1_400)]
    (tmp_path / "log.csv").write_text("id,time,colour\n" + "\n".join(lines) + "\n")
    text = draft_dataset([tmp_path / "log.csv"], "local", tmp_path)
    assert "timezone(''UTC'', CAST(time AS TIMESTAMP))" in text
    assert "TODO taken as UTC: no zone in it" in text
    assert "TODO nothing in the log looks like a click or a conversion" in text
    (tmp_path / "dataset.yaml").write_text(text)
    assert load_dataset(tmp_path / "dataset.yaml").goal_names == ("click",)


def test_a_log_without_a_time_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("id,colour\n" + "".join(f"i{n},red\n" for n in range(99)))
    with pytest.raises(UnreadableLog, match="looks like a time"):
        draft_dataset([tmp_path / "log.csv"], "timeless", tmp_path)


def test_the_name_is_that_of_the_file_or_of_the_folder_of_several() -> None:
    assert draft_name([Path("/logs/My clicks-2026.csv.gz")]) == "my_clicks_2026"
    assert draft_name([Path("/logs/shop/a.csv"), Path("/logs/shop/b.csv")]) == "shop"


def test_the_command_writes_once_and_refuses_to_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = avazu(tmp_path / "made", rows=2_000, hours=8).log
    output = tmp_path / "new" / "dataset.yaml"
    arguments = ["init", str(log), "--name", "shop", "--output", str(output)]
    assert cli.main(arguments) == 0
    assert load_dataset(output).name == "shop"
    assert "lines marked TODO" in capsys.readouterr().out
    written = output.read_text()
    assert cli.main(arguments) == 1
    assert "exists and stays as it is" in capsys.readouterr().err
    assert output.read_text() == written
    assert cli.main(["init", str(tmp_path / "nothing.csv"), "--name", "nothing"]) == 1
    assert "there is no file" in capsys.readouterr().err
    assert not (DATA_FOLDER / "nothing").exists()
