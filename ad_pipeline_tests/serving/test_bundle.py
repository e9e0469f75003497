"""A bundle is what was written, or is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import (
    CorruptCheckpoint,
    MissingCheckpoint,
    point,
    resolve,
    write_checkpoint,
)
from ad_pipeline.serving.bundle import (
    KIND,
    CorruptBundle,
    export_bundle,
    open_bundle,
    open_bundle_folder,
)
from ad_pipeline_tests.full_disk import files_of_at_most
from ad_pipeline_tests.serving import worlds

PARTS = (
    *(f"online.{name}.npy" for name in ("present", "rank", "values")),
    *(f"batch.{name}.npy" for name in ("trees", "nodes", "thresholds", "categories", "bitset")),
    *(f"batch.{name}.npy" for name in ("leaves", "category_firsts", "category_hashes")),
    "batch.category_codes.npy",
    *(f"ensemble.{name}.npy" for name in ("mixture", "maps", "firsts", "table", "slices")),
    "history.arrow",
)
AUDIT = ("dictionary.arrow", "click.history.arrow", "purchase.history.arrow")
FILES = (
    "manifest.json",
    "dictionary.arrow",
    *(f"{goal}.{part}" for goal in ("click", "purchase") for part in PARTS),
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
    files = {path.name: path.read_bytes() for path in world.bundle.path.glob("*.arrow")}
    same = write_checkpoint(tmp_path, KIND, arrays, manifest, files)
    assert open_bundle(tmp_path, same.digest).digest == world.bundle.digest
    arrays["click.online.values"] = arrays["click.online.values"] * (1 + 1e-12)
    other = write_checkpoint(tmp_path, KIND, arrays, manifest, files)
    with pytest.raises(CorruptBundle, match="canary"):
        open_bundle(tmp_path, other.digest)


def test_the_same_models_give_the_same_bytes_wherever_they_are_written(
    world: worlds.World, tmp_path: Path
) -> None:
    again = worlds.build(tmp_path).bundle
    assert again.digest == world.bundle.digest
    for path in world.bundle.path.iterdir():
        assert (again.path / path.name).read_bytes() == path.read_bytes()


def test_a_bundle_copied_elsewhere_opens_by_its_folder(world: worlds.World, tmp_path: Path) -> None:
    folder = tmp_path / world.bundle.digest
    shutil.copytree(world.bundle.path, folder)
    opened = open_bundle_folder(folder)
    assert (opened.digest, opened.manifest) == (world.bundle.digest, world.bundle.manifest)


def test_everything_that_scores_is_memory_mapped(world: worlds.World) -> None:
    models = open_bundle(world.bundles, world.bundle.digest).goals[0]
    assert models.batch is not None
    assert models.mixture is not None
    forest = models.batch.forest
    for array in (
        *models.online.to_arrays().values(),
        *(forest.feature, forest.left, forest.threshold, forest.leaf, forest.bitset_start),
        *models.batch.category_hashes,
        *models.mixture.to_arrays()[0].values(),
    ):
        base = array
        while not isinstance(base, np.memmap) and base.base is not None:
            base = base.base
        assert isinstance(base, np.memmap)
        assert not array.flags.writeable


@pytest.mark.parametrize("name", AUDIT)
def test_a_scorer_reads_no_byte_of_what_is_for_people_and_who_explains_does(
    world: worlds.World, own_bundles: Path, name: str
) -> None:
    path = own_bundles / "objects" / world.bundle.digest / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    opened = open_bundle(own_bundles, world.bundle.digest, to_score=True)
    goal = name.partition(".")[0]
    with pytest.raises(CorruptCheckpoint, match=name.replace(".", r"\.")):
        opened.audit.tokens([0]) if goal == "dictionary" else opened.audit.history(goal)
    path.unlink()
    with pytest.raises(CorruptCheckpoint, match=name.replace(".", r"\.")):
        open_bundle(own_bundles, world.bundle.digest, to_score=True)


def test_the_manifest_says_what_the_export_of_the_weights_saved(world: worlds.World) -> None:
    for described, models in zip(world.bundle.manifest["goals"], world.models, strict=True):
        said = described["online"]["weights"]
        goal = models.goal
        arrays = [
            np.load(world.bundle.path / f"{goal}.online.{part}.npy")
            for part in ("present", "rank", "values")
        ]
        assert said["format"] == "exact"
        assert said["bytes"] == sum(array.nbytes for array in arrays)
        assert said["source"]["dense_bytes"] == 8 << worlds.CONTRACT.bits
        assert said["coordinates"] == np.count_nonzero(world.sources[goal].online.weights)
        assert 0 < world.bundle.manifest["audit"]["collisions"][goal] < said["coordinates"]


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
    [
        (0, "click.online.present.npy"),
        (4_000, "purchase.batch.nodes.npy"),
        (9_000, "manifest.json"),
    ],
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
