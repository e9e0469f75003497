"""A bundle is what was written, or is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import MissingCheckpoint, point, resolve, write_checkpoint
from ad_pipeline.serving.bundle import (
    KIND,
    CorruptBundle,
    export_bundle,
    open_bundle,
    open_bundle_folder,
)
from ad_pipeline_tests.full_disk import files_of_at_most
from ad_pipeline_tests.serving import worlds

FILES = (
    "manifest.json",
    "click.weights.npy",
    "click.model.txt",
    "click.batch.category_hashes_000.npy",
    "click.batch.category_hashes_001.npy",
    "click.batch.category_codes_000.npy",
    "click.batch.category_codes_001.npy",
    "purchase.weights.npy",
    "purchase.model.txt",
    "purchase.batch.category_hashes_000.npy",
    "purchase.batch.category_hashes_001.npy",
    "purchase.batch.category_codes_000.npy",
    "purchase.batch.category_codes_001.npy",
)


def test_the_flipped_files_below_are_all_files_of_a_bundle(world: worlds.World) -> None:
    assert {path.name for path in world.bundle.path.iterdir()} == set(FILES)


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused_and_the_file_named(
    world: worlds.World, own_bundles: Path, name: str, place: float
) -> None:
    path = own_bundles / "objects" / world.bundle.digest / name
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptBundle, match=name.replace(".", r"\.")):
        open_bundle(own_bundles, world.bundle.digest)


@pytest.mark.parametrize("name", FILES)
def test_a_lost_or_shortened_file_is_refused_and_named(
    world: worlds.World, own_bundles: Path, name: str
) -> None:
    path = own_bundles / "objects" / world.bundle.digest / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptBundle, match=name.replace(".", r"\.")):
        open_bundle(own_bundles, world.bundle.digest)
    path.unlink()
    with pytest.raises(CorruptBundle, match=name.replace(".", r"\.")):
        open_bundle(own_bundles, world.bundle.digest)


def test_a_file_that_does_not_belong_is_refused_and_named(
    world: worlds.World, own_bundles: Path
) -> None:
    (own_bundles / "objects" / world.bundle.digest / "extra.npy").write_bytes(b"")
    with pytest.raises(CorruptBundle, match=r"extra\.npy"):
        open_bundle(own_bundles, world.bundle.digest)


def test_weights_replaced_together_with_their_sums_are_caught_by_the_canaries(
    world: worlds.World, tmp_path: Path
) -> None:
    """Every SHA-256 is right here; only the scores can tell."""
    manifest = {k: v for k, v in world.bundle.manifest.items() if k not in ("files", "kind")}
    arrays = {
        path.name.removesuffix(".npy"): np.load(path) for path in world.bundle.path.glob("*.npy")
    }
    files = {path.name: path.read_bytes() for path in world.bundle.path.glob("*.txt")}
    same = write_checkpoint(tmp_path, KIND, arrays, manifest, files)
    assert open_bundle(tmp_path, same.digest).digest == world.bundle.digest
    arrays["click.weights"] = arrays["click.weights"] * (1 + 1e-12)
    other = write_checkpoint(tmp_path, KIND, arrays, manifest, files)
    with pytest.raises(CorruptBundle, match="canary"):
        open_bundle(tmp_path, other.digest)


def test_the_same_models_give_the_same_bytes_wherever_they_are_written(
    world: worlds.World, tmp_path: Path
) -> None:
    again = worlds.write(tmp_path, world.models, world.requests, world.due.counts)
    assert again.digest == world.bundle.digest
    for path in world.bundle.path.iterdir():
        assert (again.path / path.name).read_bytes() == path.read_bytes()


def test_a_bundle_copied_elsewhere_opens_by_its_folder(world: worlds.World, tmp_path: Path) -> None:
    folder = tmp_path / world.bundle.digest
    shutil.copytree(world.bundle.path, folder)
    opened = open_bundle_folder(folder)
    assert (opened.digest, opened.manifest) == (world.bundle.digest, world.bundle.manifest)


def test_weights_are_memory_mapped(world: worlds.World) -> None:
    weights = open_bundle(world.bundles, world.bundle.digest).goals[0].online.weights
    assert isinstance(weights.base, np.memmap) or isinstance(weights, np.memmap)
    assert not weights.flags.writeable


def test_the_manifest_names_where_everything_came_from(world: worlds.World) -> None:
    manifest = world.bundle.manifest
    assert [goal["goal"] for goal in manifest["goals"]] == ["click", "purchase"]
    assert all(goal["online"]["checkpoint"] == "a" * 64 for goal in manifest["goals"])
    assert all(goal["batch"]["checkpoint"] == "b" * 64 for goal in manifest["goals"])
    assert manifest["label_watermark_us"] == worlds.SERVED_US
    assert manifest["fitted_ranges"].keys() == {"click", "purchase"}
    assert manifest["snapshot_lag_hours"] == worlds.CONTRACT.rate_lag_hours


def test_a_checkpoint_of_another_kind_is_no_bundle(world: worlds.World) -> None:
    with pytest.raises(CorruptBundle, match=r"features\.rates"):
        open_bundle(world.snapshots, world.due.digest)


def test_a_bundle_that_was_never_written_is_missing_not_corrupt(world: worlds.World) -> None:
    with pytest.raises(MissingCheckpoint):
        open_bundle(world.bundles, "0" * 64)


def test_a_bundle_without_goals_or_canaries_or_with_other_slots_is_refused(
    world: worlds.World, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="at least one goal"):
        worlds.write(tmp_path, (), world.requests, None)
    with pytest.raises(ValueError, match="canary"):
        worlds.write(tmp_path, world.models, [], None)
    with pytest.raises(ValueError, match="twice"):
        worlds.write(tmp_path, (world.models[0], world.models[0]), world.requests, None)
    with pytest.raises(ValueError, match="slots"):
        export_bundle(
            tmp_path,
            contract=replace(worlds.CONTRACT, bits=11),
            goals=world.models,
            dataset="small_world",
            label_watermark_us=0,
            canaries=world.requests[:1],
        )


@pytest.mark.parametrize(
    ("limit", "torn"),
    [(0, "click.weights.npy"), (9_000, "click.model.txt"), (30_000, "purchase.model.txt")],
)
def test_a_full_disk_leaves_the_old_bundle_and_no_half_of_the_new_one(
    world: worlds.World, own_bundles: Path, limit: int, torn: str
) -> None:
    point(own_bundles, "candidate", world.bundle.digest)
    before = sorted(path.name for path in (own_bundles / "objects").iterdir())
    later_us = worlds.SERVED_US + 1

    def write() -> str:
        counts = world.due.counts
        return worlds.write(own_bundles, world.models, world.requests, counts, later_us).digest

    with files_of_at_most(limit), pytest.raises(OSError, match="make room") as caught:
        write()
    assert Path(caught.value.filename).name == torn
    assert sorted(path.name for path in (own_bundles / "objects").iterdir()) == before
    assert resolve(own_bundles, "candidate") == world.bundle.digest
    assert open_bundle(own_bundles, world.bundle.digest).digest == world.bundle.digest
    point(own_bundles, "candidate", write())
    opened = open_bundle(own_bundles, resolve(own_bundles, "candidate"))
    assert opened.label_watermark_us == later_us
