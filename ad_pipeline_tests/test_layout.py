"""The layout and the layering of the repository, as rules over its files.

Code is read, never imported: an import inside a function counts as much as one at the top. Each
rule is a function from a tree to what is wrong with it; it must find nothing in this repository and
the fault that is planted for it in a small clean tree. What a rule cannot see in the text, such as
which modules a fresh process ends up with, is tested by the room concerned.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

FIXED_TOP_LEVEL = {
    "pyproject.toml", "workspace.yaml", "ad_pipeline", "ad_pipeline_tests", "dbt_like_sql", "data",
}  # fmt: skip
TOP_LEVEL = FIXED_TOP_LEVEL | {
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "requirements", "docs",
    "benchmarks", "deploy",
}  # fmt: skip
#: What packaging tools leave behind; .gitignore names them. Hidden entries are not looked at.
LEFT_BEHIND = re.compile(r"__pycache__|build|dist|.*\.egg-info")

FOUNDATIONS = {"settings", "datasets", "clocks", "hashing", "checkpoints", "warehouse", "xla"}
BESIDE_THE_ROOMS = FOUNDATIONS | {"__init__", "cli", "definitions", "main_job"}

PATH = [
    "events", "examples", "evaluation", "embeddings", "features", "feedback", "learners", "serving",
    "monitoring",
]  # fmt: skip
#: Room -> rooms that it may import. Those without code yet have their place here already.
MAY_IMPORT = {room: set(PATH[:place]) for place, room in enumerate(PATH)}
MAY_IMPORT |= {
    "bidding": set(PATH),
    "experiments": set(PATH),
    "simulation": {*PATH, "bidding", "experiments", "main_job"},
}
ROOMS = set(MAY_IMPORT)
MAY_IMPORT |= {
    "main_job": set(),  # it starts Dagster in another process, and imports no room
    "cli": ROOMS | {"main_job"},
    "defs": ROOMS - {"simulation"},  # the outside world is outside the graph
    "definitions": set(),
    "__init__": set(),
}

#: Folders of tests that are about no single room: whole paths on logs of other shapes.
BEYOND_ROOMS = {"strangers"}

FORBIDDEN_WORDS = {
    "util", "utils", "helper", "helpers", "manager", "managers", "process", "processor",
    "processing",
}  # fmt: skip


def top_level_is_as_designed(root: Path) -> Iterator[str]:
    """Fixed entries exist, and beside them only those that the design lists."""
    found = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    for name in sorted(FIXED_TOP_LEVEL - found):
        yield f"{name} is missing at the top level"
    for name in sorted(found - TOP_LEVEL):
        if not LEFT_BEHIND.fullmatch(name):
            yield f"{name} has no place at the top level"
    if not (root / ".ci/run").is_file():
        yield ".ci/run is missing"


def package_holds_rooms_and_foundations_only(root: Path) -> Iterator[str]:
    """A folder is a room or defs, a module is a foundation, the CLI or the entry point."""
    package = root / "ad_pipeline"
    for name in sorted(_folders(package) - ROOMS - {"defs"}):
        yield f"ad_pipeline/{name} is no room"
    for name in sorted({path.stem for path in package.glob("*.py")} - BESIDE_THE_ROOMS):
        yield f"ad_pipeline/{name}.py belongs into a room"


def rooms_are_not_empty(root: Path) -> Iterator[str]:
    """A room comes with its first module, not before."""
    for room in sorted(_rooms(root)):
        modules = {path.name for path in (root / "ad_pipeline" / room).rglob("*.py")}
        if modules <= {"__init__.py"}:
            yield f"ad_pipeline/{room} holds no module"


def rooms_say_what_they_hold_and_import_nothing(root: Path) -> Iterator[str]:
    """Every ``__init__`` is a docstring and nothing else: no re-exports."""
    for path in sorted((root / "ad_pipeline").rglob("__init__.py")):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            yield f"{path.relative_to(root)} has no docstring"
        elif len(tree.body) > 1:
            yield f"{path.relative_to(root)} holds more than its docstring"
    for folder in sorted(_rooms(root) | {"defs"} & _folders(root / "ad_pipeline")):
        if not (root / "ad_pipeline" / folder / "__init__.py").is_file():
            yield f"ad_pipeline/{folder} has no __init__.py that says what it holds"


def rooms_import_only_what_stands_before_them(root: Path) -> Iterator[str]:
    """Foundations import no room, a room those before it, nothing but the CLI simulation."""
    for path, module in _imports(root):
        importer, target = _unit(root, path), _unit_of_module(module)
        if target is None or target in FOUNDATIONS | {importer}:
            continue
        allowed = set() if importer in FOUNDATIONS else MAY_IMPORT.get(importer, set())
        if target not in allowed:
            yield f"{path.relative_to(root)} imports {module}: {importer} may not import {target}"


def only_defs_import_dagster(root: Path) -> Iterator[str]:
    """Rooms, foundations and the CLI are usable where Dagster is not installed."""
    for path, module in _imports(root):
        is_dagster = module.split(".")[0].startswith("dagster")
        if is_dagster and _unit(root, path) not in {"defs", "definitions"}:
            yield f"{path.relative_to(root)} imports {module}"


def serving_imports_neither_warehouse_nor_duckdb(root: Path) -> Iterator[str]:
    """A scorer needs the bundle's files and nothing else."""
    for path, module in _imports(root):
        parts = module.split(".")
        if _unit(root, path) == "serving" and (
            parts[0] == "duckdb" or parts[:2] == ["ad_pipeline", "warehouse"]
        ):
            yield f"{path.relative_to(root)} imports {module}"


