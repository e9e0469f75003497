"""A checkpoint is whole or absent, has the bytes it says, and depends on its content only."""

import errno
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline import checkpoints
from ad_pipeline_tests.full_disk import can_mount, files_of_at_most, run_on_small_disk

ARRAYS = {
    "z": np.arange(12, dtype=np.float64).reshape(6, 2),
    "slots": np.arange(6, dtype=np.uint32),
}
MANIFEST = {"goal": "click", "stream_position": 7}
FILES = {"model.txt": b"tree\n"}


def write(root: Path, **changes) -> checkpoints.Checkpoint:
    return checkpoints.write_checkpoint(root, "test", ARRAYS, MANIFEST | changes, FILES)


def test_what_is_read_is_what_was_written(tmp_path: Path):
    written = write(tmp_path)
    read = checkpoints.read_checkpoint(tmp_path, written.digest)
    assert read.manifest["stream_position"] == 7
    assert read.files["model.txt"].read_bytes() == b"tree\n"
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read.arrays[name], array)
        assert read.arrays[name].dtype == array.dtype


def test_the_same_content_has_the_same_name_in_any_folder_and_another_content_another(
    tmp_path: Path,
):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first.digest == second.digest
    assert write(tmp_path / "a").digest == first.digest
    assert write(tmp_path / "a", stream_position=8).digest != first.digest


def test_a_manifest_tells_its_checkpoints_name_wherever_it_is_kept(tmp_path: Path):
    written = write(tmp_path)
    elsewhere = json.loads(json.dumps(written.manifest))
    assert checkpoints.digest_of(elsewhere) == written.digest
    assert checkpoints.digest_of(elsewhere | {"stream_position": 8}) != written.digest


@pytest.mark.parametrize("name", ["z.npy", "slots.npy", "model.txt", "manifest.json"])
def test_a_flipped_byte_in_any_file_is_refused_and_the_file_named(tmp_path: Path, name: str):
    written = write(tmp_path)
    path = written.path / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(checkpoints.CorruptCheckpoint, match=name.replace(".", r"\.")):
        checkpoints.read_checkpoint(tmp_path, written.digest)


def test_a_checkpoint_is_as_open_to_other_users_as_any_new_folder(tmp_path: Path):
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    assert write(tmp_path).path.stat().st_mode == ordinary.stat().st_mode


def test_a_missing_and_a_foreign_file_are_refused(tmp_path: Path):
    written = write(tmp_path)
    (written.path / "z.npy").unlink()
    with pytest.raises(checkpoints.CorruptCheckpoint, match=r"z\.npy"):
        checkpoints.read_checkpoint(tmp_path, written.digest)
    other = write(tmp_path, goal="purchase")
    (other.path / "extra.npy").write_bytes(b"")
    with pytest.raises(checkpoints.CorruptCheckpoint, match=r"extra\.npy"):
        checkpoints.read_checkpoint(tmp_path, other.digest)


def test_writing_again_mends_a_corrupt_checkpoint(tmp_path: Path):
    written = write(tmp_path)
    (written.path / "z.npy").write_bytes(b"not what it was")
    assert write(tmp_path).digest == written.digest
    checkpoints.read_checkpoint(tmp_path, written.digest)


def test_an_array_of_python_objects_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="Python objects"):
        checkpoints.write_checkpoint(tmp_path, "test", {"o": np.array([{}])}, {})


def test_a_pointer_names_the_last_checkpoint_it_was_moved_to_and_never_dangles(tmp_path: Path):
    first, second = write(tmp_path), write(tmp_path, stream_position=8)
    name = "learners.online_model/click/2026-03-02-07:00"
    with pytest.raises(checkpoints.MissingCheckpoint):
        checkpoints.resolve(tmp_path, name)
    checkpoints.point(tmp_path, name, first.digest)
    checkpoints.point(tmp_path, name, second.digest)
    assert checkpoints.resolve(tmp_path, name) == second.digest
    with pytest.raises(checkpoints.MissingCheckpoint):
        checkpoints.point(tmp_path, name, "0" * 64)
    assert checkpoints.resolve(tmp_path, name) == second.digest


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(allow_nan=True, width=64), max_size=20))
def test_floats_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
):
    array = np.array(values, dtype=np.float64)
    root = tmp_path_factory.mktemp("floats")
    written = checkpoints.write_checkpoint(root, "test", {"x": array}, {})
    read = checkpoints.read_checkpoint(root, written.digest).arrays["x"]
    assert read.tobytes() == array.tobytes()


