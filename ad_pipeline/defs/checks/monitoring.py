"""Checks of parity, drift and late labels: two parities, never one for the other."""

import dagster as dg

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, short
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.monitoring.delay_calibration import judged_models
from ad_pipeline.monitoring.label_quality_hours import described, suspect_labels
from ad_pipeline.monitoring.late_labels.measures import LEAST_POSITIVES
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.warehouse import rows_of

REPLAYED = ["monitoring", "candidate_replay"]
PARITY = ["monitoring", "parity"]
FINDINGS = ["monitoring", "parity_findings"]
DRIFTED = ["monitoring", "drift"]
VERDICTS = ["monitoring", "drift_verdicts"]
BENCHMARK = ["monitoring", "delay_benchmark"]
CALIBRATION = ["monitoring", "delay_calibration"]
DELAYS = ["monitoring", "delay_report"]
STRESS = ["monitoring", "serving_stress"]
LABELS = ["monitoring", "label_quality"]

NAMED = 4
"""Features named of a cause; all stand in the table."""
DRILLED = ["monitoring", "rollback_drill"]


@dg.multi_asset_check(
    name="candidate_replay_checks",
    specs=[
        dg.AssetCheckSpec(
            "scores_agree_to_the_bit",
            asset=REPLAYED,
            blocking=True,
            description="A fresh process gives the batch path's scores, bit for bit.",
        ),
        dg.AssetCheckSpec(
            "features_agree_with_sql",
            asset=REPLAYED,
            blocking=True,
            description="The features that the fresh process used are those that SQL recounts.",
        ),
    ],
)
def candidate_replay_checks(deployment: DeploymentResource):
    """Read the replay of the newest candidate; one that was never replayed has not passed."""
    paths = deployment.paths
    bundle = resolve(paths.bundles, CANDIDATE)
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT comparison, name, state, rows, equal, first_offending "
            "FROM monitoring.candidate_replay WHERE bundle_hash = $bundle ORDER BY 1, 2",
            {"bundle": bundle},
        ).fetchall()
    for check, comparison in (
        ("scores_agree_to_the_bit", "scores"),
        ("features_agree_with_sql", "features"),
    ):
        chosen = [row for row in rows if row[0] == comparison]
        differing = [row for row in chosen if row[3] != row[4]]
        compared = sum(row[3] for row in chosen)
        first = f"; first: {differing[0][1]} of {differing[0][5]}" if differing else ""
        yield found(
            check,
            REPLAYED,
            bool(chosen) and all(row[2] == "passed" for row in chosen),
            f"{compared:,} {comparison} compared, "
            + (
                f"{sum(row[3] - row[4] for row in differing):,} differ{first}"
                if differing
                else "all equal"
            )
            if chosen
            else f"bundle {short(bundle)} was not replayed",
            compared=compared,
        )


