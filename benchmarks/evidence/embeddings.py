"""What user vectors are worth to a ranker and to retrieval, and what that depends on.

Markets without drift, of seeds that nothing was tuned on, go through the product's own path. An
encoder learns from the labels of the first five days, and from what users did next; the batch
ranker learns from the next three days, with and without columns made of vectors as of each user's
last refresh; the last two days are tested. Gains are shares of the normalized entropy of the ranker
without vectors, under the true probabilities. *Match* columns are the two towers' log odds and the
cosine with the ad's engagers, *published* ones the numbers of the vector and that cosine. Beside
them stands what the simulator's own taste for the ad would gain, which no log holds.

    python -m benchmarks.evidence.embeddings [--seeds N] [--fresh] [--budget]
"""

import time
from collections.abc import Sequence

import numpy as np

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.graph import SimilarityGraph, Users, build_graph, fit_clusters
from ad_pipeline.embeddings.retrieval import engaged_until
from ad_pipeline.embeddings.settings import Enrichment, UserVectorSettings
from ad_pipeline.embeddings.training import CODE_VERSION
from ad_pipeline.embeddings.versions import MixedVersions, VersionGuard
from ad_pipeline.hashing import hash_strings, seed_of
from ad_pipeline.learners.batch import batch_hours
from ad_pipeline.monitoring.user_vectors.cold_start import BUCKETS, bucket_name, bucket_of, fit_prior
from ad_pipeline.monitoring.user_vectors.features import (
    activity_counts,
    refreshed_us,
    vectors_at,
)
from ad_pipeline.monitoring.user_vectors.labelled import NEXT
from ad_pipeline.monitoring.user_vectors.ranker import gain_of
from ad_pipeline.monitoring.user_vectors.recall import (
    OF_ALL,
    OF_CLUSTER,
    POPULAR,
    SIMILAR_USERS,
    WAYS,
    lists_by_way,
    recalls,
    search_quality,
)
from benchmarks import vector_worlds
from benchmarks.claims import Claim, Section, percent, percent_range, seed_text, table_lines
from benchmarks.seed_intervals import Estimate, mean_over_seeds
from benchmarks.studies import Result, Study, Values, command_line, values_of
from benchmarks.vector_study import (
    BLOCK_US,
    ENCODER_US,
    GAP_US,
    LEARNT_FROM_US,
    MODALITIES,
    NEW_SHARE,
    TESTED_US,
    TRAINING,
    Arm,
    Columns,
    Market,
    columns_of,
    columns_of_strangers,
    encoder_of,
    expected_gain,
    gain_of_columns,
    market_of,
    probabilities_with,
    probabilities_without,
    publisher_half,
    tested,
    with_newcomers,
    with_vectors,
)
from benchmarks.vector_worlds import GOALS

VERSION = 1

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

INTERVALS = {
    "5 min": 5 * MINUTE_US,
    "1 h": HOUR_US,
    "6 h": 6 * HOUR_US,
    "1 d": DAY_US,
    "3 d": 3 * DAY_US,
    "7 d": 7 * DAY_US,
}
"""Of refresh; each user is refreshed at a moment of his own within it."""

MAIN_US = DAY_US
"""Interval of all other figures: everybody is refreshed at midnight."""

STRENGTH = 5.0
"""Activities' worth of the cold-start prior."""

SEGMENT_STRENGTH = 20.0
LIST = 10
NEIGHBOURS = 50
GRAPH = UserVectorSettings(neighbours=NEIGHBOURS, exact_users=1)
COARSE = GRAPH.model_copy(update={"clusters_per_root": 0.25})
"""Clusters of some 300 users, of whom :data:`NEIGHBOURS` are drawn."""

SEEDS = (501, 502, 503, 504)
TOLERATED = 0.001
"""Share of normalized entropy below which a loss counts as none: noise of a training is as large."""


