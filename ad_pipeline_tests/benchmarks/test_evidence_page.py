"""The page is what the results give: no verdict on it was written by a hand."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ad_pipeline_tests.benchmarks.toy_study import toy
from benchmarks.claims import Claim, Section
from benchmarks.evidence.freshness import about_nothing
from benchmarks.evidence_page import PAGE, page_text, sections, write_page
from benchmarks.seed_intervals import Estimate, mean_over_seeds
from benchmarks.studies import RESULTS, Result, read_results, run_studies, values_of


def claims(results: Sequence[Result]) -> list[Claim]:
    found = mean_over_seeds(values_of(results, "ten", "value"))
    control = mean_over_seeds(values_of(results, "one", "value"))
    return [
        Claim(
            key="toy.large",
            says="Ten is large.",
            figure=f"{found.value:g}",
            interval=f"{found.low:.1f}–{found.high:.1f}",
            seeds="4",
            met=found.value > 20,
            control=f"one is {control.value:g}",
            control_met=control.value < 5,
        )
    ]


SECTION = Section(study=toy(), title="Toy", method="Multiply.", claims=claims)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run_studies([toy()], tmp_path, say=lambda _: None)
    return tmp_path


def change(folder: Path, arm: str, value: float) -> None:
    """Write another value into every stored result of an arm."""
    path = folder / "toy.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["arm"] == arm:
            record["values"]["value"] = value
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_page_in_the_repository_is_what_the_stored_results_give():
    assert PAGE.read_text() == page_text(sections())


def test_a_figure_changed_in_the_results_makes_the_page_stale(tmp_path: Path):
    """Planted fault: one alarm of one run of the drift study is turned off."""
    shutil.copytree(RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "drift_alarm.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    chosen = next(record for record in records if record["arm"] == "drift 1")
    chosen["values"]["index"] = 0.0
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert PAGE.read_text() != page_text(sections(), tmp_path / "results")


def test_every_study_of_the_page_has_all_of_its_results():
    assert "not measured" not in page_text(sections())


def test_every_claim_has_its_own_id_and_a_control():
    for section in sections():
        results = read_results(section.study)
        made = section.claims(results)
        assert made
        assert len({claim.key for claim in made}) == len(made)
        assert all(claim.key.startswith(f"{section.study.name}.") for claim in made)
        assert all(claim.control for claim in made)


def test_a_claim_whose_numbers_fail_does_not_hold(folder: Path):
    assert "**holds**" in page_text([SECTION], folder)
    change(folder, "ten", 3.0)
    text = page_text([SECTION], folder)
    assert "**does not hold**" in text
    assert "**holds**" not in text
    assert "| Toy | 0 of 1 | `toy.large` |" in text


def test_a_claim_whose_control_fails_does_not_hold(folder: Path):
    change(folder, "one", 50.0)
    text = page_text([SECTION], folder)
    assert "**does not hold: its control fails**" in text
    assert "one is 50: FAILS" in text


def test_a_study_without_all_of_its_runs_claims_nothing(folder: Path):
    path = folder / "toy.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    text = page_text([SECTION], folder)
    assert "**Not measured**: 7 of 8 runs are stored" in text
    assert "toy.large" not in text


def test_results_of_other_settings_claim_nothing(folder: Path):
    other = replace(SECTION, study=toy(settings=2))
    assert "**Not measured**: 0 of 8 runs are stored" in page_text([other], folder)


def test_pictures_are_remade_with_the_page(folder: Path, tmp_path: Path):
    drawn = replace(SECTION, pictures={"toy": lambda results: bytes([len(results)])})
    written = write_page([drawn], folder, tmp_path / "evidence.md", tmp_path)
    assert [path.name for path in written] == ["evidence.md", "evidence_toy.png"]
    assert (tmp_path / "evidence_toy.png").read_bytes() == b"\x08"
    assert "(pictures/evidence_toy.png)" in (tmp_path / "evidence.md").read_text()


def test_a_control_as_large_as_the_figure_fails_however_small_both_are():
    small = Estimate(0.0007, 0.0001, 0.0013, 6)
    assert about_nothing(small, 0.01)
    assert not about_nothing(small, 0.0011)
    assert not about_nothing(Estimate(0.003, 0.001, 0.005, 6), 0.04)
    assert about_nothing(Estimate(0.003, -0.001, 0.007, 6), 0.001)