@dg.multi_asset_check(
    name="parity_checks",
    specs=[
        dg.AssetCheckSpec(
            "served_scores_are_given_again",
            asset=PARITY,
            description="The bundle that each decision names gives its logged score again.",
        ),
        dg.AssetCheckSpec(
            "served_features_were_right",
            asset=PARITY,
            description="Logged features equal those recomputed from our log and the snapshot.",
        ),
    ],
)
def parity_checks(deployment: DeploymentResource):
    """Read every re-checked hour. "No decisions yet" warns: it is said, and it is not passed."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT comparison, name, sum(rows), sum(equal), sum(mismatches), sum(missing), "
            "sum(extra), count(*) FILTER (state = 'failed'), min(nullif(first_offending, '')) "
            "FROM monitoring.parity WHERE bundle_hash <> '' GROUP BY ALL ORDER BY 1, 2"
        ).fetchall()
    for check, comparison in (
        ("served_scores_are_given_again", "scores"),
        ("served_features_were_right", "features"),
    ):
        chosen = [row for row in rows if row[0] == comparison]
        failed = [row for row in chosen if row[7]]
        worst = max(failed, key=lambda row: row[2] - row[3], default=None)
        yield found(
            check,
            PARITY,
            bool(chosen) and not failed,
            "no decisions yet"
            if not chosen
            else f"{sum(row[2] for row in chosen):,} {comparison} compared, "
            + (
                "all equal"
                if worst is None
                else f"{worst[1]}: mismatch {worst[4]:,}, missing {worst[5]:,}, extra {worst[6]:,} "
                f"of {worst[2]:,}; first: {worst[8]}"
            ),
            warns=not chosen,
            compared=int(sum(row[2] for row in chosen)),
        )


@dg.asset_check(
    asset=FINDINGS,
    name="served_decisions_have_no_findings",
    description=(
        "Nothing in the newest day of served decisions differs or left its objective; a warning "
        "names each finding with its cause and what to do."
    ),
)
def served_decisions_have_no_findings(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the findings of the 24 hours up to the newest with decisions, by cause."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT cause, act, count(*), count(*) FILTER (severity = 'severe'), "
            "list(DISTINCT name ORDER BY name), min(hour_us), max(hour_us), sum(offending) "
            "FROM monitoring.parity_findings WHERE hour_us > (SELECT max(hour_us) "
            "FROM monitoring.parity WHERE bundle_hash <> '') - $span_us "
            "GROUP BY ALL ORDER BY 4 DESC",
            {"span_us": 24 * HOUR_US},
        ).fetchall()
    return found(
        "served_decisions_have_no_findings",
        FINDINGS,
        not rows,
        "; ".join(
            f"{cause}: {', '.join(names[:NAMED])}{' …' if len(names) > NAMED else ''}, "
            f"{offending:,} values, {timestamp(first_us)} to {timestamp(last_us)}: {act}"
            for cause, act, _, _, names, first_us, last_us, offending in rows
        )
        or "nothing found",
        warns=True,
        findings=sum(row[2] for row in rows),
        severe=sum(row[3] for row in rows),
    )


@dg.asset_check(
    asset=DRIFTED,
    name="inputs_have_not_drifted",
    description="No watched column of the last hours left the distribution of the hours before.",
)
def inputs_have_not_drifted(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest verdict; drift warns, and the sensor acts on it."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT column_name, psi FROM monitoring.drift WHERE drifted AND current_end_us = "
            "(SELECT max(current_end_us) FROM monitoring.drift) ORDER BY psi DESC"
        ).fetchall()
    return found(
        "inputs_have_not_drifted",
        DRIFTED,
        not rows,
        "drifted: " + ", ".join(f"{name} (index {psi:.2f})" for name, psi in rows)
        if rows
        else "no watched column has drifted",
        warns=True,
        **{"columns drifted": len(rows)},
    )


@dg.asset_check(
    asset=VERDICTS,
    name="nothing_has_drifted",
    description="Inputs, categories, outcomes, calibration and delays are as they were.",
)
def nothing_has_drifted(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest verdicts; drift warns and names its cause and what fits."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT kind, subject, cause, actions FROM monitoring.drift_verdicts WHERE drifted "
            "AND hour_us = (SELECT max(hour_us) FROM monitoring.drift_verdicts) ORDER BY 1, 2"
        ).fetchall()
    return found(
        "nothing_has_drifted",
        VERDICTS,
        not rows,
        "; ".join(
            f"{kind}{f' of {subject}' if subject else ''}: {cause} "
            f"({actions.replace(',', ', ') or 'only told'})"
            for kind, subject, cause, actions in rows
        )
        or "nothing has drifted",
        warns=True,
        **{"verdicts that drifted": len(rows)},
    )


@dg.asset_check(
    asset=CALIBRATION,
    name="delay_models_are_calibrated",
    description=(
        "What the models of delay expected is what came, within a factor: the losses that rest on "
        "them are off by as much as they are."
    ),
)
def delay_models_are_calibrated(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Pool the last matured hours of each model; one that is off warns, and is refitted anyway."""
    settings = deployment.paths.dataset.settings.delays
    with deployment.warehouse.reader() as connection:
        hours = rows_of(
            connection,
            "SELECT * FROM monitoring.delay_calibration WHERE hour_us > (SELECT max(hour_us) "
            "FROM monitoring.delay_calibration) - $span_us ORDER BY hour_us",
            {"span_us": settings.calibration_hours * HOUR_US},
        ).to_pylist()
    models = judged_models(hours)
    off = [model for model in models if model.beyond(settings.calibrated_factor)]
    return found(
        "delay_models_are_calibrated",
        CALIBRATION,
        not off,
        "observed over predicted: "
        + "; ".join(
            f"{model.name} {model.ratio:.2f} ({model.low:.2f} to {model.high:.2f})" for model in off
        )
        if off
        else f"{len(models)} models and parts within a factor {settings.calibrated_factor:g}, or "
        "not yet judged",
        warns=True,
        **{
            label("observed over predicted", model.name): model.ratio
            for model in models
            if model.predicted > 0
        },
    )


