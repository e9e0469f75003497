"""Whether anything that was changed is refused before it serves, and how fast one is back.

A small bundle (one goal, the online and the batch expert) and a checkpoint are made for each seed.
Each trial flips one byte of one file in a copy and asks the three places where it must be refused:
at write (the disk takes another byte than was handed over), at promotion, at load by a scorer. The
negative control is the same copy with nothing changed: accepted everywhere. The canary trials
rewrite the bundle with right hashes and one canary's score 1e-9 off. The time to go back is that of
a rollback from a damaged bundle until a scorer has opened the one before, on this small bundle.

    python -m benchmarks.evidence.trust_integrity [--seeds N] [--fresh] [--budget]
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from ad_pipeline import checkpoints
from ad_pipeline.checkpoints import (
    Checkpoint,
    CorruptCheckpoint,
    open_folder,
    read_checkpoint,
    write_checkpoint,
)
from ad_pipeline.features.encoding import (
    FeatureContract,
    LookedUp,
    RateGoal,
    category_hashes,
    dense,
    read_columns,
    request_columns,
    slots,
)
from ad_pipeline.learners.batch.batch_model import BatchModel, train_batch_model
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.monitoring.production.rollback_drill import flip_byte, with_canary_off
from ad_pipeline.serving.bundle import Bundle, CorruptBundle, GoalModels, export_bundle
from ad_pipeline.serving.pointers import CURRENT, Pointer, move_pointer
from ad_pipeline.serving.promotion import promote, rollback
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline.settings import BatchSettings, Configuration
from benchmarks.claims import Claim, Section, seed_text
from benchmarks.studies import Result, Study, Values, command_line, values_of

ROWS = 1_500
FLIPS_A_FILE = 4
CANARY_TRIALS = 5
SEEDS = tuple(range(201, 211))
TRIALS = "trials"

CONTRACT = FeatureContract(
    categorical=("publisher", "creative"),
    numeric=("floor_price",),
    crosses=(("publisher", "creative"),),
    entities=(),
    goals=(RateGoal("click", "impression"),),
    rate_strength=20.0,
    rate_window_hours=24,
    rate_lag_hours=1,
    bits=10,
)

REFUSALS = (CorruptBundle, CorruptCheckpoint)


def run(arm: str, seed: int) -> Values:
    """Damage every file of a bundle and of a checkpoint, and count where it was refused.

    Parameters
    ----------
    arm : str
    seed : int

    Returns
    -------
    dict of str to float
        "<place>/refused" and "<place>/trials" of each place, "clean/..." of the unchanged copies,
        and "rollback_seconds".
    """
    draw = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix=f"trust_integrity-{arm}-") as folder:
        root = Path(folder)
        bundle = small_bundle(root / "bundles", draw)
        source = read_checkpoint(root / "bundles", bundle.digest)
        checkpoint = write_checkpoint(
            root / "checkpoints", "a learner's state", {"z": draw.normal(size=4_096)},
            {"parent": None}, {"model.txt": draw.bytes(2_000)},
        )  # fmt: skip
        return {
            **_at_promotion_and_load(root, source, draw),
            **_at_load_of_a_checkpoint(root, checkpoint, draw),
            **_at_write(root, source, draw),
            **_canaries(root, source, draw),
            **_back(root, source),
        }


def small_bundle(bundles: Path, draw: np.random.Generator) -> Bundle:
    """Train both experts on drawn requests, and export them."""
    requests = [
        {
            "publisher": f"p{int(draw.integers(0, 20))}",
            "creative": f"c{int(draw.integers(0, 9))}",
            "floor_price": float(draw.lognormal(1, 1)),
        }
        for _ in range(ROWS)
    ]
    columns = request_columns(CONTRACT, requests)
    read = read_columns(CONTRACT, columns)
    counts = LookedUp.nothing(CONTRACT, ROWS)
    hashed = slots(CONTRACT, read, counts)
    labels = (draw.random(ROWS) < 0.1 + 0.02 * (hashed[:, 0] % 20)).astype(np.uint8)
    expert = FTRLExpert(CONTRACT.bits, [Configuration(alpha=0.3, l1=0.05, l2=0.1)])
    online = expert.predict_then_learn(hashed, labels)[:, 0]
    train = np.arange(ROWS) < 2 * ROWS // 3
    batch = train_batch_model(
        dense(CONTRACT, read, counts), category_hashes(CONTRACT, read), online, labels, train,
        ~train, CONTRACT.dense_names, CONTRACT.categorical,
        BatchSettings(minimum_positives=5, minimum_leaf_rows=20, rounds=20, leaves=7),
    )  # fmt: skip
    if not isinstance(batch, BatchModel):
        raise TypeError(f"no batch model was trained: {batch}")
    models = GoalModels(
        goal="click",
        online=ExportedWeights.exact(expert.linear_weights()),
        online_checkpoint="a" * 64,
        batch=batch.exported,
        batch_checkpoint="b" * 64,
        ensemble=None,
    )
    return export_bundle(
        bundles,
        contract=CONTRACT,
        goals=[models],
        dataset="trust_integrity",
        label_watermark_us=1,
        canaries=requests[:8],
    )


def _refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except REFUSALS:
        return True
    return False


def _copied(source: Checkpoint, root: Path) -> Path:
    target = root / "objects" / source.digest
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(source.path, target)
    return target


def _flips(folder: Path, draw: np.random.Generator) -> list[tuple[str, int]]:
    """Return files and offsets: the first and last byte of each, and some between."""
    found = []
    for path in sorted(folder.iterdir()):
        size = path.stat().st_size
        drawn = draw.integers(0, size, FLIPS_A_FILE - 2).tolist()
        found += [(path.name, offset) for offset in (0, size - 1, *drawn)]
    return found


def _counted(place: str, refused: Sequence[bool]) -> Values:
    return {f"{place}/refused": float(sum(refused)), f"{place}/trials": float(len(refused))}


def _at_promotion_and_load(root: Path, source: Checkpoint, draw: np.random.Generator) -> Values:
    bundles, serving = root / "copy" / "bundles", root / "copy" / "serving"
    promotion, load = [], []

    def asked() -> None:
        shutil.rmtree(serving, ignore_errors=True)
        promotion.append(
            _refused(lambda: promote(serving, bundles, source.digest, {}, watermark_us=1))
        )
        move_pointer(serving, CURRENT, Pointer(source.digest, 1))
        load.append(_refused(lambda: Scorer.current(serving)))

    for name, offset in _flips(source.path, draw):
        flip_byte(_copied(source, bundles) / name, offset)
        asked()
    values = {**_counted("promotion", promotion), **_counted("load", load)}
    promotion, load = [], []
    for _ in range(len(list(source.path.iterdir()))):
        _copied(source, bundles)
        asked()
    return values | _counted("clean promotion", promotion) | _counted("clean load", load)


def _at_load_of_a_checkpoint(root: Path, source: Checkpoint, draw: np.random.Generator) -> Values:
    refused = []
    for name, offset in _flips(source.path, draw):
        folder = _copied(source, root / "copy" / "checkpoints")
        flip_byte(folder / name, offset)
        refused.append(_refused(lambda folder=folder: open_folder(folder)))
    folder = _copied(source, root / "copy" / "checkpoints")
    clean = [_refused(lambda: open_folder(folder))]
    return _counted("checkpoint", refused) | _counted("clean checkpoint", clean)


def _at_write(root: Path, source: Checkpoint, draw: np.random.Generator) -> Values:
    """Let the disk take another byte than was handed over, just before the folder gets its name."""
    flush = checkpoints._flush_file
    manifest = {n: v for n, v in source.manifest.items() if n not in ("files", "format", "kind")}
    files = {name: path.read_bytes() for name, path in source.files.items()}

    def write(name: str | None, offset: int) -> bool:
        def flush_and_damage(path: Path) -> None:
            flush(path)
            if path.name == name:
                flip_byte(path, offset)

        target = root / "copy" / "written"
        shutil.rmtree(target, ignore_errors=True)
        kind = source.manifest["kind"]
        with patch.object(checkpoints, "_flush_file", flush_and_damage):
            return _refused(lambda: write_checkpoint(target, kind, source.arrays, manifest, files))

    refused = [write(name, offset) for name, offset in _flips(source.path, draw)]
    return _counted("write", refused) | _counted("clean write", [write(None, 0)])


def _canaries(root: Path, source: Checkpoint, draw: np.random.Generator) -> Values:
    bundles, serving = root / "copy" / "bundles", root / "copy" / "serving"
    refused, clean = [], []
    shifts = [*(1e-9 * draw.choice([-1.0, 1.0], CANARY_TRIALS)).tolist(), 0.0]
    for shift in shifts:
        _copied(source, bundles)
        shutil.rmtree(serving, ignore_errors=True)
        digest = with_canary_off(source, bundles, shift)
        asked = clean if shift == 0 else refused
        asked.append(_refused(lambda d=digest: promote(serving, bundles, d, {}, watermark_us=1)))
        move_pointer(serving, CURRENT, Pointer(digest, 1))
        asked.append(_refused(lambda: Scorer.current(serving)))
    return _counted("canary", refused) | _counted("clean canary", clean)


def _back(root: Path, source: Checkpoint) -> Values:
    """Time a rollback from a damaged bundle, and compare what serves afterwards."""
    bundles, serving = root / "copy" / "bundles", root / "copy" / "serving"
    _copied(source, bundles)
    shutil.rmtree(serving, ignore_errors=True)
    promote(serving, bundles, source.digest, {}, watermark_us=1)
    manifest = {n: v for n, v in source.manifest.items() if n not in ("files", "format", "kind")}
    files = {name: path.read_bytes() for name, path in source.files.items()}
    twin = write_checkpoint(
        bundles, source.manifest["kind"], source.arrays, manifest | {"facts": {"twin": 1}}, files
    )
    promote(serving, bundles, twin.digest, {}, watermark_us=2)
    flip_byte(twin.path / "click.online.values.npy", -1)
    started = time.perf_counter()
    rollback(serving, bundles)
    Scorer.current(serving)
    seconds = time.perf_counter() - started
    serves = Scorer.current(serving).bundle.digest == source.digest
    return {"rollback_seconds": seconds, "rolled_back": float(serves)}


def _sum(results: Sequence[Result], name: str) -> int:
    return round(sum(values_of(results, TRIALS, name)))


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what all trials say: a single one that was let pass refutes its claim."""
    controls = ("write", "promotion", "load", "checkpoint", "canary")
    wrongly = {place: _sum(results, f"clean {place}/refused") for place in controls}
    clean = {place: _sum(results, f"clean {place}/trials") for place in controls}

    def counted(key: str, says: str, place: str) -> Claim:
        refused, trials = _sum(results, f"{place}/refused"), _sum(results, f"{place}/trials")
        return Claim(
            key=f"trust_integrity.{key}",
            says=says,
            figure=f"{refused:,} of {trials:,}",
            interval="exact",
            seeds=seed_text(SEEDS),
            met=refused == trials > 0,
            control=f"unchanged copies: {wrongly[place]} of {clean[place]} refused, none allowed",
            control_met=wrongly[place] == 0 < clean[place],
        )

    seconds = values_of(results, TRIALS, "rollback_seconds")
    back = values_of(results, TRIALS, "rolled_back")
    return [
        counted("write", "A byte that the disk takes otherwise is refused at write.", "write"),
        counted(
            "promotion", "One flipped byte of any file of a bundle is refused at promotion.",
            "promotion",
        ),
        counted("load", "The same is refused by a scorer that starts.", "load"),
        counted(
            "checkpoint", "One flipped byte of any file of a checkpoint is refused at load.",
            "checkpoint",
        ),
        counted(
            "canary", "A canary off by 1e-9, hashes right, is refused at promotion and at load.",
            "canary",
        ),
        Claim(
            key="trust_integrity.rollback",
            says="From a damaged bundle to the one before, opened by a scorer, within 5 s.",
            figure=f"{float(np.median(seconds)):.2f} s, at most {max(seconds):.2f} s",
            interval="range of the seeds",
            seeds=seed_text(SEEDS),
            met=max(seconds) <= 5.0,
            control=f"what serves afterwards is the earlier bundle in {sum(back):.0f} of "
            f"{len(back)} seeds",
            control_met=all(back),
        ),
    ]  # fmt: skip


STUDY = Study(
    name="trust_integrity",
    settings={
        "rows": ROWS,
        "flips": FLIPS_A_FILE,
        "canaries": CANARY_TRIALS,
        "bits": CONTRACT.bits,
    },
    seeds={TRIALS: SEEDS},
    run=run,
    seconds=10.0,
)

SECTION = Section(
    study=STUDY,
    title="Integrity of what serves",
    method=(
        "A small bundle and a checkpoint of each seed; of every file the first and last byte and "
        "two drawn ones are flipped, one at a time, in a copy. Asked are the writer (the disk "
        "takes another byte than was handed over), promotion, and a scorer that starts. The "
        "bundle carries no names for people: such files are verified when an explanation opens "
        "them, which the tests of `serving` show."
    ),
    claims=claims,
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
