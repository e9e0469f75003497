"""The tables of this room: drift, parity, candidate replay, late labels, production, alerts.

Only definitions, and how a result becomes rows; what is compared is in
:mod:`ad_pipeline.monitoring.drift` and :mod:`ad_pipeline.monitoring.parity`.
"""

import pyarrow as pa

from ad_pipeline.monitoring.drift import DriftVerdict, Reference
from ad_pipeline.monitoring.parity import Parity
from ad_pipeline.warehouse import Column, Table, arrow_rows

_RANGES = (
    Column("reference_start_us", "BIGINT", "First reference hour."),
    Column("reference_end_us", "BIGINT", "End of the last reference hour, excluded."),
    Column("current_start_us", "BIGINT", "First hour under test."),
    Column("current_end_us", "BIGINT", "End of the hours under test, excluded."),
)

DRIFT = Table(
    name="monitoring.drift",
    columns=(
        *_RANGES,
        Column("reference_rule", "VARCHAR", "How reference hours match: hour of week or of day."),
        Column("column_name", "VARCHAR", "Column of events.impressions."),
        Column("kind", "VARCHAR", "categorical or numeric."),
        Column("psi", "DOUBLE", "Population stability index."),
        Column("noise_limit", "DOUBLE", "Index that noise alone exceeds once in 1,000."),
        Column("threshold", "DOUBLE", "Index from which a change is worth an alarm."),
        Column("reference_rows", "BIGINT", "Rows of the reference sample."),
        Column("current_rows", "BIGINT", "Rows of the current sample."),
        Column("drifted", "BOOLEAN", "The index reaches the threshold and exceeds the noise."),
    ),
    key=(*(column.name for column in _RANGES), "column_name"),
    clock=None,
    description=(
        "Whether the impressions of the log's last hours look like those of the same hours before. "
        "One row per comparison and column; a column drifted if its population stability index "
        "reaches the threshold and exceeds what noise alone stays below. The picture and "
        "Evidently's report are named in the metadata."
    ),
)

_PARITY = (
    Column("comparison", "VARCHAR", "features or scores."),
    Column("name", "VARCHAR", "Feature or goal; '' when nothing was logged."),
    Column("state", "VARCHAR", "Of the whole comparison: no decisions yet, passed or failed."),
    Column("rows", "BIGINT", "Rows in which either side has a value."),
    Column("equal", "BIGINT", "Rows that agree bit for bit."),
    Column("mismatches", "BIGINT", "Both sides have a value and differ."),
    Column("missing", "BIGINT", "Only the recomputation has a value."),
    Column("extra", "BIGINT", "Only the log has a value."),
    Column("first_offending", "VARCHAR", "First keys that do not agree, comma-separated."),
)

PRODUCTION_PARITY = Table(
    name="monitoring.production_parity",
    columns=(
        Column("hour_us", "BIGINT", "Log hour of the decisions."),
        Column("bundle_hash", "VARCHAR", "Bundle that the decisions name; '' without decisions."),
        *_PARITY,
    ),
    key=("hour_us", "bundle_hash", "comparison", "name"),
    clock="hour_us",
    description=(
        "Whether what was served can be given again: logged decisions, re-checked by the bundle "
        "and snapshot that each names. One row per log hour, bundle, comparison and feature or "
        "goal. An hour without decisions says so."
    ),
)

CANDIDATE_REPLAY = Table(
    name="monitoring.candidate_replay",
    columns=(
        Column("bundle_hash", "VARCHAR", "Candidate bundle."),
        Column("replayed_start_us", "BIGINT", "First replayed log hour."),
        Column("replayed_end_us", "BIGINT", "End of the replayed hours, excluded."),
        *_PARITY,
    ),
    key=("bundle_hash", "replayed_start_us", "replayed_end_us", "comparison", "name"),
    clock=None,
    description=(
        "Whether the candidate bundle gives the pipeline's own scores, bit for bit: it is run in a "
        "fresh process on the last closed day's raw requests and compared with the batch path. One "
        "row per bundle, replayed range, comparison and feature or goal."
    ),
)

