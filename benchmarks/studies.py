"""Studies: arms x seeds, each pair a pure function from settings to numbers, kept as they come.

What makes a figure of ``docs/evidence.md`` repeatable stands here once: which runs a study has,
what they will cost (said before anything runs), where their results are kept, and how a study that
was killed goes on. A result is one JSON line per (arm, seed), under a digest of the study's
settings; a changed setting makes the old lines stale, and stale lines count for nothing. What a
study measures stands in ``benchmarks/evidence/<name>.py``, how it becomes a page in
:mod:`benchmarks.evidence_page`.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "evidence" / "results"

Values = dict[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shared:
    """Work that several runs use, and that only the first of them does.

    Attributes
    ----------
    key : str
    seconds : float
        What it takes.
    done : bool
        Whether it is there already.
    """

    key: str
    seconds: float
    done: bool


@dataclass(frozen=True)
class Study:
    """What is run, and on which settings.

    Attributes
    ----------
    name : str
        Of its module in ``benchmarks/evidence`` and of its results.
    settings : mapping
        All that the numbers follow from besides arm and seed, as JSON takes it.
    seeds : mapping of str to sequence of int
        By arm.
    run : callable
        From (arm, seed) to named numbers; the same ones whenever it is called.
    seconds : float
        What a run takes on one quiet core of a small machine; measured runs replace it.
    shared : callable or None
        From (arm, seed) to the work that the run shares with others.
    """

    name: str
    settings: Mapping[str, Any]
    seeds: Mapping[str, Sequence[int]]
    run: Callable[[str, int], Values]
    seconds: float
    shared: Callable[[str, int], Shared] | None = None

    @property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the settings' canonical JSON."""
        canonical = json.dumps(self.settings, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def pairs(self, most_seeds: int | None = None) -> list[tuple[str, int]]:
        """Return the runs as (arm, seed), seed by seed, at most `most_seeds` of each arm.

        Seed by seed, so that a study that was stopped early has something on every arm.
        """
        longest = max((len(seeds) for seeds in self.seeds.values()), default=0)
        return [
            (arm, seeds[place])
            for place in range(longest if most_seeds is None else min(longest, most_seeds))
            for arm, seeds in self.seeds.items()
            if place < len(seeds)
        ]


@dataclass(frozen=True)
class Result:
    """What one run gave.

    Attributes
    ----------
    arm : str
    seed : int
    seconds : float
        What it took, shared work left out.
    values : dict of str to float
    """

    arm: str
    seed: int
    seconds: float
    values: Values


def read_results(study: Study, folder: Path = RESULTS) -> list[Result]:
    """Return the stored results of a study's present settings, in the order of its runs.

    Parameters
    ----------
    study : Study
    folder : Path

    Returns
    -------
    list of Result
        None of other settings, none of runs that the study no longer has.
    """
    wanted = {pair: place for place, pair in enumerate(study.pairs())}
    found: dict[tuple[str, int], Result] = {}
    for record in _records(folder / f"{study.name}.jsonl"):
        pair = (record["arm"], record["seed"])
        if record["settings"] == study.digest and pair in wanted:
            found[pair] = Result(*pair, record["seconds"], record["values"])
    return [found[pair] for pair in sorted(found, key=wanted.__getitem__)]


def values_of(results: Iterable[Result], arm: str, name: str) -> list[float]:
    """Return one named number of every run of an arm, in the order of the seeds."""
    return [result.values[name] for result in results if result.arm == arm]


def remaining(
    study: Study, folder: Path = RESULTS, most_seeds: int | None = None
) -> list[tuple[str, int]]:
    """Return the runs that have no result yet."""
    done = {(result.arm, result.seed) for result in read_results(study, folder)}
    return [pair for pair in study.pairs(most_seeds) if pair not in done]


def forget(study: Study, folder: Path = RESULTS) -> None:
    """Remove all stored results of a study."""
    (folder / f"{study.name}.jsonl").unlink(missing_ok=True)


def budget_seconds(
    studies: Sequence[Study], folder: Path = RESULTS, most_seeds: int | None = None
) -> dict[str, float]:
    """Return what the remaining runs will take, by study; shared work counts where it comes first.

    Parameters
    ----------
    studies : sequence of Study
        In the order in which they will run.
    folder : Path
    most_seeds : int or None

    Returns
    -------
    dict of str to float
        Seconds.
    """
    counted: set[str] = set()
    budget: dict[str, float] = {}
    for study in studies:
        total = 0.0
        for arm, seed in remaining(study, folder, most_seeds):
            total += _seconds_a_run(study, folder)
            shared = study.shared(arm, seed) if study.shared else None
            if shared is not None and not shared.done and shared.key not in counted:
                counted.add(shared.key)
                total += shared.seconds
        budget[study.name] = total
    return budget


def run_studies(
    studies: Sequence[Study],
    folder: Path = RESULTS,
    most_seeds: int | None = None,
    say: Say | None = None,
) -> None:
    """Say the time budget, then run what has no result yet and keep each result as it comes.

    Parameters
    ----------
    studies : sequence of Study
    folder : Path
    most_seeds : int or None
        Runs of each arm at most; all by default.
    say : callable or None
        Gets lines of progress; standard output by default.
    """
    tell = say or _to_stdout
    budget = budget_seconds(studies, folder, most_seeds)
    left = {study.name: remaining(study, folder, most_seeds) for study in studies}
    for study in studies:
        runs, all_runs = len(left[study.name]), len(study.pairs(most_seeds))
        tell(
            f"{study.name}: {all_runs - runs} of {all_runs} runs are stored, {runs} left, about "
            f"{duration_text(budget[study.name])}"
        )
    tell(f"time budget: about {duration_text(sum(budget.values()))}")
    for place, study in enumerate(studies):
        pairs = left[study.name]
        for number, (arm, seed) in enumerate(pairs, start=1):
            started = time.perf_counter()
            shared = study.shared(arm, seed) if study.shared else None
            values = study.run(arm, seed)
            took = time.perf_counter() - started
            spent_on_shared = 0.0 if shared is None or shared.done else shared.seconds
            result = Result(arm, seed, round(max(0.0, took - spent_on_shared), 2), values)
            _append(study, result, folder)
            rest = sum(budget_seconds(studies[place:], folder, most_seeds).values())
            tell(
                f"{study.name} {number}/{len(pairs)}: {arm}, seed {seed} in {took:.1f} s; "
                f"about {duration_text(rest)} left"
            )


def command_line(studies: Sequence[Study], description: str | None) -> None:
    """Run some studies as a program: ``--seeds N``, ``--fresh``, ``--budget``.

    Parameters
    ----------
    studies : sequence of Study
    description : str or None
        Shown by ``--help``.
    """
    parser = argument_parser(description)
    run_as_asked(studies, parser.parse_args())


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options that every study has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help="at most this many seeds of each arm")
    parser.add_argument("--fresh", action="store_true", help="forget stored results first")
    parser.add_argument("--budget", action="store_true", help="print the time budget and stop")
    return parser


