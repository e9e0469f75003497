"""River's own checks on the classifier, one test a check, and what those checks do not see."""

import datetime as dt
import itertools
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import checks, compose, datasets, evaluate, metrics, preprocessing

from ad_pipeline.learners.ftrl.classifier import FTRLClassifier

MODELS = [FTRLClassifier(**parameters) for parameters in FTRLClassifier._unit_test_params()]


@pytest.mark.parametrize(
    ("model", "check"),
    [
        pytest.param(model, check, id=f"{place}:{check.__name__}")
        for place, model in enumerate(MODELS)
        for check in checks.yield_checks(model)
        if check.__name__ not in model._unit_test_skips()
    ],
)
def test_river_convention(model, check) -> None:
    check(model.clone())


def test_no_check_of_rivers_is_skipped() -> None:
    assert MODELS[0]._unit_test_skips() == set()


def test_a_classifier_that_keeps_what_it_is_given_fails_rivers_checks() -> None:
    """Negative control: the suite above can fail."""

    class Aliasing(FTRLClassifier):
        """Mutates its input."""

        def learn_one(self, x, y, w=1.0) -> None:
            super().learn_one(x, y, w)
            x["seen"] = 1.0

    failed = 0
    for check in checks.yield_checks(Aliasing(bits=10)):
        if check.__name__ == "check_learn_one":
            with pytest.raises(AssertionError):
                check(Aliasing(bits=10))
            failed += 1
    assert failed == 2


def test_it_learns_inside_a_river_pipeline() -> None:
    bias = compose.FuncTransformer(lambda x: {"bias": 1.0})
    model = (preprocessing.StandardScaler() + bias) | FTRLClassifier(alpha=0.5, l1=0.0, bits=12)
    metric = evaluate.progressive_val_score(datasets.Phishing(), model, metrics.ROCAUC())
    assert metric.get() > 0.9


def test_its_memory_is_flat_over_a_hundred_thousand_rows() -> None:
    """River's check allows a copy of every row; this one does not."""
    model = FTRLClassifier(bits=10)
    frame = pd.DataFrame({"site": ["a", "b"] * 5_000, "x": np.linspace(0, 1, 10_000)})
    labels = pd.Series([True, False] * 5_000)
    model.learn_many(frame, labels)
    before = model._raw_memory_usage
    for _ in range(10):
        model.learn_many(frame, labels)
    assert model._raw_memory_usage == before


NOON = dt.datetime(2026, 3, 3, 12, tzinfo=dt.UTC)

ROW = st.fixed_dictionaries(
    {
        "site": st.one_of(st.none(), st.text(max_size=3)),
        "hour": st.integers(0, 23),
        "price": st.one_of(st.just(float("nan")), st.floats(-5, 5)),
    }
)


@pytest.mark.parametrize("parameters", list(FTRLClassifier._unit_test_params()), ids=str)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(ROW, st.booleans()), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
)
def test_any_mini_batches_give_the_same_bytes_as_one_row_at_a_time(parameters, rows, cuts) -> None:
    """Hypothesis also varies the order in which each row's dictionary was filled.

    With so few slots features of one row meet: what is compiled for one row is what is compiled for
    many.
    """
    few: dict[str, Any] = {"bits": 3, "l1": 0.0}
    one, many = FTRLClassifier(**parameters | few), FTRLClassifier(**parameters | few)
    if one.moment is not None:
        rows = [
            ({**x, one.moment: NOON + dt.timedelta(minutes=7 * (place % 5) + place)}, y)
            for place, (x, y) in enumerate(rows)
        ]
    for x, y in rows:
        one.learn_one(x, y)
    frame = pd.DataFrame([x for x, _ in rows])
    labels = pd.Series([y for _, y in rows])
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for start, end in itertools.pairwise(bounds):
        many.learn_many(frame.iloc[start:end], labels.iloc[start:end])
    for name, array in one.state_arrays().items():
        assert array.tobytes() == many.state_arrays()[name].tobytes()
    proba = many.predict_proba_many(frame)[True]
    for (x, _), p in zip(rows, proba, strict=True):
        assert one.predict_proba_one(x)[True] == p


def test_state_and_pickle_round_trips_give_the_same_predictions_and_go_on_alike() -> None:
    rows = list(datasets.Phishing().take(300))
    model = FTRLClassifier(bits=12)
    for x, y in rows[:200]:
        model.learn_one(x, y)
    copies = [
        FTRLClassifier.from_state(model.state_arrays(), model.manifest()),
        pickle.loads(pickle.dumps(model)),  # noqa: S301 - River users do
    ]
    for x, y in rows[200:]:
        expected = model.predict_proba_one(x)
        assert all(copy.predict_proba_one(x) == expected for copy in copies)
        for each in (model, *copies):
            each.learn_one(x, y)


