"""A drill refuses and undoes every fault in its copy, and what serves keeps every byte."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.monitoring.production import rollback_drill
from ad_pipeline.monitoring.production.rollback_drill import FAULTS, UnknownFault, drill
from ad_pipeline.serving.pointers import SNAPSHOT, Pointer, move_pointer
from ad_pipeline.serving.promotion import promote
from ad_pipeline_tests.serving import worlds


@pytest.fixture
def deployment(world: worlds.World, tmp_path: Path) -> Deployment:
    """Return a deployment in which one bundle served before another does."""
    paths = Deployment(
        load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml"), tmp_path / "home"
    )
    shutil.copytree(world.bundles, paths.bundles)
    shutil.copytree(world.snapshots, paths.snapshots)
    for bundle in (world.young, world.bundle):
        promote(paths.serving, paths.bundles, bundle.digest, {}, watermark_us=worlds.SERVED_US)
    move_pointer(paths.serving, SNAPSHOT, Pointer(world.due.digest, worlds.SERVED_US))
    return paths


def bytes_of(home: Path) -> dict[str, str]:
    """Return the SHA-256 of every file."""
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


OF_THE_BUNDLE = tuple(name for name in FAULTS if name != "poisoned_model")
"""That one is refused by the proof, which reads checkpoints that a made world has none of."""


@pytest.mark.parametrize("fault", OF_THE_BUNDLE)
def test_a_fault_is_refused_and_undone_and_what_serves_keeps_every_byte(
    deployment: Deployment, fault: str
) -> None:
    before = bytes_of(deployment.home)
    steps = drill(deployment, fault)
    assert [step.name for step in steps] == ["copy", "plant", "guard", "recover", "verify"]
    assert all(step.passed for step in steps), [step.said for step in steps]
    assert bytes_of(deployment.home) == before != {}


def test_a_fault_that_a_guard_lets_pass_fails_its_step(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = replace(FAULTS["flipped_byte"], guards=lambda _: {"a blind guard": ""})
    monkeypatch.setitem(rollback_drill.FAULTS, "flipped_byte", blind)
    wrong = [step for step in drill(deployment, "flipped_byte") if not step.passed]
    assert [step.name for step in wrong] == ["guard"]
    assert "a blind guard" in wrong[0].said


def test_a_fault_that_there_is_not_is_answered_with_those_that_there_are(
    deployment: Deployment,
) -> None:
    with pytest.raises(UnknownFault, match="flipped_byte"):
        drill(deployment, "earthquake")
