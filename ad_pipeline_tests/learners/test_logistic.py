"""Standard errors of small regressions: as wide as the answers really vary."""

import numpy as np

from ad_pipeline.learners.ensemble.logistic import clustered_errors, fit_logistic


def regression(seed: int, shared: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return columns, labels and clusters; ``shared`` is what rows of a cluster have in common."""
    draw = np.random.default_rng(seed)
    cluster = draw.integers(0, 40, 2_000)
    column = draw.normal(size=2_000) + shared * draw.normal(size=40)[cluster]
    logits = -1 + 0.5 * column + 0.5 * shared * draw.normal(size=40)[cluster]
    labels = (draw.random(2_000) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    return np.column_stack((column, np.ones(2_000))), labels, cluster


def fitted(columns: np.ndarray, labels: np.ndarray) -> np.ndarray:
    width = columns.shape[1]
    free = np.zeros(width)
    return fit_logistic(columns, labels, free, free + 10.0, free.astype(bool))


def test_errors_are_as_wide_as_the_answers_vary_though_rows_of_a_cluster_depend_on_each_other() -> (
    None
):
    """The negative control: errors that take every row as independent are far too narrow."""
    found, clustered, independent = [], [], []
    for seed in range(100):
        columns, labels, cluster = regression(seed, shared=1.0)
        weights = fitted(columns, labels)
        found.append(weights[0])
        clustered.append(clustered_errors(columns, labels, weights, cluster)[0])
        rows = np.arange(len(labels))
        independent.append(clustered_errors(columns, labels, weights, rows)[0])
    assert 0.8 < np.mean(clustered) / np.std(found) < 1.3
    assert np.mean(independent) / np.std(found) < 0.8


def test_columns_that_say_the_same_have_enormous_errors_and_a_few_clusters_no_tiny_ones() -> None:
    columns, labels, cluster = regression(1, shared=0.0)
    twice = np.column_stack((columns[:, :1], columns))
    errors = clustered_errors(twice, labels, fitted(twice, labels), cluster)
    assert (errors[:2] > 10).all()
    weights = fitted(columns, labels)
    rows = clustered_errors(columns, labels, weights, np.arange(len(labels)))
    one = clustered_errors(columns, labels, weights, np.zeros(len(labels), dtype=np.int64))
    np.testing.assert_allclose(one, rows, rtol=0.1)
