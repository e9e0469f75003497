"""A deployment's dataset: where its log lies, how its columns map to the contract, and its goals.

"Bring your own log" means writing one YAML file. It is read here with its line numbers, so that
every mistake is answered with the file, the line, the key and what to write instead. Its SQL is
held to single scalar expressions over the columns of a file: they are parsed, checked against a
list of functions and never run as text. Reading the files themselves belongs to
``ad_pipeline.events``, the meaning of the tables to the rooms.
"""

import difflib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
import sqlglot
import yaml
from pydantic import BaseModel, ConfigDict, Field
from sqlglot import TokenType, exp
from sqlglot.errors import SqlglotError

from ad_pipeline.clocks import DAY_US, HOUR_US, hour_of, microseconds, parse_duration, timestamp
from ad_pipeline.settings import Settings

DATA_FOLDER = Path(__file__).resolve().parents[1] / "data"

SOURCE_FILE = "source_file"
"""Column every source has beside its own: the base name of the file a row came from."""

SOURCE_ROW = "source_row"
"""Column every source has beside its own: the row's place in its file, from 1.

With the file's name it makes an id for a log that has none. Lines that cannot be taken apart are
not counted, so it is no line number."""

RESERVED = frozenset({"occurred_us", "received_us", "logged_us", "read_us"})
"""Columns of ``events.impressions`` that no feature may be called."""

CLOCKS = {"occurred_us": "BIGINT", "received_us": "BIGINT"}

CONTRACT: Mapping[str, Mapping[str, str]] = {
    "impressions": {
        "impression_id": "VARCHAR",
        "request_id": "VARCHAR",
        "user_id": "VARCHAR",
        "ad_id": "VARCHAR",
        "campaign_id": "VARCHAR",
        "advertiser_id": "VARCHAR",
        "arm": "VARCHAR",
        "propensity": "DOUBLE",
        "bid_price": "BIGINT",
        "paid_price": "BIGINT",
        **CLOCKS,
    },
    "engagements": {
        "event_id": "VARCHAR",
        "impression_id": "VARCHAR",
        "goal": "VARCHAR",
        "value": "BIGINT",
        **CLOCKS,
    },
    "retractions": {
        "event_id": "VARCHAR",
        "engagement_event_id": "VARCHAR",
        "reason": "VARCHAR",
        **CLOCKS,
    },
    "decisions": {
        "request_id": "VARCHAR",
        "impression_id": "VARCHAR",
        "bundle_hash": "VARCHAR",
        "snapshot_hash": "VARCHAR",
        "features": "VARCHAR",
        "ages_us": "VARCHAR",
        "scores": "VARCHAR",
        "fallbacks": "VARCHAR",
        **CLOCKS,
    },
    "auctions": {
        "request_id": "VARCHAR",
        "bid_price": "BIGINT",
        "won": "BOOLEAN",
        "clearing_price": "BIGINT",
        **CLOCKS,
    },
    "campaign_kpis": {
        "event_id": "VARCHAR",
        "campaign_id": "VARCHAR",
        "metric": "VARCHAR",
        "value": "DOUBLE",
        **CLOCKS,
    },
    "survey_answers": {
        "event_id": "VARCHAR",
        "user_id": "VARCHAR",
        "question": "VARCHAR",
        "answer": "VARCHAR",
        "score": "DOUBLE",
        **CLOCKS,
    },
    "user_activities": {
        "event_id": "VARCHAR",
        "user_id": "VARCHAR",
        "modality": "VARCHAR",
        "content_id": "VARCHAR",
        **CLOCKS,
    },
}
"""Columns that a dataset file may map, by table, with their DuckDB types."""

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "impressions": ("impression_id", *CLOCKS),
    "engagements": ("event_id", "impression_id", "goal", *CLOCKS),
    "retractions": ("event_id", "engagement_event_id", *CLOCKS),
    "decisions": ("request_id", "bundle_hash", *CLOCKS),
    "auctions": ("request_id", *CLOCKS),
    "campaign_kpis": ("event_id", "campaign_id", "metric", *CLOCKS),
    "survey_answers": ("event_id", "question", *CLOCKS),
    "user_activities": ("event_id", "user_id", *CLOCKS),
}
"""Columns without which a row breaks the contract; the first one is the table's key."""

FUNCTIONS = frozenset(
    [
        "abs",
        "cast",
        "ceil",
        "ceiling",
        "coalesce",
        "concat",
        "concat_ws",
        "contains",
        "date_part",
        "date_trunc",
        "decode",
        "ends_with",
        "epoch",
        "epoch_ms",
        "epoch_ns",
        "epoch_us",
        "exp",
        "extract",
        "floor",
        "format",
        "greatest",
        "hour",
        "if",
        "ifnull",
        "instr",
        "isfinite",
        "isinf",
        "isnan",
        "isodow",
        "dayofweek",
        "json_extract",
        "json_extract_string",
        "json_valid",
        "least",
        "left",
        "len",
        "length",
        "list_contains",
        "list_extract",
        "ln",
        "log",
        "log10",
        "log2",
        "lower",
        "lpad",
        "ltrim",
        "make_timestamp",
        "make_timestamptz",
        "md5",
        "minute",
        "mod",
        "month",
        "nullif",
        "parse_filename",
        "pow",
        "power",
        "regexp_extract",
        "regexp_full_match",
        "regexp_matches",
        "regexp_replace",
        "replace",
        "reverse",
        "right",
        "round",
        "rpad",
        "rtrim",
        "sha256",
        "sign",
        "split_part",
        "sqrt",
        "starts_with",
        "strftime",
        "string_split",
        "strip_accents",
        "strlen",
        "strpos",
        "strptime",
        "substr",
        "substring",
        "second",
        "timezone",
        "to_timestamp",
        "trim",
        "trunc",
        "try_cast",
        "try_strptime",
        "upper",
        "weekday",
        "xor",
        "year",
    ]
)
"""Functions that an expression may call: scalar, deterministic, and blind to files and clock."""

