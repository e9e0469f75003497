"""Runs every study that is not finished, then draws ``docs/evidence.md``: ``make evidence``.

python -m benchmarks.evidence [--only STUDY ...] [--seeds N] [--fresh] [--budget]
"""

import sys

from benchmarks.evidence_page import STUDIES, sections, write_page
from benchmarks.studies import argument_parser, run_as_asked


def main() -> None:
    """Run the studies asked for, all of them by default, and draw the page."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=STUDIES, metavar="STUDY", default=STUDIES)
    asked = parser.parse_args()
    every = sections()
    run_as_asked([each.study for each in every if each.study.name in asked.only], asked)
    if not asked.budget:
        for path in write_page(every):
            sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
