"""A dataset file is either right, or its mistake is named with line, key and what to write."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US, MINUTE_US, published_hour
from ad_pipeline.datasets import (
    DATA_FOLDER,
    FUNCTIONS,
    Dataset,
    DatasetError,
    Deployment,
    HomeTaken,
    check_home,
    claim_home,
    deployment_from_env,
    load_dataset,
    parse_expression,
)

GOOD = """\
name: shop
start: 2026-03-02T00:00Z
end: 2026-03-04T00:00Z
goals:
  click: {window: 1h, lateness: 2h, observation: 10m}
  purchase:
    anchor: click
    window: 24h
    lateness: 2h
    counting: all
sources:
  impressions:
    files: ["logs/*.csv", "{home}/logs/*.parquet"]
    columns:
      impression_id: id
      campaign_id: campaign
      country: upper(country)
      hour: CAST(hour(CAST(at AS TIMESTAMPTZ)) AS VARCHAR)
      price: CAST(price AS DOUBLE)
      occurred_us: epoch_us(CAST(at AS TIMESTAMPTZ))
      received_us: epoch_us(CAST(at AS TIMESTAMPTZ))
  engagements:
    - files: clicks.jsonl.gz
      columns: {event_id: id, impression_id: of, goal: "'click'", occurred_us: a, received_us: b}
    - files: orders.csv
      format: csv
      where: amount > 0
      columns: {event_id: id, impression_id: of, goal: "'purchase'", occurred_us: a, received_us: b}
features:
  categorical: [country, hour]
  numeric: [price]
  crosses: [[country, hour]]
entities: [campaign_id]
settings:
  online: {bits: 18}
