"""Public behaviour logs go through their shipped dataset files into activities and labels.

The oracle reads each file with pandas and by the file's own words: it knows neither the readers nor
the SQL of the label join, and one row at a time is all it looks at.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US, SECOND_US
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.events.accounting import accounting_gaps
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.sample_check import check_dataset
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.strangers.behaviour_logs import (
    write_criteo_attribution,
    write_movielens,
    write_taobao_ads,
    write_taobao_behaviour,
)
from ad_pipeline_tests.strangers.runs import checks_not_passed, command, shrunk

Refused = Counter[tuple[str, str]]
"""Rows in quarantine by table and reason."""


@dataclass(frozen=True)
class Expected:
    """What must come out of a log.

    Attributes
    ----------
    impressions : DataFrame
        ``impression_id``, ``occurred_us`` and the columns that the dataset file maps.
    activities : DataFrame
        ``user_id``, ``modality``, ``content_id``, ``occurred_us``.
    labels : dict
        ``(goal, impression_id)`` to 0 or 1.
    refused : Counter
    duplicates : dict of str to int
        By table.
    """

    impressions: pd.DataFrame
    activities: pd.DataFrame
    labels: dict[tuple[str, str], int]
    refused: Refused
    duplicates: dict[str, int]


@dataclass(frozen=True)
class Log:
    """A dataset file and its log, with what must come of it."""

    dataset_file: Path
    expected: Callable[[Deployment], Expected]

    @property
    def deployment(self) -> Deployment:
        """Its deployment, beside the log."""
        dataset = load_dataset(self.dataset_file)
        return Deployment(dataset, self.dataset_file.parent / "home" / dataset.name)


# --- the oracle ----------------------------------------------------------------------------------


def read(path: Path, names: list[str] | None = None, sep: str = ",") -> pd.DataFrame:
    """The lines of a file with as many fields as it has columns, as text; an empty one is None."""
    lines = pd.read_csv(
        path, sep=r"\n|\r\n", header=None, engine="python", names=["line"], dtype=str, quoting=3
    )["line"]
    parts = [line.split(sep) for line in lines]
    columns = parts.pop(0) if names is None else names
    whole = [part for part in parts if len(part) == len(columns)]
    return pd.DataFrame(whole, columns=columns, dtype=object).replace("", None)


def seconds(column: pd.Series) -> pd.Series:
    """Whole seconds as microseconds; what is no number is missing."""
    return (pd.to_numeric(column, errors="coerce") * SECOND_US).astype("Int64")


def within(rows: pd.DataFrame, deployment: Deployment) -> pd.DataFrame:
    """Rows of the hours that are run, in order of time and then of the file."""
    dataset = deployment.dataset
    inside = rows.occurred_us.notna() & rows.occurred_us.between(
        dataset.start_us, dataset.last_hour_end_us - 1
    )
    return rows[inside].sort_values("occurred_us", kind="stable")


def hours(rows: pd.DataFrame, zone: str) -> pd.Series:
    """The hour of the day in a zone, two digits."""
    moments = pd.to_datetime(rows.occurred_us.astype("int64"), unit="us", utc=True)
    return moments.dt.tz_convert(zone).dt.strftime("%H")


def activities_of(rows: pd.DataFrame, **columns: str) -> pd.DataFrame:
    """Activities, their modality and content taken from the named columns."""
    return pd.DataFrame({name: rows[column] for name, column in columns.items()}).assign(
        occurred_us=rows.occurred_us
    )


def movielens(deployment: Deployment, path: Path, planted: dict[str, int]) -> Expected:
    """A rating of 4 or more is a like; ratings without a number or a time are refused."""
    is_old = path.suffix == ".dat"
    names = ["userId", "movieId", "rating", "timestamp"]
    rows = read(path, names if is_old else None, "::" if is_old else ",")
    rows["occurred_us"] = seconds(rows.timestamp)
    rows["impression_id"] = rows.userId + "-" + rows.movieId
    timed = within(rows, deployment)
    rated = timed[timed.rating.notna()]
    kept = rated.drop_duplicates("impression_id")
    liked = kept.rating.astype(float) >= 4
    liked_twice = (rated.rating.astype(float) >= 4).sum() - liked.sum()
    refused: Refused = Counter()
    for table in ("impressions", "engagements", "user_activities"):
        refused[table, "unreadable line"] = planted["torn"]
        refused[table, "wrong type: occurred_us"] = planted["no_time"]
    for table in ("impressions", "user_activities"):
        refused[table, "wrong type: where"] = planted["without_rating"]
    return Expected(
        impressions=pd.DataFrame(
            {
                "impression_id": kept.impression_id,
                "occurred_us": kept.occurred_us,
                "user_id": kept.userId,
                "ad_id": kept.movieId,
                "hour_of_day": hours(kept, "UTC"),
            }
        ),
        activities=activities_of(
            kept.assign(modality="rating"),
            user_id="userId",
            modality="modality",
            content_id="movieId",
        ),
        labels={
            ("like", key): int(is_liked)
            for key, is_liked in zip(kept.impression_id, liked, strict=True)
        },
        refused=refused,
        duplicates={
            "impressions": len(rated) - len(kept),
            "engagements": int(liked_twice),
            "user_activities": len(rated) - len(kept),
        },
    )


def taobao_behaviour(deployment: Deployment, path: Path, planted: dict[str, int]) -> Expected:
    """A user's first view of an item on a day of China, and what he did with it on that day."""
    dataset = deployment.dataset
    rows = read(path, ["user", "item", "category", "behaviour", "at"])
    rows["occurred_us"] = seconds(rows["at"])
    rows = within(rows[rows.item.notna()], deployment)
    moments = pd.to_datetime(rows.occurred_us.astype("int64"), unit="us", utc=True)
    midnight = moments.dt.tz_convert("Asia/Shanghai").dt.tz_localize(None).dt.normalize()
    day = (midnight - pd.Timestamp(0)).dt.days.astype(str)
    rows["impression_id"] = rows.user + "-" + rows.item + "-" + day
    views = rows[rows.behaviour == "pv"]
    first = views.drop_duplicates("impression_id")
    seen_us = dict(zip(first.impression_id, first.occurred_us, strict=True))
    done = rows[(rows.behaviour != "pv") & (rows.behaviour != "share")]
    delivered = len(done)
    done = done.drop_duplicates(["user", "item", "behaviour", "occurred_us"])
    since = done.occurred_us - done.impression_id.map(seen_us).astype("Int64")
    reached = done[since.notna() & (since >= 0)]
    reached_by = set(zip(reached.behaviour, reached.impression_id, strict=True))
    refused: Refused = Counter(
        {
            ("engagements", "orphan"): int(since.isna().sum()),
            ("engagements", "before its impression"): int((since < 0).sum()),
            ("engagements", "unknown goal"): planted["unknown"],
            ("engagements", "missing event_id"): planted["without_item"] - 1,
            ("engagements", "clock out of range"): planted["negative"] - 1,
            ("engagements", "unreadable line"): planted["torn"],
            ("impressions", "missing impression_id"): planted["without_item"] - 1,
            ("impressions", "clock out of range"): planted["negative"] - 1,
            ("impressions", "unreadable line"): planted["torn"],
            # Every behaviour is read twice, with its item and with its category.
            ("user_activities", "missing event_id"): 2 * planted["without_item"],
            ("user_activities", "clock out of range"): 2 * planted["negative"],
            ("user_activities", "unreadable line"): 2 * planted["torn"],
        }
    )
    once = rows.drop_duplicates(["user", "item", "behaviour", "occurred_us"])
    matured = first[first.occurred_us + DAY_US < dataset.last_hour_end_us]
    return Expected(
        impressions=pd.DataFrame(
            {
                "impression_id": first.impression_id,
                "occurred_us": first.occurred_us,
                "user_id": first.user,
                "ad_id": first.item,
                "category": first.category,
                "hour_of_day": hours(first, "Asia/Shanghai"),
            }
        ),
        activities=pd.concat(
            [
                activities_of(once, user_id="user", modality="behaviour", content_id="item"),
                activities_of(
                    once.assign(modality=once.behaviour + "_category"),
                    user_id="user",
                    modality="modality",
                    content_id="category",
                ),
            ]
        ),
        labels={
            (goal, key): int((goal, key) in reached_by)
            for goal in ("cart", "fav", "buy")
            for key in matured.impression_id
        },
        refused=refused,
        duplicates={
            "impressions": len(views) - len(first),
            "engagements": delivered - len(done),
            "user_activities": 2 * (len(rows) - len(once)),
        },
    )