@dg.asset_check(
    asset=LABELS,
    name="labels_are_as_due",
    description=(
        "In the last hours no goal and no part of its anchors had labels that stalled, jumped, "
        "came late or were taken back a lot."
    ),
)
def labels_are_as_due(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Name each suspect hour of a day with the line to act; the breaker is what stops learning."""
    settings = deployment.paths.dataset.settings.label_quality
    with deployment.warehouse.reader() as connection:
        since_us = sealed_until(connection) - settings.excluded_hours * HOUR_US
    suspect = suspect_labels(deployment.warehouse, since_us)
    return found(
        "labels_are_as_due",
        LABELS,
        not suspect,
        "\n".join(map(described, suspect))
        or f"no label is suspect in the last {settings.excluded_hours} hours",
        warns=True,
        **{"suspect parts and hours": len(suspect)},
    )


@dg.asset_check(
    asset=BENCHMARK,
    name="no_arm_beats_the_oracle",
    description=(
        "No way of learning that could be deployed is better than one that is told every final "
        "label at once: where one is, beyond noise, it has seen what it should not."
    ),
)
def no_arm_beats_the_oracle(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest benchmark of every goal; it ends this job, and nothing else waits for it."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT goal, family, arm, value, high FROM monitoring.delay_benchmark "
            "WHERE metric = 'log_loss_against_oracle' AND positives >= $least ORDER BY value",
            {"least": LEAST_POSITIVES},
        ).fetchall()
    beating = [row for row in rows if row[4] is not None and row[4] < 0]
    return found(
        "no_arm_beats_the_oracle",
        BENCHMARK,
        not beating,
        "a leak: "
        + ", ".join(
            f"{goal}, {family}: {arm} {value:+.2%} (at most {high:+.2%}) log loss"
            for goal, family, arm, value, high in beating
        )
        if beating
        else f"{len(rows)} arms compared with their oracle"
        if rows
        else "no goal was replayed on as many positives as an accusation needs",
        compared=len(rows),
    )


@dg.asset_check(
    asset=DELAYS,
    name="calibrated_at_every_ad_age",
    description=(
        "Served scores fit final labels at every age of an ad: where labels are late, the young "
        "ads are the first that they fit no more."
    ),
)
def calibrated_at_every_ad_age(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest report; ads whose age the log cannot know are judged as one bucket."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT goal, name, part, value, miscalibrated FROM monitoring.delay_report "
            "WHERE miscalibrated IS NOT NULL ORDER BY abs(ln(nullif(value, 0))) DESC, 1, 2, 3"
        ).fetchall()
    off = [row for row in rows if row[4]]
    return found(
        "calibrated_at_every_ad_age",
        DELAYS,
        not off,
        "; ".join(
            f"{goal}, {expert}: {value:.2f} positives for each predicted at ad ages {ages}"
            for goal, expert, ages, value, _ in off
        )
        or f"{len(rows)} buckets of ad ages, none off beyond noise",
        warns=True,
        **{"buckets": len(rows), "buckets off": len(off)},
    )


@dg.asset_check(
    asset=STRESS,
    name="serving_keeps_up",
    description="Under load 99 of 100 requests have their score in time, whatever is missing.",
)
def serving_keeps_up(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest run; a slow scenario is named with its latency."""
    limit_ms = deployment.paths.dataset.settings.stress.latency_ms
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT scenario, max(latency_p99_us) / 1000, max(behind_us) / 1000 "
            "FROM monitoring.serving_stress GROUP BY scenario ORDER BY 2 DESC"
        ).fetchall()
    slow = [row for row in rows if row[1] > limit_ms]
    return found(
        "serving_keeps_up",
        STRESS,
        not slow,
        "; ".join(
            f"{scenario}: 99 of 100 within {slow_ms:,.0f} ms (limit {limit_ms:g}), the last answer "
            f"{behind_ms:,.0f} ms late"
            for scenario, slow_ms, behind_ms in slow
        )
        or f"{len(rows)} scenarios within {limit_ms:g} ms",
        warns=True,
        **{"scenarios": len(rows), "slow scenarios": len(slow)},
    )


@dg.asset_check(
    asset=DRILLED,
    name="every_fault_is_refused_and_undone",
    description=(
        "Each fault planted in the copy was refused by its guards, and what serves after going "
        "back gives the same scores as before."
    ),
)
def every_fault_is_refused_and_undone(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest drill."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT fault, name, passed, said, seconds FROM monitoring.rollback_drill ORDER BY 1, 2"
        ).fetchall()
    wrong = [row for row in rows if not row[2]]
    slowest = max((row[4] for row in rows if row[1] == "recover"), default=0.0)
    return found(
        "every_fault_is_refused_and_undone",
        DRILLED,
        not wrong,
        "; ".join(f"{fault}, {name}: {said}" for fault, name, _, said, _ in wrong)
        or (
            f"{len({row[0] for row in rows})} faults; the slowest was undone in {slowest:.2f} s"
            if rows
            else "nobody has drilled yet; start the job drill_rollback"
        ),
        **{"faults": len({row[0] for row in rows}), "slowest recovery, seconds": slowest},
    )
