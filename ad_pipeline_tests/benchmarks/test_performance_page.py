"""docs/performance.md says what was measured, and nothing else."""

import copy

import pytest

from benchmarks.performance_page import MODULES, PAGE, REPOSITORY, machine, render, stored

MEASURED = {
    "simulation": {
        "figures": [
            {
                "key": "impressions_per_s",
                "value": 210_000.0,
                "says": "impressions a second",
                "reach": 200_000,
                "better": "higher",
                "limit": "the disk",
            },
            {
                "key": "peak_rss_mb",
                "value": 123.4,
                "says": "memory",
                "reach": None,
                "better": "lower",
                "limit": "",
            },
        ],
        "impressions_per_s": 210_000.0,
        "command": "python -m benchmarks.speed.simulation",
        "commit": "0123456789ab",
        "machine": machine(),
    }
}


def test_the_page_is_what_the_stored_figures_render_to():
    assert PAGE.read_text() == render(stored())


@pytest.mark.parametrize("module", sorted(stored()))
def test_a_changed_figure_is_caught(module: str):
    """Planted fault: one stored figure differs by a tenth from the one that the page shows."""
    changed = copy.deepcopy(stored())
    changed[module]["figures"][0]["value"] *= 1.1
    assert PAGE.read_text() != render(changed)


def test_a_figure_stands_with_its_reach_verdict_limit_and_command():
    page = render(MEASURED)
    assert "| `impressions_per_s` | 210,000 | ≥ 200,000 | met | impressions a second |" in page
    assert "| `peak_rss_mb` | 123 |  |  | memory |" in page
    assert "Limit of `impressions_per_s`: the disk." in page
    assert "`python -m benchmarks.speed.simulation` at 0123456789ab" in page
    assert "Met: 1 of 1 figures" in page


def test_a_figure_that_falls_short_is_said_to():
    slow = copy.deepcopy(MEASURED)
    slow["simulation"]["figures"][0]["value"] = 150_000.0
    page = render(slow)
    assert "| 150,000 | ≥ 200,000 | **not met** |" in page
    assert "Met: 0 of 1 figures" in page
    assert "Not met: `impressions_per_s`." in page


def test_a_module_that_was_not_measured_is_said_not_to_be():
    page = render(MEASURED)
    missing = ", ".join(f"`{module.name}`" for module in MODULES if module.name != "simulation")
    assert f"Not measured yet: {missing}." in page
    assert "Not measured yet: `python -m benchmarks.speed.online_learner`." in page


def test_every_speed_module_is_on_the_page():
    folder = REPOSITORY / "benchmarks" / "speed"
    # A file that prints no figures is a part of another module.
    modules = {path.stem for path in folder.glob("*.py") if "print_figures(" in path.read_text()}
    assert len(modules) >= 5
    assert modules <= {module.name for module in MODULES}
