"""The batch expert: LightGBM's own answers to the bit, honest slices, and no model of noise."""

import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ad_pipeline import checkpoints
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.batch import batch_model as batch
from ad_pipeline.learners.batch import trees
from ad_pipeline.learners.batch.batch_model import BatchModel, TooFewPositives, train_batch_model
from ad_pipeline.learners.ensemble.logistic import row_losses
from ad_pipeline.settings import BatchSettings

SETTINGS = BatchSettings(rounds=40, minimum_leaf_rows=50)


@dataclass(frozen=True)
class Rows:
    dense: np.ndarray
    hashes: np.ndarray
    online_logit: np.ndarray
    labels: np.ndarray
    anchor_us: np.ndarray
    truth: np.ndarray


def draw(seed: int, n: int = 20_000, rate_logit: float = -2.0) -> Rows:
    generator = np.random.default_rng(seed)
    dense = np.round(generator.normal(size=(n, 3)), 3)
    dense[generator.random((n, 3)) < 0.1] = np.nan
    dense[generator.random((n, 3)) < 0.1] = 0.0
    values = generator.zipf(1.4, (n, 2)) % 300
    hashes = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    effects = generator.normal(0, 0.7, 300)
    online = rate_logit + effects[values[:, 0]] * 0.8
    online[: n // 50] = np.nan
    truth = rate_logit + effects[values[:, 0]] + np.where(np.nan_to_num(dense[:, 0]) > 0.5, 1.0, 0)
    labels = (generator.random(n) < 1 / (1 + np.exp(-truth))).astype(np.uint8)
    anchor_us = np.sort(generator.integers(0, 48 * HOUR_US, n)) + 490_000 * HOUR_US
    return Rows(dense, hashes, online, labels, anchor_us, truth)


def train(rows: Rows, settings: BatchSettings = SETTINGS) -> BatchModel | TooFewPositives:
    inside, held = batch.training_slices(rows.anchor_us, settings.validation_share, HOUR_US)
    return train_batch_model(
        rows.dense,
        rows.hashes,
        rows.online_logit,
        rows.labels,
        inside,
        held,
        ["price", "age", 'odd"name'],
        ["site", "a:b"],
        settings,
    )


@pytest.fixture(scope="module")
def rows() -> Rows:
    return draw(1)


@pytest.fixture(scope="module")
def model(rows: Rows) -> BatchModel:
    trained = train(rows)
    assert isinstance(trained, BatchModel)
    return trained


@pytest.mark.parametrize("seed", range(4))
def test_our_trees_answer_to_the_bit_what_lightgbm_answers(seed: int) -> None:
    """Over missing, zero, tiny, negative, unseen-code and huge values, and both missing types."""
    import lightgbm

    generator = np.random.default_rng(seed)
    n = 4_000
    columns = generator.normal(size=(n, 6))
    columns[:, 3:] = generator.integers(0, 70, (n, 3))
    columns[generator.random((n, 6)) < 0.15] = np.nan
    columns[generator.random((n, 6)) < 0.15] = 0.0
    score = np.nan_to_num(columns[:, 0]) + np.where(np.nan_to_num(columns[:, 3]) % 3 == 0, 1, -1)
    labels = generator.random(n) < 1 / (1 + np.exp(-score))
    booster = lightgbm.train(
        {
            "objective": "binary", "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5,
            "zero_as_missing": seed % 2 == 1, "min_data_per_group": 5, "cat_smooth": 1,
            "use_missing": seed != 2,
        },
        lightgbm.Dataset(columns, labels, categorical_feature=[3, 4, 5] if seed != 3 else []),
        num_boost_round=30,
    )  # fmt: skip
    odd = columns.copy()
    pool = np.array([np.nan, 0.0, -0.0, 1e-36, -1e-36, 1e-30, -1.0, -0.5, 69.9, 500.0, 1e9, -1e9])
    where = generator.random(odd.shape) < 0.3
    odd[where] = generator.choice(pool, where.sum())
    forest = trees.parse_forest(booster.model_to_string())
    for given in (columns, odd):
        expected = np.asarray(booster.predict(given, raw_score=True))
        assert forest.logits(given).tobytes() == expected.tobytes()
        assert len(np.unique(expected)) > 100


def test_a_tree_that_could_not_split_is_a_single_leaf() -> None:
    import lightgbm

    data = lightgbm.Dataset(np.zeros((200, 1)), np.arange(200) % 4 == 0)
    booster = lightgbm.train(
        {"objective": "binary", "verbosity": -1, "num_threads": 1}, data, num_boost_round=2
    )
    forest = trees.parse_forest(booster.model_to_string())
    one = np.ones((1, 1))
    assert (
        forest.logits(one).tobytes() == np.asarray(booster.predict(one, raw_score=True)).tobytes()
    )


def test_what_is_no_binary_model_and_a_row_of_another_width_are_refused(model: BatchModel) -> None:
    with pytest.raises(ValueError, match="no LightGBM model"):
        trees.parse_forest("tree\nversion=v4\nnum_class=3\n")
    with pytest.raises(ValueError, match="the model has 6"):
        model.exported.forest.logits(np.zeros((1, 5)))
    with pytest.raises(ValueError, match="price"):
        model.predict_logits(np.zeros((1, 2)), np.zeros((1, 2), np.uint64), np.zeros(1))


def test_one_row_scores_to_the_bit_as_it_does_among_many(model: BatchModel, rows: Rows) -> None:
    many = model.predict_logits(rows.dense, rows.hashes, rows.online_logit)
    for row in range(0, 20_000, 977):
        one = slice(row, row + 1)
        alone = model.predict_logits(rows.dense[one], rows.hashes[one], rows.online_logit[one])
        assert alone.tobytes() == many[one].tobytes()
    assert len(np.unique(many)) > 100


def test_a_checkpoint_round_trip_keeps_every_prediction(
    model: BatchModel, rows: Rows, tmp_path
) -> None:
    arrays, manifest, files = model.to_checkpoint()
    written = checkpoints.write_checkpoint(tmp_path, "learners.batch", arrays, manifest, files)
    again = BatchModel.from_checkpoint(written.arrays, written.manifest, written.files)
    given = (rows.dense, rows.hashes, rows.online_logit)
    assert again.predict_logits(*given).tobytes() == model.predict_logits(*given).tobytes()
    assert again.feature_names == model.feature_names


def test_the_same_rows_give_the_same_bytes_and_another_label_others(rows: Rows) -> None:
    first, second = train(rows), train(rows)
    labels = rows.labels.copy()
    labels[:2_000] ^= 1
    other = train(replace(rows, labels=labels))
    assert isinstance(first, BatchModel)
    assert isinstance(second, BatchModel)
    assert isinstance(other, BatchModel)
    assert first.text == second.text
    assert first.to_checkpoint()[1] == second.to_checkpoint()[1]
    assert first.text != other.text


def test_it_finds_what_the_online_expert_missed(model: BatchModel) -> None:
    fresh = draw(1)
    late = slice(18_000, None)
    ours = model.predict_logits(fresh.dense[late], fresh.hashes[late], fresh.online_logit[late])
    labels = fresh.labels[late]
    assert row_losses(ours, labels).mean() < row_losses(fresh.online_logit[late], labels).mean()
    assert model.training["gain_shares"]["price"] > model.training["gain_shares"]["age"]


def test_too_few_positives_give_a_reason_instead_of_a_model(rows: Rows) -> None:
    none = train(rows, SETTINGS.model_copy(update={"minimum_positives": 10_000}))
    assert isinstance(none, TooFewPositives)
    assert none.slice_name == "training"
    assert "10000 needed" in str(none)
    labels = rows.labels.copy()
    labels[15_000:] = 0
    unvalidated = train(replace(rows, labels=labels))
    assert isinstance(unvalidated, TooFewPositives)
    assert unvalidated.slice_name == "validation"


def test_codes_are_the_top_values_of_the_training_slice_and_the_rest_share_one() -> None:
    hashes = np.array([9, 9, 9, 4, 4, 7, 7, 1], dtype=np.uint64)
    known, codes = batch._frequent(hashes, 3)
    assert known.tolist() == [4, 7, 9]
    assert codes.tolist() == [2, 3, 1]  # by count, ties by hash
    asked = np.array([[9], [1], [5], [4], [2**64 - 1]], dtype=np.uint64)
    columns = batch._columns(np.empty((5, 0)), asked, np.zeros(5), [known], [codes])
    assert columns[:, 1].tolist() == [1.0, 0.0, 0.0, 2.0, 0.0]


def test_categories_are_coded_on_the_training_slice_only(rows: Rows, model: BatchModel) -> None:
    _, held = batch.training_slices(rows.anchor_us, SETTINGS.validation_share, HOUR_US)
    hashes = rows.hashes.copy()
    hashes[held, 0] = 12_345  # by far the most frequent value, were the validation slice counted
    trained = train(replace(rows, hashes=hashes))
    assert isinstance(trained, BatchModel)
    assert 12_345 not in trained.category_hashes[0]
    assert trained.category_hashes[0].tolist() == model.category_hashes[0].tolist()


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("gap_hours", [0, 1, 24])
def test_the_validation_slice_starts_a_window_after_training_ends(
    rows: Rows, share: float, gap_hours: int
) -> None:
    shuffled = np.random.default_rng(0).permutation(rows.anchor_us)
    inside, held = batch.training_slices(shuffled, share, gap_hours * HOUR_US)
    assert not (inside & held).any()
    assert shuffled[held].min() - shuffled[inside].max() > gap_hours * HOUR_US
    assert held.mean() == pytest.approx(share, abs=0.01)


def test_overlapping_slices_are_refused(rows: Rows) -> None:
    everything = np.ones(len(rows.labels), dtype=bool)
    with pytest.raises(ValueError, match="overlap"):
        train_batch_model(
            rows.dense, rows.hashes, rows.online_logit, rows.labels, everything, everything,
            ["a", "b", "c"], ["d", "e"], SETTINGS,
        )  # fmt: skip


def test_what_scores_imports_no_training_stack() -> None:
    code = textwrap.dedent("""
        import sys
        from ad_pipeline.learners.batch import batch_model as batch
        from ad_pipeline.learners.ensemble import calibration
        from ad_pipeline.learners.ensemble import ensemble
        from ad_pipeline.learners.ftrl import ftrl_kernel
        from ad_pipeline.learners.online import step as online
        from ad_pipeline.learners.batch import trees
        # Numba itself imports the bare `scipy` to learn its version.
        heavy = {"lightgbm", "sklearn", "scipy.optimize", "river", "dagster", "duckdb", "pandas"}
        print(sorted(heavy & set(sys.modules)))
    """)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stdout.strip() == "[]"
