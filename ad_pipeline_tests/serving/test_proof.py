"""A proof passes for the models themselves and finds the smallest thing that is not theirs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ad_pipeline.learners.ensemble.calibration import Calibration
from ad_pipeline.learners.ensemble.ensemble import Ensemble
from ad_pipeline.learners.ensemble.exported_mixture import ExportedMixture
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights
from ad_pipeline.serving.bundle import Bundle, GoalModels
from ad_pipeline.serving.proof import Proof, Sources, prove_goal
from ad_pipeline_tests.serving import worlds


def damaged(array: np.ndarray, place: Any, change: Callable[[Any], Any]) -> np.ndarray:
    copy = np.array(array)
    copy[place] = change(copy[place])
    return copy


def proof_with(world: worlds.World, **changed: Any) -> Proof:
    """Prove the first goal of the bundle after some of its parts were replaced."""
    goals = (replace(world.bundle.goals[0], **changed), *world.bundle.goals[1:])
    return prove_goal(replace(world.bundle, goals=goals), 0, source_of(world.bundle, world))


def source_of(bundle: Bundle, world: worlds.World) -> Sources:
    return world.sources[bundle.goals[0].goal]


def test_the_bundle_of_the_models_themselves_is_proved(world: worlds.World) -> None:
    for place, models in enumerate(world.bundle.goals):
        found = prove_goal(world.bundle, place, world.sources[models.goal])
        assert found.faults == ()
        assert found.slots == 1 << worlds.CONTRACT.bits
        assert found.trees > 1
        assert found.tree_rows > 1000
        assert found.calibrated_rows > 100


def _online(world: worlds.World) -> GoalModels:
    return world.bundle.goals[0]


def test_one_flipped_bit_of_one_weight_is_found_and_its_slot_named(world: worlds.World) -> None:
    online = _online(world).online
    bits = online.values.view(np.uint64)
    flipped = damaged(bits, 5, lambda word: word ^ np.uint64(1)).view(np.float64)
    found = proof_with(world, online=replace(online, values=flipped))
    assert len(found.faults) == 2
    assert f"the first is {online.slots[5]}" in found.faults[0]
    assert "off by more than 0.0" in found.faults[1]


def test_a_weight_in_its_neighbours_slot_is_found(world: worlds.World) -> None:
    online = _online(world).online
    # The slot's bit moves up by one: to a slot that has none.
    slots = online.slots
    alone = int(slots[np.flatnonzero(~np.isin(slots + 1, slots) & (slots % 64 != 63))[0]])
    moved = damaged(
        online.present, alone // 64, lambda word: word ^ (np.uint64(3) << np.uint64(alone % 64))
    )
    found = proof_with(world, online=replace(online, present=moved))
    assert "2 slots weigh otherwise" in found.faults[0]


def test_another_intercept_or_link_is_found(world: worlds.World) -> None:
    online = _online(world).online
    for changed in (
        replace(online, intercept=1e-300),
        replace(online, loss="probit"),
        replace(online, horizon_days=1.0),
        replace(online, partner=online),
    ):
        assert "intercept and link" in proof_with(world, online=changed).faults[0]


@pytest.mark.parametrize(
    ("name", "change", "scores_too"),
    [
        ("left", lambda child: ~child if child < 0 else child + 1, False),
        ("feature", lambda column: column ^ 1, False),
        ("decision", lambda kind: kind ^ 2, False),
        ("first_leaf", lambda leaf: leaf + 1, False),
        ("threshold", lambda value: np.nextafter(value, np.inf), False),
        ("threshold", lambda value: value - 1.0, True),
        ("leaf", lambda value: value + 0.01, True),
    ],
)
def test_one_changed_number_of_the_trees_is_found(
    world: worlds.World, name: str, change: Callable[[Any], Any], scores_too: bool
) -> None:
    batch = _online(world).batch
    assert batch is not None
    array = getattr(batch.forest, name)
    forest = replace(batch.forest, **{name: damaged(array, 1, change)})
    faults = proof_with(world, batch=replace(batch, forest=forest)).faults
    assert "of the trees are not those" in faults[0]
    if scores_too:
        assert "score otherwise than in LightGBM" in faults[1]


def test_swapped_children_are_found(world: worlds.World) -> None:
    batch = _online(world).batch
    assert batch is not None
    forest = batch.forest
    left, right = np.array(forest.left), np.array(forest.right)
    left[0], right[0] = right[0], left[0]
    swapped = replace(batch, forest=replace(forest, left=left, right=right))
    assert "nodes of the trees" in proof_with(world, batch=swapped).faults[0]


def test_two_categories_with_each_others_codes_are_found(world: worlds.World) -> None:
    batch = _online(world).batch
    assert batch is not None
    codes = (batch.category_codes[0][::-1], *batch.category_codes[1:])
    faults = proof_with(world, batch=replace(batch, category_codes=codes)).faults
    assert any("category_codes" in fault for fault in faults)


def _with_a_table(world: worlds.World) -> tuple[Ensemble, ExportedMixture]:
    """Return the world's ensemble calibrated by a table, and the same as arrays."""
    ensemble = source_of(world.bundle, world).ensemble
    assert ensemble is not None
    table = Calibration("isotonic", knots=(-3.0, -1.0, 0.5), heights=(-2.5, -1.25, 0.25))
    layer = replace(ensemble.calibration, overall=table)
    with_table = replace(ensemble, calibration=layer)
    return with_table, ExportedMixture.of(with_table)


def test_one_moved_knot_is_found_by_the_arrays_and_by_the_scores(world: worlds.World) -> None:
    ensemble, mixture = _with_a_table(world)
    sources = replace(source_of(world.bundle, world), ensemble=ensemble)

    def proved(changed: ExportedMixture) -> tuple[str, ...]:
        goals = (replace(world.bundle.goals[0], mixture=changed), *world.bundle.goals[1:])
        return prove_goal(replace(world.bundle, goals=goals), 0, sources).faults

    assert proved(mixture) == ()
    moved = damaged(mixture.table, (0, 1), lambda knot: np.nextafter(knot, np.inf))
    faults = proved(replace(mixture, table=moved))
    assert len(faults) == 2
    assert "table of the mixture" in faults[0]
    assert "mixed or calibrated otherwise" in faults[1]
    weighed = damaged(mixture.mixture, 1, lambda weight: weight * (1 + 1e-15))
    assert "mixture of the mixture" in proved(replace(mixture, mixture=weighed))[0]


def test_a_model_that_is_there_on_one_side_only_is_found(world: worlds.World) -> None:
    faults = proof_with(world, batch=None, mixture=None).faults
    assert [fault.partition(": ")[2] for fault in faults] == [
        "a batch model is on one side only",
        "an ensemble is on one side only",
    ]


def test_rounded_weights_are_proved_to_be_rounded_as_they_say(world: worlds.World) -> None:
    linear = source_of(world.bundle, world).online
    goal = world.bundle.goals[0].goal
    rounded = ExportedWeights.fixed_point(linear, 7, goal)
    assert proof_with(world, online=rounded).faults == ()
    faults = proof_with(world, online=replace(rounded, seed=8)).faults
    assert len(faults) == 1, "rounded by another seed, but no further off than rounding can be"
    far = replace(rounded, values=damaged(rounded.values, 5, lambda value: value + 2))
    assert "which rounding cannot do" in proof_with(world, online=far).faults[1]
