"""One trained world for all tests of this room: training takes seconds, the tests only read it."""

import shutil
from pathlib import Path

import pytest

from ad_pipeline_tests.serving import worlds


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    """Return the world; tests that change files copy its folders first."""
    return worlds.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own_bundles(world: worlds.World, tmp_path: Path) -> Path:
    """Return a copy of the bundles that a test may damage."""
    return Path(shutil.copytree(world.bundles, tmp_path / "bundles"))