def taobao_ads(deployment: Deployment, folder: Path, planted: dict[str, int]) -> Expected:
    """Clicks stand on their impressions; behaviours come with category and, if known, brand."""
    shown = read(folder / "raw_sample.csv")
    shown["occurred_us"] = seconds(shown.time_stamp)
    shown = within(shown, deployment)
    kept = shown.drop_duplicates(["user", "time_stamp", "adgroup_id", "pid"])
    keys = kept.user + "-" + kept.time_stamp + "-" + kept.adgroup_id + "-" + kept.pid
    did = read(folder / "behavior_log.csv").replace("NULL", None)
    did["occurred_us"] = seconds(did.time_stamp)
    did = within(did[did.user.notna()], deployment)
    once = did.drop_duplicates(["user", "time_stamp", "btag", "cate", "brand"])
    branded = once[once.brand.notna()]
    return Expected(
        impressions=pd.DataFrame(
            {
                "impression_id": keys,
                "occurred_us": kept.occurred_us,
                "user_id": kept.user,
                "ad_id": kept.adgroup_id,
                "placement": kept.pid,
                "hour_of_day": hours(kept, "Asia/Shanghai"),
            }
        ),
        activities=pd.concat(
            [
                activities_of(once, user_id="user", modality="btag", content_id="cate"),
                activities_of(
                    branded.assign(modality=branded.btag + "_brand"),
                    user_id="user",
                    modality="modality",
                    content_id="brand",
                ),
            ]
        ),
        labels={
            ("click", key): int(clicked)
            for key, clicked in zip(keys, kept.clk.astype(int), strict=True)
        },
        refused=Counter(
            {
                ("impressions", "wrong type: occurred_us"): planted["no_time"],
                ("user_activities", "missing user_id"): 2 * planted["without_user"],
                ("user_activities", "unreadable line"): 2 * planted["torn"],
            }
        ),
        duplicates={
            "impressions": len(shown) - len(kept),
            "user_activities": 2 * (len(did) - len(once)),
        },
    )