def only_defs_open_the_warehouse(root: Path) -> Iterator[str]:
    """Rooms take a warehouse as an argument; assets and the CLI open it for them.

    In-memory DuckDB is free to all.
    """
    for path in _modules(root):
        unit = _unit(root, path)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            opens = called.split(".")[-1] == "Warehouse" and unit not in {
                "defs",
                "cli",
                "warehouse",
            }
            connects = called == "duckdb.connect" and unit != "warehouse"
            if opens or (connects and not _is_in_memory(node)):
                yield f"{path.relative_to(root)} opens a database: {ast.unparse(node)}"


def names_say_what_is_inside(root: Path) -> Iterator[str]:
    """No file or folder is called utils, helper, manager or process."""
    for folder in ("ad_pipeline", "ad_pipeline_tests", "benchmarks", "dbt_like_sql"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".sql", ""} and FORBIDDEN_WORDS & set(path.stem.split("_")):
                yield f"{path.relative_to(root)} is a name that says nothing"


def sql_lies_in_rooms(root: Path) -> Iterator[str]:
    """A SELECT is dbt_like_sql/<room>/<table>.sql; ``test_sql_files.py`` looks inside."""
    for path in sorted((root / "dbt_like_sql").rglob("*.sql")):
        room, *rest = path.relative_to(root / "dbt_like_sql").parts
        if len(rest) != 1:
            yield f"{path.relative_to(root)} is not dbt_like_sql/<room>/<table>.sql"
        if room not in _rooms(root):
            yield f"{path.relative_to(root)} lies in no room"


def rooms_have_their_tests(root: Path) -> Iterator[str]:
    """Every room has a folder of tests, and every folder of tests has a room.

    The benchmarks are tested too, to run and to say what they should.
    """
    tested = {
        name
        for name in _folders(root / "ad_pipeline_tests")
        if list((root / "ad_pipeline_tests" / name).rglob("test_*.py"))
    }
    rooms = _rooms(root) | ({"defs"} & _folders(root / "ad_pipeline"))
    rooms |= {"benchmarks"} & _folders(root)
    for name in sorted(rooms - tested):
        yield f"ad_pipeline_tests/{name} holds no test"
    for name in sorted(tested - rooms - BEYOND_ROOMS):
        yield f"ad_pipeline_tests/{name} tests no room"


def assets_and_checks_stand_under_their_room(root: Path) -> Iterator[str]:
    """An asset is found by the room in its key: a module, or a folder with a module a topic."""
    for kind in ("assets", "checks"):
        folder = root / "ad_pipeline/defs" / kind
        for path in sorted(folder.rglob("*.py")):
            room = path.relative_to(folder).with_suffix("").parts[0]
            if room not in ROOMS | {"__init__"}:
                yield f"{path.relative_to(root)} is named after no room"