def run(arm: str, seed: int) -> Values:
    """Train the encoder on a seed's market and measure what its vectors are worth.

    Parameters
    ----------
    arm : str
        :data:`FULL`.
    seed : int
    """
    market, encoder = market_of(seed), encoder_of(ARMS[arm], seed)
    values: Values = {}
    for goal in GOALS:
        own = columns_of(encoder, market, goal, MAIN_US)
        said = probabilities_with(market, goal, own.matched)
        measured = _match(market, seed, goal, said) | _worth(encoder, seed, goal, own, said)
        measured |= _by_activity(encoder, seed, goal)
        values |= {f"{goal}/{name}": value for name, value in measured.items()}
    values |= _by_interval(encoder, seed) | _mixed_versions(encoder, market)
    return values | _retrieved(encoder, market, seed)


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
        measured = _match(market, seed, goal, probabilities_with(market, goal, own.matched))
        values |= {f"{goal}/{name}": value for name, value in measured.items()}
    users = _known_users(encoder, market)
    found = _recalls(market, users, build_graph(users, GRAPH, seed), seed)
    return values | _cost(encoder, market) | {"recall": found[SIMILAR_USERS]}


def _match(market: Market, seed: int, goal: str, said: np.ndarray) -> Values:
    """Measure what match columns gain, on all tested rows and by half of the publishers."""
    found, without = tested(market, goal), probabilities_without(seed, goal)
    half = publisher_half(market, goal)[found.places]
    values = {"match": expected_gain(found.truth, said, without)}
    return values | {
        f"half/{each}": expected_gain(
            found.truth[half == each], said[half == each], without[half == each]
        )
        for each in (0, 1)
    }


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
    on_labels = gain_of(labels, match, without, user)
    values |= {
        "on_labels": on_labels.value,
        "on_labels/low": on_labels.low,
        "on_labels/high": on_labels.high,
        "rows": float(len(labels)),
        "positives": float(labels.sum()),
    }
    return values


def _by_activity(encoder: Encoder, seed: int, goal: str) -> Values:
    """Measure the gain in each bucket of activity, with vectors as they are and with the prior."""
    market = with_newcomers(market_of(seed), seed)
    rows, found = market.ranked_rows(goal), tested(market, goal)
    shown = market.goals[goal].taken(rows)
    own = columns_of(encoder, market, goal, MAIN_US)
    activities = activity_counts(
        market.history, shown.user, refreshed_us(shown.occurred_us, MAIN_US)
    )
    shrunk = _shrunk(encoder, market, goal, rows, own.vectors, activities)
    said = {
        "match": probabilities_with(market, goal, own.matched),
        "prior": probabilities_with(
            market, goal, with_vectors(encoder, market, goal, shrunk).matched
        ),
    }
    without = probabilities_without(seed, goal)
    bucket = bucket_of(activities[found.of_ranked])
    values: Values = {}
    for place in range(len(BUCKETS)):
        inside = bucket == place
        values[f"bucket/{place}/rows"] = float(inside.sum())
        for name, each in said.items():
            values[f"bucket/{place}/{name}"] = expected_gain(
                found.truth[inside], each[inside], without[inside]
            )
    return values


def _shrunk(
    encoder: Encoder,
    market: Market,
    goal: str,
    rows: np.ndarray,
    vectors: np.ndarray,
    activities: np.ndarray,
) -> np.ndarray:
    """Return vectors shrunk to the means of country and device, as known when the ranker began."""
    fitted_us = market.split.learn_from_us
    seen = market.goals["click"]
    before = np.flatnonzero((seen.occurred_us <= fitted_us) & (seen.user >= 0))
    segment = _segments(market, "click")
    # The last request of each user says his segment.
    of_user = np.full(len(market.history.users), "", dtype=segment.dtype)
    of_user[seen.user[before]] = segment[before]
    users = np.flatnonzero(of_user != "")
    known = vectors_at(encoder, market.history, users, np.full(len(users), fitted_us))
    prior = fit_prior(known, of_user[users], SEGMENT_STRENGTH)
    return prior.read(vectors, activities, _segments(market, goal)[rows], STRENGTH)


