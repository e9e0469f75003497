"""Stub."""

from dataclasses import asdict

from ad_pipeline.monitoring.late_labels import runs
from benchmarks.late_cases import AGES, BURSTS, CASES, DEEP, DRAWS, FORMULAS, REPLICATES, run
from benchmarks.studies import Study, command_line

SEEDS = tuple(range(701, 706))

STUDY = Study(
    name="delayed_labels",
    settings={
        "code_version": runs.CODE_VERSION,
        "cases": {name: asdict(case) for name, case in CASES.items()},
        "deep": DEEP.model_dump(mode="json"),
        "ages": AGES,
        "draws": DRAWS,
        "replicates": REPLICATES,
    },
    seeds={FORMULAS: SEEDS, BURSTS: SEEDS[:1]} | dict.fromkeys(CASES, SEEDS),
    run=run,
    seconds=20.0,
)
if __name__ == "__main__":
    command_line([STUDY], __doc__)
