"""Runs the speed benchmarks, keeps what they say, and draws ``docs/performance.md`` from it.

The page is a function of the files in ``benchmarks/speed/measured``, one a module: its JSON object,
the machine, the commit and the command. A figure that somebody typed into the page would not
survive the test that draws it anew. How something is measured stands in the modules themselves.

    python -m benchmarks.performance_page                        # all of them: `make bench`
    python -m benchmarks.performance_page label_join --runs 1    # some of them
    python -m benchmarks.performance_page --render               # draw only
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, shown

REPOSITORY = Path(__file__).resolve().parents[1]
MEASURED = REPOSITORY / "benchmarks" / "speed" / "measured"
PAGE = REPOSITORY / "docs" / "performance.md"


@dataclass(frozen=True)
class Module:
    """One module of ``benchmarks/speed``.

    Attributes
    ----------
    name : str
    title : str
        What it is about, for people.
    minutes : float
        About how long it takes on two quiet cores.
    """

    name: str
    title: str
    minutes: float

    @property
    def command(self) -> str:
        """What anyone types to measure it."""
        return f"python -m benchmarks.speed.{self.name}"


MODULES = (
    Module("online_learner", "The online learner", 8.0),
    Module("online_requests", "The online learner, a little at a time", 2.0),
    Module("wide_deep", "Wide & deep", 2.0),
    Module("similarity", "Similar users", 4.0),
    Module("label_join", "The label join", 7.0),
    Module("pipeline", "Dagster's part of a run", 9.0),
    Module("drift", "Drift", 2.0),
    Module("simulation", "The simulated exchange", 0.5),
    Module("parity", "The re-check of served decisions", 3.0),
    Module("embeddings", "User vectors", 6.5),
)

PACKAGES = ("dagster", "duckdb", "numba", "numpy", "pyarrow")

INTRODUCTION = """\
# Performance

Drawn from `benchmarks/speed/measured/` by `make bench`; do not edit. Each figure is the median of
the runs that its command makes (of parity the least), on the machine that is named below it.
Machines differ, and this one is shared: ratios were taken in one run and carry over better than
seconds. *To reach* is what the project set itself before it measured; a figure without it explains
another one. A limit is what bounds a figure."""


def render(measured: dict[str, dict[str, Any]]) -> str:
    """Return the page.

    Parameters
    ----------
    measured : dict of str to dict
        By module, what :func:`stored` returns; a module may be missing.
    """
    parts = [INTRODUCTION, _verdicts(measured)]
    for module in MODULES:
        parts.append(f"## {module.title}")
        if module.name in measured:
            parts.append(_section(measured[module.name]))
        else:
            parts.append(f"Not measured yet: `{module.command}`.")
    return "\n\n".join(parts) + "\n"


def stored(folder: Path = MEASURED) -> dict[str, dict[str, Any]]:
    """Return what was measured and kept, by module."""
    return {
        module.name: json.loads((folder / f"{module.name}.json").read_text())
        for module in MODULES
        if (folder / f"{module.name}.json").exists()
    }


def run(module: Module, options: Sequence[str]) -> dict[str, Any]:
    """Run a module and return what is kept of it.

    Parameters
    ----------
    module : Module
    options : sequence of str
        Of its command line.

    Raises
    ------
    subprocess.CalledProcessError
        If it fails; its errors were printed.
    """
    command = [sys.executable, *module.command.split()[1:], "--json", *options]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    return {
        **json.loads(ran.stdout.splitlines()[-1]),
        "command": " ".join([module.command, *options]),
        "commit": commit(),
        "machine": machine(),
    }


def machine() -> dict[str, str | int]:
    """Return what figures depend on besides the code: processor, memory, versions."""
    processor = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor[1] if processor else platform.machine(),
        "memory_gib": round(memory),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def commit() -> str:
    """Return the commit that was measured; a changed tree is said to be one."""
    described = ["git", "describe", "--always", "--abbrev=12", "--dirty=, with changes"]
    return subprocess.run(
        described, check=True, capture_output=True, text=True, cwd=REPOSITORY
    ).stdout.strip()


def _verdicts(measured: dict[str, dict[str, Any]]) -> str:
    figures = [figure for found in measured.values() for figure in _figures(found)]
    reached = [figure.reached for figure in figures if figure.reached is not None]
    missing = [module.name for module in MODULES if module.name not in measured]
    lines = [f"Met: {sum(reached)} of {len(reached)} figures that have something to reach."]
    missed = ", ".join(f"`{figure.key}`" for figure in figures if figure.reached is False)
    if missed:
        lines.append(f"Not met: {missed}.")
    if missing:
        lines.append(f"Not measured yet: {', '.join(f'`{name}`' for name in missing)}.")
    return "\n".join(lines)


def _section(found: dict[str, Any]) -> str:
    rows = ["| figure | measured | to reach | | what |", "|---|--:|--:|---|---|"]
    limits: list[str] = []
    for figure in _figures(found):
        sign = {"higher": "≥", "lower": "≤"}[figure.better]
        reach = "" if figure.reach is None else f"{sign} {shown(figure.reach)}"
        verdict = {None: "", True: "met", False: "**not met**"}[figure.reached]
        value = shown(figure.value)
        rows.append(f"| `{figure.key}` | {value} | {reach} | {verdict} | {figure.says} |")
        if figure.limit:
            limits.append(f"- Limit of `{figure.key}`: {figure.limit}.")
    machine = found["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", *PACKAGES))
    where = (
        f"`{found['command']}` at {found['commit']}: {machine['cores']} cores, "
        f"{machine['processor']}, {machine['memory_gib']} GiB; {versions}."
    )
    return "\n\n".join(part for part in ("\n".join(rows), "\n".join(limits), where) if part)


def _figures(found: dict[str, Any]) -> list[Figure]:
    return [Figure(**figure) for figure in found["figures"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run modules, store what they say, draw the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    names = [module.name for module in MODULES]
    parser.add_argument("modules", nargs="*", metavar="module", help=f"of {', '.join(names)}")
    parser.add_argument("--render", action="store_true", help="draw what is stored, run nothing")
    parser.add_argument("--runs", type=int, help="of each module, in place of its own number")
    chosen = parser.parse_args(arguments)
    options = [] if chosen.runs is None else ["--runs", str(chosen.runs)]
    if unknown := set(chosen.modules) - set(names):
        parser.error(f"no module {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    wanted = [m for m in MODULES if not chosen.modules or m.name in chosen.modules]
    if not chosen.render:
        minutes = sum(module.minutes for module in wanted)
        sys.stdout.write(f"about {minutes:g} minutes on two quiet cores:\n")
        for module in wanted:
            sys.stdout.write(f"  {module.minutes:4g} min  {module.command}\n")
        sys.stdout.flush()
        MEASURED.mkdir(exist_ok=True)
        for module in wanted:
            started = time.perf_counter()
            found = run(module, options)
            text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True)
            (MEASURED / f"{module.name}.json").write_text(f"{text}\n")
            for figure in _figures(found):
                sys.stdout.write(f"{figure.key:<26}{shown(figure.value):>12}  {figure.says}\n")
            sys.stdout.write(f"== {module.name}: {time.perf_counter() - started:.0f} s\n")
            sys.stdout.flush()
    PAGE.write_text(render(stored()))
    sys.stdout.write(f"drawn: {PAGE.relative_to(REPOSITORY)}\n")


if __name__ == "__main__":
    main()
