"""A row of each rung is answered by that rung's default, and a whole row as if there were none."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ad_pipeline.checkpoints import write_checkpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.features.encoding import (
    FeatureContract,
    LookedUp,
    RateGoal,
    read_columns,
    request_columns,
)
from ad_pipeline.serving.bundle import KIND, Bundle, CorruptBundle, export_bundle, open_bundle
from ad_pipeline.serving.decisions import logged_inputs
from ad_pipeline.serving.explanation import canary, explain, explanation_lines
from ad_pipeline.serving.ladder import (
    FULL,
    MEANS,
    NO_AGGREGATES,
    PRIOR,
    RUNGS,
    SIMPLE,
    fit_ladder,
    read_ladder,
    write_ladder,
)
from ad_pipeline.serving.proof import prove_goal
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline_tests.serving import ladders, worlds

NULLS: dict[str, Any] = dict.fromkeys(worlds.CONTRACT.columns)


@pytest.fixture(scope="module")
def laddered(world: worlds.World, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return the world's bundle with a ladder for each goal."""
    return ladders.with_ladders(world, tmp_path_factory.mktemp("laddered"))


def test_whole_rows_keep_every_bit_of_their_scores(world: worlds.World, laddered: Bundle) -> None:
    ours = Scorer(laddered, world.due).score_requests(world.requests)
    plain = Scorer(world.bundle, world.due).score_requests(world.requests)
    for goal, rungs in ours.rungs.items():
        whole = rungs == FULL
        assert whole.sum() > 150
        kept, expected = ours.probabilities[goal][whole], plain.probabilities[goal][whole]
        assert kept.tobytes() == expected.tobytes()
        for expert, logits in plain.logits[goal].items():
            assert ours.logits[goal][expert].tobytes() == logits.tobytes()


def test_a_bundle_without_a_ladder_says_nothing_of_one(world: worlds.World) -> None:
    assert "rungs" not in world.bundle.manifest["canaries"]["scores"]
    assert all("ladder" not in goal for goal in world.bundle.manifest["goals"])
    assert len(world.bundle.manifest["canaries"]["features"]) == 4
    decided = Scorer(world.bundle).score_requests([{}])
    assert decided.rungs == {}
    assert not any(found.reason.startswith("rung") for found in decided.fallbacks)


@pytest.mark.parametrize("place", [0, 1], ids=["click", "purchase"])
def test_nothing_known_is_answered_by_the_matured_base_rate(
    laddered: Bundle, world: worlds.World, place: int
) -> None:
    goal = laddered.goals[place].goal
    _, labels = ladders.matured(goal)
    for scorer in (Scorer(laddered), Scorer(laddered, world.due)):
        decided = scorer.score_requests([NULLS])
        assert decided.rungs[goal].tolist() == [PRIOR]
        assert decided.probabilities[goal].tolist() == [int(labels.sum()) / len(labels)]


@pytest.mark.parametrize("place", [0, 1], ids=["click", "purchase"])
def test_one_column_is_answered_by_its_shrunken_rate(
    laddered: Bundle, world: worlds.World, place: int
) -> None:
    """Counted here in plain Python, the column and its strength chosen anew."""
    models = laddered.goals[place]
    assert models.ladder is not None
    requests, labels = ladders.matured(models.goal)
    expected = simple_rates(requests, labels.tolist())
    best = min(expected, key=lambda name: expected[name][0])
    assert models.ladder.columns[0] == best
    assert len(expected[best][1]) > 10
    for value, rate in expected[best][1].items():
        if value is not None:
            decided = Scorer(laddered, world.due).score(NULLS | {best: value})
            assert decided.probabilities[models.goal] == pytest.approx(rate, rel=1e-12)
            assert f"rung simple of {models.goal}: {MEANS[SIMPLE]}" in decided.fallbacks
    unseen = Scorer(laddered, world.due).score(NULLS | {best: "never seen"})
    assert unseen.probabilities[models.goal] == models.ladder.prior


