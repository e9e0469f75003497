"""Checks of both parities: what a candidate would serve, and what was served."""

import dagster as dg

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import short
from ad_pipeline.serving.candidate import CANDIDATE

REPLAYED = ["monitoring", "candidate_replay"]
PARITY = ["monitoring", "parity"]
FINDINGS = ["monitoring", "parity_findings"]

NAMED = 4
"""Features named of a cause; all stand in the table."""


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
