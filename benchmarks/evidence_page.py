"""Draws ``docs/evidence.md`` from the stored results of the studies, and nothing else.

The page is a function of the files in ``benchmarks/evidence/results``: a verdict that somebody
typed would not survive the test that draws it anew. A study without all of its runs says so and
claims nothing.

    python -m benchmarks.evidence_page [--check]
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.claims import Claim, Section, table_lines
from benchmarks.studies import RESULTS, Result, read_results

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "evidence.md"
PICTURES = DOCS / "pictures"

STUDIES = (
    "drift_alarm",
    "trust_drift",
    "ensemble",
    "freshness",
    "calibration",
    "exactness",
    "online_learner",
    "uncertainty",
    "half_life",
    "delayed_labels",
    "null_burst",
    "trust_labels",
    "trust_estimate",
    "trust_parity",
    "trust_integrity",
    "embeddings",
    "embeddings_arms",
)
"""Modules of ``benchmarks.evidence``, in the order of the page."""

HOLDS, NOT_MEASURED = "holds", "not measured"

INTRODUCTION = (
    "Every statistical claim of this project, with what it rests on. All of it comes from "
    "simulated markets, where the truth is known; nothing here says what a real log will "
    "give. Intervals are 95 %. A claim *holds* when its figure is as the sentence says "
    "**and** its negative control came out as it must; the verdict is computed from the "
    "results in `benchmarks/evidence/results`, never written by hand. Limits were fixed "
    "before the runs; where a control was changed afterwards, its study says so. Intervals "
    "are not corrected for the number of claims, so a bound that barely clears its limit is "
    "weak evidence. `make evidence` runs what is missing and draws this page; `python -m "
    "benchmarks.evidence --fresh` forgets the results first."
)


def sections() -> list[Section]:
    """Return the sections of all studies, in the order of the page."""
    return [import_module(f"benchmarks.evidence.{name}").SECTION for name in STUDIES]


def page_text(all_sections: Sequence[Section], folder: Path = RESULTS) -> str:
    """Return the page.

    Parameters
    ----------
    all_sections : sequence of Section
    folder : Path
        Of the stored results.

    Returns
    -------
    str
        Markdown that ends with a newline.
    """
    results = {section.study.name: read_results(section.study, folder) for section in all_sections}
    made = {
        section.study.name: section.claims(results[section.study.name])
        for section in all_sections
        if _finished(section, results)
    }
    lines = ["# Evidence", "", INTRODUCTION, "", *_summary(all_sections, made)]
    for section in all_sections:
        name = section.study.name
        lines += ["", f"## {section.title}", "", section.method, "", f"    {_command(name)}", ""]
        if name not in made:
            runs, wanted = len(results[name]), len(section.study.pairs())
            lines.append(
                f"**{NOT_MEASURED.capitalize()}**: {runs} of {wanted} runs are stored for the "
                "present settings. Nothing is claimed."
            )
            continue
        lines += _claim_table(made[name])
        for picture in section.pictures:
            lines += ["", f"![{section.title}](pictures/{_picture_name(picture)})"]
        told = section.details(results[name])
        lines += ["", *told] if told else []
    return "\n".join(lines) + "\n"


def write_page(
    all_sections: Sequence[Section],
    folder: Path = RESULTS,
    page: Path = PAGE,
    pictures: Path = PICTURES,
) -> list[Path]:
    """Write the page and its pictures; return the files written.

    Parameters
    ----------
    all_sections : sequence of Section
    folder : Path
        Of the stored results.
    page : Path
    pictures : Path
        Folder of the pictures.
    """
    page.write_text(page_text(all_sections, folder))
    written = [page]
    for section in all_sections:
        results = read_results(section.study, folder)
        if len(results) < len(section.study.pairs()):
            continue
        for name, draw in section.pictures.items():
            written.append(pictures / _picture_name(name))
            written[-1].write_bytes(draw(results))
    return written


def _finished(section: Section, results: dict[str, list[Result]]) -> bool:
    return len(results[section.study.name]) == len(section.study.pairs())


def _summary(all_sections: Sequence[Section], made: dict[str, list[Claim]]) -> list[str]:
    rows = []
    for section in all_sections:
        claims = made.get(section.study.name)
        if claims is None:
            rows.append([section.title, NOT_MEASURED, ""])
            continue
        failing = [claim.key for claim in claims if claim.verdict != HOLDS]
        held = f"{len(claims) - len(failing)} of {len(claims)}"
        rows.append([section.title, held, ", ".join(f"`{key}`" for key in failing) or "none"])
    return table_lines(["study", "claims that hold", "claims that do not"], rows)


def _claim_table(claims: Sequence[Claim]) -> list[str]:
    header = ["id", "claim", "figure", "interval", "seeds", "verdict", "negative control"]
    return table_lines(
        header,
        [
            [
                f"`{claim.key}`",
                claim.says,
                claim.figure,
                claim.interval,
                claim.seeds,
                f"**{claim.verdict}**",
                f"{claim.control}: {'as it must be' if claim.control_met else 'FAILS'}",
            ]
            for claim in claims
        ],
    )


def _command(name: str) -> str:
    return f"python -m benchmarks.evidence.{name}"


def _picture_name(name: str) -> str:
    return f"evidence_{name}.png"


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Write the page, or with ``--check`` say whether it is what the results give."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it is stale")
    arguments = parser.parse_args()
    if arguments.check:
        if PAGE.read_text() != page_text(sections()):
            sys.exit(f"{PAGE} is not what the stored results give: run make evidence")
        say(f"{PAGE} is what the stored results give\n")
        return
    for path in write_page(sections()):
        say(f"wrote {path}\n")


if __name__ == "__main__":
    main()
