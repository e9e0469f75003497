"""The online step: what an expert may have seen when it scores, and that its state travels."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US, MINUTE_US
from ad_pipeline.learners.ftrl import ftrl_kernel, river_state
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.learners.online.step import (
    Examples,
    OnlineExpert,
    RiverExpert,
    new_expert,
    online_hour,
    restore_expert,
)
from ad_pipeline.settings import OnlineSettings
from ad_pipeline_tests.learners.streams import sparse_stream

HOUR = 490_000 * HOUR_US

EXPERTS = {
    "ftrl": ("ftrl", {}),
    "logistic": ("river.linear_model.LogisticRegression", {}),
    "adpredictor": ("river.linear_model.AdPredictor", {}),
    "hoeffding": ("river.tree.HoeffdingTreeClassifier", {"grace_period": 50}),
    "bernoulli": ("river.naive_bayes.BernoulliNB", {}),
    "forest": ("river.forest.ARFClassifier", {"n_models": 2, "seed": 1}),
    "alma": ("river.linear_model.ALMAClassifier", {}),
}


def expert_of(name: str) -> OnlineExpert:
    estimator, parameters = EXPERTS[name]
    return new_expert(
        OnlineSettings(estimator=estimator, estimator_parameters=parameters, bits=10, l1=0.0)
    )


class Recorder:
    """An expert that answers with how many examples it has learnt."""

    width = 1

    def __init__(self) -> None:
        self.learnt: list[int] = []
        self.passed_us = 0

    def learn(
        self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray, outcomes: np.ndarray
    ) -> None:
        self.learnt += slots[:, 0].tolist()

    def logits(self, slots: np.ndarray) -> np.ndarray:
        return np.full((len(slots), 1), float(len(self.learnt)))

    def advance(self, elapsed_us: int) -> None:
        self.passed_us += elapsed_us


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    impressions=st.lists(st.integers(0, HOUR_US - 1), max_size=30),
    emitted=st.lists(st.integers(0, HOUR_US - 1), max_size=30),
    minutes=st.sampled_from([1, 7, 10, 60]),
)
def test_a_score_knows_exactly_the_examples_emitted_before_its_slice(
    impressions: list[int], emitted: list[int], minutes: int
) -> None:
    emit_us = np.array(sorted(emitted), dtype=np.int64) + HOUR
    at = np.array(impressions, dtype=np.int64) + HOUR
    slots = np.arange(len(emit_us), dtype=np.uint32).reshape(-1, 1)
    examples = Examples(slots, np.zeros(len(slots)), np.ones(len(slots)), emit_us)
    recorder = Recorder()
    scores = online_hour(
        recorder,  # pyright: ignore[reportArgumentType]
        np.zeros((len(at), 1), dtype=np.uint32),
        at,
        examples,
        minutes * MINUTE_US,
        HOUR,
    )
    slice_start = at - (at - HOUR) % (minutes * MINUTE_US)
    assert scores.logits[:, 0].tolist() == [int((emit_us < start).sum()) for start in slice_start]
    assert scores.micro_batch.tolist() == ((at - HOUR) // (minutes * MINUTE_US)).tolist()
    assert recorder.learnt == list(range(len(emit_us)))  # each once, in order, to the last
    assert recorder.passed_us == HOUR_US


def test_a_row_outside_the_hour_and_examples_out_of_order_are_refused() -> None:
    none = np.empty((0, 1), dtype=np.uint32)
    nothing = Examples(none, np.empty(0), np.empty(0), np.empty(0, dtype=np.int64))
    with pytest.raises(ValueError, match="outside the hour"):
        online_hour(
            FTRLExpert(4), np.zeros((1, 1), np.uint32), np.array([HOUR - 1]), nothing, 1, HOUR
        )
    zero, one = np.zeros((1, 1), np.uint32), np.ones(1)
    late = Examples(zero, one, one, np.array([HOUR + HOUR_US]))
    with pytest.raises(ValueError, match="outside the hour"):
        online_hour(FTRLExpert(4), none, np.empty(0, np.int64), late, MINUTE_US, HOUR)
    zeros, ones = np.zeros((2, 1), np.uint32), np.ones(2)
    swapped = Examples(zeros, ones, ones, np.array([1, 0]) + HOUR)
    with pytest.raises(ValueError, match="not ordered"):
        online_hour(FTRLExpert(4), none, np.empty(0, np.int64), swapped, MINUTE_US, HOUR)


@pytest.mark.parametrize("name", EXPERTS)
def test_an_experts_state_goes_through_json_and_arrays_and_it_goes_on_alike(name: str) -> None:
    stream = sparse_stream(seed=11, rows=400, width=6, bits=10)
    ones = np.ones(400)
    expert = expert_of(name)
    expert.learn(stream.slots[:300], stream.labels[:300], ones[:300])
    arrays, manifest = expert.state()
    assert not any(array.dtype.hasobject for array in arrays.values())
    copy = restore_expert(arrays, json.loads(json.dumps(manifest, allow_nan=False)))
    assert copy.logits(stream.slots).tobytes() == expert.logits(stream.slots).tobytes()
    for each in (expert, copy):
        each.learn(stream.slots[300:], stream.labels[300:], ones[300:])
    assert copy.logits(stream.slots).tobytes() == expert.logits(stream.slots).tobytes()
    assert fingerprint(copy) == fingerprint(expert)
    if name not in ("hoeffding", "forest"):  # their trees find no threshold among ones
        assert len(np.unique(expert.logits(stream.slots))) > 5


@pytest.mark.parametrize("seed", [1, 2])
def test_a_grown_forest_goes_through_the_codec_and_goes_on_alike(seed: int) -> None:
    from river import datasets, forest

    rows = list(datasets.Phishing())
    model = forest.ARFClassifier(n_models=3, seed=seed, grace_period=20, lambda_value=2)
    for x, y in rows[:800]:
        model.learn_one(x, y)
    arrays, tree = river_state.encode(model)
    copy = river_state.decode(arrays, json.loads(json.dumps(tree, allow_nan=False)))
    assert sum(part.n_branches for part in model.models) > 3
    for x, y in rows[800:]:
        assert copy.predict_proba_one(x) == model.predict_proba_one(x)
        copy.learn_one(x, y)
        model.learn_one(x, y)


@pytest.mark.parametrize("name", ["ftrl", "logistic", "hoeffding", "forest"])
def test_a_replay_gives_the_same_bytes(name: str) -> None:
    stream = sparse_stream(seed=12, rows=300, width=6, bits=10)
    first, second = expert_of(name), expert_of(name)
    for expert in (first, second):
        expert.learn(stream.slots, stream.labels, np.ones(300))
    assert fingerprint(first) == fingerprint(second)


def test_a_change_of_one_label_changes_the_state() -> None:
    stream = sparse_stream(seed=12, rows=300, width=6, bits=10)
    flipped = stream.labels.copy()
    flipped[150] ^= 1
    for name in ("ftrl", "logistic", "hoeffding"):
        first, second = expert_of(name), expert_of(name)
        first.learn(stream.slots, stream.labels, np.ones(300))
        second.learn(stream.slots, flipped, np.ones(300))
        assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize("name", ["ftrl", "logistic"])
def test_a_linear_experts_export_scores_to_the_bit_as_the_expert_does(name: str) -> None:
    stream = sparse_stream(seed=13, rows=400, width=6, bits=10)
    slots = stream.slots.copy()
    slots[::7, 1] = slots[::7, 0]  # rows with two features in one slot
    expert = expert_of(name)
    expert.learn(slots, stream.labels, np.ones(400))
    exported = expert.linear_weights()
    assert exported is not None
    out = np.empty(400)
    ftrl_kernel.linear_logits(exported.weights, slots, out, exported.intercept)
    assert out.tobytes() == expert.logits(slots).tobytes()


def test_the_logits_of_rivers_logistic_regression_are_those_of_its_own_probabilities() -> None:
    stream = sparse_stream(seed=13, rows=400, width=6, bits=10)
    slots = stream.slots.copy()
    slots[::7, 1] = slots[::7, 0]
    expert = expert_of("logistic")
    assert isinstance(expert, RiverExpert)
    expert.learn(slots, stream.labels, np.ones(400))
    rows = [{int(s): float((row == s).sum()) for s in row} for row in slots]
    theirs = river_state.probability_logits(expert._model, rows)
    assert expert.logits(slots)[:, 0] == pytest.approx(theirs, abs=1e-9)
    assert np.ptp(theirs) > 0.1


def test_an_expert_that_is_not_linear_says_so() -> None:
    assert expert_of("hoeffding").linear_weights() is None


def test_weight_zero_is_left_out_and_a_fraction_needs_a_classifier_that_takes_it() -> None:
    stream = sparse_stream(seed=14, rows=50, width=4, bits=10)
    half = np.full(50, 0.5)
    expert_of("logistic").learn(stream.slots, stream.labels, half)
    with pytest.raises(ValueError, match="takes no weight"):
        expert_of("bernoulli").learn(stream.slots, stream.labels, half)
    untouched = expert_of("bernoulli")
    before = fingerprint(untouched)
    untouched.learn(stream.slots, stream.labels, np.zeros(50))
    assert fingerprint(untouched) == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sklearn.linear_model.SGDClassifier", "not in river"),
        ("river.linear_model.LinearRegression", "no River classifier"),
        ("river.linear_model.Nonsense", "no River classifier"),
    ],
)
def test_what_is_no_river_classifier_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RiverExpert(path, {}, 8)


def test_a_classifier_with_random_choices_and_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        RiverExpert("river.forest.ARFClassifier", {}, 8)


def test_state_that_is_not_plain_data_is_refused_by_its_place() -> None:
    from river import neighbors

    expert = expert_of("logistic")
    assert isinstance(expert, RiverExpert)
    expert._model.optimizer.callback = lambda: None
    with pytest.raises(river_state.UnsupportedState, match=r"LogisticRegression.*function"):
        expert.state()
    with pytest.raises(river_state.UnsupportedState, match=r"KNNClassifier.*dist_func"):
        river_state.encode(neighbors.KNNClassifier())


@pytest.mark.parametrize(
    "tree",
    [
        ["class", "os:_wrap_close"],
        ["object", "call", "subprocess:Popen", ["true"], None],
        ["object", "call", "builtins:type", ["x"], None],
        ["object", "call", "river:checks.importlib", [], None],
        ["class", "builtins:eval"],
        ["strange", 1],
    ],
)
def test_a_planted_state_cannot_name_code_outside_river(tree: list) -> None:
    with pytest.raises((river_state.UnsupportedState, AttributeError)):
        river_state.decode({}, tree)


def test_shared_and_cyclic_objects_are_shared_and_cyclic_again() -> None:
    shared = [1.0, float("nan"), np.float32(2.5)]
    cycle: dict = {"shared": shared, "again": shared, 3: (None, b"\x00\xff", {1, 2})}
    cycle["self"] = cycle
    arrays, tree = river_state.encode(cycle)
    back = river_state.decode(arrays, json.loads(json.dumps(tree, allow_nan=False)))
    assert back["self"] is back
    assert back["shared"] is back["again"]
    assert repr(back["shared"]) == repr(shared)
    assert back[3] == cycle[3]


def fingerprint(expert: OnlineExpert) -> tuple:
    arrays, manifest = expert.state()
    return (
        json.dumps(manifest, allow_nan=False, sort_keys=True),
        [(name, array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()],
    )
