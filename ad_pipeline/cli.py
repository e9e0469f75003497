"""The command line: everything a person does that needs no Dagster.

``ad_pipeline --help`` lists the commands. Materializing assets is Dagster's own command line; what
the commands compute belongs to the rooms.
"""

import argparse
import getpass
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ad_pipeline.checkpoints import CorruptCheckpoint
from ad_pipeline.clocks import hour_key, microseconds, timestamp
from ad_pipeline.datasets import (
    DATA_FOLDER,
    DatasetError,
    Deployment,
    HomeTaken,
    dataset_file,
    deployment_from_env,
    load_dataset,
)
from ad_pipeline.events.ledger import ChangedLogFile, MissingLogFile
from ad_pipeline.events.readers import UnreadableLog
from ad_pipeline.main_job import FinishedRun, MainJobFailed, materialize, run_log
from ad_pipeline.warehouse import UnreadableWarehouse, WarehouseBusy

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
    try:
        chosen.run(chosen)
    except _EXPLAINED as error:
        sys.stderr.write(f"ad_pipeline: {error}\n")
        return 1
    return 0


class ChecksFailed(Exception):
    """A look at a log found errors; they were printed one by one."""


_EXPLAINED = (
    ChangedLogFile,
    ChecksFailed,
    CorruptCheckpoint,
    DatasetError,
    FileExistsError,
    FileNotFoundError,
    HomeTaken,
    LookupError,
    MainJobFailed,
    MissingLogFile,
    UnreadableLog,
    UnreadableWarehouse,
    WarehouseBusy,
)
"""Errors whose message says what to do; others are ours, and keep their traceback."""


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

    run = commands.add_parser(
        "run", help="run the whole path on a log: every asset for every complete hour"
    )
    _describe_dataset(run)
    run.add_argument("--again", action="store_true", help="all hours, also those run before")
    run.set_defaults(run=_run)

    check = commands.add_parser(
        "check", help="read a sample of a log and say what is wrong before anything runs"
    )
    _describe_dataset(check)
    check.set_defaults(run=_check)

    init = commands.add_parser("init", help="draft a dataset file by looking at log files")
    init.add_argument("files", nargs="+", type=Path, help="log files: CSV, JSONL or Parquet")
    init.add_argument("--name", help="of the dataset (else after its folder or file)")
    init.add_argument("--output", type=Path, help="file to write (else data/<name>/dataset.yaml)")
    init.set_defaults(run=_init)

    simulate = commands.add_parser("simulate", help="write days of the simulated exchange's logs")
    simulate.add_argument("--first", type=int, default=0, help="first day, from 0")
    simulate.add_argument("--days", type=int, default=6, help="how many days")
    _describe_market(simulate)
    simulate.set_defaults(run=_simulate)

    conversions = commands.add_parser(
        "simulate-conversions", help="write a log in the format of a public conversion log"
    )
    conversions.add_argument("--format", choices=("criteo", "cascade"), default="criteo")
    conversions.add_argument("--rows", type=int, help="clicks (else as the format's default)")
    conversions.add_argument("--days", type=int, help="days of clicks")
    conversions.add_argument(
        "--recorded-days", type=float, help="leave out what happens later (else nothing)"
    )
    conversions.add_argument("--seed", type=int, help="another world than the default one")
    conversions.add_argument("--output", type=Path, required=True, help="folder to write into")
    conversions.set_defaults(run=_simulate_conversions)

    published = commands.add_parser(
        "published-protocol", help="run a published protocol of late labels on its public log"
    )
    _describe_dataset(published)
    published.add_argument("--arms", nargs="+", default=(), help="some of the protocol's arms only")
    published.add_argument("--seeds", type=int, default=1, help="how many (else 1)")
    published.add_argument("--family", choices=("linear", "deep"), default="linear")
    published.add_argument("--share", type=float, default=1.0, help="of the clicks, by hash")
    published.add_argument("--window", help="hours that methods wait (else as published)")
    published.add_argument(
        "--net", action="store_true", help="a conversion that is taken back counts as none"
    )
    published.add_argument(
        "--defect", action="append", default=[], help="reproduce a defect of public code; repeat"
    )
    published.add_argument("--defects", action="store_true", help="list the defects and stop")
    published.set_defaults(run=_published_protocol)

    drive = commands.add_parser("drive", help="serve a simulated day through serving/current")
    drive.add_argument("--day", type=int, required=True, help="which day, from 0")
    _describe_market(drive)
    drive.set_defaults(run=_drive)

    report = commands.add_parser("report", help="print the measures of every goal and expert")
    report.set_defaults(run=_report)

    delays = commands.add_parser(
        "delay-report",
        help="say how late labels come, which loss to use and what another one would cost",
    )
    delays.add_argument("--goal", help="one goal only (else all)")
    delays.set_defaults(run=_delay_report)

    status = commands.add_parser("status", help="say what is served and how far the log is read")
    status.set_defaults(run=_status)

    alerts = commands.add_parser("alerts", help="list what is wrong now, and what to do about it")
    alerts.set_defaults(run=_alerts)

    production = commands.add_parser(
        "production", help="say what was in production when, and why, from files alone"
    )
    production.add_argument("--at", help="one moment of log time, as in 2026-03-02T07:30:00Z")
    production.set_defaults(run=_production)

    explain = commands.add_parser(
        "explain", help="list the features, weights and parts of one score, from a bundle alone"
    )
    asked = explain.add_mutually_exclusive_group(required=True)
    asked.add_argument("--request", type=Path, help="JSON file: a request, or a logged decision")
    asked.add_argument("--canary", type=int, help="one of the bundle's own requests, from 0")
    explain.add_argument("--bundle", type=Path, help="the bundle's folder (else what serves)")
    explain.add_argument("--goal", help="one goal only (else all)")
    explain.set_defaults(run=_explain)

    benchmark = commands.add_parser(
        "delay-benchmark", help="replay every way of learning from late labels, and compare them"
    )
    _describe_dataset(benchmark)
    benchmark.add_argument("--goal", action="append", default=[], help="else every goal")
    benchmark.add_argument(
        "--family", action="append", choices=("linear", "deep"), help="else both"
    )
    benchmark.add_argument("--arm", action="append", default=[], help="else every arm")
    benchmark.add_argument("--seeds", type=int, help="else as the settings say")
    benchmark.add_argument("--anchors", type=int, help="sampled (else as the settings say)")
    benchmark.add_argument("--full", action="store_true", help="all anchors, ten seeds")
    benchmark.add_argument("--fresh", action="store_true", help="run anew what is kept")
    benchmark.set_defaults(run=_delay_benchmark)

    prune = commands.add_parser(
        "prune", help="remove checkpoints that settings.checkpoints does not keep"
    )
    prune.set_defaults(run=_prune)

    recover = commands.add_parser(
        "recover", help="take the online model back and learn again without a suspect hour"
    )
    recover.add_argument("--hour", help="as in 2026-03-02-07:00 (else what the guard suspects)")
    recover.add_argument("--goal", help="of one goal only (else of all)")
    recover.add_argument(
        "--accept", action="store_true", help="learn the hour although its guard tripped"
    )
    recover.add_argument("--cause", default="a person", help="why, for whoever looks later")
    recover.set_defaults(run=_recover)

    rollback = commands.add_parser("rollback", help="let the bundle before the current one serve")
    rollback.add_argument("--why", default="", help="for whoever asks later what served, and why")
    rollback.set_defaults(run=_rollback)
    return parser


