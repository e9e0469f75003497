"""What every expert said when it counted, and the ensemble that mixes them."""

import dagster as dg

from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.lineage import column_schema
from ad_pipeline.defs.partitions import SINGLE_RUN
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, rounded, short, whole
from ad_pipeline.learners.ensemble.ensembles import fit_ensembles
from ad_pipeline.learners.predictions import unite_predictions
from ad_pipeline.learners.tables import ONLINE_PREDICTIONS


@dg.asset(
    key=["learners", "predictions"],
    group_name="learners",
    kinds={"duckdb", "sql"},
    backfill_policy=SINGLE_RUN,
    deps=[
        ["learners", "online_predictions"],
        ["learners", "batch_predictions"],
        ["learners", "deep_predictions"],
    ],
    metadata={"dagster/column_schema": column_schema(ONLINE_PREDICTIONS)},  # of all tables
    description=(
        "Every expert's score of every impression at serving time, as one view. Mixing, "
        "calibration and progressive metrics read scores given then, never those of a "
        "newer model."
    ),
)
def predictions(deployment: DeploymentResource) -> dg.MaterializeResult:
    """Create the view over the tables of all experts."""
    rows = unite_predictions(deployment.warehouse)
    return dg.MaterializeResult(
        metadata={label("rows", expert): count for expert, count in rows.items()}
        | {"dagster/row_count": sum(rows.values())}
    )


@dg.asset(
    key=["learners", "ensemble"],
    group_name="learners",
    kinds={"numpy"},
    backfill_policy=SINGLE_RUN,
    deps=[
        ["learners", "predictions"],
        ["examples", "labelled_impressions"],
        ["examples", "label_states"],
    ],
    automation_condition=refresh_after_upstream(),
    description=(
        "How the experts of each goal are mixed and calibrated, chosen on matured rows. The hours "
        "of fit, calibration and test do not overlap in maturity and are named in the metadata. "
        "Rows that have not matured may replace the mixture, on their delay-corrected loss."
    ),
)
def ensemble(
    context: dg.AssetExecutionContext, deployment: DeploymentResource
) -> dg.MaterializeResult:
    """Choose and fit the mixture of each goal."""
    metadata: dict[str, float | int | str | dg.MetadataValue] = {}
    digests: dict[str, str | None] = {}
    for fitted in fit_ensembles(deployment.warehouse, deployment.paths):
        context.log.info(f"ensemble of {fitted.goal}: {fitted.description}")
        digests[fitted.goal] = fitted.digest
        metadata |= {
            label(name, fitted.goal): rounded(value) if isinstance(value, float) else value
            for name, value in fitted.figures.items()
        }
        metadata[label("checkpoint", fitted.goal)] = short(fitted.digest)
        version = fitted.ensemble.calibration.version
        digests[f"calibration of {fitted.goal}"] = version
        metadata[label("calibration version", fitted.goal)] = short(version)
    return dg.MaterializeResult(metadata=metadata | {"whole digests": whole(digests)})