_BEFORE_PARENTHESIS = frozenset(
    [
        "and",
        "or",
        "not",
        "in",
        "when",
        "then",
        "else",
        "between",
        "like",
        "ilike",
        "similar",
        "to",
        "is",
        "case",
        "distinct",
        "from",
        "as",
        "decimal",
        "numeric",
        "varchar",
        "char",
        "any",
        "all",
        "escape",
        "at",
        "zone",
        "for",
    ]
)
"""Keywords and types that may stand before a parenthesis without being a call."""

_REFUSED_NODES = (
    exp.Query,
    exp.Subquery,
    exp.DDL,
    exp.Command,
    exp.Window,
    exp.AggFunc,
    exp.Star,
    exp.Parameter,
    exp.Placeholder,
    exp.SessionParameter,
    exp.Lambda,
    exp.Comprehension,
    exp.CurrentDate,
    exp.CurrentTime,
    exp.CurrentTimestamp,
    exp.CurrentUser,
    exp.Localtime,
    exp.Localtimestamp,
    exp.SessionUser,
    exp.Alias,
    exp.Exists,
)
"""Parts that make text more than a scalar expression of one row, or one that reads a clock."""

_PARTS = (
    exp.AtTimeZone,
    exp.Bracket,
    exp.Condition,
    exp.DataType,
    exp.DataTypeParam,
    exp.Identifier,
    exp.If,
    exp.Interval,
    exp.JSONPath,
    exp.JSONPathPart,
    exp.Tuple,
    exp.Var,
)
"""Parts that an expression may be made of."""