"""


def load(text: str, folder: Path) -> Dataset:
    path = folder / "dataset.yaml"
    path.write_text(text)
    return load_dataset(path)


def test_a_good_file_becomes_a_dataset(tmp_path: Path) -> None:
    dataset = load(GOOD, tmp_path)
    click, purchase = dataset.goals
    assert (click.anchor, click.window_us, click.lateness_us) == (
        "impression",
        HOUR_US,
        2 * HOUR_US,
    )
    assert (click.observation_us, click.counting) == (10 * MINUTE_US, "first")
    assert (purchase.anchor, purchase.counting) == ("click", "all")
    assert dataset.horizon_us == 26 * HOUR_US
    assert dataset.chain_window_us("purchase") == 25 * HOUR_US
    assert dataset.feature_columns == {"country": "VARCHAR", "hour": "VARCHAR", "price": "DOUBLE"}
    assert [s.table for s in dataset.sources] == ["impressions", "engagements", "engagements"]
    assert len(dataset.sources_of("engagements")) == 2
    assert dataset.settings.online.bits == 18
    assert (dataset.end_us, dataset.whole_hours) == (dataset.start_us + 48 * HOUR_US, False)
    with pytest.raises(KeyError, match="no goal 'install'"):
        dataset.goal("install")


def test_a_log_of_clicks_anchors_its_goals_on_the_click(tmp_path: Path) -> None:
    """What a row is has a name of its own; it means the same as ``impression``."""
    text = GOOD.replace("name: shop", "name: shop\nrow: click").replace(
        "  click: {window: 1h, lateness: 2h, observation: 10m}\n", ""
    )
    dataset = load(text, tmp_path)
    assert (dataset.row, dataset.goal("purchase").anchor) == ("click", "impression")
    assert dataset.maturity_us == 26 * HOUR_US


def test_the_form_of_csv_files_is_said_in_words(tmp_path: Path) -> None:
    form = [
        "delimiter: tab",
        "header: false",
        "names: [a, b]",
        "quote: none",
        "nulls: ['null', '-']",
    ]
    text = GOOD.replace("format: csv", "\n      ".join(form))
    plain, source = load(text, tmp_path).sources_of("engagements")
    assert (source.delimiter, source.header, source.names) == ("\t", False, ("a", "b"))
    assert (source.quote, source.nulls) == ("", ("null", "-"))
    assert (plain.delimiter, plain.header, plain.quote, plain.nulls) == (None, True, '"', ())


def test_goals_come_in_chain_order_however_the_file_lists_them(tmp_path: Path) -> None:
    text = GOOD.replace("  click: {window: 1h, lateness: 2h, observation: 10m}\n", "").replace(
        "    counting: all\n", "    counting: all\n  click: {window: 1h, lateness: 2h}\n"
    )
    dataset = load(text, tmp_path)
    assert [goal.name for goal in dataset.goals] == ["purchase", "click"]
    assert [goal.name for goal in dataset.goals_in_chain_order()] == ["click", "purchase"]


MISTAKES = [
    # replaced, by, key, what the message says
    ("name: shop", "nmae: shop", "nmae", "unknown key; write 'name'"),
    ("name: shop\n", "", "file", "the key 'name' is missing"),
    ("name: shop", "name: a/b", "name", "cannot name a folder"),
    ("2026-03-02T00:00Z", "2026-03-02T00:30Z", "start", "whole hour"),
    ("2026-03-02T00:00Z", "2026-03-02T00:00", "start", "no time zone"),
    ("2026-03-02T00:00Z", "yesterday", "start", "write a whole hour in UTC"),
    ("2026-03-04T00:00Z", "2026-03-01T00:00Z", "end", "not after the start"),
    ("window: 24h", "window: 1 day", "goals.purchase.window", "a whole number and s, m, h or d"),
    ("window: 24h", "window: 0h", "goals.purchase.window", "window of nothing"),
    ("window: 24h", "windw: 24h", "goals.purchase.windw", "write 'window'"),
    ("    window: 24h\n", "", "goals.purchase", "the window is missing"),
    ("window: 24h", "window: 30m", "goals.purchase.window", "those of its anchor 'click'"),
    ("anchor: click", "anchor: clik", "goals.purchase.anchor", "write 'click'"),
    ("anchor: click", "anchor: purchase", "goals.purchase.anchor", "in a circle"),
    ("anchor: click", "anchor: click\n    without: clik", "goals.purchase.without",
     "write 'click'"),
    ("anchor: click", "anchor: click\n    without: purchase", "goals.purchase.without",
     "write one of click"),
    ("{window: 1h,", "{anchor: purchase, window: 1h,", "goals.click.anchor", "in a circle"),
    ("counting: all", "counting: last", "goals.purchase.counting", "write one of first, all"),
    ("observation: 10m", "observation: 2h", "goals.click.observation", "at most the window"),
    ("  impressions:", "  impresions:", "sources.impresions", "write 'impressions'"),
    ("      impression_id: id\n", "", "sources.impressions.columns", "'impression_id' is missing"),
    ("      country: upper(country)\n", "", "sources.impressions.columns", "'country' is missing"),
    ("campaign_id: campaign\n", "user_id: campaign\n", "sources.impressions.columns",
     "'campaign_id'"),
    ("campaign_id: campaign", "campain_id: campaign", "sources.impressions.columns.campain_id",
     "write 'campaign_id'"),
    ("upper(country)", "uper(country)", "sources.impressions.columns.country", "write upper()"),
    ("upper(country)", "getenv('HOME')", "sources.impressions.columns.country", "getenv()"),
    ("upper(country)", "(SELECT 1)", "sources.impressions.columns.country", "one scalar"),
    ("amount > 0", "amount >", "sources.engagements[1].where", "is not SQL"),
    ("format: csv", "format: cvs", "sources.engagements[1].format", "write 'csv'"),
    ("files: orders.csv", "file: orders.csv", "sources.engagements[1].file", "write 'files'"),
    ("[country, hour]\n  n", "[country, hour, hour]\n  n", "features.categorical[1]", "twice"),
    ("[country, hour]\n  n", "[country, hour, price]\n  n", "features.numeric[0]", "categorical"),
    ("[country, hour]\n  n", "[country, read_us]\n  n", "features.categorical[1]", "cannot name"),
    ("[price]", "[price, user_id]", "features.numeric[1]", "list it as categorical"),
    ("upper(country)", "DROP TABLE impressions", "sources.impressions.columns.country", "write "),
    ("upper(country)", "country; DELETE FROM x", "sources.impressions.columns.country",
     "without ';'"),
    ("amount > 0", "amount > 0; DROP TABLE x", "sources.engagements[1].where", "without ';'"),
    ("amount > 0", "SELECT 1", "sources.engagements[1].where", "write one"),
    ("[[country, hour]]", "[[country, huor]]", "features.crosses[0][1]", "write 'hour'"),
    ("[[country, hour]]", "[[country]]", "features.crosses[0]", "a cross of 1 columns"),
    ("entities: [campaign_id]", "entities: [price]", "entities[0]", "an entity is text"),
    ("bits: 18", "bitz: 18", "settings.online.bitz", "write 'bits'"),
    ("bits: 18", "bits: 99", "settings.online.bits", "less than or equal to 28"),
    ("  online: {", "  onlin: {", "settings.onlin", "write 'online'"),
    ("  online: {bits: 18}", "  examples: {negative_rate_by_goal: {clik: 0.1}}",
     "settings.examples.negative_rate_by_goal.clik", "write one of click, purchase"),
    ("  online: {bits: 18}", "  online: {by_goal: {clik: {loss: ulc}}}",
     "settings.online.by_goal.clik", "write one of click, purchase"),
    ("  online: {bits: 18}", "  deep: {lose: hazard}", "settings.deep.lose", "write 'loss'"),
    ("  online: {bits: 18}", "  deep: {loss: probit}", "settings.deep", "write 'logistic' here"),
    ("  online: {bits: 18}", "  online: {loss: ulc, strategy: immediate}",
     "settings.online", "leave strategy out"),
    ("  online: {bits: 18}", "  user_vectors: {encoder: {tasks: [clik]}}",
     "settings.user_vectors.encoder.tasks[0]", "write some of click, purchase"),
    ("  online: {bits: 18}", "  user_vectors: {encoder: {ad_columns: [ad_id, county]}}",
     "settings.user_vectors.encoder.ad_columns[1]", "write 'country'"),
    ("  online: {bits: 18}", "  user_vectors: {encoder: {ad_columns: [price]}}",
     "settings.user_vectors.encoder.ad_columns[0]", "list it under features.categorical first"),
    ("  online: {bits: 18}", "  user_vectors: {kept_hours: 100}",
     "settings.user_vectors.kept_hours", "settings.ensemble.lookback_hours is 168"),
    ("  online: {bits: 18}", "  user_vectors: {}\n  delays: {lookback_hours: 400}",
     "settings.user_vectors", "settings.delays.lookback_hours is 400"),
    ("  online: {bits: 18}", "  ensemble: {calibration_slice: county}",
     "settings.ensemble.calibration_slice", "write 'country'"),
    ("  online: {bits: 18}", "  ensemble: {calibration_slice: price}",
     "settings.ensemble.calibration_slice", "list it under features.categorical first"),
    ("  online: {bits: 18}", "  label_quality: {slices: [county]}",
     "settings.label_quality.slices[0]", "write 'country'"),
    ("goals:\n", "goals: [\n", "file", "not YAML"),
    ("format: csv", "delimiter: ab", "sources.engagements[1].delimiter", "one of tab, comma"),
    ("format: csv", "header: maybe", "sources.engagements[1].header", "write one of true, false"),
    ("format: csv", "names: [a, A]", "sources.engagements[1].names[0]", "its own name"),
    ("format: csv", "quote: two", "sources.engagements[1].quote", "one character in quotes"),
    ("format: csv", "nulls: [null]", "sources.engagements[1].nulls[0]", "a quoted text"),
    ("format: csv", "format: jsonl\n      header: false", "sources.engagements[1].header",
     "leave it out, or write 'format: csv'"),
    ("name: shop", "name: shop\nrow: a click", "row", "a plain word, as in click"),
    ("name: shop", "name: shop\nrow: click", "goals.click", "cannot name a goal"),
    ("end: 2026", "name: again\nend: 2026", "name", "stands here twice"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "key", "words"), MISTAKES)
def test_a_mistake_is_named_with_file_line_key_and_remedy(
    good: str, bad: str, key: str, words: str, tmp_path: Path
) -> None:
    assert good in GOOD
    text = GOOD.replace(good, bad, 1)
    with pytest.raises(DatasetError) as caught:
        load(text, tmp_path)
    error = caught.value
    assert words in str(error)
    assert error.key == key
    assert str(error).startswith(f"{tmp_path / 'dataset.yaml'}:{error.line}: {key}: ")
    assert error.remedy


def test_vectors_are_kept_just_as_long_as_learners_look_them_up(tmp_path: Path) -> None:
    """An hour less is refused, and would be missed by the oldest label of a lookback."""
    needed, lag = 168 + 27 + 1, 1
    dataset = load(with_kept(needed), tmp_path)
    with pytest.raises(DatasetError, match=f"write kept_hours: {needed} or more"):
        load(with_kept(needed - 1), tmp_path)
    hour_us = dataset.start_us + 1_000 * HOUR_US  # the hours before it go by this hour's run
    oldest_matured_us = hour_us + HOUR_US - dataset.settings.ensemble.lookback_hours * HOUR_US
    looked_up_us = published_hour(lag, oldest_matured_us - dataset.maturity_us)
    assert looked_up_us == hour_us - needed * HOUR_US


def with_kept(hours: int) -> str:
    vectors = f"  user_vectors: {{kept_hours: {hours}}}"
    return GOOD.replace("  online: {bits: 18}", f"  online: {{bits: 18}}\n{vectors}")


@pytest.mark.parametrize(
    ("key", "line_text"),
    [
        ("goals.purchase.window", "    window: 1 day"),
        ("sources.impressions.columns.country", "      country: uper(country)"),
        ("settings.online.bitz", "  online: {bitz: 18}"),
    ],
)
def test_the_line_is_the_one_of_the_mistake(key: str, line_text: str, tmp_path: Path) -> None:
    good = {
        "    window: 1 day": "    window: 24h",
        "      country: uper(country)": "      country: upper(country)",
        "  online: {bitz: 18}": "  online: {bits: 18}",
    }
    with pytest.raises(DatasetError) as caught:
        load(GOOD.replace(good[line_text], line_text), tmp_path)
    assert caught.value.key == key
    assert GOOD.replace(good[line_text], line_text).splitlines()[caught.value.line - 1] == line_text


@pytest.mark.parametrize(
    "text",
    [
        "id",
        '"user-item_affinity_0"',
        "epoch_us(CAST(timestamp AS TIMESTAMPTZ))",
        "split_part(source_file, '.', 1) || ':' || column0",
        "CASE WHEN a = 1 THEN 'x' WHEN b IN (1, 2) THEN 'y' ELSE 'z' END",
        "CAST(round(price * 1000000) AS BIGINT)",
        "a BETWEEN 1 AND (2 + 3) AND (b IS NOT NULL OR NOT c)",
        "payload ->> '$.x'",
        "CAST(x AS DECIMAL(18, 3))",
        "extract('hour' FROM at)",
        "epoch_us(at AT TIME ZONE 'Europe/Berlin')",
        "CAST(at AS TIMESTAMP) + INTERVAL 1 HOUR",
        "'a; b'",
        "'SELECT getenv(''x'')'",
    ],
)
def test_an_expression_over_columns_passes(text: str) -> None:
    parse_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a, b",
        "a; b",
        "a AS b",
        "SELECT 1",
        "(SELECT 1)",
        "a IN (SELECT 1)",
        "EXISTS (SELECT 1)",
        "FROM t",
        "VALUES (1)",
        "DROP TABLE x",
        "ATTACH 'x'",
        "COPY t TO 'x'",
        "PRAGMA x",
        "*",
        "t.*",
        "t.a",
        "COLUMNS(*)",
        "#1",
        "$1",
        "?",
        "sum(a)",
        "count(*)",
        "row_number() OVER ()",
        "lag(a) OVER (ORDER BY b)",
        "getenv('HOME')",
        "'HOME'.getenv()",
        "\"getenv\"('HOME')",
        "CASE WHEN getenv ('x') = 'y' THEN 1 END",
        "read_text('/etc/passwd')",
        "read_csv('x')",
        "read_parquet('x')",
        "glob('*')",
        "query('SELECT 1')",
        "current_setting('x')",
        "getvariable('x')",
        "nextval('s')",
        "random()",
        "uuid()",
        "now()",
        "today()",
        "current_timestamp",
        "current_date",
        "localtimestamp",
        "get_current_timestamp()",
        "[y FOR y IN x]",
        "list_transform(a, x -> x + 1)",
        "error('x')",
    ],
)
def test_anything_but_an_expression_over_columns_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"(write|prepare) "):
        parse_expression(text)


@given(name=st.from_regex(r"[a-z_]{2,20}", fullmatch=True))
def test_no_function_outside_the_list_passes(name: str) -> None:
    if name not in FUNCTIONS | {"not", "is", "any", "all", "case", "in", "or", "and"}:
        with pytest.raises(ValueError, match=r".+"):
            parse_expression(f"{name}(a)")


def test_globs_look_beside_the_file_and_in_the_home(tmp_path: Path) -> None:
    dataset = load(GOOD, tmp_path)
    deployment = Deployment(dataset, tmp_path / "home")
    source = dataset.sources[0]
    assert deployment.log_files(source) == ()
    for name in (
        "logs/b.csv",
        "logs/.half.csv",
        "home/logs/a.parquet",
        "logs/_tmp.csv",
        "logs/x.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = deployment.log_files(source)
    assert {path.relative_to(tmp_path).as_posix() for path in found} == {
        "logs/b.csv",
        "home/logs/a.parquet",
    }
    names = [deployment.log_path(path) for path in found]
    assert sorted(names) == ["logs/b.csv", "{home}/logs/a.parquet"]
    assert [deployment.on_disk(name) for name in names] == list(found)


def test_the_environment_names_the_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AD_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("AD_PIPELINE_DATASET", "marketplace")
    assert deployment_from_env().home == tmp_path / "marketplace"
    load(GOOD, tmp_path)
    monkeypatch.setenv("AD_PIPELINE_DATASET", str(tmp_path / "dataset.yaml"))
    assert deployment_from_env().warehouse == tmp_path / "shop" / "warehouse.duckdb"
    monkeypatch.setenv("AD_PIPELINE_DATASET", "nowhere")
    with pytest.raises(FileNotFoundError, match=r"'marketplace', .*'open_bandit'"):
        deployment_from_env()


@pytest.mark.parametrize(
    "path", sorted(DATA_FOLDER.glob("*/dataset.yaml")), ids=lambda p: p.parent.name
)
def test_every_shipped_dataset_loads(path: Path) -> None:
    assert load_dataset(path).name == path.parent.name


CYCLE = """\
  click: {anchor: purchase, window: 1h}
  install: {anchor: click, window: 1h}
  purchase: {anchor: install, window: 1h}
