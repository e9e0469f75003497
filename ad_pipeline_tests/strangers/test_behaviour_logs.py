"""Public behaviour logs go through their shipped dataset files into activities and labels.

The oracle reads each file line by line and takes it at the words of its publisher: it knows neither
the readers nor the SQL of the label join.
"""

import gzip
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from math import floor, log2
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from ad_pipeline.clocks import DAY_US, SECOND_US
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

CHINA = ZoneInfo("Asia/Shanghai")
UTC = ZoneInfo("UTC")

Row = dict[str, str]
"""Fields of a line by name; '' where it has none."""


@dataclass
class Told:
    """What must come out of a log.

    Attributes
    ----------
    columns : tuple of str
        Of ``impressions``, after ``impression_id`` and ``occurred_us``.
    first_us, end_us : int
        The hours that are run, microseconds.
    impressions : dict
        ``impression_id`` to its time and its values of the columns.
    activities : dict
        What tells activities apart, to user, modality, content and time.
    labels : dict
        ``(goal, impression_id)`` to 0 or 1.
    duplicates : Counter
        By table.
    refused : Counter
        By table and reason.
    """

    columns: tuple[str, ...]
    first_us: int
    end_us: int
    impressions: dict[str, tuple[object, ...]] = field(default_factory=dict)
    activities: dict[tuple[object, ...], tuple[object, ...]] = field(default_factory=dict)
    labels: dict[tuple[str, str], int] = field(default_factory=dict)
    duplicates: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, deployment: Deployment, *columns: str) -> "Told":
        """Nothing told yet."""
        end_us = deployment.dataset.last_hour_end_us
        assert end_us is not None
        return cls(columns, deployment.dataset.start_us, end_us)

    def holds(self, at_us: int) -> bool:
        """Whether a moment lies in the hours that are run."""
        return self.first_us <= at_us < self.end_us

    def shown(self, key: str, at_us: int, *values: object) -> bool:
        """Take an impression, or count it as a duplicate."""
        if key in self.impressions:
            self.duplicates["impressions"] += 1
            return False
        self.impressions[key] = (at_us, *values)
        return True

    def did(self, key: tuple[object, ...], user: str, modality: str, content: str, at: int) -> None:
        """Take an activity, or count it as a duplicate."""
        if key in self.activities:
            self.duplicates["user_activities"] += 1
        self.activities[key] = (user, modality, content, at)

    def refuse(self, reason: str, *tables: str) -> None:
        """Count a row as quarantined, in each of some tables."""
        for table in tables:
            self.refused[table, reason] += 1


# --- the oracle ----------------------------------------------------------------------------------


def lines_of(path: Path, separator: str, names: Sequence[str] = ()) -> list[Row | None]:
    """The lines of a file after its header; None for one with another number of fields."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    parts = [line.split(separator) for line in text.splitlines()]
    names = names or parts.pop(0)
    return [
        dict(zip(names, part, strict=True)) if len(part) == len(names) else None for part in parts
    ]


def moment(text: str) -> int | None:
    """Seconds as microseconds; None for what is no number."""
    return int(text) * SECOND_US if text.lstrip("-").isdigit() else None


def local(at_us: int, zone: ZoneInfo) -> datetime:
    """A moment on the clocks of a zone."""
    return datetime.fromtimestamp(at_us // SECOND_US, zone)


def movielens(deployment: Deployment, path: Path) -> Told:
    """A rating of 4 or more is a like; ratings without a number or a time are refused."""
    told = Told.of(deployment, "user_id", "ad_id", "hour_of_day")
    everywhere = ("impressions", "engagements", "user_activities")
    old = path.suffix == ".dat"
    names = ["userId", "movieId", "rating", "timestamp"]
    for row in lines_of(path, "::" if old else ",", names if old else ()):
        at_us = None if row is None else moment(row["timestamp"])
        if row is None:
            told.refuse("unreadable line", *everywhere)
        elif at_us is None:
            told.refuse("wrong type: occurred_us", *everywhere)
        elif told.holds(at_us) and not row["rating"]:
            told.refuse("wrong type: where", "impressions", "user_activities")
        elif told.holds(at_us):
            user, movie, liked = row["userId"], row["movieId"], float(row["rating"]) >= 4
            key = f"{user}-{movie}"
            if not told.shown(key, at_us, user, movie, f"{local(at_us, UTC):%H}"):
                told.duplicates["engagements"] += liked
            told.did((key,), user, "rating", movie, at_us)
            told.labels["like", key] = int(liked)
    return told


def taobao_behaviour(deployment: Deployment, path: Path) -> Told:
    """A user's first view of an item on a day of China, and what he did with it on that day."""
    told = Told.of(deployment, "user_id", "ad_id", "category", "hour_of_day")
    seen: dict[tuple[str, str, date], tuple[str, int]] = {}
    events = Counter[tuple[str, ...]]()
    for at_us, row in sorted(taobao_rows(told, path), key=lambda timed: timed[0]):
        user, item, category, behaviour = (
            row[name] for name in ("user", "item", "category", "behaviour")
        )
        told.did((user, item, behaviour, at_us), user, behaviour, item, at_us)
        of_category = (user, item, behaviour, at_us, "category")
        told.did(of_category, user, f"{behaviour}_category", category, at_us)
        day = local(at_us, CHINA).date()
        key = f"{user}-{item}-{(day - date(1970, 1, 1)).days}"
        if behaviour == "pv":
            if told.shown(key, at_us, user, item, category, f"{local(at_us, CHINA):%H}"):
                seen[user, item, day] = (key, at_us)
                if at_us + DAY_US < told.end_us:
                    told.labels |= {(goal, key): 0 for goal in ("cart", "fav", "buy")}
        elif behaviour == "share":
            told.refuse("unknown goal", "engagements")
        else:
            events[user, item, behaviour, str(at_us)] += 1
    for (user, item, behaviour, at), copies in events.items():
        told.duplicates["engagements"] += copies - 1
        key, seen_us = seen.get((user, item, local(int(at), CHINA).date()), ("", 0))
        if not key:
            told.refuse("orphan", "engagements")
        elif int(at) < seen_us:
            told.refuse("before its impression", "engagements")
        else:
            told.labels[behaviour, key] = 1
    return told


