"""The tables of this room: drift, parity, candidate replay, late labels, production, alerts.

Only definitions, and how a result becomes rows; what is compared is in
:mod:`ad_pipeline.monitoring.drift.inputs` and :mod:`ad_pipeline.monitoring.parity.comparison`.
"""

import math

import pyarrow as pa

from ad_pipeline.monitoring.drift.inputs import DriftVerdict
from ad_pipeline.monitoring.drift.reference import Reference
from ad_pipeline.monitoring.parity.comparison import Parity
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
        Column("kolmogorov_smirnov", "DOUBLE", "Of numbers: largest gap of distributions."),
        Column("wasserstein", "DOUBLE", "Of numbers: area between, in standard deviations."),
        Column("jensen_shannon", "DOUBLE", "Of categories: distance, 0 to 1."),
        Column("unseen", "DOUBLE", "Share of rows whose category the reference never saw."),
        Column("unseen_expected", "DOUBLE", "What an unchanged log would bring (Good-Turing)."),
        Column("unseen_p_value", "DOUBLE", "Chance of that difference."),
        Column("p_value", "DOUBLE", "Of the index, by what earlier periods differ by."),
        Column("adjusted", "DOUBLE", "The same for all columns looked at (Benjamini-Hochberg)."),
        Column(
            "drifted",
            "BOOLEAN",
            "The index reaches the threshold, exceeds the noise and survives the adjustment.",
        ),
    ),
    key=(*(column.name for column in _RANGES), "column_name"),
    clock=None,
    description=(
        "Whether the impressions of the log's last hours look like those of the same hours before. "
        "One row per comparison and column; a column drifted if its population stability index "
        "reaches the threshold, beyond what noise and the difference of days explain. The picture "
        "and Evidently's report are named in the metadata."
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

PARITY = Table(
    name="monitoring.parity",
    columns=(
        Column("hour_us", "BIGINT", "Log hour of the decisions."),
        Column("bundle_hash", "VARCHAR", "Bundle that the decisions name; '' without decisions."),
        *_PARITY,
        Column(
            "smape",
            "DOUBLE",
            "Symmetric relative error of numbers, mean of 2 |a - b| / (|a| + |b|), 0 to 2.",
        ),
    ),
    key=("hour_us", "bundle_hash", "comparison", "name"),
    clock="hour_us",
    description=(
        "Whether what was served can be given again: logged decisions, re-checked by the bundle "
        "and snapshot that each names. One row per log hour, bundle, comparison and feature or "
        "goal. An hour without decisions says so."
    ),
)

PARITY_FINDINGS = Table(
    name="monitoring.parity_findings",
    columns=(
        Column("hour_us", "BIGINT", "Log hour of the decisions."),
        Column("bundle_hash", "VARCHAR", "Bundle that the decisions name."),
        Column("comparison", "VARCHAR", "features, scores or objectives."),
        Column("name", "VARCHAR", "Feature, goal, or measure with what it measures."),
        Column("cause", "VARCHAR", "The hypothesis that gives most of the differing values."),
        Column("severity", "VARCHAR", "severe or warning."),
        Column("rows", "BIGINT", "Decisions compared."),
        Column("offending", "BIGINT", "Decisions that differ."),
        Column("explained", "DOUBLE", "Share of these that the cause gives bit for bit."),
        Column("evidence", "VARCHAR", "What was recomputed under the hypothesis."),
        Column("example_keys", "VARCHAR", "First requests that differ, comma-separated."),
        Column("act", "VARCHAR", "What to do."),
    ),
    key=("hour_us", "bundle_hash", "comparison", "name"),
    clock="hour_us",
    description=(
        "What served decisions got wrong, and why: each cause was tested by recomputing the "
        "values under it. One row per log hour, bundle, comparison and feature, goal or measure; "
        "no row when nothing is wrong."
    ),
)

SERVING_OBJECTIVES = Table(
    name="monitoring.serving_objectives",
    columns=(
        Column("hour_us", "BIGINT", "Log hour of the decisions."),
        Column("bundle_hash", "VARCHAR", "Bundle that the decisions name."),
        Column("measure", "VARCHAR", "coverage, age_hours, fallback_share or error_share."),
        Column("name", "VARCHAR", "Feature, kind of age or fallback; '' of error_share."),
        Column("value", "DOUBLE", "Measured: a share, or hours (95 % of the decisions)."),
        Column("objective", "DOUBLE", "From settings.parity; NULL: none."),
        Column("kept", "BOOLEAN", "Coverage is at least, the others at most the objective."),
        Column("rows", "BIGINT", "Decisions measured."),
    ),
    key=("hour_us", "bundle_hash", "measure", "name"),
    clock="hour_us",
    description=(
        "How complete and how fresh the inputs of served decisions were, and how often something "
        "stood in. One row per log hour, bundle, measure and feature or reason."
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

DRIFT_VERDICTS = Table(
    name="monitoring.drift_verdicts",
    columns=(
        Column("hour_us", "BIGINT", "Last log hour that was looked at."),
        Column(
            "kind",
            "VARCHAR",
            "inputs, season, new_categories, concept, calibration, label_delay or grid.",
        ),
        Column("subject", "VARCHAR", "Goal and expert, or goal; '' of the inputs as a whole."),
        Column("drifted", "BOOLEAN", "Far enough, and beyond doubt."),
        Column("value", "DOUBLE", "Effect: an index, a share, or standard deviations."),
        Column("threshold", "DOUBLE", "From which it counts."),
        Column("cause", "VARCHAR", "What is behind it, for people; '' without drift."),
        Column("actions", "VARCHAR", "That fit, comma-separated, first to last; '' without drift."),
        Column("evidence", "VARCHAR", "What the verdict rests on, JSON."),
    ),
    key=("hour_us", "kind", "subject"),
    clock=None,
    description=(
        "What changed as of a log hour, why, and which action fits. One row per hour looked at, "
        "kind of drift and subject, drifted or not; derived from the tables alone, so that a "
        "re-run says the same."
    ),
)

ACTIONS = Table(
    name="monitoring.actions",
    columns=(
        Column("hour_us", "BIGINT", "Log hour after which it was taken: it works from the next."),
        Column("action", "VARCHAR", "retrain, raise_rate, recalibrate or refit_delays."),
        Column("cause", "VARCHAR", "What was behind it."),
        Column("verdict_hour_us", "BIGINT", "Hour of the verdict that it follows."),
        Column("run_key", "VARCHAR", "Of the run that it started."),
        Column("evidence", "VARCHAR", "What it rests on, JSON."),
        Column("measured_hour_us", "BIGINT", "Log hour as of which its effect was measured."),
        Column("rows", "BIGINT", "Matured rows served since, of all goals and experts."),
        Column("effect", "DOUBLE", "Loss a row after less before it, nats; null: not measured."),
        Column("effect_low", "DOUBLE", "Lower end of its 95 % interval over hours."),
        Column("effect_high", "DOUBLE", "Upper end: below 0, scores are better since."),
    ),
    key=("hour_us", "action"),
    clock=None,
    description=(
        "What was done about drift, on which evidence, and what loss did since. One row per log "
        "hour and action; the effect is filled in when enough labels have matured, and is a "
        "comparison of before and after, not proof that the action did it."
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

USER_VECTOR_WORTH = Table(
    name="monitoring.user_vector_worth",
    columns=(
        Column("goal", "VARCHAR", "Goal of the dataset."),
        Column("question", "VARCHAR", "What is asked: gain, refresh interval, cold start, ..."),
        Column("arm", "VARCHAR", "Columns, interval, vectors, way to make lists, or dimension."),
        Column("part", "VARCHAR", "Activities of the users, or what is compared with; else ''."),
        Column("metric", "VARCHAR", "Normalized entropy saved as a share, recall, us, bytes."),
        Column("value", "DOUBLE", "On matured labels."),
        Column("low", "DOUBLE", "Lower end of the 95 % interval over users."),
        Column("high", "DOUBLE", "Upper end; both null for costs."),
        Column("rows", "BIGINT", "Tested impressions, or engagements, that it is measured on."),
        Column("users", "BIGINT", "Of them; each row of an unknown user counts as one."),
        Column("encoder", "VARCHAR", "Digest of the encoder."),
        Column("learn_from_us", "BIGINT", "From here on rankers learn: the encoder knew no later."),
        Column("test_from_us", "BIGINT", "From here on they are tested."),
        Column("as_of_us", "BIGINT", "Last microsecond of the log that is read."),
    ),
    key=("goal", "question", "arm", "part", "metric"),
    clock=None,
    description=(
        "What user vectors are worth on this log: gain of the batch ranker, price of their age, "
        "cold starts, recall of similar users' ads. One row per goal, question, arm and part; only "
        "the newest study is kept."
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

SERVING_STRESS = Table(
    name="monitoring.serving_stress",
    columns=(
        Column("scenario", "VARCHAR", "as logged, nulls, old counts or no counts."),
        Column("goal", "VARCHAR", "Goal anchored on impressions."),
        Column("bundle_hash", "VARCHAR", "Bundle that was put under load."),
        Column("start_us", "BIGINT", "Start of the busiest minutes of the log."),
        Column("end_us", "BIGINT", "End of them, excluded."),
        Column("speed", "DOUBLE", "Seconds of the log in a second."),
        Column("requests", "BIGINT", "Requests replayed."),
        Column("latency_p50_us", "DOUBLE", "From when a request was due to its score: median."),
        Column("latency_p99_us", "DOUBLE", "The same, 99 of 100 requests."),
        Column("latency_p999_us", "DOUBLE", "The same, 999 of 1,000 requests."),
        Column("behind_us", "DOUBLE", "By which the last answer was late."),
        Column("fallbacks", "VARCHAR", "What stood in for what was missing: requests by reason."),
        Column("labelled", "BIGINT", "Requests that lost something and have a matured label."),
        Column("log_loss", "DOUBLE", "Of these; NULL without any."),
        Column("log_loss_as_logged", "DOUBLE", "Of the same requests when nothing is missing."),
    ),
    key=("scenario", "goal"),
    clock=None,
    description=(
        "What the serving bundle does under the log's busiest minutes, some times as fast, with "
        "all columns null for two minutes, old counts, or none. One row per scenario and goal, of "
        "the newest run only; latencies are of the machine that ran it."
    ),
)


LABEL_QUALITY = Table(
    name="monitoring.label_quality",
    columns=(
        Column("hour_us", "BIGINT", "Log hour in which the labels were emitted."),
        Column("goal", "VARCHAR", "Goal of the dataset."),
        Column("slice_of", "VARCHAR", "all, or a column of events.impressions."),
        Column("part", "VARCHAR", "Its value; '' for all."),
        Column("anchors", "BIGINT", "First emissions: anchors whose observation window ended."),
        Column("positives", "BIGINT", "Positives emitted, immediate and late."),
        Column("rate", "DOUBLE", "Positives over anchors; NULL without anchors."),
        Column("expected", "DOUBLE", "Positives expected, by the anchors of this and past hours."),
        Column("expected_rate", "DOUBLE", "Expected positives over anchors."),
        Column("low", "DOUBLE", "Positives below which the hour is too unlikely."),
        Column("high", "DOUBLE", "Positives above which it is."),
        Column("late", "BIGINT", "Of the positives: those after the observation window."),
        Column("expected_late", "DOUBLE", "Of them, expected."),
        Column("late_share", "DOUBLE", "Late over all positives; NULL without positives."),
        Column("too_late", "BIGINT", "Engagements that came after maturity, and do not count."),
        Column("retracted", "BIGINT", "Positives taken back."),
        Column("expected_retracted", "DOUBLE", "Of them, expected."),
        Column("retraction_rate", "DOUBLE", "Retractions over the positives of a horizon."),
        Column("coverage", "DOUBLE", "Share of a horizon's anchors whose label state is known."),
        Column(
            "verdict",
            "VARCHAR",
            "as expected, stalled, jumped, late, retracted a lot, too few or warming up.",
        ),
        Column("reason", "VARCHAR", "What was compared, for people."),
    ),
    key=("hour_us", "goal", "slice_of", "part"),
    clock="hour_us",
    description=(
        "Whether the labels of an hour are what the hours before let expect, before anything "
        "learns them. One row per log hour, goal and slice: all anchors, and the largest parts of "
        "each column of settings.label_quality.slices. If few of the parts are suspect, the row of "
        "all says how the others are."
    ),
)


PERFORMANCE_ESTIMATE = Table(
    name="monitoring.performance_estimate",
    columns=(
        Column("hour_us", "BIGINT", "Log hour at whose end nothing more was known."),
        Column("goal", "VARCHAR", "Goal of the dataset."),
        Column("expert", "VARCHAR", "Whose scores: online, batch or deep."),
        Column("start_us", "BIGINT", "Anchors from then until the end of the hour."),
        Column("rows", "BIGINT", "Of them, scored."),
        Column("final_share", "DOUBLE", "Share of them whose label can change no more."),
        Column("observed", "BIGINT", "Positive labels so far."),
        Column("expected", "DOUBLE", "Of the scores, with delays: positive labels by now."),
        Column("state", "VARCHAR", "valid, warming up or withdrawn."),
        Column("reason", "VARCHAR", "Why it is not valid, for people; '' if it is."),
        Column("departure", "DOUBLE", "Chance of labels so far at least as far off as these are."),
        Column("level_shift", "DOUBLE", "Log odds that labels so far ask for, beyond the earlier."),
        Column("slope_shift", "DOUBLE", "The same of their slope."),
        *(
            Column(f"{name}{part}", "DOUBLE", says)
            for name, what in (
                ("log_loss", "log loss, nats a row"),
                ("normalized_entropy", "log loss over the entropy of the rate"),
                ("observed_over_predicted", "positives over predicted ones"),
            )
            for part, says in (
                ("", f"Estimated: {what}. NULL unless the state is valid."),
                ("_low", "Lower end of its interval."),
                ("_high", "Upper end of its interval."),
                ("_error", "Its standard error, before past errors widened it."),
            )
        ),
    ),
    key=("hour_us", "goal", "expert"),
    clock="hour_us",
    description=(
        "Loss and calibration of served scores before their labels have matured, by the labels so "
        "far and how long labels take. One row per log hour, goal and expert; of the anchors of "
        "the last settings.performance_estimate.cohort_hours. Withdrawn, without a figure, where "
        "labels so far, the verdicts on drift or its own past speak against it."
    ),
)

PERFORMANCE_REALISED = Table(
    name="monitoring.performance_realised",
    columns=(
        Column("hour_us", "BIGINT", "Log hour by whose end all of the labels were final."),
        Column("goal", "VARCHAR", "Goal of the dataset."),
        Column("expert", "VARCHAR", "Whose scores: online, batch or deep."),
        Column("estimate_hour_us", "BIGINT", "Hour of the estimate that was about them."),
        Column("rows", "BIGINT", "Anchors of its hours, served by then, with a final label."),
        Column("positives", "BIGINT", "Of them."),
        *(
            Column(f"{name}{part}", "DOUBLE", says)
            for name in ("log_loss", "normalized_entropy", "observed_over_predicted")
            for part, says in (
                ("", "Realised; as the column of the estimate."),
                ("_deviation", "Less the estimate, in its standard errors; NULL without one."),
            )
        ),
        Column("kept", "BOOLEAN", "Log loss and calibration in their intervals; NULL without."),
    ),
    key=("hour_us", "goal", "expert"),
    clock="hour_us",
    description=(
        "What became of the estimates of monitoring.performance_estimate. One row per log hour, "
        "goal and expert: loss and calibration of the anchors of an estimate, in the hour in which "
        "the last of their labels matured, and how far off the estimate was."
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
    PARITY,
    PARITY_FINDINGS,
    SERVING_OBJECTIVES,
    DRIFT_VERDICTS,
    ACTIONS,
    CANDIDATE_REPLAY,
    DELAY_CALIBRATION,
    DELAY_BENCHMARK,
    DELAY_REPORT,
    USER_VECTOR_WORTH,
    SERVING_STRESS,
    LABEL_QUALITY,
    PERFORMANCE_ESTIMATE,
    PERFORMANCE_REALISED,
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
                "kolmogorov_smirnov": column.kolmogorov_smirnov,
                "wasserstein": column.wasserstein,
                "jensen_shannon": column.jensen_shannon,
                "unseen": column.unseen,
                "unseen_expected": column.unseen_expected,
                "unseen_p_value": column.unseen_p_value,
                "p_value": column.p_value,
                "adjusted": column.adjusted,
                "drifted": column.drifted,
            }
            for column in verdict.columns
        ],
    )


def parity_rows(hour_us: int, bundle_hash: str, *, features: Parity, scores: Parity) -> pa.Table:
    """Return both comparisons of one hour and bundle as ``monitoring.parity`` rows."""
    where = {"hour_us": hour_us, "bundle_hash": bundle_hash}
    return arrow_rows(PARITY, _parity_records(where, features, scores, with_errors=True))


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
    where: dict[str, int | str], features: Parity, scores: Parity, *, with_errors: bool = False
) -> list[dict[str, float | str]]:
    records: list[dict[str, float | str]] = []
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
                    **({"smape": math.nan} if with_errors else {}),
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
                **({"smape": rate.smape} if with_errors else {}),
            }
            for rate in parity.rates
        )
    return records