def _segments(market: Market, goal: str) -> np.ndarray:
    context = market.world.rows[goal].context
    pairs = zip(context["country"].to_pylist(), context["device"].to_pylist(), strict=True)
    return np.array([f"{country} {device}" for country, device in pairs])


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


def _known_users(encoder: Encoder, market: Market) -> Users:
    """Return the vectors of everybody known when the tested days begin."""
    names = market.history.users
    moments = np.full(len(names), market.split.test_from_us)
    vectors = vectors_at(encoder, market.history, np.arange(len(names)), moments)
    hashes = hash_strings(names, seed_of("user_id"))
    known = np.flatnonzero(np.isfinite(vectors[:, 0]))
    known = known[np.argsort(hashes[known])]
    return Users.of_matrix(hashes[known], vectors[known], "measured")


def _recalls(market: Market, users: Users, graph: SimilarityGraph, seed: int) -> dict[str, float]:
    """Return the recall of every way to make lists, of clicks in the tested days."""
    moment_us = market.split.test_from_us
    hashes = hash_strings(market.history.users, seed_of("user_id"))
    ad_hashes = hash_strings(market.world.ads["ad_id"], seed_of("ad_id"))
    clicks, shown = market.clicks, market.goals["click"]
    engaged = engaged_until(
        hashes[clicks.user], ad_hashes[clicks.ad], clicks.received_us, moment_us
    )
    lately = (shown.occurred_us >= moment_us - DAY_US) & (shown.occurred_us < moment_us)
    eligible = np.unique(ad_hashes[shown.ad[lately]])
    after = (shown.occurred_us >= moment_us) & (shown.labels == 1) & (shown.user >= 0)
    own = fit_clusters(users, COARSE, seed).of_users(users, np.arange(len(users.ids)))[:, 0]
    lists = lists_by_way(engaged, graph, own, GRAPH, LIST, eligible, seed)
    return recalls(lists, hashes[shown.user[after]], ad_hashes[shown.ad[after]], LIST)


def _retrieved(encoder: Encoder, market: Market, seed: int) -> Values:
    """Measure what lists find, and what the search for neighbours keeps and saves."""
    users = _known_users(encoder, market)
    graph = build_graph(users, GRAPH, seed)
    exact = build_graph(users, GRAPH.model_copy(update={"exact_users": len(users.ids)}), seed)
    search = search_quality(graph, exact)
    found = _recalls(market, users, graph, seed)
    return {f"recall/{way}": value for way, value in found.items()} | {
        "search/recall": search.recall,
        "search/compared": search.compared,
        "search/fitting": search.fitting,
        "search/users": float(len(users.ids)),
    }


def _cost(encoder: Encoder, market: Market) -> Values:
    """Time encoding, and the match of a vector with an ad, in microseconds of a core; no pure figure.

    Timings differ from run to run and are claimed nothing of.
    """
    users = np.arange(min(1_000, len(market.history.users)))
    moments = np.full(len(users), market.split.test_from_us)
    vectors = vectors_at(encoder, market.history, users, moments)
    started = time.process_time()
    vectors_at(encoder, market.history, users, moments)
    encoded = time.process_time() - started
    tokens = market.ad_tokens[np.zeros(len(users), np.int64)]
    started = time.process_time()
    encoder.logits(vectors, tokens)
    matched = time.process_time() - started
    return {
        "cost/us_per_user": 1e6 * encoded / len(users),
        "cost/us_per_query": 1e6 * matched / len(users),
        "cost/bytes_per_user": 2.0 * vectors.shape[1],
    }


