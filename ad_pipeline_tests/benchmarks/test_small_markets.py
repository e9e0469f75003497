"""An export knows what was emitted before it was made, and nothing later, at every pace."""

import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US, MINUTE_US
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.learners.online.step import Examples
from ad_pipeline.settings import Configuration
from benchmarks.small_markets import REFRESH_MINUTES, refreshed_logits

START_US = 24 * HOUR_US
END_US = START_US + 48 * HOUR_US


def expert() -> FTRLExpert:
    return FTRLExpert(10, (Configuration(l1=0.0),))


def examples() -> Examples:
    """Return one example every 7 minutes from a day before the start, all of one slot."""
    emit_us = np.arange(0, END_US, 7 * MINUTE_US)
    rows = len(emit_us)
    labels = np.random.default_rng(1).integers(0, 2, rows)
    return Examples(np.full((rows, 1), 3, dtype=np.uint32), labels, np.ones(rows), emit_us)


@pytest.mark.parametrize("minutes", REFRESH_MINUTES)
def test_an_impression_is_scored_by_what_was_emitted_before_the_newest_export(minutes: int):
    served_us = np.arange(START_US, END_US, 11 * MINUTE_US)
    tokens = np.full((len(served_us), 1), 3, dtype=np.uint32)
    log = examples()
    found = refreshed_logits(expert(), log, tokens, served_us, START_US, END_US)
    pace_us = minutes * MINUTE_US
    for row in range(0, len(served_us), 29):
        exported_us = START_US + (served_us[row] - START_US) // pace_us * pace_us
        before = log.emit_us < exported_us
        alone = expert()
        alone.learn(log.slots[before], log.labels[before], log.weights[before])
        assert found[f"refreshed_{minutes}m"][row] == alone.logits(tokens[:1])[0, 0]
    # Negative control: exports differ, so that a wrong one would have been seen.
    assert 2 <= len(np.unique(found[f"refreshed_{minutes}m"])) <= 48 * 60 // minutes + 1