DELAY_BENCHMARK = Table(
    name="monitoring.delay_benchmark",
    columns=(
        Column("goal", "VARCHAR", "Goal of the dataset."),
        Column("family", "VARCHAR", "linear (FTRL) or deep (wide & deep)."),
        Column("arm", "VARCHAR", "Way of learning."),
        Column("slice_of", "VARCHAR", "What the anchors are sliced by; '' for all of them."),
        Column("part", "VARCHAR", "Which slice; '' for all anchors."),
        Column("metric", "VARCHAR", "Measure on matured labels."),
        Column("value", "DOUBLE", "Mean over the seeds."),
        Column("low", "DOUBLE", "Lower end of the paired block bootstrap's interval."),
        Column("high", "DOUBLE", "Upper end; 95 %, and 99.9 % against the oracle."),
        Column("rows", "BIGINT", "Anchors that it is measured on, the same for every arm."),
        Column("positives", "BIGINT", "Of them."),
        Column("seeds", "BIGINT", "Runs that it is the mean of."),
        Column("rate", "DOUBLE", "Factor on the family's learning rates, chosen before the split."),
        Column("beginning", "VARCHAR", "matured or censored: what the checkpoint had learnt."),
        Column("split_us", "BIGINT", "Where the stream begins."),
        Column("end_us", "BIGINT", "End of the log that was replayed."),
        Column("runs", "VARCHAR", "Digest of all that the runs follow from."),
    ),
    key=("goal", "family", "arm", "slice_of", "part", "metric"),
    clock=None,
    description=(
        "What every way of learning from late labels would have done on this log: scored before "
        "anything of an anchor is learnt, judged by matured labels, all arms from one checkpoint "
        "and by the same anchors. One row per goal, family, arm, slice and measure; only the "
        "newest benchmark of a goal is kept."
    ),
)

DELAY_CALIBRATION = Table(
    name="monitoring.delay_calibration",
    columns=(
        Column("hour_us", "BIGINT", "Log hour in which the labels matured."),
        Column("goal", "VARCHAR", "Goal of the dataset."),
        Column("model", "VARCHAR", "lateness, real_negative or hazard."),
        Column("part", "VARCHAR", "Of the hazard: which part of the delays; else ''."),
        Column("rows", "BIGINT", "Anchors that the model speaks of: positives, or negatives."),
        Column("predicted", "DOUBLE", "Events expected: late positives, false negatives, labels."),
        Column("observed", "DOUBLE", "Events met."),
    ),
    key=("hour_us", "goal", "model", "part"),
    clock="hour_us",
    description=(
        "What the models of delay in force said, against the labels that matured next. One row per "
        "log hour, goal, model and part: how many positives come after the observation window, how "
        "many observed negatives turn positive, and how many labels come within a quarter, a half "
        "and three quarters of the delays. No model was fitted to the labels it is judged by."
    ),
)

DELAY_REPORT = Table(
    name="monitoring.delay_report",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("known_until_us", "BIGINT", "Log time up to which everything was known."),
        Column("about", "VARCHAR", "log, served, made worlds or recommendation."),
        Column("name", "VARCHAR", "Group of anchors, expert, or way of learning; '' for all."),
        Column("part", "VARCHAR", "Ages of the ad, or 'group'; '' for all."),
        Column("metric", "VARCHAR", "What is measured; its unit ends the name."),
        Column("value", "DOUBLE", "NULL where the log cannot tell it."),
        Column("low", "DOUBLE", "Lower bound of its interval."),
        Column("high", "DOUBLE", "Upper bound of its interval."),
        Column("rows", "BIGINT", "Anchors behind it."),
        Column("positives", "BIGINT", "Positives among these, so far."),
        Column(
            "miscalibrated",
            "BOOLEAN",
            "Of served scores at some ad ages: off by more than settings.delay_report tolerates, "
            "the whole interval.",
        ),
        Column("said", "VARCHAR", "A sentence for people."),
    ),
    key=("goal", "about", "name", "part", "metric"),
    clock=None,
    description=(
        "How late labels come, what that does to learning, and which loss to use. One row per goal "
        "and number: of the log with censoring, of served scores by the age of the ad, and of each "
        "loss in made worlds of the same delays. The page and its pictures are named in the "
        "metadata."
    ),
)

PRODUCTION = Table(
    name="monitoring.production",
    columns=(
        Column("sequence", "BIGINT", "Of the move it began with, from 1."),
        Column("until_sequence", "BIGINT", "Of the move it ended with; null while it serves."),
        Column("action", "VARCHAR", "promote or rollback."),
        Column("from_us", "BIGINT", "Log position of the evidence of that move."),
        Column("until_us", "BIGINT", "The same of the next move; null while it serves."),
        Column("bundle_hash", "VARCHAR", "Bundle."),
        Column("models", "VARCHAR", "By goal and expert, the checkpoint it was made of, JSON."),
        Column("label_watermark_us", "BIGINT", "End of its model hour: labels known up to here."),
        Column("why", "VARCHAR", "The evidence in words."),
        Column("decided_by", "VARCHAR", "The promotion gate, or who rolled back."),
        Column("evidence", "VARCHAR", "SHA-256 of the evidence, a file in serving/evidence."),
        Column("decisions", "BIGINT", "Logged decisions of the bundle in this interval."),
        Column("first_served_us", "BIGINT", "The first of them; null without one."),
        Column("last_served_us", "BIGINT", "The last of them."),
        Column(
            "hours_to_serving",
            "DOUBLE",
            "Log hours from the close of its model hour to the first decision of the interval.",
        ),
    ),
    key=("sequence",),
    clock=None,
    description=(
        "What was in production when, and why. One row per interval in which a bundle served, from "
        "the history of promotions, its evidence, the bundles' manifests, and the decisions that "
        "name them. `ad_pipeline production --at` asks it of the files alone."
    ),
)

