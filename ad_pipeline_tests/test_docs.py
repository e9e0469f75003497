"""What the documents say is there: links, tables, assets, settings, messages, the worked example.

Text is compared with the code that it is about, so that a page that fell behind is a failing test.
Each rule is a function from a page to what is wrong with it, and finds the fault planted for it.
The tutorial's commands are run in ``test_tutorial.py``.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from ad_pipeline.datasets import Goal
from ad_pipeline.settings import Settings
from ad_pipeline_tests.defs.graph_shape import snapshot_file
from docs.pictures import worked_impression
from docs.room_tables import TABLES, current

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"

PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(REPOSITORY / "data").rglob("*.md"),
    ]
)
ROOMS = (
    "events", "examples", "evaluation", "embeddings", "features", "learners", "serving",
    "monitoring", "simulation",
)  # fmt: skip

LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SETTING = re.compile(r"\bsettings\.(?P<group>[a-z]\w*)\.(?P<key>[a-z]\w*)")
OF_A_GOAL = re.compile(r"\bgoals\.<goal>\.(?P<key>\w+)")
ASSET = re.compile(r"^  (?P<room>\w+)/(?P<name>\w+) \(", re.MULTILINE)


FIGURE = re.compile(
    r"\b(?:\d[\d.,]*\s?|(?:one|two|three|four|five|six|seven|eight|nine|ten) )"
    r"(?:%|×|(?:x|ms|s|GB|MB|rows/s|rows a second|seconds?|minutes?)\b)"
)


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Yield each relative link that leads nowhere, to a file or to a heading of one."""
    for found in LINK.finditer(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        target, _, heading = found["target"].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (page.parent / target) if target else page
        if not path.exists() or (heading and heading not in _headings(path.read_text())):
            yield found["target"]


def unknown_settings(_: Path, text: str) -> Iterator[str]:
    """Yield each setting that a page mentions and the code does not have."""
    for found in SETTING.finditer(text):
        if found["group"] == "py":
            continue
        group = Settings.model_fields.get(found["group"])
        # A group may be optional, as wide & deep is.
        models = () if group is None else get_args(group.annotation) or (group.annotation,)
        if not any(found["key"] in getattr(model, "model_fields", {}) for model in models):
            yield found[0]
    for found in OF_A_GOAL.finditer(text):
        if not {found["key"], f"{found['key']}_us"} & set(Goal.model_fields):
            yield found[0]


def unknown_messages(_: Path, text: str) -> Iterator[str]:
    """Yield each quoted message (a line that begins with ``>``) that no code can write."""
    for line in text.splitlines():
        if line.startswith("> ") and not any(
            line[2:].strip() in message for message in _messages()
        ):
            yield line[2:]


@cache
def _messages() -> tuple[str, ...]:
    """Return every text in the package, with ``…`` where a value is put in."""
    return tuple(
        _text(node)
        for path in sorted((REPOSITORY / "ad_pipeline").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    )


def _text(node: ast.JoinedStr | ast.Constant) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
    )


def _headings(text: str) -> set[str]:
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def figures(_: Path, text: str) -> Iterator[str]:
    """Yield each measured-looking figure: such belong to evidence and performance alone."""
    for found in FIGURE.finditer(text):
        yield found[0]


RULES = (broken_links, unknown_settings, unknown_messages, figures)

PLANTED = [
    (broken_links, "see [this](no_such_page.md)"),
    (broken_links, "see [that](README.md#no-such-heading)"),
    (broken_links, "![a picture](pictures/no_such_picture.png)"),
    (unknown_settings, "`settings.online.alpa` is the rate"),
    (unknown_settings, "`settings.onlin.alpha` is the rate"),
    (unknown_settings, "`goals.<goal>.windov`"),
    (figures, "it is 3.5 × as fast"),
    (figures, "it takes about six minutes"),
    (figures, "1.7 % less log loss"),
    (figures, "200,000 rows/s"),
    (unknown_messages, "> … was in use for … s by …; never mind"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
@pytest.mark.parametrize("rule", [broken_links, unknown_settings], ids=lambda rule: rule.__name__)
def test_what_a_page_points_at_exists(page: Path, rule) -> None:
    assert list(rule(page, page.read_text())) == []


def test_the_readme_claims_no_figure() -> None:
    """What was measured stands in evidence.md and performance.md, with its command."""
    page = REPOSITORY / "README.md"
    assert list(figures(page, page.read_text())) == []


def test_every_quoted_message_is_one_that_the_code_writes() -> None:
    page = DOCS / "troubleshooting.md"
    text = page.read_text()
    assert len(re.findall("^> ", text, re.MULTILINE)) > 20
    assert list(unknown_messages(page, text)) == []


@pytest.mark.parametrize(("rule", "text"), PLANTED)
def test_a_planted_fault_of_a_page_is_found(rule, text: str) -> None:
    assert len(list(rule(DOCS / "README.md", text))) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_page_has_no_fault(rule) -> None:
    text = (
        "[here](README.md) [there](#documentation) [away](https://example.org/x) "
        "`settings.online.alpha` `goals.<goal>.window`\n> no decisions yet\n"
    )
    assert list(rule(DOCS / "README.md", text)) == []


def test_every_page_is_reached_from_the_readme() -> None:
    """A page that nothing links to is read by nobody."""
    reached: set[Path] = set()
    waiting = [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        waiting += [
            (page.parent / found["target"].partition("#")[0]).resolve()
            for found in LINK.finditer(page.read_text())
            if "://" not in found["target"]
        ]
    assert set(DOCS.rglob("*.md")) - reached == set()


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_of_a_room_names_its_tables_assets_and_settings(room: str) -> None:
    text = (DOCS / "rooms" / f"{room}.md").read_text()
    named = {table.name for table in TABLES.get(room, ())}
    for dataset in ("open_bandit", "marketplace"):
        named |= {
            f"{found['room']}.{found['name']}"
            for found in ASSET.finditer(snapshot_file(dataset).read_text())
            if found["room"] == room
        }
    assert room == "simulation" or named
    missing = [name for name in named if name not in text and name.replace(".", "/") not in text]
    assert missing == []
    for heading in ("**In:**", "**Out:**", "## Does not belong here"):
        assert heading in text, heading
    assert len(text.splitlines()) < 90, "two screens at most"


@pytest.mark.parametrize("room", TABLES)
def test_the_list_of_tables_is_the_one_of_the_code(room: str) -> None:
    text = (DOCS / "rooms" / f"{room}.md").read_text()
    assert text == current(text, room), "python -m docs.room_tables --write"


def test_a_list_that_fell_behind_is_found() -> None:
    text = (DOCS / "rooms" / "learners.md").read_text()
    assert current(text.replace("learners.retrains", "learners.trainings", 1), "learners") != (
        text.replace("learners.retrains", "learners.trainings", 1)
    )


def test_every_room_has_a_page() -> None:
    rooms = {
        path.parent.name
        for path in (REPOSITORY / "ad_pipeline").glob("*/__init__.py")
        if path.parent.name != "defs"
    }
    assert {path.stem for path in (DOCS / "rooms").glob("*.md")} == rooms == set(ROOMS)


def test_the_clocks_page_says_what_the_label_join_makes_of_its_impression() -> None:
    text = (DOCS / "clocks.md").read_text()
    counted = worked_impression.clock_of(worked_impression.counted_until_us())[:5]
    counts = worked_impression.clock_of(worked_impression.click_counts_from_us())[:5]
    assert worked_impression.table() in text
    assert f"**counts up to {counted}**" in text
    assert f"**counts from {counts} on**" in text
    for fact in worked_impression.facts():
        if fact.clock != "received_us":
            moment = worked_impression.clock_of(fact.moment_us).replace(":00", "", 1)
            assert f"**{moment[:5]}" in text, fact


def test_a_click_that_comes_earlier_changes_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is computed: with another click the page would be behind."""
    before = worked_impression.table()
    early = worked_impression.Happening(
        "click", worked_impression.CLICK.occurred_us, worked_impression.CLICK.occurred_us
    )
    monkeypatch.setattr(worked_impression, "CLICK", early)
    assert worked_impression.table() != before
    assert "10:40:00 | a learner may see: click, delayed positive" in worked_impression.table()


def test_the_picture_of_the_clocks_is_drawn() -> None:
    assert worked_impression.picture().startswith(b"\x89PNG")
    assert (DOCS / "pictures" / "clocks.png").stat().st_size > 10_000
