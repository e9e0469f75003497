"""What each part of an encoder of user vectors is worth, and what its size and its lessons are.

The markets, ranker and measures of the study of one encoder's worth, with one thing changed an arm:
a part of the enrichment off, one modality alone, another dimension, some tasks taught and others
not, or the labels of half of the publishers only. Each is trained anew and compared with the full
encoder on the same rows, seed by seed; parts that are worth nothing have their row too. How far two
trainings of the same encoder are apart is an arm as well. Three of the six seeds were run: with
three, an interval reaches two and a half standard deviations to either side, and little is shown.

    python -m benchmarks.evidence.embeddings_arms [--seeds N] [--fresh] [--budget]
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.graph import build_graph
from ad_pipeline.monitoring.user_vectors.recall import SIMILAR_USERS
from ad_pipeline.monitoring.user_vectors.study import (
    columns_of,
    columns_of_strangers,
    cost_of,
    known_users,
    probabilities_with,
)
from ad_pipeline.settings import NEXT, Enrichment
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
    Market,
    encoder_of,
    market_of,
    match_values,
    recall_values,
    study_settings,
)
from benchmarks.vector_worlds import GOALS

FULL = "full"
STRANGERS = "vectors of strangers"
ANEW = "trained anew"
NEITHER = "taught neither goal"
HALF = "half of the publishers"
PARTS = tuple(Enrichment.model_fields)
DIMENSIONS = (8, 64, 256)
"""Beside that of :data:`FULL`, 32."""

ARMS: dict[str, Arm] = {
    FULL: Arm(),
    STRANGERS: Arm(of_strangers=True),
    ANEW: Arm(anew=True),
    **{f"without {part}": Arm(enrichment=Enrichment(**{part: False})) for part in PARTS},
    **{f"only {name}": Arm(modalities=(name,)) for name in MODALITIES},
    **{f"dimension {d}": Arm(dimension=d) for d in DIMENSIONS},
    **{f"taught {goal}": Arm(tasks=(goal, NEXT)) for goal in GOALS},
    NEITHER: Arm(tasks=(NEXT,)),
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
    values |= {f"cost/{name}": value for name, value in asdict(cost_of(encoder, market)).items()}
    return values | _found(encoder, market, seed)


def _found(encoder: Encoder, market: Market, seed: int) -> Values:
    """Measure the recall of similar users' ads, and time the search for these users."""
    users = known_users(encoder, market)
    started = time.process_time()
    graph = build_graph(users, GRAPH, seed)
    searched = time.process_time() - started
    return {
        "recall": recall_values(market, users, graph, seed)[SIMILAR_USERS],
        "cost/us_per_search": 1e6 * searched / len(users.ids),
    }