def criteo_attribution(deployment: Deployment, path: Path, planted: dict[str, int]) -> Expected:
    """A conversion counts up to the window after each impression that the log credits it to."""
    dataset = deployment.dataset
    rows = read(path, sep="\t")
    rows["impression_id"] = [f"{path.name}:{place}" for place in range(1, len(rows) + 1)]
    rows["occurred_us"] = seconds(rows.timestamp) + dataset.start_us
    rows["converted_us"] = seconds(rows.conversion_timestamp) + dataset.start_us
    orphans = int((rows.occurred_us.isna() & (rows.conversion == "1")).sum())
    kept = within(rows, deployment)
    converts = kept.conversion == "1"
    in_window = kept.converted_us - kept.occurred_us <= dataset.goal("conversion").window_us
    hours_since = np.floor(np.log2(1 + kept.time_since_last_click.astype(int).clip(-0.5) / 3600))
    bought = rows[rows.conversion == "1"].assign(occurred_us=rows.converted_us)
    once = bought.drop_duplicates(["conversion_id", "campaign"])
    return Expected(
        impressions=pd.DataFrame(
            {
                "impression_id": kept.impression_id,
                "occurred_us": kept.occurred_us,
                "user_id": kept.uid,
                "campaign_id": kept.campaign,
                "log_hours_since_click": hours_since.astype(str).where(
                    kept.time_since_last_click.astype(int) >= 0, None
                ),
                "cat7": kept.cat7,
            }
        ),
        activities=pd.concat(
            [
                activities_of(
                    kept.assign(modality="shown"),
                    user_id="uid",
                    modality="modality",
                    content_id="campaign",
                ),
                activities_of(
                    once.assign(modality="conversion"),
                    user_id="uid",
                    modality="modality",
                    content_id="campaign",
                ),
            ]
        ),
        labels={
            ("click", key): int(clicked)
            for key, clicked in zip(kept.impression_id, kept.click.astype(int), strict=True)
        }
        | {
            ("conversion", key): int(counts)
            for key, counts in zip(kept.impression_id, converts & in_window, strict=True)
        },
        refused=Counter(
            {
                ("impressions", "wrong type: occurred_us"): planted["no_time"],
                ("impressions", "unreadable line"): planted["torn"],
                ("engagements", "wrong type: occurred_us"): planted["no_time"],
                ("engagements", "unreadable line"): 2 * planted["torn"],
                ("engagements", "orphan"): orphans,
                ("user_activities", "wrong type: occurred_us"): planted["no_time"],
                ("user_activities", "unreadable line"): 2 * planted["torn"],
            }
        ),
        duplicates={"user_activities": len(bought) - len(once)},
    )


