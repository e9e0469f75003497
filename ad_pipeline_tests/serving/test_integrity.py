"""One flipped byte, or a canary off by 1e-9, is refused at write, at promotion and at load."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline import checkpoints
from ad_pipeline.checkpoints import CorruptCheckpoint, read_checkpoint
from ad_pipeline.monitoring.production.rollback_drill import flip_byte, with_canary_off
from ad_pipeline.serving.audit import is_audit_file
from ad_pipeline.serving.bundle import CorruptBundle, open_bundle
from ad_pipeline.serving.pointers import CURRENT, Pointer, move_pointer
from ad_pipeline.serving.promotion import history, promote
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline_tests.serving import worlds

FILES = st.integers(min_value=0)
OFFSETS = st.floats(0, 1, exclude_max=True)


def planted(world: worlds.World, root: Path, place: int, part: float) -> tuple[Path, Path]:
    """Copy the bundle, flip one byte of one of its files, and return root and file."""
    bundles = root / "bundles"
    shutil.rmtree(root, ignore_errors=True)
    target = bundles / "objects" / world.bundle.digest
    shutil.copytree(world.bundle.path, target)
    files = sorted(target.iterdir())
    damaged = files[place % len(files)]
    flip_byte(damaged, int(part * damaged.stat().st_size))
    return bundles, damaged


@settings(max_examples=60, deadline=None)
@given(place=FILES, part=OFFSETS)
def test_a_flipped_byte_of_any_file_is_refused_at_promotion_and_at_load(
    world: worlds.World, tmp_path_factory: pytest.TempPathFactory, place: int, part: float
) -> None:
    root = tmp_path_factory.getbasetemp() / "flipped"
    bundles, damaged = planted(world, root, place, part)
    serving = root / "serving"
    with pytest.raises(CorruptBundle, match=world.bundle.digest):
        promote(serving, bundles, world.bundle.digest, {}, watermark_us=1)
    assert history(serving) == []
    move_pointer(serving, CURRENT, Pointer(world.bundle.digest, 1))
    if is_audit_file(damaged.name):
        # No score needs it: it is verified when somebody asks for an explanation.
        assert Scorer.current(serving).bundle.digest == world.bundle.digest
        with pytest.raises(CorruptBundle):
            open_bundle(bundles, world.bundle.digest)
    else:
        with pytest.raises(CorruptBundle):
            Scorer.current(serving)


@pytest.mark.parametrize("name", ["weights.npy", "model.txt", "manifest.json"])
def test_a_byte_that_the_disk_took_otherwise_is_refused_at_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flush = checkpoints._flush_file

    def flush_and_damage(path: Path) -> None:
        flush(path)
        if path.name == name:
            flip_byte(path, path.stat().st_size - 1)

    def write() -> str:
        arrays = {"weights": np.arange(5.0)}
        files = {"model.txt": b"x"}
        return checkpoints.write_checkpoint(tmp_path, "test", arrays, {}, files).digest

    monkeypatch.setattr(checkpoints, "_flush_file", flush_and_damage)
    with pytest.raises(CorruptCheckpoint, match=name):
        write()
    assert list((tmp_path / "objects").iterdir()) == []
    monkeypatch.undo()
    assert read_checkpoint(tmp_path, write()).manifest["kind"] == "test"


def test_a_canary_that_is_off_by_a_billionth_is_refused_everywhere(
    world: worlds.World, own_bundles: Path, tmp_path: Path
) -> None:
    source = read_checkpoint(own_bundles, world.bundle.digest)
    digest = with_canary_off(source, own_bundles)
    serving = tmp_path / "serving"
    with pytest.raises(CorruptBundle, match="canary"):
        open_bundle(own_bundles, digest)
    with pytest.raises(CorruptBundle, match="canary"):
        promote(serving, own_bundles, digest, {}, watermark_us=1)
    move_pointer(serving, CURRENT, Pointer(digest, 1))
    with pytest.raises(CorruptBundle, match="canary"):
        Scorer.current(serving)


def test_a_canary_that_is_not_off_is_accepted(world: worlds.World, own_bundles: Path) -> None:
    """Negative control: the same rewriting with a shift of nothing gives the same bundle."""
    source = read_checkpoint(own_bundles, world.bundle.digest)
    assert with_canary_off(source, own_bundles, 0.0) == world.bundle.digest
