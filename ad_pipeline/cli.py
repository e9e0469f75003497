"""The command line: everything a person does that needs no Dagster.

``ad_pipeline --help`` lists the commands. Materializing assets is Dagster's own command line; what
the commands compute belongs to the rooms.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ad_pipeline.clocks import timestamp
from ad_pipeline.datasets import DatasetError, Deployment, deployment_from_env

if TYPE_CHECKING:
    from ad_pipeline.simulation.spec import MarketplaceSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Of the process if left out.

    Returns
    -------
    int
        Exit status: 0, or 1 after an error that the message explains.
    """
    parser = _parser()
    chosen = parser.parse_args(arguments)
    from ad_pipeline.simulation.main_job import MainJobFailed

    try:
        chosen.run(chosen)
    except (DatasetError, FileNotFoundError, LookupError, MainJobFailed) as error:
        sys.stderr.write(f"ad_pipeline: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ad_pipeline",
        description="Label-joined tables, learners and verified bundles from ad event logs.",
        epilog="AD_PIPELINE_DATASET and AD_PIPELINE_HOME choose the deployment.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="run the main job on both datasets, print the result")
    demo.add_argument("--only", choices=("open_bandit", "marketplace"), help="one dataset only")
    _describe_market(demo)
    demo.set_defaults(run=_demo)

    simulate = commands.add_parser("simulate", help="write days of the simulated exchange's logs")
    simulate.add_argument("--first", type=int, default=0, help="first day, from 0")
    simulate.add_argument("--days", type=int, default=6, help="how many days")
    _describe_market(simulate)
    simulate.set_defaults(run=_simulate)

    drive = commands.add_parser("drive", help="serve a simulated day through serving/current")
    drive.add_argument("--day", type=int, required=True, help="which day, from 0")
    _describe_market(drive)
    drive.set_defaults(run=_drive)

    report = commands.add_parser("report", help="print the measures of every goal and expert")
    report.set_defaults(run=_report)

    status = commands.add_parser("status", help="say what is served and how far the log is read")
    status.set_defaults(run=_status)

    rollback = commands.add_parser("rollback", help="let the bundle before the current one serve")
    rollback.set_defaults(run=_rollback)
    return parser


def _describe_market(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, help="another simulated market than the default one")
    command.add_argument("--no-drift", action="store_true", help="leave the planted drift out")


def _market(chosen: argparse.Namespace) -> "MarketplaceSpec":
    from ad_pipeline.simulation.spec import MarketplaceSpec

    spec = MarketplaceSpec(drift=not chosen.no_drift)
    return spec if chosen.seed is None else replace(spec, seed=chosen.seed)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _demo(chosen: argparse.Namespace) -> None:
    from ad_pipeline.simulation.main_job import run_marketplace, run_open_bandit

    home = Path(os.environ.get("AD_PIPELINE_HOME", ".ad_pipeline")).resolve()
    started = time.monotonic()
    finished = []
    if chosen.only in (None, "open_bandit"):
        finished.append(run_open_bandit(home, _say))
    if chosen.only in (None, "marketplace"):
        finished.append(run_marketplace(home, _say, _market(chosen)))
    for run in finished:
        _print_report(run.deployment)
        _say(f"  checks: {sum(seen.passed for seen in run.checks)} of {len(run.checks)} passed")
        for seen in run.checks:
            if not seen.passed:
                _say(f"    not passed: {seen.asset}: {seen.check}: {seen.found}")
    _say(f"\nThe main job took {time.monotonic() - started:.0f} s. Look around with `make dev`, or")
    _say("`make dev AD_PIPELINE_DATASET=marketplace`, then http://localhost:3000")


def _simulate(chosen: argparse.Namespace) -> None:
    from ad_pipeline.simulation.main_job import simulate

    days = range(chosen.first, chosen.first + chosen.days)
    simulate(deployment_from_env(), _market(chosen), days, _say)


def _drive(chosen: argparse.Namespace) -> None:
    from ad_pipeline.simulation.main_job import drive

    drive(deployment_from_env(), _market(chosen), chosen.day, _say)


def _report(_: argparse.Namespace) -> None:
    _print_report(deployment_from_env())


def _status(_: argparse.Namespace) -> None:
    from ad_pipeline.serving.promotion import history

    deployment = deployment_from_env()
    _say(f"dataset {deployment.dataset.name} in {deployment.home}")
    for move in history(deployment.serving):
        _say(
            f"{move.sequence}. {move.action} {move.digest[:12]} "
            f"on evidence up to {timestamp(move.watermark_us)}"
        )


def _rollback(_: argparse.Namespace) -> None:
    from ad_pipeline.serving.promotion import rollback

    deployment = deployment_from_env()
    move = rollback(deployment.serving, deployment.bundles)
    _say(f"serving/current names {move.digest} again")


def _print_report(deployment: Deployment) -> None:
    from ad_pipeline.evaluation.printed import report_lines
    from ad_pipeline.serving.pointers import CURRENT, read_pointer
    from ad_pipeline.warehouse import Warehouse, rows_of

    with Warehouse(deployment.warehouse).reader() as connection:
        rows = rows_of(connection, "SELECT * FROM evaluation.report").to_pylist()
    _say(f"\n== {deployment.dataset.name}")
    for line in report_lines(rows):
        _say(line)
    for note in deployment.dataset.notes:
        _say(f"  {note}")
    pointer = read_pointer(deployment.serving, CURRENT)
    if pointer is not None:
        _say(f"  bundle {deployment.bundles / 'objects' / pointer.digest}")
    _say(f"  pictures and drift report in {deployment.reports}")


if __name__ == "__main__":
    sys.exit(main())