class DatasetError(ValueError):
    """A mistake in a dataset file.

    Parameters
    ----------
    path : Path
        The file.
    line : int
        Counted from 1.
    key : str
        Where in the file, as in ``goals.click.window``.
    problem : str
        What is wrong.
    remedy : str
        What to write.
    """

    def __init__(self, path: Path, line: int, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{path}:{line}: {key}: {problem}; {remedy}")
        self.path = path
        self.line = line
        self.key = key
        self.problem = problem
        self.remedy = remedy


class HomeTaken(ValueError):
    """A deployment's folder belongs to another dataset; the message names both."""


MicrosecondSpan = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Goal(_Record):
    """What an impression may lead to, and how long one waits for it.

    Attributes
    ----------
    name : str
    anchor : str
        ``impression``, or the goal whose first counted engagement starts the window.
    window_us : int
        Attribution window: engagements up to and including this long after the anchor count.
    lateness_us : int
        How much longer the log may take to deliver them; then the label is final.
    observation_us : int
        How long the online learner waits before it takes an anchor for a provisional negative.
    counting : {'first', 'all'}
        Whether the first engagement or every one is paid for; a label is 0 or 1 either way.
    without : str or None
        Goal that takes the impression's later engagements for itself: ``click`` for conversions
        credited to a view. They are another goal's positives, and none of this one.
    """

    name: str
    anchor: str = "impression"
    window_us: MicrosecondSpan
    lateness_us: MicrosecondSpan = 0
    observation_us: MicrosecondSpan = 0
    counting: Literal["first", "all"] = "first"
    without: str | None = None

    @property
    def horizon_days(self) -> float:
        """Window and lateness, days: what losses of delays reckon with."""
        return (self.window_us + self.lateness_us) / DAY_US


class Source(_Record):
    """Files of one table and the mapping of their columns to the contract.

    Attributes
    ----------
    table : str
        Contract table without its schema: ``impressions``.
    files : tuple of str
        Globs, relative to the dataset file; ``{home}/`` stands for the deployment's folder.
    format : {'parquet', 'csv', 'jsonl'} or None
        None: told from the file name.
    delimiter : str or None
        Between the fields of a CSV; None: told from its first line.
    header : bool
        Whether a CSV's first line names its columns.
    names : tuple of str
        Names of a CSV's columns, in its order; instead of the header's, if it has one.
    quote : str
        What may stand around a field of a CSV; '' if quotes are plain text.
    nulls : tuple of str
        Texts of a CSV that mean null, beside the empty one.
    columns : dict of str to str
        Contract column to SQL expression over the file's columns.
    where : str or None
        SQL condition on the file's columns; rows it is not true for are not part of the log.
    line : int
        Where the source stands in the dataset file.
    """

    table: str
    files: tuple[str, ...]
    format: Literal["parquet", "csv", "jsonl"] | None = None
    delimiter: str | None = None
    header: bool = True
    names: tuple[str, ...] = ()
    quote: str = '"'
    nulls: tuple[str, ...] = ()
    columns: dict[str, str]
    where: str | None = None
    line: int = 0


class Features(_Record):
    """Columns of an impression that learners see.

    Attributes
    ----------
    categorical, numeric : tuple of str
    crosses : tuple of pairs of str
        Pairs of categorical columns that also count as one feature.
    """

    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    crosses: tuple[tuple[str, str], ...] = ()


class Dataset(_Record):
    """One dataset file.

    Attributes
    ----------
    name : str
        Also the deployment's folder under ``AD_PIPELINE_HOME``.
    start_us : int
        First log hour, microseconds since the epoch; rows received before it are left out.
    end_us : int or None
        End of a closed log; None for one that goes on.
    sources : tuple of Source
    goals : tuple of Goal
    row : str
        What a row of ``impressions`` is in this log, as in ``click`` for a log of clicks; goals may
        name it as their anchor.
    features : Features
    entities : tuple of str
        Columns of an impression for which engagement rates are kept.
    whole_hours : bool
        Whether a log file appears only when the hour of its last row is over. If not, that hour is
        complete only when a later row says so.
    notes : tuple of str
        What a reader of any figure from this log must know; printed with the report.
    settings : Settings
    path : Path
        The file.
    """

    name: str
    start_us: int
    end_us: int | None = None
    sources: tuple[Source, ...] = ()
    goals: tuple[Goal, ...]
    row: str = "impression"
    features: Features = Features()
    entities: tuple[str, ...] = ()
    whole_hours: bool = False
    notes: tuple[str, ...] = ()
    settings: Settings = Settings()
    path: Path = Path("dataset.yaml")

    def goal(self, name: str) -> Goal:
        """Return a goal by its name.

        Raises
        ------
        KeyError
            If there is none of that name.
        """
        for goal in self.goals:
            if goal.name == name:
                return goal
        raise KeyError(f"dataset {self.name} has no goal {name!r}, only {self.goal_names}")

    @property
    def goal_names(self) -> tuple[str, ...]:
        """Names of the goals, as the file lists them."""
        return tuple(goal.name for goal in self.goals)

    def goals_in_chain_order(self) -> tuple[Goal, ...]:
        """Return the goals such that each comes after the goal that anchors it."""
        ordered: list[Goal] = []
        placed = {"impression"}
        while len(ordered) < len(self.goals):
            ready = [g for g in self.goals if g.anchor in placed and g.name not in placed]
            if not ready:
                raise ValueError(f"the goals of dataset {self.name} anchor each other in a circle")
            ordered += ready
            placed |= {goal.name for goal in ready}
        return tuple(ordered)

    def chain_window_us(self, name: str) -> int:
        """Return the longest time from impression to a goal's engagement that any window allows."""
        goal = self.goal(name)
        if goal.anchor == "impression":
            return goal.window_us
        return goal.window_us + self.chain_window_us(goal.anchor)

    @property
    def horizon_us(self) -> int:
        """Longest window plus lateness of any goal, microseconds: then no one waits any more."""
        return max(goal.window_us + goal.lateness_us for goal in self.goals)

    @property
    def maturity_us(self) -> int:
        """Longest time from an impression to the maturity of any goal, along its chain."""
        return max(self.chain_window_us(goal.name) + goal.lateness_us for goal in self.goals)

    @property
    def last_hour_end_us(self) -> int | None:
        """End of the hour in which the last label of a closed log matures; None for an open log."""
        if self.end_us is None:
            return None
        return hour_of(self.end_us + self.maturity_us - 1) + HOUR_US

    @property
    def feature_columns(self) -> dict[str, str]:
        """Columns of ``events.impressions`` beyond the contract's, with their DuckDB types."""
        features = self.features
        crossed = [column for pair in features.crosses for column in pair]
        types = dict.fromkeys((*features.categorical, *self.entities, *crossed), "VARCHAR")
        types |= dict.fromkeys(features.numeric, "DOUBLE")
        return {c: t for c, t in types.items() if c not in CONTRACT["impressions"]}

    def sources_of(self, table: str) -> tuple[Source, ...]:
        """Return the sources of a table, in the file's order."""
        return tuple(source for source in self.sources if source.table == table)


@dataclass(frozen=True)
class Deployment:
    """A dataset and the folder that holds everything computed from it.

    Attributes
    ----------
    dataset : Dataset
    home : Path
        Absolute.
    """

    dataset: Dataset
    home: Path

    @property
    def warehouse(self) -> Path:
        """The DuckDB file."""
        return self.home / "warehouse.duckdb"

    @property
    def checkpoints(self) -> Path:
        """Folder of model checkpoints."""
        return self.home / "checkpoints"

    @property
    def bundles(self) -> Path:
        """Folder of model bundles."""
        return self.home / "bundles"

    @property
    def snapshots(self) -> Path:
        """Folder of published rate snapshots."""
        return self.home / "snapshots"

    @property
    def vectors(self) -> Path:
        """Folder of the published vectors of users and of ads' engagers."""
        return self.home / "vectors"

    @property
    def serving(self) -> Path:
        """Folder of the pointers ``current`` and ``snapshot``."""
        return self.home / "serving"

    @property
    def reports(self) -> Path:
        """Folder of reports."""
        return self.home / "reports"

    @property
    def logs(self) -> Path:
        """Folder into which whoever serves or simulates writes log files."""
        return self.home / "logs"

    @property
    def owner(self) -> Path:
        """The file that says whose folder this is; see :func:`claim_home`."""
        return self.home / "dataset.json"

    @property
    def truth(self) -> Path:
        """Folder of what only a simulator knows."""
        return self.home / "truth"

    def log_files(self, source: Source) -> tuple[Path, ...]:
        """Return the files that a source's globs match now, sorted; none is no error.

        Names that start with a dot or an underscore are left out: by custom they are still being
        written.
        """
        found: set[Path] = set()
        for pattern in source.files:
            if pattern.startswith("{home}/"):
                root, relative = self.home, pattern.removeprefix("{home}/")
            else:
                root, relative = self.dataset.path.parent, pattern
            if Path(relative).is_absolute():
                root, relative = Path("/"), relative.lstrip("/")
            found |= {
                path
                for path in root.glob(relative)
                if path.is_file() and not path.name.startswith((".", "_"))
            }
        return tuple(sorted(found))

    def log_path(self, path: Path) -> str:
        """Return a log file's name in the ledger: the same wherever the folders are moved."""
        if path.is_relative_to(self.home):
            return "{home}/" + path.relative_to(self.home).as_posix()
        folder = self.dataset.path.parent
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)

    def on_disk(self, log_path: str) -> Path:
        """Return the file that a name in the ledger stands for."""
        if log_path.startswith("{home}/"):
            return self.home / log_path.removeprefix("{home}/")
        return self.dataset.path.parent / log_path