"""


def test_a_long_cycle_of_goals_is_spelt_out(tmp_path: Path) -> None:
    before, _, after = GOOD.partition("  click:")
    text = before + CYCLE + "sources:" + after.partition("sources:")[2]
    with pytest.raises(DatasetError, match="click -> purchase -> install -> click") as caught:
        load(text, tmp_path)
    assert caught.value.key == "goals.click.anchor"
    assert "anchor one of them on 'impression'" in caught.value.remedy


def homes(tmp_path: Path, *texts: str) -> list[Deployment]:
    """Return deployments of different dataset files in one folder."""
    found = []
    for number, text in enumerate(texts):
        folder = tmp_path / f"file{number}"
        folder.mkdir()
        found.append(Deployment(load(text, folder), tmp_path / "home"))
    return found


@pytest.mark.parametrize(
    "other",
    [GOOD.replace("name: shop", "name: store"), GOOD.replace("window: 24h", "window: 48h")],
    ids=["another name", "the same name, another file"],
)
def test_a_home_that_another_dataset_has_claimed_is_refused(other: str, tmp_path: Path) -> None:
    first, second = homes(tmp_path, GOOD, other)
    claim_home(first)
    for ask in (check_home, claim_home):
        with pytest.raises(HomeTaken, match="point AD_PIPELINE_HOME at another folder") as caught:
            ask(second)
        for said in (first.home, first.dataset.path, second.dataset.path, first.owner):
            assert str(said) in str(caught.value)
        for dataset in (first.dataset, second.dataset):
            assert repr(dataset.name) in str(caught.value)
    claim_home(first)
    first.owner.unlink()  # as the message says, if the second took the first one's place
    claim_home(second)
    with pytest.raises(HomeTaken):
        check_home(first)


def test_a_moved_a_copied_and_an_edited_dataset_file_keep_their_home(tmp_path: Path) -> None:
    first, copied = homes(tmp_path, GOOD, GOOD)
    claim_home(first)
    claim_home(copied)
    first.dataset.path.write_text(GOOD.replace("window: 24h", "window: 48h"))
    claim_home(Deployment(load_dataset(first.dataset.path), first.home))
    moved = tmp_path / "moved.yaml"
    first.dataset.path.rename(moved)
    claim_home(Deployment(load_dataset(moved), first.home))


def test_a_home_that_nobody_has_claimed_is_everybodys_and_is_not_made_by_asking(
    tmp_path: Path,
) -> None:
    first, second = homes(tmp_path, GOOD, GOOD.replace("name: shop", "name: store"))
    check_home(first)
    check_home(second)
    assert not first.home.exists()


def test_only_one_of_many_gets_a_home_they_all_claim_at_once(tmp_path: Path) -> None:
    texts = [GOOD.replace("name: shop", f"name: shop{number}") for number in range(16)]
    deployments = homes(tmp_path, *texts)
    ready = threading.Barrier(len(deployments))

    def claim(deployment: Deployment) -> bool:
        ready.wait()
        try:
            claim_home(deployment)
        except HomeTaken:
            return False
        return True

    with ThreadPoolExecutor(len(deployments)) as pool:
        won = list(pool.map(claim, deployments))
    assert sum(won) == 1
    check_home(deployments[won.index(True)])
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["dataset.json"]


def test_the_environment_cannot_name_a_home_of_another_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = homes(tmp_path, GOOD, GOOD.replace("window: 24h", "window: 48h"))
    monkeypatch.setenv("AD_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("AD_PIPELINE_DATASET", str(first.dataset.path))
    claim_home(deployment_from_env())
    monkeypatch.setenv("AD_PIPELINE_DATASET", str(second.dataset.path))
    with pytest.raises(HomeTaken):
        deployment_from_env()