# --- the logs ------------------------------------------------------------------------------------


def movielens_log(folder: Path, name: str = "ratings.csv") -> Log:
    path = shrunk("movielens_ratings", folder, ("end: 2019-11-21T00:00Z", "end: 2019-08-02T06:00Z"))
    planted = write_movielens(folder / name, start_us=load_dataset(path).start_us)
    return Log(path, lambda deployment: movielens(deployment, folder / name, planted))


def old_movielens_log(folder: Path) -> Log:
    return movielens_log(folder, "ratings.dat")


def taobao_behaviour_log(folder: Path) -> Log:
    path = shrunk("taobao_behaviour", folder, ("end: 2017-12-03T16:00Z", "end: 2017-11-25T22:00Z"))
    log = folder / "UserBehavior.csv"
    planted = write_taobao_behaviour(log, start_us=load_dataset(path).start_us)
    return Log(path, lambda deployment: taobao_behaviour(deployment, log, planted))


def taobao_ads_log(folder: Path) -> Log:
    path = shrunk("taobao_ads", folder, ("end: 2017-05-13T16:00Z", "end: 2017-04-22T22:00Z"))
    planted = write_taobao_ads(folder, start_us=load_dataset(path).start_us)
    return Log(path, lambda deployment: taobao_ads(deployment, folder, planted))


def criteo_attribution_log(folder: Path) -> Log:
    path = shrunk(
        "criteo_attribution",
        folder,
        ("end: 2017-01-31T00:00Z", "end: 2017-01-02T06:00Z"),
        ("window: 30d", "window: 12h"),
    )
    log = folder / "criteo_attribution_dataset.tsv.gz"
    planted = write_criteo_attribution(log)
    return Log(path, lambda deployment: criteo_attribution(deployment, log, planted))


LOGS = [
    pytest.param(movielens_log, id="movielens"),
    pytest.param(old_movielens_log, id="ml-1m"),
    pytest.param(taobao_behaviour_log, id="taobao-behaviour"),
    pytest.param(taobao_ads_log, id="taobao-ads"),
    pytest.param(criteo_attribution_log, id="criteo-attribution"),
]


def learn(deployment: Deployment) -> None:
    """Read the whole log and join its labels."""
    dataset = deployment.dataset
    end_us = dataset.last_hour_end_us
    assert end_us is not None
    warehouse = Warehouse(deployment.warehouse)
    ingest_hours(warehouse, deployment, dataset.start_us, end_us)
    join_labels(warehouse, dataset, dataset.start_us, end_us)


def ask(deployment: Deployment, query: str) -> pd.DataFrame:
    with Warehouse(deployment.warehouse).reader() as connection:
        return connection.execute(query).df()


