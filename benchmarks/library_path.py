"""The main job as plain library calls, without Dagster: the same rooms in the same order.

What the assets of ``ad_pipeline/defs/assets`` do for a range of log hours is :func:`run_hours`,
what the unpartitioned ones do once behind it is :func:`finish`. Their logic is in the rooms; here
is only the order, which Dagster otherwise reads off the graph. Checks are not run; alerts, which
tell of failed ones too, are left to Dagster.

    python -m benchmarks.library_path <dataset.yaml> <home> [--start HOUR] [--end HOUR]
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ad_pipeline.clocks import HOUR_US, hour_key, hour_start
from ad_pipeline.datasets import Deployment, load_dataset
from ad_pipeline.evaluation.ensemble_of_log import write_ensemble_hours
from ad_pipeline.evaluation.progressive_hours import measure_hours
from ad_pipeline.evaluation.report_of_log import write_report
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.ledger import register_files
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.features.as_served import (
    matured_impressions,
    newest_requests,
    read_impressions,
)
from ad_pipeline.features.dictionary import tokens_of_slots, write_dictionary
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.features.rates import advance_hours
from ad_pipeline.learners.batch.batch_hours import score_hours, train_hours
from ad_pipeline.learners.delayed.delay_model_hours import fit_hours
from ad_pipeline.learners.ensemble.ensembles import fit_ensembles, held_out_forecasts
from ad_pipeline.learners.online.grid_hours import chosen_configurations, select_hours
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.learners.online.retention import prune
from ad_pipeline.learners.predictions import unite_predictions
from ad_pipeline.monitoring.delay_calibration import record_calibration
from ad_pipeline.monitoring.drift.drift_of_log import record_drift
from ad_pipeline.monitoring.drift.verdicts_of_log import record_verdicts
from ad_pipeline.monitoring.label_quality_hours import record_label_quality
from ad_pipeline.monitoring.parity.recheck import record_parity, scores_not_given_again
from ad_pipeline.monitoring.performance_estimate_hours import record_estimates
from ad_pipeline.monitoring.production.production_of_log import record_production
from ad_pipeline.monitoring.replay import record_replay, replay_passed
from ad_pipeline.serving.candidate import build_candidate, judge_candidate, promote_candidate
from ad_pipeline.serving.pointers import publish_snapshot
from ad_pipeline.serving.retention import checkpoints_in_use, sweep_bundles
from ad_pipeline.warehouse import Warehouse

Progress = Callable[[str], None]
"""Called with the name of the step that has just ended."""


def quiet(_: str) -> None:
    """Tell nobody."""


def run_hours(
    deployment: Deployment,
    start_us: int,
    end_us: int,
    progress: Progress = quiet,
    *,
    with_dictionary: bool = True,
    with_parity: bool = True,
) -> None:
    """Compute every partitioned asset for the log hours ``[start_us, end_us)``.

    Parameters
    ----------
    deployment : Deployment
        Its hours before ``start_us`` have been computed.
    start_us, end_us : int
        Starts of hours, microseconds.
    progress : callable
    with_dictionary, with_parity : bool
        Whether to write the inverse dictionary, and to re-check served decisions. Nothing that
        learns or measures reads either.

    Raises
    ------
    PastWatermark, EarlierHoursMissing
        As from :func:`ad_pipeline.events.ingest.ingest_hours`.
    """
    dataset = deployment.dataset
    warehouse = Warehouse(deployment.warehouse)
    span = (start_us, end_us)
    contract = FeatureContract.from_dataset(dataset)
    register_files(warehouse, deployment)
    progress("files")
    ingest_hours(warehouse, deployment, *span)
    progress("events")
    join_labels(warehouse, dataset, *span)
    progress("examples")
    for _ in record_label_quality(warehouse, deployment, *span):
        pass
    progress("label_quality")
    for hour in advance_hours(warehouse, deployment.snapshots, contract, dataset, *span):
        publish_snapshot(deployment.serving, hour.digest, hour.snapshot.hour_us + HOUR_US)
    progress("rates")
    if with_dictionary:
        write_dictionary(warehouse, contract, dataset, *span)
        progress("inverse_dictionary")
    for _ in fit_hours(warehouse, deployment, *span):
        pass
    progress("delay_models")
    record_calibration(warehouse, deployment, *span)
    progress("delay_calibration")
    for _ in learn_hours(warehouse, deployment, *span):
        pass
    progress("online_learner")
    for _ in select_hours(warehouse, deployment, *span):
        pass
    progress("grid_selection")
    for _ in train_hours(warehouse, deployment, *span):
        pass
    progress("batch_model")
    for _ in score_hours(warehouse, deployment, *span):
        pass
    progress("batch_predictions")
    measure_hours(warehouse, dataset, *span)
    progress("progressive_metrics")
    record_estimates(warehouse, dataset, *span)
    progress("performance_estimate")
    if with_parity:
        record_parity(warehouse, deployment, *span)
        progress("parity")


def finish(
    deployment: Deployment,
    progress: Progress = quiet,
    *,
    with_drift: bool = True,
    with_bundle: bool = True,
    continued_from_us: int | None = None,
) -> None:
    """Compute what is not partitioned, from all hours so far.

    Parameters
    ----------
    deployment : Deployment
    progress : callable
    with_drift, with_bundle : bool
        Whether to look for drift; whether to build, replay and, if it is no worse, promote a
        bundle.
    continued_from_us : int, optional
        The hour that the run continued from: what retention does not keep is removed, but for
        this. Nothing is removed if it is left out.
    """
    warehouse = Warehouse(deployment.warehouse)
    unite_predictions(warehouse)
    progress("predictions")
    for _ in fit_ensembles(warehouse, deployment):
        pass
    progress("ensemble")
    write_report(warehouse, deployment, held_out_forecasts(warehouse, deployment))
    progress("report")
    write_ensemble_hours(warehouse, deployment, held_out_forecasts(warehouse, deployment))
    progress("ensemble_over_time")
    if with_drift:
        record_drift(warehouse, deployment)
        progress("drift")
        record_verdicts(warehouse, deployment)
        progress("drift_verdicts")
    if with_bundle:
        hour_us, requests = newest_requests(warehouse)
        build_candidate(
            deployment,
            hour_us,
            requests,
            read_tokens=partial(tokens_of_slots, warehouse, hour_us + HOUR_US),
            read_matured=partial(
                matured_impressions, warehouse, deployment.dataset.settings, hour_us + HOUR_US
            ),
            configurations=chosen_configurations(warehouse, deployment, hour_us + HOUR_US),
        )
        progress("bundle")
        record_replay(warehouse, deployment)
        progress("candidate_replay")
        judged = judge_candidate(
            deployment,
            held_out_forecasts(warehouse, deployment),
            partial(read_impressions, warehouse),
        )
        promote_candidate(
            deployment,
            judged,
            replay_passed=replay_passed(warehouse, judged.digest),
            unlike_what_was_served=scores_not_given_again(
                warehouse, deployment.dataset.settings.parity.guard_hours
            ),
        )
        progress("current")
        record_production(warehouse, deployment)
        progress("production")
    if continued_from_us is not None:
        sweep_bundles(deployment)
        prune(deployment, checkpoints_in_use(deployment), [continued_from_us])
        progress("kept_checkpoints")


def main() -> None:
    """Run the path for a range of hours and print how long each step took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="a dataset file")
    parser.add_argument("home", type=Path, help="folder of all deployments")
    parser.add_argument("--start", help="first hour, as in 2026-03-02-00:00")
    parser.add_argument("--end", help="last hour, included")
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.dataset)
    deployment = Deployment(dataset, (arguments.home / dataset.name).resolve())
    start_us = dataset.start_us if arguments.start is None else hour_start(arguments.start)
    end_us = dataset.last_hour_end_us
    if arguments.end is not None:
        end_us = hour_start(arguments.end) + HOUR_US
    if end_us is None:
        parser.error(f"dataset {dataset.name} is open: say --end")
    told = time.perf_counter()

    def tell(step: str) -> None:
        nonlocal told
        now = time.perf_counter()
        sys.stdout.write(f"{step:<22}{now - told:8.2f} s\n")
        sys.stdout.flush()
        told = now

    sys.stdout.write(f"{hour_key(start_us)} to {hour_key(end_us - HOUR_US)}\n")
    run_hours(deployment, start_us, end_us, tell)
    finish(deployment, tell, continued_from_us=start_us - HOUR_US)


if __name__ == "__main__":
    main()
