"""What user vectors are worth to a ranker and to retrieval, and what that depends on.

Markets without drift, of seeds that nothing was tuned on, go through the product's own path. An
encoder learns from the labels of the first five days, and from what users did next; the batch
ranker learns from the next three days, with and without columns made of vectors as of each user's
last refresh; the last two days are tested. Gains are shares of the normalized entropy of the ranker
without vectors, under the true probabilities, on average over trainings of the ranker. *Match*
columns are the two towers' log odds and the cosine with the ad's engagers, *published* ones the
numbers of the vector and that cosine. Beside them stands what the simulator's own taste for the ad
would gain, which no log holds.

    python -m benchmarks.evidence.embeddings [--seeds N] [--fresh] [--budget]
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.graph import build_graph
from ad_pipeline.embeddings.versions import MixedVersions, VersionGuard
from ad_pipeline.monitoring.user_vectors.cold_start import (
    BUCKETS,
    SEGMENT_STRENGTH,
    STRENGTH,
    bucket_name,
)
from ad_pipeline.monitoring.user_vectors.features import vectors_at
from ad_pipeline.monitoring.user_vectors.ranker import gain_of, mean_losses
from ad_pipeline.monitoring.user_vectors.recall import (
    OF_ALL,
    OF_CLUSTER,
    POPULAR,
    SIMILAR_USERS,
    WAYS,
    search_quality,
)
from ad_pipeline.monitoring.user_vectors.study import (
    Columns,
    activities_of,
    columns_of,
    columns_of_strangers,
    known_users,
    of_known_well,
    prior_of,
    probabilities_with,
    with_vectors,
)
from ad_pipeline.monitoring.user_vectors.worth import INTERVALS
from ad_pipeline.settings import UserVectorSettings
from benchmarks import vector_worlds
from benchmarks.claims import Claim, Section, percent, percent_range, seed_text, table_lines
from benchmarks.seed_intervals import Estimate, mean_over_seeds
from benchmarks.studies import Result, Study, Values, command_line, values_of
from benchmarks.vector_study import (
    FEWEST,
    GRAPH,
    LIST,
    MAIN_US,
    NEIGHBOURS,
    SEEDS,
    TOLERATED,
    Arm,
    Market,
    bucket_values,
    encoder_of,
    expected_gain,
    gain_of_columns,
    market_of,
    match_values,
    probabilities_without,
    recall_values,
    study_settings,
    tested,
    with_newcomers,
)
from benchmarks.vector_worlds import GOALS

FULL = "full"
ENCODER = Arm()
COLD_START = AS_THEY_ARE, WITH_PRIOR, FROM_FEWEST = "match", "prior", "from_fewest"
"""Match columns of every vector; of those shrunk to the prior; and only of users of at least
:data:`FEWEST` activities, as the product has them."""


def run(arm: str, seed: int) -> Values:
    """Train the encoder on a seed's market and measure what its vectors are worth.

    Parameters
    ----------
    arm : str
        :data:`FULL`.
    seed : int
    """
    market, encoder = market_of(seed), encoder_of(ENCODER, seed)
    values: Values = {}
    for goal in GOALS:
        own = columns_of(encoder, market, goal, MAIN_US)
        said = probabilities_with(market, goal, own.matched)
        measured = match_values(market, seed, goal, said) | _worth(encoder, seed, goal, own, said)
        measured |= _by_activity(encoder, seed, goal)
        values |= {f"{goal}/{name}": value for name, value in measured.items()}
    values |= _by_interval(encoder, seed) | _mixed_versions(encoder, market)
    return values | _retrieved(encoder, market, seed)


def _worth(encoder: Encoder, seed: int, goal: str, own: Columns, match: np.ndarray) -> Values:
    """Measure what else could be read, what must not help, and the gain that labels show."""
    market = market_of(seed)
    rows, found = market.ranked_rows(goal), tested(market, goal)
    without = probabilities_without(seed, goal)
    of_strangers = columns_of_strangers(encoder, market, goal, MAIN_US, seed)
    columns = {
        "published": own.published,
        "strangers": of_strangers.matched,
        "taste": market.world.rows[goal].taste_of_ad[rows][:, np.newaxis],
    }
    values = {name: gain_of_columns(seed, goal, each) for name, each in columns.items()}
    labels, user = market.goals[goal].labels[found.places], market.goals[goal].user[found.places]
    on_labels = gain_of(mean_losses(labels, match), mean_losses(labels, without), user)
    values |= {
        "on_labels": on_labels.value,
        "on_labels/low": on_labels.low,
        "on_labels/high": on_labels.high,
        "rows": float(len(labels)),
        "positives": float(labels.sum()),
    }
    return values


def _by_activity(encoder: Encoder, seed: int, goal: str) -> Values:
    """Measure the gain by bucket of activity, where three users in ten are new at some time."""
    market = with_newcomers(market_of(seed), seed)
    rows, found = market.ranked_rows(goal), tested(market, goal)
    own = columns_of(encoder, market, goal, MAIN_US)
    activities = activities_of(market, goal, MAIN_US)
    prior = prior_of(market, encoder, SEGMENT_STRENGTH)
    shrunk = prior.read(own.vectors, activities, market.segments[goal][rows], STRENGTH)
    columns = {
        AS_THEY_ARE: own.matched,
        WITH_PRIOR: with_vectors(encoder, market, goal, shrunk).matched,
        FROM_FEWEST: of_known_well(own.matched, activities, FEWEST),
    }
    said = {way: probabilities_with(market, goal, each) for way, each in columns.items()}
    without = probabilities_without(seed, goal)
    values = {
        f"newcomers/{way}": expected_gain(found.truth, each, without) for way, each in said.items()
    }
    return values | bucket_values(market, seed, goal, activities[found.of_ranked], said)


def _by_interval(encoder: Encoder, seed: int) -> Values:
    market = market_of(seed)
    return {
        f"{goal}/interval/{name}": gain_of_columns(
            seed, goal, columns_of(encoder, market, goal, interval_us, spread=True).matched
        )
        for goal in GOALS
        for name, interval_us in INTERVALS.items()
    }


def _mixed_versions(encoder: Encoder, market: Market) -> Values:
    """Look users up in a store of one version for a caller of another, and of the same."""
    guard = VersionGuard(UserVectorSettings().tolerated_rotation_error)
    users = np.arange(100)
    vectors = vectors_at(
        encoder, market.history, users, np.full(len(users), market.split.test_from_us)
    )
    for user in users:
        try:
            guard.aligned(vectors[[user]], "older", "newer")
        except MixedVersions:
            continue
    guard.aligned(vectors, "newer", "newer")
    return {
        "mixed/asked": float(len(users)),
        "mixed/refused": float(guard.refused.total()),
        "mixed/passed": float(guard.passed.total()),
    }


def _retrieved(encoder: Encoder, market: Market, seed: int) -> Values:
    """Measure what lists find, and what the search for neighbours keeps and saves."""
    users = known_users(encoder, market)
    graph = build_graph(users, GRAPH, seed)
    exact = build_graph(users, GRAPH.model_copy(update={"exact_users": len(users.ids)}), seed)
    search = search_quality(graph, exact)
    found = recall_values(market, users, graph, seed)
    return {f"recall/{way}": value for way, value in found.items()} | {
        "search/recall": search.recall,
        "search/compared": search.compared,
        "search/fitting": search.fitting,
        "search/users": float(len(users.ids)),
    }


STUDY = Study(
    name="embeddings",
    settings=study_settings({FULL: ENCODER}),
    seeds={FULL: SEEDS},
    run=run,
    seconds=180.0,
    shared=lambda arm, seed: vector_worlds.shared(seed),
)

REPORTED = "0.1 to 0.3 %"
"""What ALURE reports as its gain in normalized entropy (arXiv 2406.05898)."""


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what vectors gain, how that ages, who must not lose by them, and what they find."""
    made: list[Claim] = []
    for goal in GOALS:
        made += [_gain(results, goal, "match"), _gain(results, goal, "published")]
        made += [_staleness(results, goal)]
        made += [_cold_start(results, goal, way) for way in (WITH_PRIOR, FROM_FEWEST)]
    made += [_recall(results, other) for other in (POPULAR, OF_CLUSTER)]
    return [*made, _search(results), _guard(results)]


