"""The study of user vectors can say yes and no, and its newcomers are unknown until they join."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.clocks import DAY_US
from ad_pipeline.monitoring.user_vectors.cold_start import BUCKETS
from ad_pipeline.monitoring.user_vectors.features import activity_counts
from ad_pipeline.monitoring.user_vectors.recall import OF_ALL, SIMILAR_USERS, WAYS
from ad_pipeline.monitoring.user_vectors.worth import INTERVALS
from benchmarks.claims import Claim
from benchmarks.evidence import embeddings, embeddings_arms
from benchmarks.studies import Result, Study, Values
from benchmarks.vector_study import NEW_SHARE, SEEDS, laid_out, with_newcomers
from benchmarks.vector_worlds import GOALS, SPEC, RankerRows, VectorWorld

Numbers = Callable[[str, int], Values]


def results_of(study: Study, numbers: Numbers) -> list[Result]:
    """Return results of every run of a study, made up."""
    return [Result(arm, seed, 1.0, numbers(arm, seed)) for arm, seed in study.pairs()]


def verdicts(claims: list[Claim]) -> dict[str, str]:
    return {claim.key.split(".", 1)[1]: claim.verdict for claim in claims}


def good(arm: str, seed: int) -> Values:
    """Return numbers under which every claim of the first study holds."""
    wave = 1e-5 * math.sin(seed)
    values: Values = {
        **{f"recall/{way}": 0.3 + wave for way in WAYS},
        f"recall/{SIMILAR_USERS}": 0.4 - wave,
        f"recall/{OF_ALL}": 0.29 - 2 * wave,
        "search/recall": 0.97 + wave,
        "search/compared": 0.08 + wave,
        "search/fitting": 0.05,
        "search/users": 6_000.0,
        "mixed/asked": 100.0,
        "mixed/refused": 100.0,
        "mixed/passed": 1.0,
    }
    for goal in GOALS:
        values |= {
            f"{goal}/match": 0.003 + wave,
            f"{goal}/published": 0.002 + wave,
            f"{goal}/strangers": -0.001 + wave,
            f"{goal}/taste": 0.02 + wave,
            f"{goal}/on_labels": 0.003,
            f"{goal}/on_labels/low": 0.001,
            f"{goal}/on_labels/high": 0.005,
        }
        for place, name in enumerate(INTERVALS):
            values[f"{goal}/interval/{name}"] = 0.003 - 0.0002 * place + place * wave
        for place in range(len(BUCKETS)):
            for way in embeddings.COLD_START:
                values[f"{goal}/bucket/{place}/{way}"] = 0.001 * place + wave
                values[f"{goal}/newcomers/{way}"] = 0.002 + wave
        values[f"{goal}/bucket/0/{embeddings.AS_THEY_ARE}"] = -0.002 + wave
    return values


def good_arms(arm: str, seed: int) -> Values:
    """Return numbers under which every claim of the second study holds."""
    wave = 1e-5 * math.sin(seed)
    values: Values = {
        "recall": 0.3 + wave,
        "cost/us_per_user": 90.0,
        "cost/us_per_query": 1.0,
        "cost/us_per_search": 50.0,
        "cost/bytes_per_user": 64.0,
    }
    saved = {
        embeddings_arms.FULL: 0.003,
        embeddings_arms.ANEW: 0.003 + wave,
        embeddings_arms.STRANGERS: -0.001,
    }.get(arm, 0.001)
    for goal in GOALS:
        names = (f"{goal}/match", f"{goal}/half/0", f"{goal}/half/1")
        values |= {name: saved + wave * (place + 1) for place, name in enumerate(names)}
    return values


def test_every_claim_can_hold():
    made = verdicts(embeddings.claims(results_of(embeddings.STUDY, good)))
    assert set(made.values()) == {"holds"}
    assert len(made) == 14
    arms = verdicts(embeddings_arms.claims(results_of(embeddings_arms.STUDY, good_arms)))
    assert set(arms.values()) == {"holds"}
    assert len(arms) == 10


@pytest.mark.parametrize(
    ("name", "value", "key", "verdict"),
    [
        ("click/match", -0.001, "click.match", "does not hold"),
        ("purchase/published", 0.0, "purchase.published", "does not hold"),
        ("click/strangers", 0.002, "click.match", "does not hold: its control fails"),
        ("click/interval/1 h", 0.0, "click.staleness", "does not hold"),
        ("click/interval/7 d", 0.1, "click.staleness", "does not hold: its control fails"),
        ("purchase/bucket/1/prior", -0.01, "purchase.cold_start_prior", "does not hold"),
        ("click/bucket/2/from_fewest", -0.002, "click.cold_start", "does not hold"),
        ("click/bucket/0/match", 0.0, "click.cold_start", "does not hold: its control fails"),
        ("recall/similar users", 0.2, "recall.popular", "does not hold"),
        ("recall/random users", 0.5, "recall.popular", "does not hold: its control fails"),
        ("search/compared", 0.11, "search", "does not hold"),
        ("search/recall", 0.94, "search", "does not hold"),
        ("mixed/refused", 99.0, "mixed_versions", "does not hold"),
        ("mixed/passed", 0.0, "mixed_versions", "does not hold: its control fails"),
    ],
)
def test_a_planted_figure_turns_its_claim(name: str, value: float, key: str, verdict: str):
    def planted(arm: str, seed: int) -> Values:
        return good(arm, seed) | {name: value + 1e-5 * math.cos(seed)}

    made = verdicts(embeddings.claims(results_of(embeddings.STUDY, planted)))
    assert made[key] == verdict


@pytest.mark.parametrize(
    ("arm", "name", "value", "key", "verdict"),
    [
        ("without cyclic_pattern", "click/match", 0.003, "click.parts", "does not hold"),
        ("only ad_view", "purchase/match", 0.003, "purchase.modalities", "does not hold"),
        ("dimension 8", "click/match", 0.004, "click.dimension", "does not hold"),
        ("trained anew", "click/match", 0.0, "click.parts", "does not hold: its control fails"),
        ("taught click", "purchase/match", -0.001, "purchase.from_click", "does not hold"),
        ("half of the publishers", "click/half/1", 0.0, "click.other_publishers", "does not hold"),
        (
            "vectors of strangers",
            "click/match",
            0.002,
            "click.from_purchase",
            "does not hold: its control fails",
        ),
    ],
)
def test_a_planted_figure_turns_the_claim_of_its_arm(
    arm: str, name: str, value: float, key: str, verdict: str
):
    def planted(of: str, seed: int) -> Values:
        changed = {name: value + 1e-5 * math.cos(seed)} if of == arm else {}
        return good_arms(of, seed) | changed

    results = results_of(embeddings_arms.STUDY, planted)
    assert verdicts(embeddings_arms.claims(results))[key] == verdict


def test_a_part_worth_nothing_has_its_row():
    def planted(arm: str, seed: int) -> Values:
        return good_arms(embeddings_arms.FULL if arm.startswith("without") else arm, seed)

    table = "\n".join(embeddings_arms.details(results_of(embeddings_arms.STUDY, planted)))
    assert "| without cyclic_pattern | 3 | +0.30 %" in table
    assert "+0.00 % (+0.00 % to +0.00 %)" in table


def test_details_and_pictures_are_drawn_of_any_results():
    results = results_of(embeddings.STUDY, good)
    assert "15%" in "\n".join(embeddings.details(results))  # 0.3 % of the 2 % that are possible
    assert embeddings.picture(results).startswith(b"\x89PNG")
    arms = results_of(embeddings_arms.STUDY, good_arms)
    assert "| 256 | +0.10 %" in "\n".join(embeddings_arms.details(arms))
    assert embeddings_arms.picture(arms).startswith(b"\x89PNG")


def test_nothing_was_tuned_on_the_seeds_that_are_judged():
    assert not {11, 12} & set(SEEDS)


def small_world(users: int = 200, activities: int = 4_000) -> VectorWorld:
    """Return activities of every user over the whole log, and no impressions to rank."""
    rng = np.random.default_rng(0)
    names = pa.array([f"u{user:06d}" for user in rng.integers(0, users, activities)])
    occurred_us = SPEC.start_us + rng.integers(0, SPEC.days * DAY_US, activities)
    ads = pa.table({name: ["ad-1", "ad-2"] for name in ("ad_id", "campaign_id", "category")})
    ads = ads.append_column("advertiser_id", ads["ad_id"])
    done = pa.table(
        {
            "user_id": names,
            "modality": rng.choice(["ad_click", "ad_view", "content_view"], activities),
            "content_id": rng.choice(["ad-1", "ad-2", "foo-001"], activities),
            "occurred_us": occurred_us,
            "received_us": occurred_us,
        }
    )
    nothing: Any = np.zeros(0)
    whole: Any = np.zeros(0, np.int64)
    rows = RankerRows(
        users=pa.array([], pa.string()),
        ads=ads.slice(0, 0),
        context=pa.table(
            {"country": pa.array([], pa.string()), "device": pa.array([], pa.string())}
        ),
        occurred_us=whole,
        matured_us=whole,
        labels=whole,
        truth=nothing,
        taste=nothing,
        taste_of_ad=nothing,
        dense=nothing,
        categories=whole,
        online_logit=nothing,
        dense_names=(),
        category_names=(),
    )
    return VectorWorld(SPEC.start_us, dict.fromkeys(GOALS, rows), done, ads)


def test_newcomers_are_unknown_until_they_join_and_all_others_as_before():
    market = laid_out(small_world())
    changed = with_newcomers(market, seed=5)
    everybody = np.arange(len(market.history.users))
    counts = {
        day: [
            activity_counts(
                each.history, everybody, np.full(len(everybody), SPEC.start_us + day * DAY_US)
            )
            for each in (market, changed)
        ]
        for day in (5, SPEC.days)
    }
    before, after = counts[SPEC.days]
    new = after < before
    assert abs(new.mean() - NEW_SHARE) < 0.12
    assert (counts[5][1][~new] == counts[5][0][~new]).all()
    # Half of them have not joined after half of the log.
    unknown = (counts[5][1] == 0) & (counts[5][0] > 0)
    assert 0.3 < unknown[new].mean() < 0.7
    assert not unknown[~new].any()
