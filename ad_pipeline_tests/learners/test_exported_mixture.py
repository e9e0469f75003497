"""A mixture as arrays gives the bits of the ensemble that it came from."""

import numpy as np
import pytest

from ad_pipeline.learners.ensemble.calibration import Calibration
from ad_pipeline.learners.ensemble.calibration_layer import CalibrationLayer, Correction
from ad_pipeline.learners.ensemble.ensemble import Ensemble
from ad_pipeline.learners.ensemble.exported_mixture import STAGES, ExportedMixture

TABLE = Calibration("isotonic", knots=(-4.0, -2.5, 0.0, 3.0), heights=(-4.5, -2.0, 0.25, 2.0))
BETA = Calibration("beta", slope=0.8, upper_slope=1.3, shift=-0.2)
SHIFT = Calibration("shift", shift=0.125)
HASHES = np.array([3, 2**63 + 5, 17, 99], np.uint64)


def ensemble_of(overall: Calibration, kind: str, *corrections: Calibration) -> Ensemble:
    layer = CalibrationLayer(
        overall,
        (0, 1),
        100,
        10,
        "publisher" if corrections else None,
        tuple(
            Correction(slice_hash, "", each, 10, 1)
            for slice_hash, each in zip(sorted(HASHES.tolist()), corrections, strict=False)
        ),
    )
    weights = (0.3, 0.7) if kind == "voting" else (0.4, 0.75)
    return Ensemble(kind, ("online", "batch"), weights, -0.05, layer, {}, {})


def some_logits(rows: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(rows)
    logits = {name: draw.normal(-3, 3, rows) for name in ("online", "batch", "unread")}
    logits["online"][:4] = [np.nan, np.inf, -np.inf, 0.0]
    return logits


@pytest.mark.parametrize("kind", ["stacked", "voting"])
@pytest.mark.parametrize(
    "maps",
    [(SHIFT,), (TABLE,), (BETA,), (TABLE, SHIFT, BETA, TABLE), (BETA, TABLE)],
    ids=["line", "table", "beta", "corrected", "one corrected"],
)
def test_arrays_score_as_the_ensemble_does_to_the_bit(
    kind: str, maps: tuple[Calibration, ...]
) -> None:
    ensemble = ensemble_of(maps[0], kind, *maps[1:])
    logits = some_logits(600)
    slices = np.random.default_rng(1).choice(np.append(HASHES, 12345), 600).astype(np.uint64)
    arrays, manifest = ExportedMixture.of(ensemble).to_arrays()
    for array in arrays.values():
        array.flags.writeable = False
    found = ExportedMixture.from_arrays(arrays, manifest)
    expected = ensemble.apply(logits, slices)
    assert found.apply(logits, slices).tobytes() == expected.tobytes()
    stages = found.stages(logits, slices)
    assert np.array_equal(stages[:, 0], ensemble.mix(logits), equal_nan=True)
    assert np.array_equal(
        stages[:, STAGES.index("corrected")],
        ensemble.calibration.apply(ensemble.mix(logits), slices),
        equal_nan=True,
    )
    one = {name: values[7:8] for name, values in logits.items()}
    assert found.apply(one, slices[7:8])[0] == expected[7]
    assert np.nanstd(expected) > 0.01


def test_slices_that_have_corrections_must_be_said() -> None:
    found = ExportedMixture.of(ensemble_of(SHIFT, "stacked", TABLE))
    with pytest.raises(ValueError, match="publisher"):
        found.apply(some_logits(10))
    plain = ExportedMixture.of(ensemble_of(SHIFT, "stacked"))
    assert plain.apply(some_logits(10)).shape == (10,)
    with pytest.raises(KeyError, match="batch"):
        plain.apply({"online": np.zeros(1)})