def _settings(arms: Sequence[str]) -> dict[str, object]:
    return {
        "worlds": vector_worlds.settings(),
        "arms": {
            name: {
                "encoder": ARMS[name].encoder.model_dump(mode="json"),
                "publishers": ARMS[name].publishers,
                "of_strangers": ARMS[name].of_strangers,
            }
            for name in arms
        },
        "training": TRAINING.model_dump(mode="json"),
        "code_versions": {"encoder": CODE_VERSION, "batch": batch_hours.CODE_VERSION},
        "days": [LEARNT_FROM_US, ENCODER_US, TESTED_US, BLOCK_US, GAP_US, MAIN_US],
        "intervals": INTERVALS,
        "prior": [STRENGTH, SEGMENT_STRENGTH, NEW_SHARE],
        "lists": [LIST, NEIGHBOURS],
        "version": VERSION,
    }


STUDY = Study(
    name="embeddings",
    settings=_settings([FULL]),
    seeds={FULL: SEEDS},
    run=run,
    seconds=90.0,
    shared=lambda arm, seed: vector_worlds.shared(seed),
)

ARMS_STUDY = Study(
    name="embeddings_arms",
    settings=_settings(list(ARMS)),
    seeds=dict.fromkeys(ARMS, SEEDS),
    run=run_arm,
    seconds=25.0,
    shared=lambda arm, seed: vector_worlds.shared(seed),
)

REPORTED = "0.1 to 0.3 %"
"""What ALURE reports as its gain in normalized entropy (arXiv 2406.05898)."""


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what vectors gain, how that ages, who must not lose by them, and what they find."""
    made: list[Claim] = []
    for goal in GOALS:
        made += [_gain(results, goal, "match"), _gain(results, goal, "published")]
        made += [_staleness(results, goal), _cold_start(results, goal)]
        made.append(_modalities(results, goal))
    made += [_recall(results, other) for other in (POPULAR, OF_CLUSTER)]
    return [*made, _search(results), _guard(results)]


def of_full(results: Sequence[Result], name: str) -> Estimate:
    """Return a figure of the full encoder over the seeds."""
    return mean_over_seeds(values_of(results, FULL, name))


def paired(
    results: Sequence[Result], left: tuple[str, str], right: tuple[str, str]
) -> Estimate:
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
        "hourly, than without.",
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
        for short, long in zip(names[:-1], names[1:], strict=True)
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


def _cold_start(results: Sequence[Result], goal: str) -> Claim:
    found = _buckets(results, goal, "prior")
    worst = min(found, key=lambda name: found[name].value)
    control, control_met = _strangers(results, goal)
    return Claim(
        key=f"embeddings.{goal}.cold_start",
        says=f"On {goal}s the ranker with vectors shrunk to the mean of country and device is "
        f"worse than without in no bucket of activity by more than {percent(TOLERATED, 1)}.",
        figure=f"worst at {worst} activities: {percent(found[worst].value)}",
        interval=percent_range(found[worst]),
        seeds=seed_text(SEEDS),
        met=found[worst].low > -TOLERATED,
        control=control,
        control_met=control_met,
    )


def _modalities(results: Sequence[Result], goal: str) -> Claim:
    name = f"{goal}/match"
    alone = {each: mean_over_seeds(values_of(results, f"only {each}", name)) for each in MODALITIES}
    best = max(alone, key=lambda each: alone[each].value)
    found = paired(results, (FULL, name), (f"only {best}", name))
    control, control_met = _strangers(results, goal)
    return Claim(
        key=f"embeddings.{goal}.modalities",
        says=f"On {goal}s parallel modalities gain more than the best of them alone.",
        figure=f"{percent(found.value)} over {best} alone",
        interval=percent_range(found),
        seeds=seed_text(SEEDS),
        met=found.low > 0,
        control=control,
        control_met=control_met,
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
        says=f"Searching near clusters finds at least 95 % of the {NEIGHBOURS} nearest users in at "
        "most 10 % of the distances.",
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