def test_text_and_number_of_one_name_are_different_features() -> None:
    model = FTRLClassifier(alpha=1.0, l1=0.0, bits=20)
    for _ in range(10):
        model.learn_one({"x": "1"}, True)
    assert model.predict_proba_one({"x": 1})[True] == 0.5
    assert model.predict_proba_one({"x": "1"})[True] > 0.6


def test_slots_and_names_reach_the_same_kernel() -> None:
    model = FTRLClassifier(bits=8)
    slots = np.array([[1, 2], [2, 3]], dtype=np.uint32)
    progressive = model.learn_slots(slots, np.array([1, 0]))
    assert progressive[0] == 0.0
    assert (model.predict_slots(slots)[0] == model.exported_weights()[[1, 2]].sum()).all()


@pytest.mark.parametrize("label", ["yes", 2, None, 0.5])
def test_a_label_that_is_not_binary_is_refused(label) -> None:
    with pytest.raises(ValueError, match="not binary"):
        FTRLClassifier(bits=8).learn_one({"x": 1.0}, label)


def test_a_value_that_is_neither_text_nor_number_is_refused() -> None:
    with pytest.raises(TypeError, match="give text, a number or None"):
        FTRLClassifier(bits=8).learn_one({"x": [1.0]}, True)


def test_with_a_half_life_what_was_learnt_counts_half_after_it_and_predicting_moves_no_clock() -> (
    None
):
    """Between equal clicks and misses, an hour apart at a half-life of an hour, news wins."""

    def after(half_life_hours: float | None, hours: float) -> float:
        model = FTRLClassifier(
            alpha=0.5, l1=0.0, l2=0.0, bits=8, half_life_hours=half_life_hours, moment="at"
        )
        for _ in range(50):
            model.learn_one({"site": "news", "at": NOON}, False)
        later = NOON + dt.timedelta(hours=hours)
        for _ in range(20):
            before = model.predict_proba_one({"site": "news", "at": NOON + dt.timedelta(days=9)})
            assert before == model.predict_proba_one({"site": "news", "at": later})
            model.learn_one({"site": "news", "at": later}, True)
        assert np.count_nonzero(model.exported_weights()) == 1, "the moment is no feature"
        return model.predict_proba_one({"site": "news"})[True]

    assert after(1.0, 0.0) == after(None, 10.0)
    assert after(1.0, 10.0) > after(1.0, 1.0) > after(None, 10.0)


def test_a_late_row_does_not_turn_the_clock_back() -> None:
    model = FTRLClassifier(bits=8, half_life_hours=1.0, moment="at")
    for hours in (0, 2, 1, 2):
        model.learn_one({"x": 1.0, "at": NOON + dt.timedelta(hours=hours)}, True)
    assert model.manifest()["latest"] == "2026-03-03T14:00:00+00:00"
    assert model.manifest()["expert"]["elapsed_us"] == [7_200_000_000]


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0}, {"l1": -1.0}, {"loss": "hinge"}, {"schedule": "sgd"}, {"bits": 31},
        {"half_life_hours": 1.0}, {"dtype": "float16"}, {"admission_probability": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_parameter_out_of_its_range_is_refused_when_the_classifier_is_made(wrong) -> None:
    with pytest.raises(ValueError, match=r"."):
        FTRLClassifier(**wrong)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_finite_number_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="finite number of at least 0"):
        FTRLClassifier(bits=8).learn_one({"x": 1.0}, True, w=weight)


@pytest.mark.parametrize("row", [{"x": float("inf")}, {3: float("-inf")}])
def test_an_infinite_value_is_refused_and_teaches_nothing(row) -> None:
    model = FTRLClassifier(bits=8)
    with pytest.raises(ValueError, match="infinite"):
        model.learn_one(row, True)
    assert not model.state_arrays()["slots"].size


def test_rows_that_only_python_can_read_are_learnt_as_compiled_code_would() -> None:
    """A name that is no text goes the long way; the state is that of the text of the name."""
    long, short = FTRLClassifier(bits=10), FTRLClassifier(bits=10)
    for label in (True, False, True):
        long.learn_one({7: 2.0, "site": "a", "b": np.float16(1)}, label)
        short.learn_one({"7": 2.0, "site": "a", "b": 1.0}, label)
    for name, array in long.state_arrays().items():
        assert array.tobytes() == short.state_arrays()[name].tobytes()
    assert long.predict_proba_one({7: 1.0}) == short.predict_proba_one({"7": 1.0})
