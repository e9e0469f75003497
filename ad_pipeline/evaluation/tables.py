"""The tables of this room: progressive metrics by matured hour, and the report over named ranges.

Only definitions: what fills them is in :mod:`ad_pipeline.evaluation.progressive` and
:mod:`ad_pipeline.evaluation.report`. An undefined measure is NULL in a table (NaN in memory), so
that an average in SQL leaves it out.
"""

from ad_pipeline.warehouse import Column, Table

_MEASURES = (
    Column("log_loss", "DOUBLE", "Mean log loss, nats a row."),
    Column("normalized_entropy", "DOUBLE", "Log loss over the entropy of the rows' own rate."),
    Column("rce", "DOUBLE", "Relative cross entropy, per cent: 100 (1 - normalized entropy)."),
    Column("roc_auc", "DOUBLE", "Area under the ROC curve, ties one half."),
    Column("pr_auc", "DOUBLE", "Average precision."),
    Column("calibration_ratio", "DOUBLE", "Sum of probabilities over sum of labels; 1 is right."),
    Column("expected_calibration_error", "DOUBLE", "Over 20 bins of equal mass."),
)

PROGRESSIVE_METRICS = Table(
    name="evaluation.progressive_metrics",
    columns=(
        Column("hour_us", "BIGINT", "Hour in which the labels matured."),
        Column("goal", "VARCHAR", "Goal."),
        Column("expert", "VARCHAR", "Expert whose scores at serving time are measured."),
        Column("rows", "BIGINT", "Matured impressions that the expert scored."),
        Column("unscored", "BIGINT", "Matured impressions without a score of the expert."),
        Column("positives", "BIGINT", "Rows with final label 1."),
        Column("loss_sum", "DOUBLE", "Sum of log losses, nats; sums pool hours exactly."),
        Column("probability_sum", "DOUBLE", "Sum of probabilities."),
        *_MEASURES,
    ),
    key=("hour_us", "goal", "expert"),
    clock="hour_us",
    description=(
        "How good each expert's serving-time scores were, by the hour in which labels matured. One "
        "row per goal, expert and hour; NULL where the hour cannot define a measure."
    ),
)

REPORT = Table(
    name="evaluation.report",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("expert", "VARCHAR", "Expert, ensemble or base rate."),
        Column("range_name", "VARCHAR", "What the range was used for: fit, calibration, test."),
        Column("range_start_us", "BIGINT", "First matured hour of the range."),
        Column("range_end_us", "BIGINT", "End of the range, excluded."),
        Column("rows", "BIGINT", "Matured impressions in it."),
        Column("positives", "BIGINT", "Rows with final label 1."),
        Column("metric", "VARCHAR", "Measure."),
        Column("value", "DOUBLE", "The measure; NULL where the rows cannot define it."),
        Column("low", "DOUBLE", "Lower bound of the interval over resampled hours."),
        Column("high", "DOUBLE", "Upper bound of the interval over resampled hours."),
    ),
    key=("goal", "expert", "range_name", "range_start_us", "range_end_us", "metric"),
    clock=None,
    description=(
        "How good each expert, the ensemble and the base rate are on matured hours that no fit "
        "has seen. One row per goal, expert, named range and measure, with the measure's "
        "block-bootstrap interval. Pictures and the printed table are in the metadata."
    ),
)

_SPREAD = (
    Column("hour_us", "BIGINT", "Hour in which the labels matured."),
    Column("goal", "VARCHAR", "Goal."),
    Column("mixture", "VARCHAR", "An expert alone, average, voting or stacked."),
    Column("rows", "BIGINT", "Matured impressions that every expert scored."),
    Column("positives", "BIGINT", "Rows with final label 1."),
    Column("probability_sum", "DOUBLE", "Sum of the mixture's probabilities."),
    Column("log_loss", "DOUBLE", "Of the mixture after its calibration, nats a row."),
    Column("expert_log_loss", "DOUBLE", "Mean of its experts' log losses by their shares."),
    Column("ambiguity", "DOUBLE", "What mixing gains on that mean: the ensemble's variance, nats."),
    Column("correction", "DOUBLE", "What intercept, slope and calibration gain after that, nats."),
    Column("logit_variance", "DOUBLE", "Mean squared distance of all experts from the mixture."),
    Column("bias", "DOUBLE", "Mean probability less the share of positives."),
    Column("bias_low", "DOUBLE", "Lower bound of its interval; rows taken as independent."),
    Column("bias_high", "DOUBLE", "Upper bound of its interval; rows taken as independent."),
)

EXPERT_SPREAD = Table(
    name="evaluation.expert_spread",
    columns=_SPREAD,
    key=("hour_us", "goal"),
    clock="hour_us",
    description=(
        "How far the experts' serving-time scores stood apart, and how far off their unfitted "
        "average was, by the hour in which labels matured. One row per goal and hour that all "
        "experts scored."
    ),
)

ENSEMBLE_HOURS = Table(
    name="evaluation.ensemble_hours",
    columns=_SPREAD,
    key=("hour_us", "goal"),
    clock=None,
    description=(
        "Variance and bias of the fitted ensemble by matured hour, on the hours that no fit has "
        "seen. One row per goal and hour; a newer ensemble replaces all of them."
    ),
)

LOSS_BY_AGE = Table(
    name="evaluation.loss_by_age",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("forecast", "VARCHAR", "An expert or the ensemble."),
        Column("age_of", "VARCHAR", "What ages: the event, or the batch model that scored it."),
        Column("from_hours", "BIGINT", "Least age: of an event, back from the range's end."),
        Column("to_hours", "BIGINT", "Age that the slice ends before."),
        Column("rows", "BIGINT", "Matured impressions of the slice."),
        Column("positives", "BIGINT", "Rows with final label 1."),
        Column("log_loss", "DOUBLE", "Mean log loss, nats a row."),
        Column("normalized_entropy", "DOUBLE", "Log loss over the entropy of the slice's rate."),
        Column("low", "DOUBLE", "Its lower bound over resampled hours."),
        Column("high", "DOUBLE", "Its upper bound over resampled hours."),
        Column("against_rest", "DOUBLE", "Relative to that of all other rows in the range, - 1."),
        Column("against_rest_low", "DOUBLE", "Its lower bound over resampled hours."),
        Column("against_rest_high", "DOUBLE", "Its upper bound over resampled hours."),
    ),
    key=("goal", "forecast", "age_of", "from_hours", "to_hours"),
    clock=None,
    description=(
        "Loss on recent events against older ones, and under fresh batch models against older "
        "ones, on the hours that no fit has seen. One row per goal, forecast and slice."
    ),
)

TABLES = (PROGRESSIVE_METRICS, REPORT, EXPERT_SPREAD, ENSEMBLE_HOURS, LOSS_BY_AGE)