def simple_rates(
    requests: list[dict[str, Any]], labels: list[int]
) -> dict[str, tuple[float, dict[Any, float]]]:
    """Return each text column's held-out loss and the rates of its values."""
    half = len(labels) // 2

    def rates(name: str, rows: range, strength: float) -> dict[Any, float]:
        mean = sum(labels[row] for row in rows) / len(rows)
        shown, engaged = Counter[Any](), Counter[Any]()
        for row in rows:
            shown[requests[row][name]] += 1
            engaged[requests[row][name]] += labels[row]
        return {v: (engaged[v] + strength) / (n + strength / mean) for v, n in shown.items()}

    older = range(half)
    mean = sum(labels[:half]) / half
    found: dict[str, tuple[float, dict[Any, float]]] = {}
    for name in worlds.CONTRACT.text_columns:
        best = math.inf
        for strength in (1.0, 3.0, 10.0, 30.0, 100.0):
            known = rates(name, older, strength)
            loss = 0.0
            for row in range(half, len(labels)):
                p = known.get(requests[row][name], mean)
                loss -= math.log(p if labels[row] else 1 - p)
            if loss < best:
                best = loss
                found[name] = (loss, rates(name, range(len(labels)), strength))
    return found


@pytest.mark.parametrize("place", [0, 1], ids=["click", "purchase"])
def test_no_counts_are_answered_by_the_mixture_under_the_line_of_greatest_likelihood(
    laddered: Bundle, world: worlds.World, place: int
) -> None:
    goal, ladder = laddered.goals[place].goal, laddered.goals[place].ladder
    assert ladder is not None
    assert ladder.slope is not None
    assert ladder.shift is not None
    request = world.requests[1] | {"publisher": 'p"1', "floor_price": 3.0}
    decided = Scorer(laddered).score(request)
    mixed = Scorer(world.bundle).score(request).probabilities[goal]
    logit = ladder.slope * math.log(mixed / (1 - mixed)) + ladder.shift
    assert decided.probabilities[goal] == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-12)
    assert f"rung no_aggregates of {goal}: {MEANS[NO_AGGREGATES]}" in decided.fallbacks
    # The gradient of the penalised likelihood is 0 there: a prior of 1 and 0, each +- 0.5.
    requests, labels = ladders.matured(goal)
    p = Scorer(world.bundle).score_requests(requests).probabilities[goal]
    x = np.log(p) - np.log1p(-p)
    left = labels - 1 / (1 + np.exp(-(ladder.slope * x + ladder.shift)))
    assert left.sum() - ladder.shift / 0.25 == pytest.approx(0, abs=1e-6)
    assert (left * x).sum() - (ladder.slope - 1) / 0.25 == pytest.approx(0, abs=1e-6)


def test_rows_of_an_opposite_world_get_another_line(world: worlds.World) -> None:
    """The control: with the labels turned around the line falls as far as it may."""
    models = world.models[0]
    requests, labels = ladders.matured(models.goal)
    read = read_columns(worlds.CONTRACT, request_columns(worlds.CONTRACT, requests))
    p = Scorer(world.bundle).score_requests(requests).probabilities[models.goal]
    right = fit_ladder(worlds.CONTRACT, read, labels, p, 0.6)
    turned = fit_ladder(worlds.CONTRACT, read, 1 - labels, p, 0.6)
    assert right is not None
    assert turned is not None
    assert right.slope is not None
    assert turned.slope is not None
    assert turned.slope < 0.1 < right.slope
    assert turned.prior == pytest.approx(1 - right.prior)


_REQUESTS = st.fixed_dictionaries(
    {
        "publisher": st.sampled_from([None, 'p"1', 'p"2', "new"]),
        "creative": st.sampled_from([None, "künstler-1", "künstler-7", "new"]),
        "floor_price": st.sampled_from([None, 0.0, 12.5, math.inf]),
        "age": st.sampled_from([None, -1.0, 40.0]),
    }
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=st.lists(_REQUESTS, min_size=1, max_size=12), counted=st.booleans())
def test_a_row_is_answered_alone_as_among_others_and_its_rung_follows_from_it_alone(
    world: worlds.World, laddered: Bundle, requests: list[dict[str, Any]], counted: bool
) -> None:
    scorer = Scorer(laddered, world.due if counted else None)
    many = scorer.score_requests(requests)
    for row, request in enumerate(requests):
        assert scorer.score(request) == many.one(row)
        for models in laddered.goals:
            ladder = models.ladder
            assert ladder is not None
            there = sum(request[name] is not None for name in ladder.usual)
            if there >= ladder.least:
                rung = FULL if counted else NO_AGGREGATES
            else:
                known = any(request[name] is not None for name in ladder.columns)
                rung = SIMPLE if known else PRIOR
            assert many.rungs[models.goal][row] == rung