def _describe_dataset(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "dataset", nargs="?", help="dataset.yaml or a name under data/ (else AD_PIPELINE_DATASET)"
    )


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


def _deployment(chosen: argparse.Namespace) -> Deployment:
    """Return the deployment that the command line names, or else the environment."""
    if chosen.dataset is not None:
        os.environ["AD_PIPELINE_DATASET"] = chosen.dataset
    return deployment_from_env()


def _run(chosen: argparse.Namespace) -> None:
    from ad_pipeline.events.ledger import register_files, watermark_us
    from ad_pipeline.warehouse import Warehouse

    started = time.monotonic()
    deployment = _deployment(chosen)
    warehouse = Warehouse(deployment.warehouse)
    registration = register_files(warehouse, deployment)
    rows = sum(entry.rows for entry in registration.entries)
    _say(
        f"{deployment.dataset.name}: {len(registration.entries):,} log files ("
        f"{len(registration.new):,} of them new) with {rows:,} rows, read by each source of theirs"
    )
    for pattern in registration.empty_globs:
        _say(f"  no file matches {pattern}")
    with warehouse.reader() as connection:
        complete_us = watermark_us(connection, deployment.dataset)
    finished = run_log(deployment, complete_us, _say, again=chosen.again)
    _print_finished(finished)
    _say(f"\nIt took {time.monotonic() - started:.0f} s. Look around with")
    _say(f"`make dev AD_PIPELINE_DATASET={deployment.dataset.path}`, then http://localhost:3000")