def deployment_from_env() -> Deployment:
    """Return the deployment that the environment names.

    ``AD_PIPELINE_DATASET`` is the name of a folder under ``data/`` or the path of a dataset file
    (default ``open_bandit``); ``AD_PIPELINE_HOME`` the folder of all deployments (default
    ``./.ad_pipeline``).

    Raises
    ------
    FileNotFoundError
        If there is no such dataset.
    DatasetError
        If its file has a mistake.
    HomeTaken
        If its folder belongs to another dataset.
    """
    home = Path(os.environ.get("AD_PIPELINE_HOME", ".ad_pipeline"))
    dataset = load_dataset(dataset_file())
    deployment = Deployment(dataset, (home / dataset.name).resolve())
    check_home(deployment)
    return deployment


def dataset_file(named: str | None = None) -> Path:
    """Return the dataset file of a name under ``data/`` or of a path.

    Parameters
    ----------
    named : str, optional
        What ``AD_PIPELINE_DATASET`` says if left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    named = os.environ.get("AD_PIPELINE_DATASET", "open_bandit") if named is None else named
    path = (
        Path(named) if named.endswith((".yaml", ".yml")) else DATA_FOLDER / named / "dataset.yaml"
    )
    if not path.exists():
        known = sorted(found.parent.name for found in DATA_FOLDER.glob("*/dataset.yaml"))
        raise FileNotFoundError(
            f"AD_PIPELINE_DATASET={named}: there is no {path}; write one of {known} or the path of "
            "a dataset file that ends in .yaml"
        )
    return path


def check_home(deployment: Deployment) -> None:
    """Refuse a folder that another dataset has claimed; one that nobody has claimed passes.

    A dataset is another one if its name differs, or if it is described in another file that still
    exists and says something else: so a moved or copied dataset file keeps its folder.

    Raises
    ------
    HomeTaken
        If the folder is another's.
    """
    if not deployment.owner.is_file():
        return
    owner = json.loads(deployment.owner.read_bytes())
    dataset, file = deployment.dataset, Path(owner["file"])
    if owner["name"] == dataset.name and (
        file == dataset.path
        or not file.is_file()
        or not dataset.path.is_file()
        or file.read_bytes() == dataset.path.read_bytes()
    ):
        return
    raise HomeTaken(
        f"{deployment.home} holds dataset {owner['name']!r} of {file}, not dataset "
        f"{dataset.name!r} of {dataset.path}; give each dataset a name of its own or point "
        f"AD_PIPELINE_HOME at another folder, or remove {deployment.owner} if the second took the "
        "first one's place"
    )


def claim_home(deployment: Deployment) -> None:
    """Write down whose folder this is, once, before anything else is written there.

    Raises
    ------
    HomeTaken
        If the folder is another's.
    """
    if deployment.owner.is_file():
        check_home(deployment)
        return
    deployment.home.mkdir(parents=True, exist_ok=True)
    dataset = deployment.dataset
    scratch = deployment.owner.with_name(f".{deployment.owner.name}.{uuid.uuid4().hex}.writing")
    scratch.write_text(json.dumps({"name": dataset.name, "file": str(dataset.path)}))
    try:
        # A link is refused if another process was first, where a rename would replace its file.
        os.link(scratch, deployment.owner)
    except FileExistsError:
        check_home(deployment)
    finally:
        scratch.unlink()


def load_dataset(path: Path | str) -> Dataset:
    """Read and check a dataset file.

    Parameters
    ----------
    path : Path or str

    Raises
    ------
    DatasetError
        If the file has a mistake; the message names file, line, key and remedy.
    """
    path = Path(path).resolve()
    text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f"not YAML: {error.problem}"
        raise DatasetError(path, line, "file", problem, "mend the syntax at this line") from error
    if node is None:
        raise DatasetError(path, 1, "file", "it is empty", "write name, start, goals and sources")
    return _read_dataset(_Place(path, node, ""))


def parse_expression(text: str) -> exp.Expr:
    """Parse one scalar SQL expression of a dataset file, or refuse it.

    Parameters
    ----------
    text : str
        DuckDB SQL over the columns of a file.

    Raises
    ------
    ValueError
        If it is not a single expression, calls a function outside ``FUNCTIONS``, or reaches for
        anything but the row's own columns. The text says what to write.
    """
    try:
        called, semicolons = _calls(text)
        trees = sqlglot.parse(text, read="duckdb")
    except SqlglotError as error:
        raise ValueError(
            f"{text!r} is not SQL ({str(error).splitlines()[0]}); write one expression over the "
            "file's columns, as in lower(country)"
        ) from error
    if semicolons or len(trees) != 1:
        raise ValueError(f"{text!r} holds more than one expression; write one, without ';'")
    for name in called:
        if name not in FUNCTIONS:
            near = difflib.get_close_matches(name, FUNCTIONS, n=1)
            hint = f"write {near[0]}()" if near else "prepare such a column before the log is read"
            raise ValueError(
                f"the function {name}() is not among those an expression may call; {hint}"
            )
    tree = trees[0]
    if tree is None:
        raise ValueError("the expression is empty; write a column or an expression over columns")
    for node in tree.walk():
        if isinstance(node, _REFUSED_NODES):
            raise ValueError(
                f"{text!r} holds a {type(node).__name__.lower()}; write one scalar expression over "
                "the columns of the row: no query, no aggregate, no clock"
            )
        if isinstance(node, exp.Column) and node.table:
            raise ValueError(
                f"{node.sql('duckdb')} has a dot in it; write a plain column, quoted with double "
                "quotes if the name has a dot, and json_extract_string(column, '$.x') for a part"
            )
        if not isinstance(node, _PARTS):
            raise ValueError(
                f"{text!r} holds a {type(node).__name__.lower()}; write one scalar expression over "
                "the columns of the row"
            )
    return tree


def _calls(text: str) -> tuple[list[str], int]:
    """Return the names, in lower case, that stand where a function's would, and the semicolons.

    Read off the tokens, since the tree renames some functions and DuckDB knows more ways to call
    one (``'HOME'.getenv()``) than the tree tells apart.
    """
    tokens = sqlglot.tokenize(text, read="duckdb")
    names: list[str] = []
    for token, following in pairwise(tokens):
        if following.token_type != TokenType.L_PAREN:
            continue
        name = token.text.lower()
        is_word = name[:1].isalnum() or name[:1] == "_"
        if token.token_type == TokenType.IDENTIFIER or (
            is_word and name not in _BEFORE_PARENTHESIS
        ):
            names.append(name)
    return names, sum(token.token_type == TokenType.SEMICOLON for token in tokens)


def error_at(
    dataset: Dataset, location: Iterable[int | str], problem: str, remedy: str
) -> DatasetError:
    """Return an error about a place of a dataset file that only the log files brought to light.

    Parameters
    ----------
    dataset : Dataset
    location : iterable of int or str
        Keys and list positions from the top, as in ``("sources", "impressions", "columns")``.
    problem, remedy : str
        What is wrong and what to write.
    """
    steps = tuple(location)
    key = ".".join(str(step) for step in steps)
    if not dataset.path.exists():
        return DatasetError(dataset.path, 1, key, problem, remedy)
    node = yaml.compose(dataset.path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line = _Place(dataset.path, node, "").at(steps).line
    return DatasetError(dataset.path, line, key, problem, remedy)


class _Place:
    """A node of the YAML file that knows its line and its key."""

    def __init__(self, path: Path, node: yaml.Node, key: str) -> None:
        self.path = path
        self.node = node
        self.key = key

    @property
    def line(self) -> int:
        return self.node.start_mark.line + 1

    def error(self, problem: str, remedy: str, *, line: int | None = None) -> DatasetError:
        return DatasetError(self.path, line or self.line, self.key or "file", problem, remedy)

    def mapping(self, known: Iterable[str] | None = None) -> dict[str, "_Place"]:
        """Return the entries by key; an unknown or repeated key is an error."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("a mapping is wanted here", "write 'key: value' lines")
        names = None if known is None else list(known)
        found: dict[str, _Place] = {}
        for key_node, value_node in self.node.value:
            name = str(key_node.value)
            key = f"{self.key}.{name}" if self.key else name
            here = _Place(self.path, value_node, key)
            line = key_node.start_mark.line + 1
            if names is not None and name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                remedy = (
                    f"write {near[0]!r}" if near else f"write one of {', '.join(sorted(names))}"
                )
                raise here.error("unknown key", remedy, line=line)
            if name in found:
                raise here.error("the key stands here twice", "leave one of the two out", line=line)
            found[name] = here
        return found

    def items(self) -> list["_Place"]:
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error(
                "a list is wanted here", "write [one, two] or lines that start with '-'"
            )
        return [
            _Place(self.path, node, f"{self.key}[{i}]") for i, node in enumerate(self.node.value)
        ]

    def text(self) -> str:
        """Return the scalar as it is written."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag.endswith(":null"):
            raise self.error("a single value is wanted here", "write one word or a quoted text")
        return self.node.value

    def texts(self) -> tuple[str, ...]:
        found = tuple(item.text() for item in self.items())
        for place, name in zip(self.items(), found, strict=True):
            if found.count(name) > 1:
                raise place.error(f"{name!r} is listed twice", "leave one of the two out")
        return found

    def choice(self, options: Iterable[str]) -> Any:
        value, known = self.text(), list(options)
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            remedy = f"write {near[0]!r}" if near else f"write one of {', '.join(known)}"
            raise self.error(f"{value!r} is not known here", remedy)
        return value

    def flag(self) -> bool:
        return self.choice(("true", "false")) == "true"

    def hour(self) -> int:
        """Return a moment on the whole hour, microseconds."""
        remedy = "write a whole hour in UTC, as in 2026-03-02T00:00Z"
        try:
            moment = microseconds(datetime.fromisoformat(self.text()))
        except ValueError as error:
            raise self.error(f"not a moment: {error}", remedy) from error
        if moment % HOUR_US:
            raise self.error("not on a whole hour", remedy)
        return moment

    def duration(self) -> int:
        try:
            return parse_duration(self.text())
        except ValueError as error:
            problem, _, remedy = str(error).partition("; ")
            raise self.error(problem, remedy) from error

    def expression(self) -> str:
        """Return the text of a checked SQL expression."""
        text = self.text()
        try:
            parse_expression(text)
        except ValueError as error:
            problem, _, remedy = str(error).rpartition("; ")
            raise self.error(problem, remedy) from error
        return text

    def value(self) -> Any:
        """Return the whole subtree as plain Python values."""
        return yaml.SafeLoader("").construct_document(self.node)

    def at(self, location: Iterable[int | str]) -> "_Place":
        """Return the deepest place on the way to a location inside this one."""
        place = self
        for step in location:
            if isinstance(place.node, yaml.MappingNode):
                entries = place.mapping()
                if str(step) not in entries:
                    break
                place = entries[str(step)]
            elif isinstance(place.node, yaml.SequenceNode) and isinstance(step, int):
                place = place.items()[step]
            else:
                break
        return place


_KEYS = (
    "name",
    "start",
    "end",
    "whole_hours",
    "notes",
    "row",
    "goals",
    "sources",
    "features",
    "entities",
    "settings",
)


def _read_dataset(top: _Place) -> Dataset:
    entries = top.mapping(_KEYS)
    for key in ("name", "start", "goals", "sources"):
        if key not in entries:
            raise top.error(f"the key {key!r} is missing", f"write '{key}: ...' at the top level")
    name = entries["name"].text()
    if not name.replace("_", "").replace("-", "").isalnum():
        raise entries["name"].error(
            f"{name!r} cannot name a folder", "write letters, digits, '_' and '-' only"
        )
    start_us = entries["start"].hour()
    end_us = entries["end"].hour() if "end" in entries else None
    if end_us is not None and end_us <= start_us:
        raise entries["end"].error(
            "the end is not after the start", f"write an hour after {timestamp(start_us)}"
        )
    row = entries["row"].text() if "row" in entries else "impression"
    if not row.isidentifier():
        raise entries["row"].error(
            f"{row!r} cannot name what a row is", "write a plain word, as in click"
        )
    goals = _read_goals(entries["goals"], row)
    features = _read_features(entries.get("features"))
    entities = entries["entities"].texts() if "entities" in entries else ()
    dataset = Dataset(
        name=name,
        start_us=start_us,
        end_us=end_us,
        goals=goals,
        row=row,
        features=features,
        entities=entities,
        whole_hours="whole_hours" in entries and entries["whole_hours"].flag(),
        notes=entries["notes"].texts() if "notes" in entries else (),
        settings=_read_settings(entries.get("settings")),
        path=top.path,
    )
    if "settings" in entries:
        _check_goals_named(entries["settings"], dataset)
    sources = _read_sources(entries["sources"], dataset)
    _check_entities(entries, dataset, sources)
    _check_calibration_slice(entries, dataset)
    _check_label_slices(entries, dataset)
    _check_ad_columns(entries, dataset)
    _check_kept_hours(entries, dataset)
    return dataset.model_copy(update={"sources": sources})


def _read_goals(place: _Place, row: str) -> tuple[Goal, ...]:
    places = place.mapping()
    if not places:
        raise place.error("there is no goal", "write at least one, as in 'click: {window: 1h}'")
    goals: dict[str, Goal] = {}
    for name, here in places.items():
        if name in {"impression", row} or not name.isidentifier():
            raise here.error(
                f"{name!r} cannot name a goal",
                f"write a plain word other than {' and '.join(sorted({'impression', row}))}",
            )
        entries = here.mapping(
            ("anchor", "window", "lateness", "observation", "counting", "without")
        )
        if "window" not in entries:
            raise here.error("the window is missing", "write for example 'window: 24h'")
        window_us = entries["window"].duration()
        if window_us == 0:
            raise entries["window"].error("a window of nothing", "write for example 24h")
        goals[name] = Goal(
            name=name,
            anchor=_anchor(entries["anchor"], row) if "anchor" in entries else "impression",
            window_us=window_us,
            lateness_us=entries["lateness"].duration() if "lateness" in entries else 0,
            observation_us=entries["observation"].duration() if "observation" in entries else 0,
            counting=entries["counting"].choice(("first", "all"))
            if "counting" in entries
            else "first",
            without=entries["without"].text() if "without" in entries else None,
        )
        if goals[name].observation_us > window_us:
            raise entries["observation"].error(
                "one observes longer than the window lasts", "write at most the window"
            )
    for name, goal in goals.items():
        entries = places[name].mapping()
        if goal.without is not None:
            entries["without"].choice(tuple(other for other in goals if other != name))
        if goal.anchor == "impression":
            continue
        if goal.anchor not in goals:
            others = (other for other in goals if other != name)
            entries["anchor"].choice((*dict.fromkeys((row, "impression")), *others))
        seen, step = [name], goal.anchor
        while step != "impression" and step in goals:
            if step in seen:
                raise entries["anchor"].error(
                    f"goals anchor each other in a circle: {' -> '.join([*seen, step])}",
                    "anchor one of them on 'impression'",
                )
            seen.append(step)
            step = goals[step].anchor
        parent = goals[goal.anchor]
        if goal.window_us + goal.lateness_us < parent.window_us + parent.lateness_us:
            raise entries["window"].error(
                f"window + lateness are shorter than those of its anchor {goal.anchor!r}, whose "
                "label would still be open when this one is final",
                "write a longer window or lateness",
            )
    return tuple(goals.values())


def _anchor(place: _Place, row: str) -> str:
    """Return the anchor; the log's own word for a row means the same as ``impression``."""
    return "impression" if place.text() == row else place.text()