def every_rung(world: worlds.World) -> list[dict[str, Any]]:
    whole = world.requests[1] | {"publisher": 'p"1', "floor_price": 3.0}
    return [whole, NULLS | {"publisher": 'p"1'}, NULLS | {"creative": "künstler-7"}, NULLS]


def test_logged_rows_of_every_rung_give_their_score_again_to_the_bit(
    world: worlds.World, laddered: Bundle
) -> None:
    met: set[int] = set()
    for scorer in (Scorer(laddered), Scorer(laddered, world.due)):
        decided = scorer.score_requests(every_rung(world) + world.requests[:50])
        logged = decided.to_table()
        features = [json.loads(text) for text in logged["features"].to_pylist()]
        columns, counts = logged_inputs(laddered.contract, features)
        again = laddered.score(read_columns(laddered.contract, columns), counts)
        for goal, rungs in again.rungs.items():
            met |= set(rungs.tolist())
            assert again.probabilities[goal].tobytes() == decided.probabilities[goal].tobytes()
            said = [json.loads(text) for text in logged["fallbacks"].to_pylist()]
            for row, rung in enumerate(rungs.tolist()):
                words = [each for each in said[row] if each.startswith("rung ")]
                mine = [each for each in words if f" of {goal}: " in each]
                assert mine == (
                    [] if rung == FULL else [f"rung {RUNGS[rung]} of {goal}: {MEANS[rung]}"]
                )
    assert met == {FULL, NO_AGGREGATES, SIMPLE, PRIOR}


def test_the_canaries_stand_on_every_rung(laddered: Bundle) -> None:
    for rungs in laddered.manifest["canaries"]["scores"]["rungs"].values():
        assert set(rungs) == {FULL, NO_AGGREGATES, SIMPLE, PRIOR}


def rewritten(bundle: Bundle, root: Path, default: str) -> str:
    """Write a bundle again with one default of its first goal changed, every SHA-256 right."""
    manifest = json.loads(
        json.dumps({k: v for k, v in bundle.manifest.items() if k not in ("files", "kind")})
    )
    arrays = {path.name.removesuffix(".npy"): np.load(path) for path in bundle.path.glob("*.npy")}
    tree = manifest["goals"][0]["ladder"]["manifest"]
    if default == "rates":
        arrays["click.ladder.rates"] = arrays["click.ladder.rates"] * (1 + 1e-12)
    elif default == "columns":
        tree["columns"].reverse()
    elif default == "usual":
        tree["usual"] = tree["usual"][:1]
    elif default == "least":
        tree["least"] = 0
    elif default != "nothing":
        tree[default] *= 1 + 1e-12
    return write_checkpoint(root, KIND, arrays, manifest).digest


@pytest.mark.parametrize(
    "default", ["prior", "slope", "shift", "least", "usual", "columns", "rates"]
)
def test_a_changed_default_is_refused_by_the_canaries(
    laddered: Bundle, tmp_path: Path, default: str
) -> None:
    assert open_bundle(tmp_path, rewritten(laddered, tmp_path, "nothing")) is not None
    with pytest.raises(CorruptBundle, match="canary"):
        open_bundle(tmp_path, rewritten(laddered, tmp_path, default))


def test_a_proof_finds_one_rate_that_is_not_the_checkpoints(
    world: worlds.World, laddered: Bundle, tmp_path: Path
) -> None:
    models = laddered.goals[0]
    assert models.ladder is not None
    stored = read_ladder(tmp_path, write_ladder(tmp_path, models.goal, models.ladder))
    sources = replace(world.sources[models.goal], ladder=stored)
    assert prove_goal(laddered, 0, sources).faults == ()
    rates = np.array(stored.rates)
    rates[-1] = np.nextafter(rates[-1], 1)
    for wrong, said in (
        (replace(stored, rates=rates), "rates of the ladder"),
        (replace(stored, prior=0.5), "prior of the ladder"),
        (None, "on one side only"),
    ):
        faults = prove_goal(laddered, 0, replace(sources, ladder=wrong)).faults
        assert len(faults) == 1
        assert said in faults[0]


def test_an_explanation_says_which_rung_answered(laddered: Bundle) -> None:
    features = laddered.manifest["canaries"]["features"]
    rungs = laddered.manifest["canaries"]["scores"]["rungs"]["click"]
    probabilities = laddered.manifest["canaries"]["scores"]["probabilities"]["click"]
    for number in range(len(features)):
        explained = explain(laddered, canary(laddered, number), ["click"])
        rung = rungs[number]
        assert explained.goals[0].rung == rung
        assert explained.goals[0].probability == probabilities[number]
        said = [line for line in explanation_lines(explained) if line.startswith("answered by")]
        assert said == (
            [] if rung == FULL else [f"answered by rung {RUNGS[rung]}, not as above: {MEANS[rung]}"]
        )


