"""The classifier among River's own: pipelines, metrics, drift, bandits, delayed labels.

Each learns one small click stream of known truth, and each test can tell it from one that does not.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import (
    bandit,
    compose,
    drift,
    ensemble,
    evaluate,
    feature_extraction,
    feature_selection,
    metrics,
    model_selection,
    preprocessing,
    stats,
    stream,
)

from ad_pipeline.learners.ftrl.classifier import FTRLClassifier

Row = dict[Any, Any]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "river.md"

START = dt.datetime(2026, 3, 3, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
SITES = {"news": 1.5, "sport": -1.5, "shop": 0.5, "games": -0.5}


def clicks(rows: int, seed: int = 1, change: int | None = None) -> Iterator[tuple[Row, bool]]:
    """Draw impressions a second apart, and whether they were clicked.

    From row ``change`` on, what attracted repels.
    """
    generator = np.random.default_rng(seed)
    for row in range(rows):
        site = str(generator.choice(list(SITES)))
        price = float(generator.normal(3.0, 2.0))
        logit = SITES[site] + 0.6 * (price - 3.0)
        logit = logit if change is None or row < change else -logit
        x = {
            "site": site, "price": price, "noise": float(generator.normal()), "bias": 1.0,
            "moment": START + row * SECOND,
        }  # fmt: skip
        yield x, bool(generator.random() < 1.0 / (1.0 + math.exp(-logit)))


def without_moment(rows: Iterable[tuple[Row, bool]]) -> Iterator[tuple[Row, bool]]:
    for x, y in rows:
        yield {name: value for name, value in x.items() if name != "moment"}, y


def learner(**parameters: Any) -> FTRLClassifier:
    return FTRLClassifier(**({"alpha": 0.5, "l1": 0.0, "l2": 0.0, "bits": 12} | parameters))


def auc(model: Any, rows: Iterable[tuple[Row, bool]]) -> float:
    """Return the area under the curve of a model that is scored before it learns each row."""
    return evaluate.progressive_val_score(rows, model, metrics.ROCAUC(n_thresholds=100)).get()


PIPELINES: dict[str, Callable[[], Any]] = {
    "alone": learner,
    "FeatureHasher": lambda: preprocessing.FeatureHasher(n_features=2**16, seed=1) | learner(),
    "OneHotEncoder": lambda: (
        (compose.Select("site") | preprocessing.OneHotEncoder()) + compose.Select("price", "bias")
    ) | learner(),
    "StandardScaler": lambda: (
        (compose.SelectType(float) | preprocessing.StandardScaler()) + compose.Select("site")
    ) | learner(),
    "TargetAgg": lambda: (
        feature_extraction.TargetAgg(by="site", how=stats.BayesianMean(prior=0.5, prior_weight=10))
        + compose.Select("price", "bias")
    ) | learner(),
    "Agg": lambda: (
        feature_extraction.Agg(on="price", by="site", how=stats.Mean())
        + compose.Select("price", "site")
    ) | learner(),
    "Select": lambda: compose.Select("site", "price", "bias") | learner(),
    "Discard": lambda: compose.Discard("noise") | learner(),
    "Renamer": lambda: compose.Renamer({"site": "place"}) | learner(),
    "FuncTransformer": lambda: (
        compose.FuncTransformer(lambda x: {"bucket": str(round(x["price"]))})
        + compose.Select("site")
    ) | learner(),
    "SelectKBest": lambda: (
        (compose.SelectType(float) | feature_selection.SelectKBest(stats.PearsonCorr(), k=1))
        + compose.Select("site")
    ) | learner(),
    "VarianceThreshold": lambda: (
        (compose.SelectType(float) | feature_selection.VarianceThreshold())
        + compose.Select("site")
    ) | learner(),
    "Bagging": lambda: ensemble.BaggingClassifier(learner(), n_models=3, seed=1),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_it_learns_behind_rivers_transformers(name: str) -> None:
    rows = list(without_moment(clicks(2_000)))
    assert auc(PIPELINES[name](), rows) > 0.76
    # Negative control: labels of other rows teach nothing.
    others = [y for _, y in without_moment(clicks(2_000, seed=2))]
    assert (
        0.42 < auc(PIPELINES[name](), list(zip((x for x, _ in rows), others, strict=True))) < 0.58
    )


@pytest.mark.parametrize("name", PIPELINES)
def test_predicting_in_a_pipeline_changes_nothing(name: str) -> None:
    asked, silent = PIPELINES[name](), PIPELINES[name]()
    for x, y in without_moment(clicks(200)):
        for _ in range(3):
            asked.predict_proba_one(x)
        asked.learn_one(x, y)
        silent.learn_one(x, y)
    probe, _ = next(without_moment(clicks(1, seed=5)))
    assert asked.predict_proba_one(probe) == silent.predict_proba_one(probe)


def test_a_selected_column_is_all_that_is_learnt() -> None:
    model = compose.Select("site") | learner()
    for x, y in without_moment(clicks(200)):
        model.learn_one(x, y)
    learnt = model["FTRLClassifier"].exported_weights()
    assert np.count_nonzero(learnt) == len(SITES)


def test_rivers_metrics_say_what_the_formulas_say() -> None:
    model, losses, right = learner(), [], []
    log_loss, accuracy = metrics.LogLoss(), metrics.Accuracy()
    for x, y in without_moment(clicks(500)):
        p = model.predict_proba_one(x)
        log_loss.update(y, p)
        accuracy.update(y, model.predict_one(x))
        losses.append(-math.log(p[y]))
        right.append((p[True] > 0.5) == y)
        model.learn_one(x, y)
    assert log_loss.get() == pytest.approx(np.mean(losses), abs=1e-12)
    assert accuracy.get() == pytest.approx(np.mean(right))
    assert log_loss.get() < math.log(2) - 0.05
    assert log_loss.works_with(model)


def loss_after_the_change(model: Any) -> float:
    rows = list(without_moment(clicks(8_000, change=6_000)))
    metric = metrics.LogLoss()
    for place, (x, y) in enumerate(rows):
        if place >= 6_500:
            metric.update(y, model.predict_proba_one(x))
        model.learn_one(x, y)
    return metric.get()


def test_retraining_on_drift_recovers_from_a_change_that_it_alone_carries_on_with() -> None:
    """FTRL's rates have fallen by then; ADWIN sees the errors and a fresh model takes over."""
    alone = loss_after_the_change(learner())
    retrained = loss_after_the_change(
        drift.DriftRetrainingClassifier(learner(), drift.binary.DDM(), train_in_background=True)
    )
    by_adwin = loss_after_the_change(
        drift.DriftRetrainingClassifier(
            learner(),
            drift.ADWIN(),  # pyright: ignore[reportArgumentType] - gives no warning, needs none
            train_in_background=False,
        )
    )
    assert retrained < alone - 0.02
    assert by_adwin < alone - 0.02