def _read_features(place: _Place | None) -> Features:
    if place is None:
        return Features()
    entries = place.mapping(("categorical", "numeric", "crosses"))
    categorical = entries["categorical"].texts() if "categorical" in entries else ()
    numeric = entries["numeric"].texts() if "numeric" in entries else ()
    listed = [
        here
        for key in ("categorical", "numeric")
        if key in entries
        for here in entries[key].items()
    ]
    for here in listed:
        _check_name(here)
    for here in entries["numeric"].items() if numeric else ():
        if here.text() in categorical:
            raise here.error("the column is categorical already", "leave it out of one of the two")
        if CONTRACT["impressions"].get(here.text()) == "VARCHAR":
            raise here.error("the contract holds this column as text", "list it as categorical")
    for here in entries["categorical"].items() if categorical else ():
        if CONTRACT["impressions"].get(here.text(), "VARCHAR") != "VARCHAR":
            raise here.error("the contract holds this column as a number", "list it as numeric")
    crosses: list[tuple[str, str]] = []
    for here in entries["crosses"].items() if "crosses" in entries else ():
        pair = here.texts()
        if len(pair) != 2:
            raise here.error(
                f"a cross of {len(pair)} columns", "write two, as in [user_id, category]"
            )
        for column, member in zip(pair, here.items(), strict=True):
            if column not in categorical:
                near = difflib.get_close_matches(column, categorical, n=1)
                remedy = f"write {near[0]!r}" if near else "list it under categorical first"
                raise member.error(f"{column!r} is not a categorical feature", remedy)
        crosses.append((pair[0], pair[1]))
    return Features(categorical=categorical, numeric=numeric, crosses=tuple(crosses))