def run_as_asked(studies: Sequence[Study], asked: argparse.Namespace) -> None:
    """Do what the options of :func:`argument_parser` ask for."""
    if asked.fresh and not asked.budget:
        for study in studies:
            forget(study)
    if asked.budget:
        for name, seconds in budget_seconds(studies, most_seeds=asked.seeds).items():
            _to_stdout(f"{name}: about {duration_text(seconds)} left")
        return
    run_studies(studies, most_seeds=asked.seeds)


def duration_text(seconds: float) -> str:
    """Return a duration as people say it: ``40 s``, ``3.5 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _seconds_a_run(study: Study, folder: Path) -> float:
    measured = [result.seconds for result in read_results(study, folder)]
    return statistics.median(measured) if measured else study.seconds


def _records(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines; a kill may have left a torn one at the end."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _append(study: Study, result: Result, folder: Path) -> None:
    """Add one line, durably; lines of other settings and a torn last line go."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{study.name}.jsonl"
    kept = [record for record in _records(path) if record["settings"] == study.digest]
    line = {
        "arm": result.arm,
        "seed": result.seed,
        "settings": study.digest,
        "seconds": result.seconds,
        "values": result.values,
    }
    draft = path.with_suffix(".draft")
    with draft.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in [*kept, line])
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _to_stdout(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