def entry_point_has_five_lines(root: Path) -> Iterator[str]:
    """Definitions are collected, never made, in ``definitions.py``."""
    tree = ast.parse((root / "ad_pipeline/definitions.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    lines = ast.unparse(ast.fix_missing_locations(tree)).split("\n")
    if (count := len([line for line in lines if line.strip()])) > 5:
        yield f"ad_pipeline/definitions.py has {count} lines of code"


Rule = Callable[[Path], Iterator[str]]

RULES: list[Rule] = [
    top_level_is_as_designed,
    package_holds_rooms_and_foundations_only,
    rooms_are_not_empty,
    rooms_say_what_they_hold_and_import_nothing,
    rooms_import_only_what_stands_before_them,
    only_defs_import_dagster,
    serving_imports_neither_warehouse_nor_duckdb,
    only_defs_open_the_warehouse,
    names_say_what_is_inside,
    sql_lies_in_rooms,
    rooms_have_their_tests,
    assets_and_checks_stand_under_their_room,
    entry_point_has_five_lines,
]

#: A tree that breaks no rule. Text by path.
CLEAN_TREE = {
    "pyproject.toml": "",
    "workspace.yaml": "",
    ".ci/run": "",
    "data/README.md": "",
    "ad_pipeline/__init__.py": '"""The path."""\n',
    "ad_pipeline/warehouse.py": "import duckdb\nconnection = duckdb.connect('file')\n",
    "ad_pipeline/cli.py": "def main():\n    from ad_pipeline.simulation import world\n",
    "ad_pipeline/definitions.py": '"""Doc."""\nimport dagster as dg\n',
    "ad_pipeline/events/__init__.py": '"""What happened."""\n',
    "ad_pipeline/events/tables.py": "import ad_pipeline.warehouse\n",
    "ad_pipeline/serving/__init__.py": '"""What leaves."""\n',
    "ad_pipeline/serving/scorer.py": "from ad_pipeline import checkpoints\n",
    "ad_pipeline/simulation/__init__.py": '"""The outside world."""\n',
    "ad_pipeline/simulation/world.py": (
        "import duckdb\nfrom ad_pipeline.serving import scorer\nduckdb.connect()\n"
        "duckdb.connect(':memory:', config={})\n"
    ),
    "ad_pipeline/defs/__init__.py": '"""Dagster."""\n',
    "ad_pipeline/defs/assets/events.py": (
        "import dagster as dg\nfrom ad_pipeline.warehouse import Warehouse\nWarehouse('file')\n"
    ),
    "ad_pipeline_tests/defs/test_events.py": "",
    "ad_pipeline_tests/events/test_tables.py": "",
    "ad_pipeline_tests/serving/test_scorer.py": "",
    "ad_pipeline_tests/simulation/test_world.py": "",
    "dbt_like_sql/events/impressions.sql": "SELECT 1 AS id",
}

#: Rule, file, text of the file (None: the file is taken away).
FAULTS: list[tuple[Rule, str, str | None]] = [
    (top_level_is_as_designed, "workspace.yaml", None),
    (top_level_is_as_designed, ".ci/run", None),
    (top_level_is_as_designed, "notebooks/eda.py", ""),
    (package_holds_rooms_and_foundations_only, "ad_pipeline/ml/train.py", ""),
    (package_holds_rooms_and_foundations_only, "ad_pipeline/metrics.py", ""),
    (rooms_are_not_empty, "ad_pipeline/serving/scorer.py", None),
    (rooms_say_what_they_hold_and_import_nothing, "ad_pipeline/serving/__init__.py", None),
    (rooms_say_what_they_hold_and_import_nothing, "ad_pipeline/events/__init__.py", ""),
    (
        rooms_say_what_they_hold_and_import_nothing,
        "ad_pipeline/events/__init__.py",
        '"""What happened."""\nfrom ad_pipeline.events.tables import TABLES\n',
    ),
    # A room imports a later one: by `from`, by `import`, relatively, inside a function, for types
    # only, by a string.
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/events/tables.py",
        "from ad_pipeline.serving.scorer import Scorer\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/events/tables.py",
        "import ad_pipeline.serving.scorer\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/events/tables.py",
        "from ad_pipeline import serving\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/events/tables.py",
        "from ..serving import scorer\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/events/tables.py",
        "def late():\n    from ad_pipeline.serving import scorer\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/events/tables.py",
        "if TYPE_CHECKING:\n    from ad_pipeline.serving import scorer\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/events/tables.py",
        "importlib.import_module('ad_pipeline.serving.scorer')\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/warehouse.py",
        "from ad_pipeline.events import tables\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/serving/scorer.py",
        "from ad_pipeline.simulation import world\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/defs/assets/events.py",
        "from ad_pipeline.simulation import world\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/cli.py",
        "from ad_pipeline.defs.assets import events\n",
    ),
    (
        rooms_import_only_what_stands_before_them,
        "ad_pipeline/definitions.py",
        "from ad_pipeline.events import tables\n",
    ),
    (only_defs_import_dagster, "ad_pipeline/events/tables.py", "import dagster\n"),
    (only_defs_import_dagster, "ad_pipeline/cli.py", "from dagster_shared import check\n"),
    (
        serving_imports_neither_warehouse_nor_duckdb,
        "ad_pipeline/serving/scorer.py",
        "import duckdb\n",
    ),
    (
        serving_imports_neither_warehouse_nor_duckdb,
        "ad_pipeline/serving/scorer.py",
        "from ad_pipeline import warehouse\n",
    ),
    (
        only_defs_open_the_warehouse,
        "ad_pipeline/events/tables.py",
        "from ad_pipeline.warehouse import Warehouse\nWarehouse('file').reader()\n",
    ),
    (
        only_defs_open_the_warehouse,
        "ad_pipeline/simulation/world.py",
        "import duckdb\nduckdb.connect('file')\n",
    ),
    (
        only_defs_open_the_warehouse,
        "ad_pipeline/defs/assets/events.py",
        "import duckdb\nduckdb.connect(database='file')\n",
    ),
    (names_say_what_is_inside, "ad_pipeline/events/read_utils.py", ""),
    (names_say_what_is_inside, "ad_pipeline_tests/events/helper.py", ""),
    (sql_lies_in_rooms, "dbt_like_sql/marts/clicks.sql", "SELECT 1 AS id"),
    (sql_lies_in_rooms, "dbt_like_sql/events/late/clicks.sql", "SELECT 1 AS id"),
    (rooms_have_their_tests, "ad_pipeline_tests/serving/test_scorer.py", None),
    (rooms_have_their_tests, "ad_pipeline_tests/defs/test_events.py", None),
    (rooms_have_their_tests, "ad_pipeline_tests/integration/test_all.py", ""),
    (assets_and_checks_stand_under_their_room, "ad_pipeline/defs/assets/everything.py", ""),
    (assets_and_checks_stand_under_their_room, "ad_pipeline/defs/checks/all/serving.py", ""),
    (
        entry_point_has_five_lines,
        "ad_pipeline/definitions.py",
        "import a\nimport b\nimport c\nimport d\nimport e\nimport f\n",
    ),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_to_the_rule(rule: Rule) -> None:
    assert list(rule(REPOSITORY)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_clean_tree_breaks_no_rule(rule: Rule, tmp_path: Path) -> None:
    _write(tmp_path, CLEAN_TREE)
    assert list(rule(tmp_path)) == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    FAULTS,
    ids=[f"{rule.__name__}-{path}-{place}" for place, (rule, path, _) in enumerate(FAULTS)],
)
def test_a_planted_fault_is_found(rule: Rule, path: str, text: str | None, tmp_path: Path) -> None:
    _write(tmp_path, CLEAN_TREE)
    if text is None:
        (tmp_path / path).unlink()
    else:
        _write(tmp_path, {path: text})
    assert len(list(rule(tmp_path))) >= 1


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _, _ in FAULTS} == set(RULES)


def test_the_import_table_is_read_from_real_files() -> None:
    """A rule that looked at no file would hold too."""
    assert len(list(_imports(REPOSITORY))) > 100


def _write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def _folders(root: Path) -> set[str]:
    """Folders that hold files of ours; git keeps no empty ones."""
    return {
        path.name
        for path in root.iterdir()
        if path.is_dir()
        and not path.name.startswith((".", "__"))
        and any(p.is_file() and p.suffix in {".py", ".sql"} for p in path.rglob("*"))
    }


def _rooms(root: Path) -> set[str]:
    return _folders(root / "ad_pipeline") & ROOMS


def _modules(root: Path) -> list[Path]:
    return sorted((root / "ad_pipeline").rglob("*.py"))


def _unit(root: Path, path: Path) -> str:
    """Room, ``defs``, or name of the module beside the rooms, to which a file belongs."""
    return path.relative_to(root / "ad_pipeline").with_suffix("").parts[0]


def _unit_of_module(module: str) -> str | None:
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if package == "ad_pipeline" and rest else None


def _imports(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield every import of the package, wherever in a file, as (file, dotted name)."""
    for path in _modules(root):
        package = ("ad_pipeline", *path.relative_to(root / "ad_pipeline").parent.parts)
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    yield from ((path, name.name) for name in names)
                case ast.ImportFrom(module=module, names=names, level=level):
                    above = package[: len(package) - level + 1] if level else ()
                    base = ".".join([*above, *([module] if module else [])])
                    yield from ((path, f"{base}.{name.name}") for name in names)
                case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if (
                    ast.unparse(function).split(".")[-1] in {"import_module", "__import__"}
                ):
                    yield path, name


def _is_in_memory(call: ast.Call) -> bool:
    named = [keyword.value for keyword in call.keywords if keyword.arg == "database"]
    databases = [*call.args[:1], *named]
    return all(isinstance(d, ast.Constant) and d.value == ":memory:" for d in databases)