def of_full(results: Sequence[Result], name: str) -> Estimate:
    """Return a figure of the full encoder over the seeds."""
    return mean_over_seeds(values_of(results, FULL, name))


def paired(results: Sequence[Result], left: tuple[str, str], right: tuple[str, str]) -> Estimate:
    """Return the difference of two figures, each an arm and a name, seed by seed."""
    pairs = zip(values_of(results, *left), values_of(results, *right), strict=True)
    return mean_over_seeds([a - b for a, b in pairs])


def _strangers(results: Sequence[Result], goal: str) -> tuple[str, bool]:
    found = of_full(results, f"{goal}/strangers")
    told = f"vectors of other users gain {percent(found.value)} ({percent_range(found)})"
    return told, found.low <= 0 and found.value <= TOLERATED


def _gain(results: Sequence[Result], goal: str, columns: str) -> Claim:
    found, taste = of_full(results, f"{goal}/{columns}"), of_full(results, f"{goal}/taste")
    control, control_met = _strangers(results, goal)
    what = {
        "match": "the towers' log odds and the cosine with the ad's engagers",
        "published": "the vector's numbers and the cosine with the ad's engagers",
    }[columns]
    return Claim(
        key=f"embeddings.{goal}.{columns}",
        says=f"On {goal}s the batch ranker has a lower normalized entropy with {what}, refreshed "
        "daily, than without.",
        figure=f"{percent(found.value)} of it saved; the user's true taste saves "
        f"{percent(taste.value)}, so this is {found.value / taste.value:.0%} of the possible; "
        f"ALURE reports {REPORTED}",
        interval=percent_range(found),
        seeds=seed_text(SEEDS),
        met=found.low > 0,
        control=control,
        control_met=control_met,
    )


