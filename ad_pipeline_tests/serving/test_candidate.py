"""The history that a candidate carries is that of the checkpoint it came from."""

import numpy as np

from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.learners.online.step import RiverExpert
from ad_pipeline.serving.candidate import LAST_UPDATE, slot_history
from ad_pipeline.settings import Configuration


def learnt() -> tuple[FTRLExpert, np.ndarray, np.ndarray]:
    """Return an expert of two configurations, its rows, and their labels."""
    draw = np.random.default_rng(4)
    slots = draw.integers(0, 512, (2000, 6)).astype(np.uint32)
    labels = (draw.random(2000) < 0.1 + 0.5 * (slots[:, 0] % 3 == 0)).astype(np.uint8)
    expert = FTRLExpert(10, [Configuration(l1=1.0), Configuration(l1=0.0, alpha=0.5)])
    expert.learn(slots, labels, np.ones(2000))
    return expert, slots, labels


def test_every_exported_slot_has_its_own_n_and_hour() -> None:
    expert, _, _ = learnt()
    arrays, manifest = expert.state()
    arrays[LAST_UPDATE] = (500_000 + arrays["slots"] % 7).astype(np.int32)
    restored = FTRLExpert.restore(arrays, manifest)
    for configuration in (0, 1):
        weights = ExportedWeights.exact(restored.linear_weights(configuration))
        found = slot_history(restored, arrays, weights, configuration)
        assert found is not None
        assert len(found.n) == weights.coordinates > 100
        assert np.array_equal(found.last_update_hours, 500_000 + weights.slots % 7)
        place = np.searchsorted(arrays["slots"], weights.slots)
        root = arrays["z_sqrt_n"][place, 1, configuration]
        assert np.array_equal(found.n, np.square(root))


def test_a_checkpoint_without_hours_says_so_and_river_keeps_no_history() -> None:
    expert, slots, labels = learnt()
    weights = ExportedWeights.exact(expert.linear_weights())
    found = slot_history(expert, expert.state()[0], weights)
    assert found is not None
    assert set(found.last_update_hours.tolist()) == {-1}
    river = RiverExpert("river.linear_model.LogisticRegression", {}, 10)
    river.learn(slots[:50], labels[:50], np.ones(50))
    linear = river.linear_weights()
    assert linear is not None
    assert slot_history(river, river.state()[0], ExportedWeights.exact(linear)) is None
