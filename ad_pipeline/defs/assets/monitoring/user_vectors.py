"""What vectors of users are worth on the deployment's own log: only where the settings ask."""

import dagster as dg
from pydantic import Field

from ad_pipeline.clocks import hour_start, timestamp
from ad_pipeline.defs.assets.embeddings import ENCODER
from ad_pipeline.defs.assets.events import MAPPED
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import DATASET, SINGLE_RUN
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, picture, rounded, short, table, whole
from ad_pipeline.monitoring.tables import USER_VECTOR_WORTH
from ad_pipeline.monitoring.user_vectors.worth import GAIN, Figure
from ad_pipeline.monitoring.user_vectors.worth_of_log import Asked, record_worth
from ad_pipeline.monitoring.user_vectors.worth_plots import asked_of, in_words, worth_picture

LOG = [
    ["events", name] for name in ("impressions", "engagements", "user_activities") if name in MAPPED
]


class WorthAsked(dg.Config):
    """What to study; with the defaults it takes minutes on a log of some 100,000 impressions."""

    hour: str | None = Field(
        default=None, description="As in 2026-03-02-07:00. None: the last that is sealed."
    )
    hours: int = Field(
        default=Asked.hours,
        gt=0,
        description="Up to its end, that rankers learn and are tested on; the encoder is the one "
        "in force before them.",
    )
    rows: int = Field(default=Asked.rows, gt=0, description="Impressions of a goal, about.")
    dimensions: list[int] = Field(
        default_factory=list,
        description="Of further encoders; each is trained on the stored one's lessons.",
    )
    ablation: bool = Field(
        default=False,
        description="Train an encoder without each part of the enrichment, and of each modality "
        "alone, on the same lessons.",
    )


@dg.multi_asset(
    name="user_vector_worth",
    specs=[
        table_spec(
            USER_VECTOR_WORTH,
            deps=[*LOG, ["examples", "labelled_impressions"], ["features", "rates"], ENCODER],
            kinds={"jax", "lightgbm"},
            on_demand=True,
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def user_vector_worth(
    context: dg.AssetExecutionContext, config: WorthAsked, deployment: DeploymentResource
):
    """Train the batch ranker with and without vectors, and ask what they are worth to whom."""
    asked = Asked(
        hour_us=None if config.hour is None else hour_start(config.hour),
        hours=config.hours,
        rows=config.rows,
        dimensions=tuple(config.dimensions),
        ablation=config.ablation,
    )
    studied = record_worth(deployment.warehouse, deployment.paths, asked, context.log.info)
    figures = studied.worth.figures
    metadata: dict[str, dg.MetadataValue | str | float] = {}
    for goal in dict.fromkeys(each.goal for each in figures):
        metadata |= {
            label("finding", goal): "\n\n".join(in_words(figures, goal)),
            label("picture", goal): picture(worth_picture(figures, goal)),
            label("all figures", goal): _all_of(figures, goal),
        }
        metadata |= {
            label("normalized entropy saved", goal, each.arm): rounded(each.value)
            for each in asked_of(figures, goal, GAIN)
        }
    metadata |= {label("left out", name): why for name, why in studied.worth.left_out.items()}
    metadata |= {
        "rankers learn from": timestamp(studied.split.learn_from_us),
        "tested from": timestamp(studied.split.test_from_us),
        "as of": timestamp(studied.as_of_us),
        "encoder": short(studied.encoder),
        "whole digest": whole({"encoder": studied.encoder}),
    }
    return dg.MaterializeResult(metadata=metadata)


def _all_of(figures: tuple[Figure, ...], goal: str) -> dg.MarkdownMetadataValue:
    headings = ("question", "arm", "part", "metric", "value", "low", "high", "rows", "users")
    rows = [
        tuple(
            f"{value:.4g}" if isinstance(value, float) else value
            for value in (getattr(each, name) for name in headings)
        )
        for each in figures
        if each.goal == goal
    ]
    return table(headings, rows)


value_user_vectors = dg.define_asset_job(
    "value_user_vectors",
    selection=dg.AssetSelection.assets(["monitoring", "user_vector_worth"]),
    description=(
        "Train the batch ranker with and without vectors of users on the log's last days, and say "
        "what they gain, what their age costs, what becomes of users hardly known, and what "
        "similar users' ads find."
    ),
)


@dg.definitions
def user_vectors() -> dg.Definitions:
    """Return the asset and its job if the dataset asks for vectors of users, else nothing."""
    if DATASET.settings.user_vectors is None:
        return dg.Definitions()
    return dg.Definitions(assets=[user_vector_worth], jobs=[value_user_vectors])
