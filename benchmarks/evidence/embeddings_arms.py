"""What each part of an encoder of user vectors is worth, and what its size and its lessons are.

The markets, ranker and measures of the study of one encoder's worth, with one thing changed an arm:
a part of the enrichment off, one modality alone, another dimension, one goal taught and the other
not, or the labels of half of the publishers only. Each is trained anew and compared with the full
encoder on the same rows, seed by seed; parts that are worth nothing have their row too.

    python -m benchmarks.evidence.embeddings_arms [--seeds N] [--fresh] [--budget]
"""

from collections.abc import Sequence
from dataclasses import asdict

from ad_pipeline.embeddings.graph import build_graph
from ad_pipeline.monitoring.user_vectors.labelled import NEXT
from ad_pipeline.monitoring.user_vectors.recall import SIMILAR_USERS
from ad_pipeline.monitoring.user_vectors.study import (
    columns_of,
    columns_of_strangers,
    cost_of,
    known_users,
    probabilities_with,
)
from ad_pipeline.settings import Enrichment
from benchmarks import vector_worlds
from benchmarks.claims import Claim, Section, percent, percent_range, seed_text, table_lines
from benchmarks.seed_intervals import Estimate, mean_over_seeds
from benchmarks.studies import Result, Study, Values, command_line, values_of
from benchmarks.vector_study import (
    DIMENSION,
    GRAPH,
    LIST,
    MAIN_US,
    MODALITIES,
    SEEDS,
    TOLERATED,
    Arm,
    encoder_of,
    market_of,
    match_values,
    recall_values,
    study_settings,
)
from benchmarks.vector_worlds import GOALS

FULL = "full"
STRANGERS = "vectors of strangers"
HALF = "half of the publishers"
PARTS = tuple(Enrichment.model_fields)
DIMENSIONS = (8, 64, 256)
"""Beside that of :data:`FULL`, 32."""

ARMS: dict[str, Arm] = {
    FULL: Arm(),
    STRANGERS: Arm(of_strangers=True),
    **{f"without {part}": Arm(enrichment=Enrichment(**{part: False})) for part in PARTS},
    **{f"only {name}": Arm(modalities=(name,)) for name in MODALITIES},
    **{f"dimension {d}": Arm(dimension=d) for d in DIMENSIONS},
    **{f"taught {goal}": Arm(tasks=(goal, NEXT)) for goal in GOALS},
    HALF: Arm(publishers=0),
}


def run_arm(arm: str, seed: int) -> Values:
    """Train an arm's encoder on a seed's market and measure match columns, recall and cost."""
    market, encoder = market_of(seed), encoder_of(ARMS[arm], seed)
    values: Values = {}
    for goal in GOALS:
        own = (
            columns_of_strangers(encoder, market, goal, MAIN_US, seed)
            if ARMS[arm].of_strangers
            else columns_of(encoder, market, goal, MAIN_US)
        )
        measured = match_values(market, seed, goal, probabilities_with(market, goal, own.matched))
        values |= {f"{goal}/{name}": value for name, value in measured.items()}
    users = known_users(encoder, market)
    found = recall_values(market, users, build_graph(users, GRAPH, seed), seed)
    cost = {f"cost/{name}": value for name, value in asdict(cost_of(encoder, market)).items()}
    return values | cost | {"recall": found[SIMILAR_USERS]}