def _steps(results: Sequence[Result], goal: str) -> dict[str, Estimate]:
    """Return what each interval gains over the next longer one."""
    names = list(INTERVALS)
    return {
        f"{short} over {long}": paired(
            results, (FULL, f"{goal}/interval/{short}"), (FULL, f"{goal}/interval/{long}")
        )
        for short, long in itertools.pairwise(names)
    }


def _staleness(results: Sequence[Result], goal: str) -> Claim:
    names = list(INTERVALS)
    whole = paired(
        results, (FULL, f"{goal}/interval/{names[0]}"), (FULL, f"{goal}/interval/{names[-1]}")
    )
    wrong = [name for name, each in _steps(results, goal).items() if each.high < 0]
    return Claim(
        key=f"embeddings.{goal}.staleness",
        says=f"On {goal}s no refresh interval is surely worse than the next longer one.",
        figure=f"{len(wrong)} of {len(names) - 1} neighbours the wrong way; {names[0]} saves "
        f"{percent(whole.value, 3)} over {names[-1]}",
        interval=percent_range(whole, 3),
        seeds=seed_text(SEEDS),
        met=not wrong,
        control=f"that refreshing matters at all: {names[0]} over {names[-1]} excludes 0",
        control_met=whole.low > 0,
    )


def _buckets(results: Sequence[Result], goal: str, way: str) -> dict[str, Estimate]:
    return {
        bucket_name(place): of_full(results, f"{goal}/bucket/{place}/{way}")
        for place in range(len(BUCKETS))
    }


def _cold_start(results: Sequence[Result], goal: str, way: str) -> Claim:
    found = _buckets(results, goal, way)
    worst = min(found, key=lambda name: found[name].low)
    newest = of_full(results, f"{goal}/bucket/0/{AS_THEY_ARE}")
    key, policy, told = {
        WITH_PRIOR: ("cold_start_prior", "vectors shrunk to the mean of country and device", ""),
        FROM_FEWEST: (
            "cold_start",
            f"vectors of users of {FEWEST} activities and more",
            " (a rule made after the first three seeds had shown the loss, in smaller markets)",
        ),
    }[way]
    return Claim(
        key=f"embeddings.{goal}.{key}",
        says=f"On {goal}s the ranker with {policy} is in no bucket of activity worse than without "
        f"by more than {percent(TOLERATED, 1)[1:]}.",
        figure=f"lowest bound at {worst} activities, where {percent(found[worst].value)} is saved"
        f"{told}",
        interval=percent_range(found[worst]),
        seeds=seed_text(SEEDS),
        met=found[worst].low > -TOLERATED,
        control=f"with every vector it loses on users of no activity: {_percent(newest)}",
        control_met=newest.high < 0,
    )