def _check(chosen: argparse.Namespace) -> None:
    _print_findings(dataset_file(chosen.dataset))


def _init(chosen: argparse.Namespace) -> None:
    from ad_pipeline.events.draft import draft_dataset, draft_name

    missing = [str(path) for path in chosen.files if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"there is no file {', '.join(missing)}; name the log's files")
    name = chosen.name or draft_name(chosen.files)
    path = chosen.output or DATA_FOLDER / name / "dataset.yaml"
    if path.exists():
        raise FileExistsError(f"{path} exists and stays as it is; write --output or --name")
    text = draft_dataset(chosen.files, name, path.resolve().parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    todo = sum("TODO" in line for line in text.splitlines()) - 1
    _say(f"{path} is drafted, with {todo} lines marked TODO: read it before you trust it")
    _print_findings(path)
    _say(f"then: ad_pipeline run {path}")


def _print_findings(path: Path) -> None:
    from ad_pipeline.events.sample_check import check_dataset

    home = Path(os.environ.get("AD_PIPELINE_HOME", ".ad_pipeline"))
    findings = check_dataset(path, home)
    for finding in findings:
        _say(str(finding))
    counts = Counter(finding.level for finding in findings)
    if counts["error"]:
        raise ChecksFailed(f"{counts['error']} errors and {counts['warning']} warnings in {path}")
    _say(f"no error and {counts['warning']} warnings in {path}")


def _demo(chosen: argparse.Namespace) -> None:
    from ad_pipeline.simulation.main_job import run_marketplace

    home = Path(os.environ.get("AD_PIPELINE_HOME", ".ad_pipeline")).resolve()
    started = time.monotonic()
    finished = []
    if chosen.only in (None, "open_bandit"):
        dataset = load_dataset(DATA_FOLDER / "open_bandit" / "dataset.yaml")
        deployment = Deployment(dataset, home / dataset.name)
        _say("open_bandit: a real log of 60,000 impressions, six files, one week")
        finished.append(materialize(deployment, dataset.start_us, dataset.last_hour_end_us, _say))
    if chosen.only in (None, "marketplace"):
        finished.append(run_marketplace(home, _say, _market(chosen)))
    for run in finished:
        _print_finished(run)
    _say(f"\nThe main job took {time.monotonic() - started:.0f} s. Look around with `make dev`, or")
    _say("`make dev AD_PIPELINE_DATASET=marketplace`, then http://localhost:3000")


def _print_finished(run: FinishedRun) -> None:
    _print_report(run.deployment)
    if run.promotion:
        _say(f"  {run.promotion}")
    if run.checks:
        _say(f"  checks: {sum(seen.passed for seen in run.checks)} of {len(run.checks)} passed")
    for seen in run.checks:
        if not seen.passed:
            _say(f"    not passed: {seen.asset}: {seen.check}: {seen.found}")


def _simulate(chosen: argparse.Namespace) -> None:
    from ad_pipeline.simulation.main_job import simulate

    days = range(chosen.first, chosen.first + chosen.days)
    simulate(deployment_from_env(), _market(chosen), days, _say)


def _simulate_conversions(chosen: argparse.Namespace) -> None:
    from ad_pipeline.simulation.conversion_spec import spec_like
    from ad_pipeline.simulation.conversions import simulate_conversions

    started = time.monotonic()
    asked = {
        name: getattr(chosen, name)
        for name in ("rows", "days", "recorded_days", "seed")
        if getattr(chosen, name) is not None
    }
    spec = replace(spec_like(chosen.format), **asked)
    log = simulate_conversions(spec, chosen.format, chosen.output)
    seconds = time.monotonic() - started
    counted, beside = log.described
    _say(f"{counted} of {chosen.output}, in {seconds:.1f} s")
    _say(beside)


def _published_protocol(chosen: argparse.Namespace) -> None:
    from ad_pipeline.monitoring.published.protocols import DEFECTS, defects_named
    from ad_pipeline.monitoring.published.run import Asked, run_published

    if chosen.defects:
        for defect, says in DEFECTS.items():
            _say(f"{defect}: {says}")
        return
    asked = Asked(
        arms=tuple(chosen.arms),
        seeds=chosen.seeds,
        family=chosen.family,
        share=chosen.share,
        window=chosen.window,
        net=chosen.net,
        defects=defects_named(chosen.defect),
    )
    run_published(_deployment(chosen), asked, _say)


def _drive(chosen: argparse.Namespace) -> None:
    from ad_pipeline.simulation.main_job import drive

    drive(deployment_from_env(), _market(chosen), chosen.day, _say)


def _report(_: argparse.Namespace) -> None:
    _print_report(deployment_from_env())


def _delay_report(chosen: argparse.Namespace) -> None:
    from ad_pipeline.monitoring.delay_report.delay_page import report_lines
    from ad_pipeline.monitoring.delay_report.report_of_log import PAGE, write_delay_report
    from ad_pipeline.warehouse import Warehouse

    deployment = deployment_from_env()
    written = write_delay_report(Warehouse(deployment.warehouse), deployment, chosen.goal)
    if not written.goals:
        _say(f"{deployment.dataset.name}: the log has no anchors yet; run it first")
    for report in written.goals:
        for line in report_lines(report, deployment.dataset.settings.delay_report):
            _say(line)
    _say(f"page {deployment.reports / PAGE}")


def _status(_: argparse.Namespace) -> None:
    from ad_pipeline.serving.promotion import history

    deployment = deployment_from_env()
    _say(f"dataset {deployment.dataset.name} in {deployment.home}")
    for move in history(deployment.serving):
        _say(
            f"{move.sequence}. {move.action} {move.digest[:12]} "
            f"on evidence up to {timestamp(move.watermark_us)}"
        )


def _alerts(_: argparse.Namespace) -> None:
    from ad_pipeline.monitoring.alerts.alerts_of_log import read_alerts
    from ad_pipeline.monitoring.alerts.alerts_page import alerts_lines
    from ad_pipeline.warehouse import Warehouse

    for line in alerts_lines(read_alerts(Warehouse(deployment_from_env().warehouse))):
        _say(line)


def _production(chosen: argparse.Namespace) -> None:
    from ad_pipeline.serving.production import intervals, production_lines, served_at

    deployment = deployment_from_env()
    found = intervals(deployment.serving, deployment.bundles)
    if chosen.at is not None:
        found = [served_at(found, _moment(chosen.at))]
    for line in production_lines(found) or [f"{deployment.dataset.name} has served nothing yet"]:
        _say(line)


def _moment(text: str) -> int:
    """Return a moment that somebody typed, microseconds; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise LookupError(f"--at {text} is no moment; write it as 2026-03-02T07:30:00Z") from error
    return microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _explain(chosen: argparse.Namespace) -> None:
    from ad_pipeline.serving.bundle import open_bundle_folder
    from ad_pipeline.serving.explanation import (
        canary,
        explain,
        explanation_lines,
        read_request,
        with_vectors,
    )

    folder = _served_bundle() if chosen.bundle is None else chosen.bundle.resolve()
    bundle = open_bundle_folder(folder, to_score=True)
    if chosen.request is None:
        request = canary(bundle, chosen.canary)
    else:
        request = read_request(chosen.request)
        if chosen.bundle is None:
            request = with_vectors(bundle, request, deployment_from_env().vectors)
    goals = None if chosen.goal is None else [chosen.goal]
    for line in explanation_lines(explain(bundle, request, goals)):
        _say(line)


def _served_bundle() -> Path:
    """Return the folder of the bundle that the environment's deployment serves."""
    from ad_pipeline.serving.pointers import CURRENT, NothingServed, read_pointer

    deployment = deployment_from_env()
    pointer = read_pointer(deployment.serving, CURRENT)
    if pointer is None:
        raise NothingServed(f"{deployment.dataset.name} serves nothing yet; name a --bundle")
    return deployment.bundles / "objects" / pointer.digest


def _delay_benchmark(chosen: argparse.Namespace) -> None:
    from ad_pipeline.monitoring.late_labels.benchmark import (
        FAMILIES,
        Asked,
        picture_file,
        record_benchmark,
    )
    from ad_pipeline.monitoring.late_labels.benchmark_plots import arms_lines
    from ad_pipeline.warehouse import Warehouse

    deployment = _deployment(chosen)
    asked = Asked(
        goals=tuple(chosen.goal),
        families=tuple(chosen.family or FAMILIES),
        arms=tuple(chosen.arm),
        seeds=chosen.seeds,
        anchors=chosen.anchors,
        full=chosen.full,
        fresh=chosen.fresh,
    )
    measured, _ = record_benchmark(Warehouse(deployment.warehouse), deployment, asked, _say)
    for name, found in measured.items():
        for family, each in found.families.items():
            _say(f"\n{name}, {family}: {found.described}")
            for line in arms_lines(each.figures):
                _say(line)
            for leak in each.leaks:
                _say(f"  a leak: {leak.arm} beats the oracle by {-leak.value:.2%} of its log loss")
        _say(f"  the picture: {picture_file(deployment, name)}")


def _prune(_: argparse.Namespace) -> None:
    from ad_pipeline.learners.online.retention import prune
    from ad_pipeline.serving.retention import checkpoints_in_use, sweep_bundles

    deployment = deployment_from_env()
    bundles = sweep_bundles(deployment)
    pruned = prune(deployment, checkpoints_in_use(deployment))
    for goal, kept_us in pruned.kept_us.items():
        _say(f"{goal}: models of {len(kept_us)} hours stay, {len(pruned.removed_us[goal])} go")
    removed = pruned.swept.removed_bytes + bundles.removed_bytes
    kept = pruned.swept.kept_bytes + bundles.kept_bytes
    _say(f"{bundles.removed} bundles go; {removed / 1e6:,.0f} MB less, {kept / 1e6:,.0f} MB stay")


def _recover(chosen: argparse.Namespace) -> None:
    from ad_pipeline.clocks import hour_start
    from ad_pipeline.learners.online.recovery import recoveries, replay_range, suspects
    from ad_pipeline.main_job import recover
    from ad_pipeline.warehouse import Warehouse

    deployment = deployment_from_env()
    warehouse = Warehouse(deployment.warehouse)
    found = suspects(warehouse, deployment)
    if found.hours_us:
        _say(found.described())
    hours_us = found.hours_us
    if chosen.hour is not None:
        hours_us = dict.fromkeys(deployment.dataset.goal_names, hour_start(chosen.hour))
    if chosen.goal is not None:
        hours_us = {goal: us for goal, us in hours_us.items() if goal == chosen.goal}
    if not hours_us:
        raise LookupError("no hour is suspect; name one with --hour, and a goal of the dataset")
    start_us, end_us = replay_range(warehouse, deployment, hours_us)
    evidence = {goal: found.reasons[goal] for goal in hours_us if goal in found.reasons}
    recover(deployment, start_us, end_us, hours_us, chosen.cause, evidence, chosen.accept, _say)
    for one in recoveries(warehouse, hours_us):
        _say(f"{one['goal']}, {hour_key(one['hour_us'])}: {one['outcome']}")
    _warn_of_serving(deployment, min(hours_us.values()))


def _warn_of_serving(deployment: Deployment, hour_us: int) -> None:
    """Say so if what serves has learnt the hour: its bundle is older than the recovery."""
    from ad_pipeline.checkpoints import is_pointed, resolve
    from ad_pipeline.serving.bundle import open_bundle
    from ad_pipeline.serving.candidate import CANDIDATE
    from ad_pipeline.serving.pointers import CURRENT, read_pointer

    serving = read_pointer(deployment.serving, CURRENT)
    if serving is None or (
        is_pointed(deployment.bundles, CANDIDATE)
        and resolve(deployment.bundles, CANDIDATE) == serving.digest
    ):
        return
    if open_bundle(deployment.bundles, serving.digest).label_watermark_us > hour_us:
        _say(
            "serving/current names a bundle from before this, which knows the hour: "
            "`ad_pipeline rollback` lets the one before it serve"
        )


def _rollback(chosen: argparse.Namespace) -> None:
    from ad_pipeline.serving.heartbeat import heartbeats
    from ad_pipeline.serving.promotion import history, rollback

    deployment = deployment_from_env()
    serving = deployment.serving
    # Log time has gone on since the last move; those who serve know how far.
    known_us = [each.at_us for each in heartbeats(serving)]
    known_us += [move.watermark_us for move in history(serving)]
    why = {"why": chosen.why} if chosen.why else {}
    move = rollback(
        serving,
        deployment.bundles,
        why | {"by": f"{getpass.getuser()} by ad_pipeline rollback"},
        watermark_us=max(known_us, default=None),
    )
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
