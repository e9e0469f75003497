"""The page about River's FTRL says what its script prints, and the script can tell a cure."""

import numpy as np
import pytest
from river import optim

from docs import river_ftrl_defect as defect


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[int, defect.Learnt]]:
    return defect.measured()


def test_the_page_is_what_the_script_prints(measured) -> None:
    text = defect.PAGE.read_text()
    assert text == defect.current(text, defect.tables(measured))


def test_a_changed_figure_is_caught(measured) -> None:
    """Planted fault: the page claims one non-zero weight less."""
    text = defect.PAGE.read_text()
    river = measured[next(iter(measured))][defect.SEEDS[0]]
    changed = text.replace(f"| {river.inside:,} |", f"| {river.inside - 1:,} |", 1)
    assert changed != text
    assert changed != defect.current(changed, defect.tables(measured))
    with pytest.raises(ValueError, match="has no <!-- made by"):
        defect.current("a page without marks", defect.tables(measured))


def test_river_keeps_weights_that_its_own_z_makes_zero_and_the_missing_line_removes_most(
    measured,
) -> None:
    as_it_is, with_reset, ours = measured.values()
    for seed in defect.SEEDS:
        river, cured = as_it_is[seed], with_reset[seed]
        assert river.inside > 0.15 * river.non_zero
        assert cured.inside < 0.5 * river.inside
        assert abs(river.loss - cured.loss) < 0.001, "the loss hides it"
        assert (ours[seed].inside, ours[seed].withheld) == (0, 0)
        assert ours[seed].non_zero > 1_000


def test_what_the_reset_leaves_is_the_lag_alone() -> None:
    """A feature seen once more without a gradient has its weight rewritten from its own z."""
    numbers, labels = (part[:2_000] for part in defect.stream(9))
    optimizer = defect.WithReset(**defect.PARAMETERS)
    before = defect.learnt_by_river(optimizer, numbers, labels)
    assert before.inside > 0
    weights = dict.fromkeys(optimizer.z, 1.0)  # whatever they were: the step writes them anew
    optimizer._step_with_dict(weights, dict.fromkeys(optimizer.z, 0.0))
    z = np.array([optimizer.z[number] for number in weights])
    assert ((np.array(list(weights.values())) == 0) == (np.abs(z) <= 1.0)).all()
    # Negative control: without the reset the same visit leaves them.
    unchanged = dict.fromkeys(optimizer.z, 1.0)
    bare = optim.FTRLProximal(**defect.PARAMETERS)
    bare.z, bare.n = optimizer.z, optimizer.n
    bare._step_with_dict(unchanged, dict.fromkeys(optimizer.z, 0.0))
    assert sum(weight == 1.0 for weight in unchanged.values()) == (np.abs(z) <= 1.0).sum()


def test_rivers_weights_are_one_update_behind_and_ours_are_those_of_algorithm_1() -> None:
    found = defect.weights_after_each_update(3)
    # Without L1 and L2, w = -z alpha / (beta + sqrt n); the first gradient is -1/2.
    assert found[0] == (0.0, pytest.approx(0.5 * 0.1 / (1.0 + 0.5)))
    assert found[1][0] == pytest.approx(found[0][1])