STUDY = Study(
    name="embeddings_arms",
    settings=study_settings(ARMS),
    seeds=dict.fromkeys(ARMS, SEEDS),
    run=run_arm,
    seconds=20.0,
    shared=lambda arm, seed: vector_worlds.shared(seed),
)


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what parallel modalities gain, and what is left where vectors are used elsewhere."""
    made: list[Claim] = []
    for goal, other in zip(GOALS, reversed(GOALS), strict=True):
        made.append(_modalities(results, goal))
        made.append(
            _transfer(
                results,
                f"{goal}.from_{other}",
                f"Vectors that were taught {other}s and never {goal}s lower the ranker's "
                f"normalized entropy on {goal}s.",
                mean_over_seeds(values_of(results, f"taught {other}", f"{goal}/match")),
                goal,
            )
        )
        made.append(
            _transfer(
                results,
                f"{goal}.other_publishers",
                f"Vectors that were taught by half of the publishers lower it on {goal}s of the "
                "other half.",
                mean_over_seeds(values_of(results, HALF, f"{goal}/half/1")),
                goal,
            )
        )
    return made


def _control(results: Sequence[Result], goal: str) -> tuple[str, bool]:
    found = mean_over_seeds(values_of(results, STRANGERS, f"{goal}/match"))
    told = f"vectors of other users gain {percent(found.value)} ({percent_range(found)})"
    return told, found.low <= 0 and found.value <= TOLERATED


def _transfer(results: Sequence[Result], key: str, says: str, found: Estimate, goal: str) -> Claim:
    control, control_met = _control(results, goal)
    return Claim(
        key=f"embeddings_arms.{key}",
        says=says,
        figure=f"{percent(found.value)} saved",
        interval=percent_range(found),
        seeds=seed_text(SEEDS),
        met=found.low > 0,
        control=control,
        control_met=control_met,
    )


def _beside_full(results: Sequence[Result], arm: str, name: str) -> Estimate:
    """Return how much more the full encoder saves than an arm, paired by seed."""
    pairs = zip(values_of(results, FULL, name), values_of(results, arm, name), strict=True)
    return mean_over_seeds([full - other for full, other in pairs])


def _modalities(results: Sequence[Result], goal: str) -> Claim:
    name = f"{goal}/match"
    alone = {each: mean_over_seeds(values_of(results, f"only {each}", name)) for each in MODALITIES}
    best = max(alone, key=lambda each: alone[each].value)
    found = _beside_full(results, f"only {best}", name)
    control, control_met = _control(results, goal)
    return Claim(
        key=f"embeddings_arms.{goal}.modalities",
        says=f"On {goal}s parallel modalities save more than the best of them alone.",
        figure=f"{percent(found.value)} over {best} alone",
        interval=percent_range(found),
        seeds=seed_text(SEEDS),
        met=found.low > 0,
        control=control,
        control_met=control_met,
    )


def details(results: Sequence[Result]) -> list[str]:
    """Return every arm beside the full encoder, and what dimensions cost."""
    rows = []
    for arm in ARMS:
        cells = [arm]
        for goal in GOALS:
            own = mean_over_seeds(values_of(results, arm, f"{goal}/match"))
            cells.append(f"{percent(own.value)} ({percent_range(own)})")
            lost = _beside_full(results, arm, f"{goal}/match")
            cells.append("" if arm == FULL else f"{percent(lost.value)} ({percent_range(lost)})")
        found = mean_over_seeds(values_of(results, arm, "recall"))
        rows.append([*cells, f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"])
    header = ["arm"]
    for goal in GOALS:
        header += [f"saved on {goal}s", "full saves more by"]
    costs = []
    for dimension, arm in _dimensions().items():
        own = {
            name: mean_over_seeds(values_of(results, arm, f"cost/{name}")).value
            for name in ("us_per_user", "us_per_query", "bytes_per_user")
        }
        costs.append(
            [
                str(dimension),
                f"{own['us_per_user']:,.0f}",
                f"{own['us_per_query']:.2f}",
                f"{own['bytes_per_user']:.0f}",
            ]
        )
    return [
        "Share of normalized entropy saved by match columns, and what the full encoder saves more "
        f"(paired by seed); recall@{LIST} of the ads of similar users. Zero effects included.",
        "",
        *table_lines([*header, "recall"], rows),
        "",
        "What a vector costs on this machine, while others used it too: microseconds of a core to "
        "encode a user and to match a user with an ad, and bytes as float16:",
        "",
        *table_lines(["dimension", "μs a user", "μs a query", "bytes a user"], costs),
    ]


def _dimensions() -> dict[int, str]:
    found = {DIMENSION: FULL, **{each: f"dimension {each}" for each in DIMENSIONS}}
    return dict(sorted(found.items()))


def picture(results: Sequence[Result]) -> bytes:
    """Draw what is saved and found by dimension."""
    from benchmarks.pictures import new_figure, png

    figure, (saved, found) = new_figure(columns=2)
    dimensions = _dimensions()
    for panel, names in ((saved, [f"{goal}/match" for goal in GOALS]), (found, ["recall"])):
        scale = 1 if names == ["recall"] else 100
        for name in names:
            each = [mean_over_seeds(values_of(results, arm, name)) for arm in dimensions.values()]
            panel.errorbar(
                list(dimensions),
                [scale * one.value for one in each],
                yerr=[
                    [scale * (one.value - one.low) for one in each],
                    [scale * (one.high - one.value) for one in each],
                ],
                fmt="o-",
                label=name.split("/")[0],
            )
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(dimensions), list(map(str, dimensions)))
        panel.set_xlabel("numbers of a vector")
    saved.set_ylabel("normalized entropy saved, %")
    saved.axhline(0.0, color="gray", linestyle=":")
    saved.legend()
    found.set_ylabel(f"recall@{LIST}")
    return png(figure)


SECTION = Section(
    study=STUDY,
    title="What makes a user vector worth more",
    method=(__doc__ or "").split("\n\n")[1].replace("\n", " "),
    claims=claims,
    details=details,
    pictures={"user_vector_arms": picture},
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