def texts(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """Rows as sorted tuples of text, so that two tables compare whatever their types and order."""
    plain = rows.astype(object).where(rows.notna(), None)
    return sorted(tuple(map(str, row)) for row in plain.itertuples(index=False, name=None))


def differences(deployment: Deployment, expected: Expected) -> list[str]:
    """Names of what in the warehouse is not as the oracle says."""
    columns = ", ".join(expected.impressions.columns)
    found: dict[str, tuple[object, object]] = {
        "impressions": (
            texts(ask(deployment, f"SELECT {columns} FROM events.impressions")),
            texts(expected.impressions),
        ),
        "activities": (
            texts(
                ask(
                    deployment,
                    "SELECT user_id, modality, content_id, occurred_us FROM events.user_activities",
                )
            ),
            texts(expected.activities),
        ),
        "labels": (
            {
                (goal, key): label
                for goal, key, label in ask(
                    deployment,
                    "SELECT goal, impression_id, label FROM examples.labelled_impressions",
                ).itertuples(index=False, name=None)
            },
            expected.labels,
        ),
        "refused": (
            {
                (table, reason): rows
                for table, reason, rows in ask(
                    deployment,
                    "SELECT table_name, reason, count(*) FROM events.quarantine GROUP BY ALL",
                ).itertuples(index=False, name=None)
            },
            dict(+expected.refused),
        ),
        "duplicates": (
            dict(
                ask(
                    deployment,
                    "SELECT table_name, count(*) FROM events.duplicates GROUP BY ALL",
                ).itertuples(index=False, name=None)
            ),
            {table: rows for table, rows in expected.duplicates.items() if rows},
        ),
    }
    return [name for name, (ours, theirs) in found.items() if ours != theirs]


@pytest.fixture(scope="module", params=LOGS)
def learnt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Log:
    """A log whose labels are joined."""
    log = request.param(tmp_path_factory.mktemp("log"))
    learn(log.deployment)
    return log


def test_a_behaviour_log_becomes_the_activities_and_labels_that_it_says(learnt: Log) -> None:
    deployment = learnt.deployment
    expected = learnt.expected(deployment)
    assert differences(deployment, expected) == []
    positives = Counter(goal for (goal, _), label in expected.labels.items() if label)
    assert set(positives) == set(deployment.dataset.goal_names)
    assert min(positives.values()) >= 50
    with Warehouse(deployment.warehouse).reader() as connection:
        assert accounting_gaps(connection) == ()


def test_a_behaviour_log_has_one_clock(learnt: Log) -> None:
    for table in ("impressions", "user_activities"):
        late = ask(
            learnt.deployment,
            f"SELECT count(*) AS late FROM events.{table} WHERE received_us <> occurred_us "
            "OR logged_us <> occurred_us",
        )
        assert late.late.tolist() == [0]


def test_a_behaviour_log_passes_its_check(learnt: Log) -> None:
    """One form of a log is enough, and what was planted is a warning, not an error."""
    findings = check_dataset(learnt.dataset_file, learnt.deployment.home.parent)
    assert [str(finding) for finding in findings if finding.level == "error"] == []
    warned = {str(finding) for finding in findings if finding.level == "warning"}
    assert any("unreadable line" in line for line in warned)


@pytest.mark.parametrize(
    ("make", "right", "wrong", "moved"),
    [
        (movielens_log, ">= 4\n", ">= 3.5\n", {"labels"}),
        # A day of UTC ends eight hours after one of China.
        (taobao_behaviour_log, "+ 28800)", "+ 0)", {"impressions", "labels", "refused"}),
        (criteo_attribution_log, "window: 12h", "window: 13h", {"labels"}),
    ],
)
def test_a_wrong_word_in_a_dataset_file_is_seen(
    make: Callable[[Path], Log], right: str, wrong: str, moved: set[str], tmp_path: Path
) -> None:
    """The oracle is no echo: it disagrees with a dataset file that says something else."""
    log = make(tmp_path)
    expected = log.expected(log.deployment)
    text = log.dataset_file.read_text()
    assert text.count(right) == 1
    log.dataset_file.write_text(text.replace(right, wrong))
    deployment = log.deployment
    learn(deployment)
    assert moved <= set(differences(deployment, expected))


def test_the_small_files_differ_from_the_shipped_ones_in_end_and_window_only(
    tmp_path: Path,
) -> None:
    for make in (movielens_log, taobao_behaviour_log, taobao_ads_log, criteo_attribution_log):
        small = make(tmp_path / make.__name__).deployment.dataset
        shipped = load_dataset(DATA_FOLDER / small.name / "dataset.yaml")
        changed = {
            key
            for key in type(shipped).model_fields
            if getattr(small, key) != getattr(shipped, key)
        }
        assert changed <= {"end_us", "goals", "settings", "path", "sources"}


@pytest.mark.slow
@pytest.mark.parametrize("make", [log for log in LOGS if log.id != "ml-1m"])
def test_one_command_runs_a_behaviour_log(make: Callable[[Path], Log], tmp_path: Path) -> None:
    log = make(tmp_path)
    ran = command(tmp_path / "home", ["run", str(log.dataset_file)])
    assert checks_not_passed(ran.stdout) <= {"served_scores_are_given_again"}
    assert "user_activities" in ran.stdout