STUDY = Study(
    name="embeddings_arms",
    settings=study_settings(ARMS),
    seeds=dict.fromkeys(ARMS, SEEDS[:3]),
    run=run_arm,
    seconds=20.0,
    shared=lambda arm, seed: vector_worlds.shared(seed),
)


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what parts, modalities and size are worth, and what transfers."""
    made: list[Claim] = []
    for goal, other in zip(GOALS, reversed(GOALS), strict=True):
        made += [_parts(results, goal), _modalities(results, goal), _dimension(results, goal)]
        made.append(
            _transfer(
                results,
                f"{goal}.from_{other}",
                f"Vectors that were taught {other}s and never {goal}s lower the ranker's "
                f"normalized entropy on {goal}s.",
                f"taught {other}",
                f"{goal}/match",
            )
        )
        made.append(
            _transfer(
                results,
                f"{goal}.other_publishers",
                f"Vectors that were taught by half of the publishers lower it on {goal}s of the "
                "other half.",
                HALF,
                f"{goal}/half/1",
            )
        )
    return made


def _of(results: Sequence[Result], arm: str, name: str) -> Estimate:
    return mean_over_seeds(values_of(results, arm, name))


def _over(results: Sequence[Result], arm: str, other: str, name: str) -> Estimate:
    """Return how much more an arm saves than another, on the seeds that both have."""
    own, others = (
        {result.seed: result.values[name] for result in results if result.arm == each}
        for each in (arm, other)
    )
    return mean_over_seeds([own[seed] - others[seed] for seed in own if seed in others])


def _trained_anew(results: Sequence[Result], goal: str) -> tuple[str, bool]:
    """Return the control of every difference between encoders: two trainings of one."""
    found = _over(results, FULL, ANEW, f"{goal}/match")
    told = f"the full encoder over itself trained anew: {_percent(found)}"
    return told, not found.excludes_zero or abs(found.value) <= TOLERATED


def _compared(results: Sequence[Result], goal: str, key: str, says: str, arm: str) -> Claim:
    found = _over(results, FULL, arm, f"{goal}/match")
    control, control_met = _trained_anew(results, goal)
    return Claim(
        key=f"embeddings_arms.{goal}.{key}",
        says=says,
        figure=f"{percent(found.value)} over {arm}",
        interval=percent_range(found),
        seeds=seed_text(STUDY.seeds[arm]),
        met=found.low > 0,
        control=control,
        control_met=control_met,
    )


def _parts(results: Sequence[Result], goal: str) -> Claim:
    lost = {part: _over(results, FULL, f"without {part}", f"{goal}/match") for part in PARTS}
    least = min(lost, key=lambda part: lost[part].value)
    shown = [part for part in PARTS if lost[part].low > 0]
    control, control_met = _trained_anew(results, goal)
    return Claim(
        key=f"embeddings_arms.{goal}.parts",
        says=f"On {goal}s the encoder saves less without any one of the {len(PARTS)} parts of the "
        "enrichment.",
        figure=f"shown of {', '.join(shown) or 'none'}; least by {least}: "
        f"{percent(lost[least].value)}",
        interval=percent_range(lost[least]),
        seeds=seed_text(STUDY.seeds[f"without {least}"]),
        met=len(shown) == len(PARTS),
        control=control,
        control_met=control_met,
    )


def _modalities(results: Sequence[Result], goal: str) -> Claim:
    alone = {each: _of(results, f"only {each}", f"{goal}/match").value for each in MODALITIES}
    says = f"On {goal}s parallel modalities save more than the best of them alone."
    best = max(alone, key=alone.__getitem__)
    return _compared(results, goal, "modalities", says, f"only {best}")


def _dimension(results: Sequence[Result], goal: str) -> Claim:
    least = min(DIMENSIONS)
    says = f"On {goal}s vectors of {DIMENSION} numbers save more than of {least}."
    return _compared(results, goal, "dimension", says, f"dimension {least}")


def _transfer(results: Sequence[Result], key: str, says: str, arm: str, name: str) -> Claim:
    found, untaught = _of(results, arm, name), _of(results, NEITHER, name)
    strangers = _of(results, STRANGERS, name)
    return Claim(
        key=f"embeddings_arms.{key}",
        says=says,
        figure=f"{percent(found.value)} saved; taught neither goal, only what users did next, "
        f"{_percent(untaught)}; taught all, {_percent(_of(results, FULL, name))}",
        interval=percent_range(found),
        seeds=seed_text(STUDY.seeds[arm]),
        met=found.low > 0,
        control=f"vectors of other users gain {_percent(strangers)}",
        control_met=strangers.low <= 0 and strangers.value <= TOLERATED,
    )


def details(results: Sequence[Result]) -> list[str]:
    """Return every arm beside the full encoder, publishers, and what size costs."""
    header = ["arm", "seeds"]
    for goal in GOALS:
        header += [f"saved on {goal}s", "full saves more by"]
    publishers = [
        [
            goal,
            arm,
            str(len(STUDY.seeds[arm])),
            *(_percent(_of(results, arm, f"{goal}/half/{half}")) for half in (0, 1)),
        ]
        for goal in GOALS
        for arm in (FULL, HALF, NEITHER)
    ]
    sized = _sized(results)
    costs = [
        [
            str(dimension),
            *(_percent(_of(sized, arm, f"{goal}/match")) for goal in GOALS),
            _number(_of(sized, arm, "recall")),
            *(f"{_cost_of(sized, arm, name):,.{digits}f}" for name, digits in COSTS),
            # A query reads the vectors of a user and of an ad.
            f"{2 * _cost_of(sized, arm, 'bytes_per_user'):,.0f}",
        ]
        for dimension, arm in _dimensions().items()
    ]
    return [
        "Share of normalized entropy saved by match columns, and what the full encoder saves more "
        f"(paired by seed); recall@{LIST} of the ads of similar users. A difference that is no "
        f"larger than that of *{ANEW}* is none.",
        "",
        *table_lines(
            [*header, "recall", "full finds more by"], [_arm_row(results, arm) for arm in ARMS]
        ),
        "",
        "By publishers, dealt to two halves by their names:",
        "",
        *table_lines(["goal", "arm", "seeds", "on the first half", "on the second"], publishers),
        "",
        "By dimension. Costs are medians over the seeds, of this machine while others used it too: "
        "microseconds of a core to encode a user, to match a user with an ad (a query), and to "
        f"find a user's {GRAPH.neighbours} neighbours among some 12,000; bytes as float16:",
        "",
        *table_lines(
            [
                "dimension",
                *(f"saved on {goal}s" for goal in GOALS),
                "recall",
                "μs a user",
                "μs a query",
                "μs a search",
                "bytes a user",
                "bytes a query",
            ],
            costs,
        ),
    ]


COSTS = (("us_per_user", 0), ("us_per_query", 2), ("us_per_search", 0), ("bytes_per_user", 0))
"""Names of what a dimension costs, and digits shown."""


def _cost_of(results: Sequence[Result], arm: str, name: str) -> float:
    """Return the median over seeds: the first run of a process also pays for what it loads."""
    return statistics.median(values_of(results, arm, f"cost/{name}"))


def _arm_row(results: Sequence[Result], arm: str) -> list[str]:
    cells = [arm, str(len(STUDY.seeds[arm]))]
    for goal in GOALS:
        cells.append(_percent(_of(results, arm, f"{goal}/match")))
        cells.append("" if arm == FULL else _percent(_over(results, FULL, arm, f"{goal}/match")))
    if ARMS[arm].of_strangers:
        # Lists are made of the users' own vectors.
        return [*cells, "", ""]
    more = _number(_over(results, FULL, arm, "recall"), sign="+") if arm != FULL else ""
    return [*cells, _number(_of(results, arm, "recall")), more]


def _percent(found: Estimate) -> str:
    return f"{percent(found.value)} ({percent_range(found)})"


def _number(found: Estimate, sign: str = "") -> str:
    value, low, high = (f"{each:{sign}.4f}" for each in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def _dimensions() -> dict[int, str]:
    found = {DIMENSION: FULL, **{each: f"dimension {each}" for each in DIMENSIONS}}
    return dict(sorted(found.items()))


def _sized(results: Sequence[Result]) -> list[Result]:
    """Return the results of seeds that every dimension was measured on."""
    common = set.intersection(*(set(STUDY.seeds[arm]) for arm in _dimensions().values()))
    return [result for result in results if result.seed in common]


def picture(results: Sequence[Result]) -> bytes:
    """Draw what is saved and found by dimension, seeds as dots, and what it costs."""
    from benchmarks.pictures import new_figure, png

    figure, (saved, found, paid) = new_figure(columns=3)
    dimensions = _dimensions()
    results = _sized(results)
    for panel, scale, names in (
        (saved, 100, {f"{goal}/match": f"{goal}s" for goal in GOALS}),
        (found, 1, {"recall": "similar users"}),
    ):
        for color, (name, label) in zip(("tab:blue", "tab:orange"), names.items(), strict=False):
            of_seed = scale * np.array(
                [values_of(results, arm, name) for arm in dimensions.values()]
            )
            panel.plot(list(dimensions), of_seed, ".", color=color, alpha=0.5)
            panel.plot(list(dimensions), of_seed.mean(axis=1), "-", color=color, label=label)
    for name, label in (("us_per_user", "encode a user"), ("us_per_query", "match with an ad")):
        each = [_cost_of(results, arm, name) for arm in dimensions.values()]
        paid.plot(list(dimensions), each, "o-", label=label)
    paid.set_yscale("log")
    paid.set_ylim(0.1, 1_000)
    for panel in (saved, found, paid):
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(dimensions), list(map(str, dimensions)))
        panel.set_xlabel("numbers of a vector")
        panel.legend()
    saved.set_ylabel("normalized entropy saved, %")
    saved.axhline(0.0, color="gray", linestyle=":")
    found.set_ylabel(f"recall@{LIST}")
    paid.set_ylabel("μs of a core")
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