def _check_name(place: _Place) -> None:
    name = place.text()
    if not name.isidentifier() or name.startswith("landed_") or name in RESERVED:
        raise place.error(
            f"{name!r} cannot name a feature",
            f"write a plain word other than {', '.join(sorted(RESERVED))} and landed_...",
        )


def _read_settings(place: _Place | None) -> Settings:
    if place is None:
        return Settings()
    place.mapping(Settings.model_fields)
    try:
        return Settings.model_validate(place.value())
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = [step for step in first["loc"] if isinstance(step, int | str)]
        here = place.at(location)
        if first["type"] == "extra_forbidden":
            known = _setting_names(location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            remedy = f"write {near[0]!r}" if near else f"write one of {', '.join(sorted(known))}"
            raise here.error("unknown key", remedy) from error
        raise here.error(
            f"{first['input']!r} does not fit", f"write a value that holds: {first['msg']}"
        ) from error


def _check_goals_named(place: _Place, dataset: Dataset) -> None:
    """Refuse a setting for a goal that there is not."""
    settings = dataset.settings
    of_deep = {} if settings.deep is None else settings.deep.by_goal
    encoder = None if settings.user_vectors is None else settings.user_vectors.encoder
    for group, setting, goals in (
        ("examples", "negative_rate_by_goal", settings.examples.negative_rate_by_goal),
        ("online", "by_goal", settings.online.by_goal),
        ("deep", "by_goal", of_deep),
    ):
        for name in goals:
            if name not in dataset.goal_names:
                raise place.at([group, setting, name]).error(
                    f"there is no goal {name!r}", f"write one of {', '.join(dataset.goal_names)}"
                )
    for number, name in enumerate(() if encoder is None else encoder.tasks):
        if name not in dataset.goal_names:
            raise place.at(["user_vectors", "encoder", "tasks", number]).error(
                f"there is no goal {name!r}", f"write some of {', '.join(dataset.goal_names)}"
            )


def _setting_names(location: Iterable[int | str]) -> list[str]:
    """Return the names that a group of settings knows."""
    group: type[BaseModel] = Settings
    for step in location:
        annotation = group.model_fields[str(step)].annotation
        inner = [
            kind
            for kind in (annotation, *get_args(annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not inner:
            return []
        group = inner[0]
    return list(group.model_fields)


def _read_sources(place: _Place, dataset: Dataset) -> tuple[Source, ...]:
    sources: list[Source] = []
    places = place.mapping(CONTRACT)
    if "impressions" not in places:
        raise place.error("no files of impressions", "write 'impressions:' with files and columns")
    for table, here in places.items():
        several = isinstance(here.node, yaml.SequenceNode)
        listed = here.items() if several else [here]
        sources += [_read_source(one, table, dataset) for one in listed]
    return tuple(sources)


def _read_source(place: _Place, table: str, dataset: Dataset) -> Source:
    entries = place.mapping(("files", "format", *_CSV_KEYS, "columns", "where"))
    for key in ("files", "columns"):
        if key not in entries:
            raise place.error(f"the key {key!r} is missing", f"write '{key}: ...' here")
    listed = isinstance(entries["files"].node, yaml.SequenceNode)
    files = entries["files"].texts() if listed else (entries["files"].text(),)
    features = dataset.feature_columns if table == "impressions" else {}
    known = (*CONTRACT[table], *features)
    columns = entries["columns"]
    expressions = {name: here.expression() for name, here in columns.mapping(known).items()}
    for name in (*REQUIRED[table], *features):
        if name in expressions:
            continue
        if name == "received_us":
            remedy = "write when the log had the row; with one clock only, occurred_us's expression"
        elif name in features:
            remedy = "it is listed under features or entities: map it here or take it out there"
        else:
            remedy = f"write '{name}: <SQL expression over the file's columns>'"
        raise columns.error(f"the column {name!r} is missing", remedy)
    format_ = entries["format"].choice(("parquet", "csv", "jsonl")) if "format" in entries else None
    if format_ not in {None, "csv"}:
        for key in _CSV_KEYS:
            if key in entries:
                raise entries[key].error(
                    f"{key!r} is about CSV files, these are {format_}",
                    "leave it out, or write 'format: csv'",
                )
    return Source(
        table=table,
        files=files,
        format=format_,
        **_read_csv_form(entries),
        columns=expressions,
        where=entries["where"].expression() if "where" in entries else None,
        line=place.line,
    )


_CSV_KEYS = ("delimiter", "header", "names", "quote", "nulls")
_DELIMITER_WORDS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


def _read_csv_form(entries: Mapping[str, _Place]) -> dict[str, Any]:
    """Return how the source's CSV files are written, as far as the dataset file says it."""
    form: dict[str, Any] = {}
    if "delimiter" in entries:
        here = entries["delimiter"]
        delimiter = _DELIMITER_WORDS.get(here.text(), here.text())
        if len(delimiter) != 1 or delimiter.isalnum() or delimiter in '"\n\r':
            raise here.error(
                f"{delimiter!r} cannot part fields",
                f"write one character in quotes, or one of {', '.join(_DELIMITER_WORDS)}",
            )
        form["delimiter"] = delimiter
    if "header" in entries:
        form["header"] = entries["header"].flag()
    if "names" in entries:
        form["names"] = entries["names"].texts()
        lowered = [name.lower() for name in form["names"]]
        for here in entries["names"].items():
            if not here.text() or lowered.count(here.text().lower()) > 1:
                raise here.error(
                    f"{here.text()!r} names no column or two",
                    "give each column its own name; upper and lower case are not told apart",
                )
    if "quote" in entries:
        here = entries["quote"]
        form["quote"] = "" if here.text() == "none" else here.text()
        if len(form["quote"]) > 1:
            raise here.error(
                f"{here.text()!r} is no quotation mark",
                "write one character in quotes, or none if quotes are plain text in these files",
            )
    if "nulls" in entries:
        form["nulls"] = entries["nulls"].texts()
    return form


def _check_entities(
    entries: Mapping[str, _Place], dataset: Dataset, sources: Iterable[Source]
) -> None:
    """Refuse entities and features that no source fills or that are numbers."""
    for here in entries["entities"].items() if "entities" in entries else ():
        _check_name(here)
        name = here.text()
        numeric = name in dataset.features.numeric
        if numeric or CONTRACT["impressions"].get(name, "VARCHAR") != "VARCHAR":
            raise here.error(
                "an entity is text, this column is a number", "list a categorical column"
            )
    wanted = {*dataset.features.categorical, *dataset.features.numeric, *dataset.entities}
    for source in sources:
        missing = sorted(wanted - set(source.columns)) if source.table == "impressions" else ()
        if missing:
            raise DatasetError(
                dataset.path,
                source.line,
                "sources.impressions.columns",
                f"the column {missing[0]!r} is missing",
                "it is listed under features or entities: map it here or take it out there",
            )


def _check_calibration_slice(entries: Mapping[str, _Place], dataset: Dataset) -> None:
    """Refuse to calibrate by a column that a scorer does not read as text."""
    name = dataset.settings.ensemble.calibration_slice
    texts = (*dataset.features.categorical, *dataset.entities)
    if name is None or name in texts:
        return
    near = difflib.get_close_matches(name, texts, n=1)
    raise (
        entries["settings"]
        .at(("ensemble", "calibration_slice"))
        .error(
            f"{name!r} is neither a categorical feature nor an entity",
            f"write {near[0]!r}" if near else "list it under features.categorical first",
        )
    )


def _check_label_slices(entries: Mapping[str, _Place], dataset: Dataset) -> None:
    """Refuse to judge labels by a column that impressions do not have."""
    known = (*CONTRACT["impressions"], *dataset.feature_columns)
    for place, name in enumerate(dataset.settings.label_quality.slices):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise (
                entries["settings"]
                .at(("label_quality", "slices", place))
                .error(
                    f"{name!r} is no column of impressions",
                    f"write {near[0]!r}" if near else "list it under features or entities first",
                )
            )


def _check_ad_columns(entries: Mapping[str, _Place], dataset: Dataset) -> None:
    """Refuse to tell ads apart by a column that is not there or holds numbers."""
    vectors = dataset.settings.user_vectors
    types = {**CONTRACT["impressions"], **dataset.feature_columns}
    texts = [name for name, type_ in types.items() if type_ == "VARCHAR"]
    for place, name in enumerate(() if vectors is None else vectors.encoder.ad_columns):
        if name not in texts:
            near = difflib.get_close_matches(name, texts, n=1)
            raise (
                entries["settings"]
                .at(("user_vectors", "encoder", "ad_columns", place))
                .error(
                    f"{name!r} is no column of impressions that holds text",
                    f"write {near[0]!r}" if near else "list it under features.categorical first",
                )
            )


def _check_kept_hours(entries: Mapping[str, _Place], dataset: Dataset) -> None:
    """Refuse to remove published vectors that whoever learns from served rows looks up again.

    Rows are read for hours after they matured, and matured long after they were served, when they
    read vectors that had been published the lag before. Vectors go when the run begins that makes
    the hour; replays and benchmarks of older hours, which people ask for, are not counted.
    """
    settings = dataset.settings
    vectors = settings.user_vectors
    if vectors is None:
        return
    matured = {
        "batch.lookback_hours": settings.batch.lookback_hours,
        "ensemble.lookback_hours": settings.ensemble.lookback_hours,
        "delays.lookback_hours": settings.delays.lookback_hours,
        "fallbacks.hours": 0 if settings.fallbacks is None else settings.fallbacks.hours,
    }
    name = max(matured, key=lambda each: matured[each])
    maturity_hours = -(-dataset.maturity_us // HOUR_US)
    needed = matured[name] + maturity_hours + vectors.publication_lag_hours
    if vectors.kept_hours < needed:
        raise (
            entries["settings"]
            .at(("user_vectors", "kept_hours"))
            .error(
                f"kept_hours is {vectors.kept_hours}, and vectors {needed} hours old are looked up "
                f"again: settings.{name} is {matured[name]}, a label matures up to "
                f"{maturity_hours} hours after its impression, and vectors are published "
                f"{vectors.publication_lag_hours} hours after theirs",
                f"write kept_hours: {needed} or more, or shorten what is looked up",
            )
        )