ROLLBACK_DRILL = Table(
    name="monitoring.rollback_drill",
    columns=(
        Column("fault", "VARCHAR", "What was planted in the copy."),
        Column("step", "INTEGER", "Place of the step, from 1."),
        Column("name", "VARCHAR", "copy, plant, guard, recover or verify; what was done."),
        Column("passed", "BOOLEAN", "It came out as it must."),
        Column("said", "VARCHAR", "What came out, for people."),
        Column("seconds", "DOUBLE", "Measured."),
    ),
    key=("fault", "step"),
    clock=None,
    description=(
        "Whether a fault of what serves would be refused, and how fast one is back. One row per "
        "fault and step of the newest drill: it is planted in a copy of the bundles and pointers; "
        "what serves is not touched."
    ),
)

ALERTS = Table(
    name="monitoring.alerts",
    columns=(
        Column("key", "VARCHAR", "Severity, source and subject: told once, and its end once."),
        Column("severity", "VARCHAR", "page, warn or info."),
        Column("source", "VARCHAR", "Which source found it: alerts/sources.py lists them."),
        Column("subject", "VARCHAR", "Goal, feature, hour, scorer or check."),
        Column("found", "VARCHAR", "With its figures, for people."),
        Column("since_us", "BIGINT", "Since when, in log time."),
        Column("act", "VARCHAR", "The command, job or page that ends it."),
        Column("known_until_us", "BIGINT", "End of the log that all of this was known from."),
    ),
    key=("key",),
    clock=None,
    description=(
        "What is wrong now, with the line to act. One row per alert; what is mended has no row. "
        "The sensor deliver_alerts tells each once, and its end."
    ),
)

TABLES = (
    DRIFT,
    PRODUCTION_PARITY,
    CANDIDATE_REPLAY,
    DELAY_CALIBRATION,
    DELAY_BENCHMARK,
    DELAY_REPORT,
    PRODUCTION,
    ROLLBACK_DRILL,
    ALERTS,
)


def drift_rows(
    verdict: DriftVerdict, reference: Reference, current_start_us: int, current_end_us: int
) -> pa.Table:
    """Return a verdict as rows of ``monitoring.drift``.

    Raises
    ------
    ValueError
        If the reference has no hours: there is no verdict without one.
    """
    if reference.start_us is None or reference.end_us is None:
        raise ValueError("a verdict needs reference hours")
    return arrow_rows(
        DRIFT,
        [
            {
                "reference_start_us": reference.start_us,
                "reference_end_us": reference.end_us,
                "current_start_us": current_start_us,
                "current_end_us": current_end_us,
                "reference_rule": reference.rule,
                "column_name": column.column,
                "kind": column.kind,
                "psi": column.psi,
                "noise_limit": column.noise_limit,
                "threshold": column.threshold,
                "reference_rows": column.reference_rows,
                "current_rows": column.current_rows,
                "drifted": column.drifted,
            }
            for column in verdict.columns
        ],
    )


def production_parity_rows(
    hour_us: int, bundle_hash: str, *, features: Parity, scores: Parity
) -> pa.Table:
    """Return both comparisons of one hour and bundle as ``monitoring.production_parity`` rows."""
    where = {"hour_us": hour_us, "bundle_hash": bundle_hash}
    return arrow_rows(PRODUCTION_PARITY, _parity_records(where, features, scores))


def candidate_replay_rows(
    bundle_hash: str,
    replayed_start_us: int,
    replayed_end_us: int,
    *,
    features: Parity,
    scores: Parity,
) -> pa.Table:
    """Return the two comparisons of one candidate as rows of ``monitoring.candidate_replay``."""
    where = {
        "bundle_hash": bundle_hash,
        "replayed_start_us": replayed_start_us,
        "replayed_end_us": replayed_end_us,
    }
    return arrow_rows(CANDIDATE_REPLAY, _parity_records(where, features, scores))


def _parity_records(
    where: dict[str, int | str], features: Parity, scores: Parity
) -> list[dict[str, int | str]]:
    records: list[dict[str, int | str]] = []
    for comparison, parity in (("features", features), ("scores", scores)):
        shared = {**where, "comparison": comparison, "state": parity.state}
        if not parity.rates:
            records.append(
                {
                    **shared,
                    "name": "",
                    "rows": 0,
                    "equal": 0,
                    "mismatches": 0,
                    "missing": 0,
                    "extra": 0,
                    "first_offending": "",
                }
            )
        records.extend(
            {
                **shared,
                "name": rate.name,
                "rows": rate.rows,
                "equal": rate.equal,
                "mismatches": rate.mismatches,
                "missing": rate.missing,
                "extra": rate.extra,
                "first_offending": ", ".join(rate.first_offending),
            }
            for rate in parity.rates
        )
    return records