def _recall(results: Sequence[Result], other: str) -> Claim:
    found = paired(results, (FULL, f"recall/{SIMILAR_USERS}"), (FULL, f"recall/{other}"))
    level = of_full(results, f"recall/{SIMILAR_USERS}")
    drawn = paired(results, (FULL, f"recall/{OF_ALL}"), (FULL, f"recall/{POPULAR}"))
    return Claim(
        key=f"embeddings.recall.{other.replace(' ', '_')}",
        says=f"Recall@{LIST} of the next two days' clicks is higher from similar users' ads than "
        f"from {'popular ads' if other == POPULAR else 'those of ' + other}.",
        figure=f"{found.value:+.4f}, to {level.value:.4f}",
        interval=f"{found.low:+.4f} to {found.high:+.4f}",
        seeds=seed_text(SEEDS),
        met=found.low > 0,
        control=f"users drawn from all beside popular ads: {drawn.value:+.4f} ({drawn.low:+.4f} to "
        f"{drawn.high:+.4f})",
        control_met=drawn.low <= 0,
    )


def _search(results: Sequence[Result]) -> Claim:
    recall, share = of_full(results, "search/recall"), of_full(results, "search/compared")
    users, fitting = of_full(results, "search/users"), of_full(results, "search/fitting")
    return Claim(
        key="embeddings.search",
        says=f"Searching {GRAPH.probes} near clusters finds at least 95 % of the {NEIGHBOURS} "
        "nearest users in at most 10 % of the distances.",
        figure=f"recall {recall.value:.3f} in {share.value:.1%} of the distances between "
        f"{users.value:,.0f} users (fitting the clusters, once, took another {fitting.value:.1%})",
        interval=f"{recall.low:.3f} to {recall.high:.3f}; {share.low:.1%} to {share.high:.1%}",
        seeds=seed_text(SEEDS),
        met=recall.low >= 0.95 and share.high <= 0.1,
        control=f"as many users drawn at random hold {share.value:.1%} of the nearest",
        control_met=share.value < recall.value,
    )


def _guard(results: Sequence[Result]) -> Claim:
    asked, refused, passed = (
        sum(values_of(results, FULL, f"mixed/{name}")) for name in ("asked", "refused", "passed")
    )
    return Claim(
        key="embeddings.mixed_versions",
        says="A lookup that would mix two versions is refused, and counted.",
        figure=f"{refused:.0f} of {asked:.0f} refused and counted",
        interval="exact",
        seeds=seed_text(SEEDS),
        met=refused == asked,
        control=f"lookups of one version that passed: {passed:.0f} of {len(SEEDS)}",
        control_met=passed == len(SEEDS),
    )


def details(results: Sequence[Result]) -> list[str]:
    """Return every gain, each step of the refresh interval, the buckets, and recall by way."""
    gains = []
    for goal in GOALS:
        for name, words in GAINS.items():
            found = of_full(results, f"{goal}/{name}")
            share = found.value / of_full(results, f"{goal}/taste").value
            gains.append([goal, words, _percent(found), f"{share:.0%}"])
    refresh = [
        [
            goal,
            *(_percent(of_full(results, f"{goal}/interval/{name}"), 3) for name in INTERVALS),
            f"{1e6 * _price(results, goal).value:+.2f} "
            f"({1e6 * _price(results, goal).low:+.2f} to {1e6 * _price(results, goal).high:+.2f})",
        ]
        for goal in GOALS
    ]
    steps = [
        [goal, name, _percent(each, 3)]
        for goal in GOALS
        for name, each in _steps(results, goal).items()
    ]
    buckets = [
        [
            goal,
            words,
            *(_percent(each) for each in _buckets(results, goal, way).values()),
            _percent(of_full(results, f"{goal}/newcomers/{way}")),
        ]
        for goal in GOALS
        for way, words in (
            (AS_THEY_ARE, "as they are"),
            (WITH_PRIOR, "shrunk to the prior"),
            (FROM_FEWEST, f"none below {FEWEST} activities"),
        )
    ]
    on_labels = [
        [str(result.seed), *(_percent(_on_labels(result, goal)) for goal in GOALS)]
        for result in results
    ]
    found = [(way, of_full(results, f"recall/{way}")) for way in WAYS]
    return [
        "Share of normalized entropy saved, mean over the seeds with Student's t interval, and "
        f"what part that is of what the true taste saves. ALURE reports {REPORTED}.",
        "",
        *table_lines(["goal", "columns", "saved", "of the possible"], gains),
        "",
        "By refresh interval, each user at a moment of his own within it; the price is the share "
        "of normalized entropy lost a minute of mean age (half an interval), between the ends:",
        "",
        *table_lines(["goal", *INTERVALS, "price of a minute, 10^-6"], refresh),
        "",
        "What an interval saves over the next longer one, paired by seed:",
        "",
        *table_lines(["goal", "interval", "saved"], steps),
        "",
        "By activities that the encoder knows of, with three users in ten kept from it up to a "
        "moment drawn over the log (the ranker's own features know them all along):",
        "",
        *table_lines(
            ["goal", "vectors", *map(bucket_name, range(len(BUCKETS))), "all rows"], buckets
        ),
        "",
        "On labels, as a real log would tell it: match columns, each seed with a paired bootstrap "
        "over users:",
        "",
        *table_lines(["seed", *GOALS], on_labels),
        "",
        f"Recall@{LIST} of the clicks of the two days after:",
        "",
        *table_lines(
            ["list", "recall"],
            [[way, f"{each.value:.4f} ({each.low:.4f} to {each.high:.4f})"] for way, each in found],
        ),
    ]


