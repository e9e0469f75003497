"""The pinned requirements: current, complete, and free of any index address.

The planted faults are edits of copies; nothing here needs a network.
"""

import re
import runpy
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LOCKS = ("runtime.lock", "dev.lock")

out_of_date: Callable[[Path, Path], list[str]] = runpy.run_path(
    str(REPOSITORY / "requirements/lock.py")
)["out_of_date"]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Copy `pyproject.toml` and the locks into one folder."""
    for path in ("pyproject.toml", *(f"requirements/{lock}" for lock in LOCKS)):
        shutil.copy(REPOSITORY / path, tmp_path)
    return tmp_path


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def test_the_locks_are_current() -> None:
    assert out_of_date(REPOSITORY / "pyproject.toml", REPOSITORY / "requirements") == []


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("dependencies = [\n", 'dependencies = [\n    "requests",\n', 2),
        ('"pandas>=2.2,<3.1"', '"pandas>=2.2,<3.0"', 2),
        ('    "pyyaml>=6.0",\n', "", 2),
        ('requires-python = ">=3.11"', 'requires-python = ">=3.12"', 2),
        ('"xxhash>=3.5"', '"xxhash>=3.6"', 1),  # of the tests alone: the runtime lock stays current
    ],
)
def test_a_changed_dependency_makes_the_check_fail(
    copied: Path, old: str, new: str, stale: int
) -> None:
    assert out_of_date(copied / "pyproject.toml", copied) == []
    _edit(copied / "pyproject.toml", old, new)
    problems = out_of_date(copied / "pyproject.toml", copied)
    assert len(problems) == stale
    assert all("older than the dependencies" in problem for problem in problems)


def test_a_comment_in_pyproject_leaves_the_locks_current(copied: Path) -> None:
    _edit(copied / "pyproject.toml", "dependencies = [\n", "dependencies = [\n    # A remark.\n")
    assert out_of_date(copied / "pyproject.toml", copied) == []


def test_a_pin_edited_by_hand_makes_the_check_fail(copied: Path) -> None:
    pin = re.findall(r"^numpy==\S+", (copied / "dev.lock").read_text(), re.MULTILINE)[0]
    _edit(copied / "dev.lock", pin, "numpy==2.0.0")
    assert ["edited by hand" in p for p in out_of_date(copied / "pyproject.toml", copied)] == [True]


def test_a_missing_lock_makes_the_check_fail(copied: Path) -> None:
    (copied / "runtime.lock").unlink()
    assert ["missing" in p for p in out_of_date(copied / "pyproject.toml", copied)] == [True]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes_and_no_line_names_an_index(lock: str) -> None:
    text = (REPOSITORY / "requirements" / lock).read_text()
    assert not re.search(r"https?://|file:|^-", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    entries = re.split(r"\n(?=\S)", "\n".join(lines))
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_both_locks_pin_the_same_version_of_what_they_share() -> None:
    """`make demo` and `make test` install into one environment."""
    runtime, dev = (
        set(re.findall(r"^\S+==[^\\\n]+", (REPOSITORY / "requirements" / lock).read_text(), re.M))
        for lock in LOCKS
    )
    assert runtime < dev


def test_every_upper_bound_has_its_reason_beside_it() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    tables = tomllib.loads(text)
    assert any("<" in requirement for requirement in tables["project"]["dependencies"])
    for line in text.splitlines():
        if re.search(r'^\s+"[^"]+<[^"]+"', line):
            assert re.search(r"#\s*\w+", line), line