def taobao_rows(told: Told, path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of the hours that are run, with their time; others are refused or left out."""
    # Each behaviour is read twice as an activity, with its item and with its category.
    activities = ("user_activities", "user_activities")
    for row in lines_of(path, ",", ["user", "item", "category", "behaviour", "at"]):
        if row is None:
            told.refuse("unreadable line", "impressions", "engagements", *activities)
            continue
        table = "impressions" if row["behaviour"] == "pv" else "engagements"
        at_us = int(row["at"]) * SECOND_US
        if at_us < 0:
            told.refuse("clock out of range", table, *activities)
        elif told.holds(at_us) and not row["item"]:
            missing = "impression_id" if table == "impressions" else "event_id"
            told.refuse(f"missing {missing}", table)
            told.refuse("missing event_id", *activities)
        elif told.holds(at_us):
            yield at_us, row


def taobao_ads(deployment: Deployment, folder: Path) -> Told:
    """Clicks stand on their impressions; behaviours come with category and, if known, brand."""
    told = Told.of(deployment, "user_id", "ad_id", "placement", "hour_of_day")
    for row in lines_of(folder / "raw_sample.csv", ","):
        assert row is not None
        at_us = moment(row["time_stamp"])
        if at_us is None:
            told.refuse("wrong type: occurred_us", "impressions")
            continue
        user, ad, place = row["user"], row["adgroup_id"], row["pid"]
        key = "-".join((user, row["time_stamp"], ad, place))
        if not told.shown(key, at_us, user, ad, place, f"{local(at_us, CHINA):%H}"):
            told.duplicates["engagements"] += row["clk"] == "1"
        told.labels["click", key] = int(row["clk"])
    for row in lines_of(folder / "behavior_log.csv", ","):
        if row is None:
            told.refuse("unreadable line", "user_activities", "user_activities")
        elif not row["user"]:
            told.refuse("missing user_id", "user_activities", "user_activities")
        else:
            key, at_us = tuple(row.values()), int(row["time_stamp"]) * SECOND_US
            told.did(key, row["user"], row["btag"], row["cate"], at_us)
            if row["brand"] not in {"", "NULL"}:
                branded = f"{row['btag']}_brand"
                told.did((*key, "brand"), row["user"], branded, row["brand"], at_us)
    return told


def criteo_attribution(deployment: Deployment, path: Path) -> Told:
    """A conversion counts up to the window after each impression that the log credits it to."""
    told = Told.of(deployment, "user_id", "campaign_id", "log_hours_since_click", "cat7")
    window_us = deployment.dataset.goal("conversion").window_us
    place = 0
    for row in lines_of(path, "\t"):
        if row is None:  # read as impression, as two goals and as two kinds of activity
            told.refuse("unreadable line", "impressions", *("engagements", "user_activities") * 2)
            continue
        place += 1
        key, user, campaign = f"{path.name}:{place}", row["uid"], row["campaign"]
        converts = row["conversion"] == "1"
        converted_us = told.first_us + int(row["conversion_timestamp"]) * SECOND_US
        if converts:
            sale = (row["conversion_id"], campaign)
            told.did(sale, user, "conversion", campaign, converted_us)
        since_start_us = moment(row["timestamp"])
        if since_start_us is None:
            told.refuse("wrong type: occurred_us", "impressions", "user_activities")
            for clicked, reason in ((row["click"] == "1", "wrong type: occurred_us"),
                                    (converts, "orphan")):  # fmt: skip
                told.refused["engagements", reason] += clicked
            continue
        at_us = told.first_us + since_start_us
        since_s = int(row["time_since_last_click"])
        hours = str(float(floor(log2(1 + since_s / 3600)))) if since_s >= 0 else None
        told.shown(key, at_us, user, campaign, hours, row["cat7"])
        told.did((key,), user, "shown", campaign, at_us)
        told.labels["click", key] = int(row["click"])
        told.labels["conversion", key] = int(converts and converted_us - at_us <= window_us)
    return told


# --- the logs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """A dataset file beside its log, and what must come of it."""

    dataset_file: Path
    told: Callable[[Deployment], Told]

    @property
    def deployment(self) -> Deployment:
        """Its deployment, beside the log."""
        dataset = load_dataset(self.dataset_file)
        return Deployment(dataset, self.dataset_file.parent / "home" / dataset.name)


def movielens_log(folder: Path, name: str = "ratings.csv") -> Log:
    path = shrunk("movielens_ratings", folder, ("end: 2019-11-21T00:00Z", "end: 2019-08-02T06:00Z"))
    write_movielens(folder / name, start_us=load_dataset(path).start_us)
    return Log(path, lambda deployment: movielens(deployment, folder / name))


def old_movielens_log(folder: Path) -> Log:
    return movielens_log(folder, "ratings.dat")


def taobao_behaviour_log(folder: Path) -> Log:
    path = shrunk("taobao_behaviour", folder, ("end: 2017-12-03T16:00Z", "end: 2017-11-25T22:00Z"))
    log = folder / "UserBehavior.csv"
    write_taobao_behaviour(log, start_us=load_dataset(path).start_us)
    return Log(path, lambda deployment: taobao_behaviour(deployment, log))


def taobao_ads_log(folder: Path) -> Log:
    path = shrunk("taobao_ads", folder, ("end: 2017-05-13T16:00Z", "end: 2017-04-22T22:00Z"))
    write_taobao_ads(folder, start_us=load_dataset(path).start_us)
    return Log(path, lambda deployment: taobao_ads(deployment, folder))


def criteo_attribution_log(folder: Path) -> Log:
    path = shrunk(
        "criteo_attribution",
        folder,
        ("end: 2017-01-31T00:00Z", "end: 2017-01-02T06:00Z"),
        ("window: 30d", "window: 12h"),
    )
    log = folder / "criteo_attribution_dataset.tsv.gz"
    write_criteo_attribution(log)
    return Log(path, lambda deployment: criteo_attribution(deployment, log))


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


def rows_of(deployment: Deployment, query: str) -> list[tuple]:
    with Warehouse(deployment.warehouse).reader() as connection:
        return connection.execute(query).fetchall()


def differences(deployment: Deployment, told: Told) -> list[str]:
    """Names of what in the warehouse is not as the oracle says."""
    columns = ", ".join(("impression_id", "occurred_us", *told.columns))
    found: dict[str, tuple[object, object]] = {
        "impressions": (
            Counter(rows_of(deployment, f"SELECT {columns} FROM events.impressions")),
            Counter((key, *values) for key, values in told.impressions.items()),
        ),
        "activities": (
            Counter(
                rows_of(
                    deployment,
                    "SELECT user_id, modality, content_id, occurred_us FROM events.user_activities",
                )
            ),
            Counter(told.activities.values()),
        ),
        "labels": (
            sorted(
                rows_of(
                    deployment,
                    "SELECT goal, impression_id, label FROM examples.labelled_impressions",
                )
            ),
            sorted((goal, key, label) for (goal, key), label in told.labels.items()),
        ),
        "refused": (
            Counter(rows_of(deployment, "SELECT table_name, reason FROM events.quarantine")),
            +told.refused,
        ),
        "duplicates": (
            Counter(
                table
                for (table,) in rows_of(deployment, "SELECT table_name FROM events.duplicates")
            ),
            +told.duplicates,
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
    told = learnt.told(deployment)
    assert differences(deployment, told) == []
    assert len(+told.refused) >= 3, "nothing was planted"
    assert told.duplicates["user_activities"] > 0
    positives = Counter(goal for (goal, _), label in told.labels.items() if label)
    assert set(positives) == set(deployment.dataset.goal_names)
    assert min(positives.values()) >= 50
    with Warehouse(deployment.warehouse).reader() as connection:
        assert accounting_gaps(connection) == ()


def test_a_behaviour_log_has_one_clock(learnt: Log) -> None:
    for table in ("impressions", "user_activities"):
        late = rows_of(
            learnt.deployment,
            f"SELECT count(*) FROM events.{table} WHERE received_us <> occurred_us "
            "OR logged_us <> occurred_us",
        )
        assert late == [(0,)]


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
    ids=["movielens", "taobao-behaviour", "criteo-attribution"],
)
def test_a_wrong_word_in_a_dataset_file_is_seen(
    make: Callable[[Path], Log], right: str, wrong: str, moved: set[str], tmp_path: Path
) -> None:
    """The oracle is no echo: it disagrees with a dataset file that says something else."""
    log = make(tmp_path)
    told = log.told(log.deployment)
    text = log.dataset_file.read_text()
    assert text.count(right) == 1
    log.dataset_file.write_text(text.replace(right, wrong))
    deployment = log.deployment
    learn(deployment)
    assert moved <= set(differences(deployment, told))


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
    # What is drawn at random teaches nothing, and verdicts on learners are noise: a run that ends
    # well has passed its blocking checks.
    assert "every_row_is_accounted_for" not in checks_not_passed(ran.stdout)