GAINS = {
    "match": "match: towers' log odds, cosine with engagers",
    "published": "published: 32 numbers, cosine with engagers",
    "strangers": "match of another user's vectors",
    "taste": "the simulator's own taste for the ad",
}


def _price(results: Sequence[Result], goal: str) -> Estimate:
    """Return the normalized entropy lost a minute of mean age, as a share."""
    names = list(INTERVALS)
    pairs = zip(
        values_of(results, FULL, f"{goal}/interval/{names[0]}"),
        values_of(results, FULL, f"{goal}/interval/{names[-1]}"),
        strict=True,
    )
    minutes = (INTERVALS[names[-1]] - INTERVALS[names[0]]) / 2 / 60_000_000
    return mean_over_seeds([(fresh - stale) / minutes for fresh, stale in pairs])


def _on_labels(result: Result, goal: str) -> Estimate:
    value, low, high = (result.values[f"{goal}/on_labels{end}"] for end in ("", "/low", "/high"))
    return Estimate(value, low, high, 1)


def _percent(found: Estimate, digits: int = 2) -> str:
    return f"{percent(found.value, digits)} ({percent_range(found, digits)})"


def picture(results: Sequence[Result]) -> bytes:
    """Draw what is saved on clicks by refresh interval, and by activity with and without prior."""
    from benchmarks.pictures import new_figure, png

    figure, (by_interval, by_activity) = new_figure(columns=2)
    places = np.arange(len(INTERVALS))
    found = [of_full(results, f"click/interval/{name}") for name in INTERVALS]
    _bars(by_interval, places, found, "click", "tab:blue", "o")
    for shift, way, words, color in (
        (-0.1, AS_THEY_ARE, "as they are", "tab:blue"),
        (0.0, WITH_PRIOR, "shrunk to the prior", "tab:red"),
        (0.1, FROM_FEWEST, f"none below {FEWEST} activities", "tab:green"),
    ):
        each = list(_buckets(results, "click", way).values())
        _bars(by_activity, np.arange(len(each)) + shift, each, words, color, "o")
    by_interval.set_xticks(places, list(INTERVALS))
    by_interval.set_xlabel("refresh interval")
    by_activity.set_xticks(range(len(BUCKETS)), list(map(bucket_name, range(len(BUCKETS)))))
    by_activity.set_xlabel("activities known of the user")
    for panel in (by_interval, by_activity):
        panel.axhline(0.0, color="gray", linestyle=":")
        panel.set_ylabel("normalized entropy saved on clicks, %")
    by_activity.legend()
    return png(figure)


def _bars(
    panel: Any, places: np.ndarray, found: list[Estimate], label: str, color: str, marker: str
) -> None:
    panel.errorbar(
        places,
        [100 * each.value for each in found],
        yerr=[
            [100 * (each.value - each.low) for each in found],
            [100 * (each.high - each.value) for each in found],
        ],
        fmt=marker,
        color=color,
        label=label,
    )


SECTION = Section(
    study=STUDY,
    title="What user vectors are worth",
    method=(__doc__ or "").split("\n\n")[1].replace("\n", " "),
    claims=claims,
    details=details,
    pictures={"user_vectors": picture},
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
