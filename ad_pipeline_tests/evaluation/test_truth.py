"""Distance to the truth, and the proof that nothing that learns can see it."""

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_pipeline.evaluation import metrics, truth

PACKAGE = Path(truth.__file__).resolve().parents[1]

ALLOWED = (
    "evaluation/",
    "simulation/",
    "datasets.py",
)
"""Reads it, writes it, and says where it is."""

_PATH_TEXT = re.compile(r"(^|[/\\{\s.])truth($|[/\\}]|\.parquet)")


def mentions(source: str) -> Iterator[int]:
    """Yield the lines of code (not of docstrings) that name the truth or its path."""
    tree = ast.parse(source)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        named = (
            (isinstance(node, ast.Attribute) and node.attr == "truth")
            or (isinstance(node, ast.Name) and node.id == "truth")
            or (isinstance(node, ast.ImportFrom) and "truth" in (node.module or "").split("."))
            or (isinstance(node, ast.alias) and "truth" in node.name.split("."))
            or (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in prose
                and _PATH_TEXT.search(node.value) is not None
            )
        )
        if named:
            yield getattr(node, "lineno", 0)


def trespassers(package: Path) -> list[str]:
    return [
        f"{path.relative_to(package)}:{line}"
        for path in sorted(package.rglob("*.py"))
        if not path.relative_to(package).as_posix().startswith(ALLOWED)
        for line in mentions(path.read_text())
    ]


def test_nothing_but_evaluation_mentions_the_truth():
    assert trespassers(PACKAGE) == []


def test_no_sql_reads_the_truth():
    folder = PACKAGE.parent / "dbt_like_sql"
    found = [path for path in folder.rglob("*.sql") if re.search(r"\btruth\b", path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "violation",
    [
        "labels = read(deployment.truth)",
        "from ad_pipeline.evaluation.truth import read_truth",
        "from ad_pipeline.evaluation import truth",
        "import ad_pipeline.evaluation.truth",
        "path = home / 'truth' / 'part.parquet'",
        "path = f'{home}/truth/part.parquet'",
        "path = 'truth.parquet'",
        "path = getattr(deployment, 'truth')",
    ],
)
def test_a_planted_look_at_the_truth_is_caught(violation: str, tmp_path: Path):
    """Negative control, in a room that learns."""
    (tmp_path / "learners").mkdir()
    (tmp_path / "learners" / "cheat.py").write_text(f'"""A learner."""\n\n{violation}\n')
    assert trespassers(tmp_path)[0] == "learners/cheat.py:3"


def test_prose_about_the_truth_and_allowed_rooms_are_let_be(tmp_path: Path):
    (tmp_path / "simulation").mkdir()
    (tmp_path / "learners").mkdir()
    (tmp_path / "simulation" / "exchange.py").write_text("path = home / 'truth'\n")
    (tmp_path / "learners" / "fair.py").write_text('"""The truth is not for us."""\nx = 1\n')
    assert trespassers(tmp_path) == []


def truth_file(folder: Path, rows: int = 500) -> tuple[Path, np.ndarray]:
    generator = np.random.default_rng(0)
    true = metrics.probabilities_of(generator.normal(-2, 1, rows))
    clicks = pa.table(
        {
            "impression_id": [f"i{k}" for k in range(rows)],
            "goal": pa.array(["click"] * rows).dictionary_encode(),
            "probability": true,
            "label": pa.array((generator.random(rows) < true).astype(np.int8)),
        }
    )
    purchase = pa.array(["purchase"] * 10).dictionary_encode()
    purchases = clicks.slice(0, 10).set_column(1, "goal", purchase)
    path = folder / "day=0.parquet"
    pq.write_table(pa.concat_tables([clicks, purchases], promote_options="permissive"), path)
    return path, true


def test_the_truth_of_one_goal_is_read_from_a_file_or_a_folder(tmp_path: Path):
    path, true = truth_file(tmp_path)
    for place in (path, tmp_path):
        assert truth.read_truth(place, "click").column("probability").to_numpy() == pytest.approx(
            true
        )
    assert truth.read_truth(path, "purchase").num_rows == 10


def test_a_log_without_truth_is_an_error_and_not_a_distance_of_zero(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        truth.read_truth(tmp_path / "none", "click")


def test_the_truth_itself_is_at_distance_zero_in_any_order(tmp_path: Path):
    path, true = truth_file(tmp_path)
    order = np.random.default_rng(1).permutation(len(true))
    ids = pa.array([f"i{k}" for k in order])
    distance = truth.distance_to_truth(truth.read_truth(path, "click"), ids, true[order])
    assert distance.rows == len(true)
    assert distance.mean_kl == pytest.approx(0, abs=1e-12)
    assert distance.mean_absolute_logit_error == pytest.approx(0, abs=1e-9)
    assert distance.correlation == pytest.approx(1)
    assert distance.calibration_ratio == pytest.approx(1)


def test_a_shift_of_the_log_odds_is_measured_as_that_shift(tmp_path: Path):
    path, true = truth_file(tmp_path)
    ids = pa.array([f"i{k}" for k in range(len(true))])
    shifted = metrics.probabilities_of(metrics.logits_of(true) + 0.3)
    distance = truth.distance_to_truth(truth.read_truth(path, "click"), ids, shifted)
    assert distance.mean_absolute_logit_error == pytest.approx(0.3)
    assert distance.correlation == pytest.approx(1)
    assert distance.calibration_ratio > 1.2


def test_expected_log_loss_is_the_true_entropy_and_the_divergence(tmp_path: Path):
    path, true = truth_file(tmp_path)
    forecast = np.full(len(true), true.mean())
    ids = pa.array([f"i{k}" for k in range(len(true))])
    distance = truth.distance_to_truth(truth.read_truth(path, "click"), ids, forecast)
    expected = -(true * np.log(forecast) + (1 - true) * np.log(1 - forecast)).mean()
    assert distance.true_entropy + distance.mean_kl == pytest.approx(expected, rel=1e-12)
    assert math.isnan(distance.correlation)


def test_forecasts_without_a_truth_are_counted_and_left_out(tmp_path: Path):
    path, _ = truth_file(tmp_path)
    purchases = truth.read_truth(path, "purchase")
    ids = pa.array([f"i{k}" for k in range(30)])
    distance = truth.distance_to_truth(purchases, ids, np.full(30, 0.1))
    assert (distance.rows, distance.unmatched) == (10, 20)
    nothing = truth.distance_to_truth(purchases, pa.array(["x"]), [0.1])
    assert (nothing.rows, nothing.unmatched) == (0, 1)
    assert math.isnan(nothing.mean_kl)


def test_a_truth_that_names_an_impression_twice_is_refused(tmp_path: Path):
    path, _ = truth_file(tmp_path)
    twice = pa.concat_tables([truth.read_truth(path, "click")] * 2)
    with pytest.raises(ValueError, match="twice"):
        truth.distance_to_truth(twice, pa.array(["i1"]), [0.1])