def test_adwin_on_the_progressive_loss_finds_the_change_and_nothing_before() -> None:
    model, detector = learner(), drift.ADWIN()
    found: list[int] = []
    for place, (x, y) in enumerate(without_moment(clicks(6_000, change=3_000))):
        detector.update(-math.log(model.predict_proba_one(x)[y]))
        if detector.drift_detected:
            found.append(place)
        model.learn_one(x, y)
    assert found
    assert 3_000 <= found[0] < 3_400


HOPELESS = {"alpha": 1e-9}
"""A learning rate with which nothing is ever learnt."""


def test_a_bandit_of_classifiers_settles_on_the_one_that_learns() -> None:
    chooser = model_selection.BanditClassifier(
        [learner(**HOPELESS), learner(), learner(**HOPELESS)],
        metric=metrics.Accuracy(),
        policy=bandit.EpsilonGreedy(epsilon=0.2, burn_in=50, seed=1),
    )
    for x, y in without_moment(clicks(1_500)):
        chooser.learn_one(x, y)
    best: Any = chooser.best_model
    assert best.alpha == 0.5
    assert [model.alpha for model in chooser.models] == [1e-9, 0.5, 1e-9]


def test_successive_halving_keeps_the_one_that_learns_wherever_it_stands() -> None:
    for place in range(4):
        models = [learner(alpha=1e-9 * (rank + 1)) for rank in range(4)]
        models[place] = learner()
        chooser = model_selection.SuccessiveHalvingClassifier(
            models, metric=metrics.LogLoss(), budget=1_600, eta=2
        )
        score = auc(chooser, without_moment(clicks(1_500)))
        best: Any = chooser.best_model
        assert best.alpha == 0.5
        assert score > 0.7