def test_counts_that_are_too_old_are_not_taken_and_younger_ones_are(
    world: worlds.World, laddered: Bundle, tmp_path: Path
) -> None:
    """Due are those that end an hour before the request's; the early ones end an hour before."""
    limited = ladders.with_ladders(world, tmp_path, stale_hours=1)
    limit_us = (1 + worlds.CONTRACT.rate_lag_hours) * HOUR_US
    said = "counts too old to be taken: every one is 0"
    early = Scorer(limited, world.early).score_requests(world.requests)
    age_us = np.array([r["occurred_us"] for r in world.requests]) - world.early.end_us
    old = age_us > limit_us
    assert old.sum() > 150
    nothing = Scorer(laddered).score_requests(world.requests)
    for goal, probabilities in early.probabilities.items():
        assert probabilities[old].tobytes() == nothing.probabilities[goal][old].tobytes()
    assert not early.counts.totals[old].any()
    assert [said in early.one(row).fallbacks for row in range(200)] == old.tolist()
    for scorer, control in (
        (Scorer(limited, world.due), Scorer(laddered, world.due)),
        (Scorer(laddered, world.early), Scorer(world.bundle, world.early)),
    ):
        kept, expected = (each.score_requests(world.requests) for each in (scorer, control))
        assert np.array_equal(kept.counts.totals, expected.counts.totals)
        assert kept.counts.totals.any()
        assert not any(found.reason == said for found in kept.fallbacks)
    untimed = [{k: v for k, v in r.items() if k != "occurred_us"} for r in world.requests]
    assert Scorer(limited, world.early).score_requests(untimed).counts.totals.any()


def test_a_contract_without_entities_has_no_rung_without_aggregates(
    world: worlds.World, tmp_path: Path
) -> None:
    contract = replace(worlds.CONTRACT, entities=(), crosses=())
    requests, labels = ladders.matured("click")
    read = read_columns(contract, request_columns(contract, requests))
    ladder = fit_ladder(contract, read, labels, np.full(len(labels), 0.3), 0.6)
    assert ladder is not None
    assert ladder.slope is None
    assert set(ladder.rungs(read, LookedUp.nothing(contract, len(read))).tolist()) <= {
        FULL,
        SIMPLE,
    }


def test_a_column_that_is_often_null_is_missed_by_nobody() -> None:
    contract = FeatureContract(
        categorical=("site", "rare"), numeric=(), crosses=(), entities=(),
        goals=(RateGoal("click", "impression"),), rate_strength=1.0, rate_window_hours=1,
        rate_lag_hours=0, bits=4,
    )  # fmt: skip
    requests = [{"site": f"s{row % 3}", "rare": "r" if row % 2 else None} for row in range(400)]
    labels = np.arange(400) % 3 == 0
    read = read_columns(contract, request_columns(contract, requests))
    ladder = fit_ladder(contract, read, labels.astype(np.uint8), np.full(400, 0.3), 1.0)
    assert ladder is not None
    assert ladder.usual == ("site",)
    rungs = ladder.rungs(read, LookedUp.nothing(contract, 400))
    assert not rungs.any()


@pytest.mark.parametrize("positives", [0, 29, 3000 - 29, 3000])
def test_a_goal_with_too_few_labels_of_one_kind_has_no_ladder(positives: int) -> None:
    requests, _ = ladders.matured("click")
    read = read_columns(worlds.CONTRACT, request_columns(worlds.CONTRACT, requests))
    labels = (np.arange(3000) < positives).astype(np.uint8)
    assert fit_ladder(worlds.CONTRACT, read, labels, np.full(3000, 0.5), 0.6) is None


def test_canaries_that_are_null_themselves_give_a_bundle_all_the_same(
    world: worlds.World, tmp_path: Path
) -> None:
    models = tuple(replace(each, ladder=ladders.fitted(each)) for each in world.models)
    written = export_bundle(
        tmp_path, contract=worlds.CONTRACT, goals=models, dataset="nulls",
        label_watermark_us=worlds.SERVED_US, canaries=[NULLS],
    )  # fmt: skip
    rungs = written.manifest["canaries"]["scores"]["rungs"]["click"]
    assert set(rungs) == {PRIOR}