@pytest.mark.parametrize("call", ["rename", "fsync", "replace"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_any_durable_call_leaves_a_whole_checkpoint_or_none(
    tmp_path: Path, call: str, moment: str
):
    """The process really dies, in the middle of the call; a second try then succeeds."""
    script = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from ad_pipeline import checkpoints
        root = Path(sys.argv[1])
        true_call = os.{call}
        def deadly(*args, **kwargs):
            if {moment!r} == "after":
                true_call(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        os.{call} = deadly
        written = checkpoints.write_checkpoint(
            root, "test", {{"x": np.arange(5.0)}}, {{"goal": "click"}}
        )
        checkpoints.point(root, "p", written.digest)
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    for folder in (tmp_path / "objects").iterdir():
        if not folder.name.startswith("."):
            checkpoints.open_folder(folder)
    written = checkpoints.write_checkpoint(
        tmp_path, "test", {"x": np.arange(5.0)}, {"goal": "click"}
    )
    checkpoints.point(tmp_path, "p", written.digest)
    assert checkpoints.resolve(tmp_path, "p") == written.digest
    checkpoints.read_checkpoint(tmp_path, written.digest)


@pytest.mark.parametrize(
    ("arrays", "manifest", "limit", "torn"),
    [
        ({"x": np.arange(5.0)}, {}, 0, "x.npy"),
        ({"x": np.arange(50_000.0)}, {}, 100_000, "x.npy"),
        ({"x": np.arange(5.0)}, {"facts": "f" * 50_000}, 10_000, "manifest.json"),
    ],
    ids=["no byte", "half an array", "half a manifest"],
)
def test_a_full_disk_leaves_the_old_checkpoint_and_no_half_of_the_new_one(
    tmp_path: Path, arrays: dict, manifest: dict, limit: int, torn: str
):
    old = write(tmp_path)
    checkpoints.point(tmp_path, "newest", old.digest)
    with files_of_at_most(limit), pytest.raises(OSError, match="make room") as caught:
        checkpoints.write_checkpoint(tmp_path, "test", arrays, manifest)
    assert caught.value.errno == errno.EFBIG
    assert Path(caught.value.filename).name == torn
    assert [path.name for path in (tmp_path / "objects").iterdir()] == [old.digest]
    assert checkpoints.resolve(tmp_path, "newest") == old.digest
    checkpoints.read_checkpoint(tmp_path, old.digest)
    new = checkpoints.write_checkpoint(tmp_path, "test", arrays, manifest)
    checkpoints.point(tmp_path, "newest", new.digest)
    assert checkpoints.resolve(tmp_path, "newest") == new.digest


def test_a_full_disk_leaves_the_pointer_where_it_was(tmp_path: Path):
    old, new = write(tmp_path), write(tmp_path, stream_position=8)
    checkpoints.point(tmp_path, "newest", old.digest)
    with files_of_at_most(10), pytest.raises(OSError, match=r"make room.*newest"):
        checkpoints.point(tmp_path, "newest", new.digest)
    assert checkpoints.resolve(tmp_path, "newest") == old.digest
    assert [path.name for path in (tmp_path / "pointers").iterdir()] == ["newest.json"]
    checkpoints.point(tmp_path, "newest", new.digest)
    assert checkpoints.resolve(tmp_path, "newest") == new.digest


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
def test_a_disk_that_is_full_at_any_moment_leaves_the_old_checkpoint_and_takes_the_new_one_later(
    tmp_path: Path,
):
    """Really full: a page more room at each try, until the whole checkpoint and pointer fit."""
    script = textwrap.dedent("""
        import json, os, sys
        from pathlib import Path
        import numpy as np
        from ad_pipeline import checkpoints
        root = Path(sys.argv[1])
        def write(position):
            arrays = {"x": np.arange(5_000.0) + position, "y": np.arange(9.0)}
            written = checkpoints.write_checkpoint(root, "test", arrays, {"position": position})
            checkpoints.point(root, "newest", written.digest)
            return written.digest
        old = write(0)
        for pages in range(40):
            with (root / "filler").open("wb") as filler:
                room = os.statvfs(root)
                filler.write(bytes((room.f_bavail - pages) * room.f_frsize))
            try:
                write(1)
                problem = None
            except OSError as error:
                problem = error.errno
            newest = checkpoints.resolve(root, "newest")
            left = [p.name for p in (root / "objects").iterdir()]
            whole = all(checkpoints.open_folder(root / "objects" / name) for name in left)
            print(json.dumps([problem, newest == old, whole]))
            (root / "filler").unlink()
            if problem is None:
                break
    """)
    said = run_on_small_disk(tmp_path, "1m", script)
    *tries, (problem, still_old, whole) = [json.loads(line) for line in said.splitlines()]
    assert len(tries) > 10
    assert all(attempt == [errno.ENOSPC, True, True] for attempt in tries)
    assert (problem, still_old, whole) == (None, False, True)


def test_a_written_file_is_byte_for_byte_what_numpy_writes(tmp_path: Path):
    """Arrays go to disk block by block and without a copy; their files are NumPy's own."""
    arrays = {
        "long": np.arange(checkpoints.BLOCK_BYTES // 4, dtype=np.float64),
        "none": np.empty((0, 3), dtype=np.float32),
        "transposed": np.arange(12).reshape(3, 4).T,
        "strided": np.arange(20)[::3],
        "text": np.array(["a", "longer"]),
        "number": np.float64(3.5),
    }
    written = checkpoints.write_checkpoint(tmp_path, "test", arrays, {})
    for name, array in arrays.items():
        np.save(tmp_path / "theirs.npy", np.ascontiguousarray(array))
        ours = (written.path / f"{name}.npy").read_bytes()
        assert ours == (tmp_path / "theirs.npy").read_bytes(), name


def test_a_sweep_removes_what_no_pointer_names_and_nobody_needs(tmp_path: Path):
    kept, needed, forgotten = (write(tmp_path, stream_position=n) for n in range(3))
    checkpoints.point(tmp_path, "online/click/2026-03-02-07:00", kept.digest)
    (tmp_path / "objects" / ".writing-killed").mkdir()
    size = sum(path.stat().st_size for path in forgotten.path.iterdir())
    swept = checkpoints.sweep(tmp_path, {needed.digest})
    assert (swept.removed, swept.removed_bytes, swept.kept) == (1, size, 2)
    left = {path.name for path in (tmp_path / "objects").iterdir()}
    assert left == {kept.digest, needed.digest}
    assert checkpoints.sweep(tmp_path, {needed.digest}).removed == 0
    assert checkpoints.sweep(tmp_path / "nothing there") == checkpoints.Swept(0, 0, 0, 0)


def test_a_pointer_can_be_taken_away_and_the_others_are_listed(tmp_path: Path):
    written = write(tmp_path)
    for name in ("online/click/2026-03-02-07:00", "online/click/2026-03-02-08:00", "batch/click"):
        checkpoints.point(tmp_path, name, written.digest)
    hours = checkpoints.pointed_names(tmp_path, "online/click")
    assert hours == ["online/click/2026-03-02-0700", "online/click/2026-03-02-0800"]
    checkpoints.unpoint(tmp_path, "online/click/2026-03-02-07:00")
    checkpoints.unpoint(tmp_path, "online/click/2026-03-02-07:00")
    assert checkpoints.pointed_names(tmp_path, "") == ["batch/click", *hours[1:]]
    with pytest.raises(checkpoints.MissingCheckpoint):
        checkpoints.resolve(tmp_path, hours[0])


def test_a_sweep_waits_for_whoever_has_not_pointed_yet_and_says_so(tmp_path: Path):
    with checkpoints.unswept(tmp_path):
        written = write(tmp_path)
        with pytest.raises(checkpoints.CheckpointsBusy, match="written to by another process"):
            checkpoints.sweep(tmp_path, wait_seconds=0.1)
        with checkpoints.unswept(tmp_path, wait_seconds=0.1):  # writers do not hinder each other
            checkpoints.point(tmp_path, "newest", written.digest)
    assert checkpoints.sweep(tmp_path).removed == 0


@pytest.mark.parametrize("call", ["rename", "unlink", "rmdir", "fsync"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_sweep_that_is_killed_leaves_whole_checkpoints_and_the_next_one_ends_it(
    tmp_path: Path, call: str, number: int
):
    """The process really dies, in the number-th such call of the sweep."""
    kept, *_ = [write(tmp_path, stream_position=n) for n in range(4)]
    checkpoints.point(tmp_path, "newest", kept.digest)
    script = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        from ad_pipeline import checkpoints
        true_call, left = os.{call}, {number}
        def deadly(*args, **kwargs):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return true_call(*args, **kwargs)
        os.{call} = deadly
        checkpoints.sweep(Path(sys.argv[1]))
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    if (call, number) not in {("fsync", 2), ("fsync", 3)}:  # it flushes its folder once
        assert killed.returncode == -signal.SIGKILL
    for folder in (tmp_path / "objects").iterdir():
        if not folder.name.startswith("."):
            checkpoints.open_folder(folder)
    checkpoints.sweep(tmp_path)
    assert [path.name for path in (tmp_path / "objects").iterdir()] == [kept.digest]
    assert checkpoints.read_checkpoint(tmp_path, checkpoints.resolve(tmp_path, "newest"))
