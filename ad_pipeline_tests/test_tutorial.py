"""The tutorial's commands do what the tutorial shows.

Blocks marked ``<!-- run -->`` are run one after the other in one shell session and one folder; the
block of text behind one is what it must print. Decimals, digests and times differ between machines:
they are compared as "a number", and ``…`` stands for anything. Blocks marked ``slow`` take the
pipeline through a week of log.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"

NEEDED = ("ad_pipeline", "data", "dbt_like_sql", "workspace.yaml", "pyproject.toml")

BLOCK = re.compile(
    r"^<!-- run(?P<slow>: slow)? -->\n```(?P<language>bash|python)\n(?P<code>.*?)^```\n"
    r"(?:```text\n(?P<printed>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A command of the tutorial and what it prints.

    Attributes
    ----------
    slow : bool
    language : {'bash', 'python'}
    code, printed : str
    """

    slow: bool
    language: str
    code: str
    printed: str


def blocks_of(text: str) -> list[Block]:
    return [
        Block(found["slow"] is not None, found["language"], found["code"], found["printed"] or "")
        for found in BLOCK.finditer(text)
    ]


BLOCKS = blocks_of(TUTORIAL.read_text())


def stable(text: str) -> str:
    """Return the part of what a command printed that is the same everywhere."""
    text = re.sub(r"/[^\s:]*/(?=\.ad_pipeline|my_log|mistaken)", "", text)
    text = re.sub(r"[-+]?\d+\.\d+(e-?\d+)?", "#", text)
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "#", text)
    return re.sub(r"[ \t]+", " ", text).strip()


def is_as_shown(shown: str, printed: str) -> bool:
    pattern = ".*?".join(re.escape(part.strip("\n")) for part in stable(shown).split("…"))
    return re.fullmatch(pattern, stable(printed), re.DOTALL) is not None


class Session:
    """A shell session in a folder of its own that looks like the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in NEEDED:
            (folder / name).symlink_to(REPOSITORY / name)
        tools = folder / ".tools"
        tools.mkdir()
        command = tools / "ad_pipeline"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ad_pipeline.cli "$@"\n')
        command.chmod(0o755)
        self._exported = folder / ".exported"
        self._exported.touch()
        path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {
            **{name: os.environ[name] for name in os.environ if not name.startswith("AD_PIPE")},
            "PATH": path,
            "PYTHONPATH": str(folder),
            "PYTHONWARNINGS": "ignore",
        }

    def prints(self, block: Block) -> str:
        """Run a block and return what it printed, complaints included if it failed."""
        (self.folder / ".code").write_text(block.code)
        run = ". ./.code" if block.language == "bash" else f'"{sys.executable}" .code'
        script = f"set -e; . ./.exported; {run}; export -p > .exported"
        ran = subprocess.run(
            ["/bin/bash", "-c", script],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{block.code}\nended with {ran.returncode}:\n{ran.stdout}"
        return ran.stdout


def assert_blocks_print_what_is_shown(blocks: list[Block], folder: Path) -> None:
    session = Session(folder)
    for block in blocks:
        printed = session.prints(block)
        assert is_as_shown(block.printed, printed), f"{block.code}\nprinted\n{printed}"


def test_the_quick_commands_print_what_the_tutorial_shows(tmp_path: Path) -> None:
    quick = [block for block in BLOCKS if not block.slow]
    assert len(quick) >= 2
    assert_blocks_print_what_is_shown(quick, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_prints_what_the_tutorial_shows(tmp_path: Path) -> None:
    assert len(BLOCKS) >= 10
    assert_blocks_print_what_is_shown(BLOCKS, tmp_path)


def test_every_block_that_could_be_run_is_marked_or_is_known() -> None:
    """What nobody runs rots: only these need the network or a person."""
    fences = re.findall(r"^```(?:bash|python)\n(.*?)^```", TUTORIAL.read_text(), re.M | re.S)
    unmarked = set(fences) - {block.code for block in BLOCKS}
    assert {text.split()[0] for text in unmarked} == {"git", "make"}


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a b\n0.5 s\nc 12", "a b\n0.7 s\nc 12\n"),
        ("a\n…\nc", "a\nb\nb\nc"),
        ("a …", "a b c\nd"),
        ("bundle 0123456789ab", "bundle ba9876543210"),
        ("{'click': 0.0114}", "{'click': 0.007853821048620733}"),
        ("in .ad_pipeline/x", "in /tmp/somewhere/.ad_pipeline/x"),
    ],
)
def test_what_differs_between_machines_is_not_compared(shown: str, printed: str) -> None:
    assert is_as_shown(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [("12 rows", "13 rows"), ("a\n…\nc", "a\nb"), ("passed", "failed"), ("a", "a\nb"), ("", "a")],
)
def test_another_output_is_found(shown: str, printed: str) -> None:
    assert not is_as_shown(shown, printed)


def test_a_planted_command_that_fails_or_prints_something_else_is_found(tmp_path: Path) -> None:
    text = "<!-- run -->\n```bash\n{}\n```\n```text\none\n```\n"
    for number, code in enumerate(("echo two", "false", "exit 3")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(AssertionError):
            assert_blocks_print_what_is_shown(blocks_of(text.format(code)), folder)
    session = tmp_path / "sound"
    session.mkdir()
    assert_blocks_print_what_is_shown(blocks_of(text.format("echo one")), session)
