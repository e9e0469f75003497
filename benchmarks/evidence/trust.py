"""Whether what was served is what was trained, and the system notices when it is not: all studies.

Each of them stands in a module of its own: planted faults of serving and their causes
(``trust_parity``), nulls for two minutes (``null_burst``), flipped bytes and the drill
(``trust_integrity``), drift and what acting on it gained (``trust_drift``), suspect labels
(``trust_labels``), loss and calibration before labels mature (``trust_estimate``).

    python -m benchmarks.evidence.trust [--seeds N] [--fresh] [--budget]
"""

from importlib import import_module

from benchmarks.studies import command_line

STUDIES = (
    "trust_parity",
    "null_burst",
    "trust_integrity",
    "trust_drift",
    "trust_labels",
    "trust_estimate",
)
"""Modules beside this one, in the order of the page."""

if __name__ == "__main__":
    command_line([import_module(f"benchmarks.evidence.{name}").STUDY for name in STUDIES], __doc__)