def progressive(delay: Any, rows: int = 1_000, **how: Any) -> float:
    model = compose.Discard("moment") | learner()
    metric = metrics.LogLoss()
    evaluate.progressive_val_score(clicks(rows), model, metric, moment="moment", delay=delay, **how)
    return metric.get()


def test_a_label_delayed_for_nothing_scores_as_one_that_is_not_delayed() -> None:
    model = compose.Discard("moment") | learner()
    plain = evaluate.progressive_val_score(clicks(1_000), model, metrics.LogLoss()).get()
    assert progressive(dt.timedelta(0)) == pytest.approx(plain, abs=1e-12)


def test_labels_that_never_arrive_in_time_leave_the_prior() -> None:
    assert progressive(dt.timedelta(days=1)) == pytest.approx(math.log(2), abs=1e-12)


def test_the_longer_labels_take_the_worse_is_the_score() -> None:
    losses = [progressive(seconds * SECOND) for seconds in (0, 100, 300, 600, 900)]
    assert losses == sorted(losses)
    assert losses[-1] - losses[0] > 0.05


def test_a_delayed_run_is_the_one_that_is_simulated_by_hand() -> None:
    """Each row is scored when it happens, and learnt when its own delay has passed."""

    def delay(x: Row, y: bool) -> dt.timedelta:
        return (50 if y else 200) * SECOND

    model, metric = learner(), metrics.LogLoss()
    waiting: list[tuple[dt.datetime, int, Row, bool]] = []
    answered: dict[int, dict[Any, float]] = {}
    for place, (x, y) in enumerate(clicks(600)):
        for arrived in sorted(item for item in waiting if item[0] <= x["moment"]):
            waiting.remove(arrived)
            _, learnt, row, label = arrived
            metric.update(label, answered.pop(learnt))
            model.learn_one(row, label)
        features = {name: value for name, value in x.items() if name != "moment"}
        answered[place] = model.predict_proba_one(features)
        waiting.append((x["moment"] + delay(x, y), place, features, y))
    for _, learnt, _, label in sorted(waiting, key=lambda item: item[:2]):
        metric.update(label, answered[learnt])
    assert progressive(delay, rows=600) == pytest.approx(metric.get(), abs=1e-12)
    assert progressive(50 * SECOND, rows=600) != pytest.approx(metric.get(), abs=1e-4)


def test_steps_of_a_progressive_run_end_where_the_whole_run_does() -> None:
    model = compose.Discard("moment") | learner()
    steps = list(
        evaluate.iter_progressive_val_score(
            clicks(600), model, metrics.LogLoss(), moment="moment", delay=30 * SECOND, step=100
        )
    )
    assert [step["Step"] for step in steps] == [100, 200, 300, 400, 500, 600]
    losses = [step["LogLoss"].get() for step in steps]
    assert losses[-1] == pytest.approx(progressive(30 * SECOND, rows=600), abs=1e-12)


def test_questions_and_answers_of_rivers_simulation_come_to_it_in_order() -> None:
    model = learner()
    seen = {True: 0, False: 0}
    simulated: Any = stream.simulate_qa(clicks(500), moment="moment", delay=100 * SECOND)
    for _, x, y, *_ in islice(simulated, 800):
        features = {name: value for name, value in x.items() if name != "moment"}
        if y is None:
            model.predict_proba_one(features)
        else:
            model.learn_one(features, y)
            seen[y] += 1
    assert sum(seen.values()) == 800 - 450
    assert np.count_nonzero(model.exported_weights()) > 0


def test_every_example_of_the_page_about_river_runs() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) >= 4
    known: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), known)  # noqa: S102 - our own page
    with pytest.raises(AssertionError):
        exec(examples[0].replace("assert ", "assert not "), {})  # noqa: S102 - planted fault
