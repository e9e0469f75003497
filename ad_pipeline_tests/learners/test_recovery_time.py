"""How long a recovery takes when every one of four million slots has been learnt."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import point, read_checkpoint, resolve, write_checkpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.online.online_checkpoints import KIND, pointer
from ad_pipeline.learners.online.online_hours import learn_hours, open_expert
from ad_pipeline.learners.online.recovery import GUARD, recover
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import ready_market

BITS = 22
SUSPECT = 20
SECONDS = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def touch_every_slot(market: Market, hour_us: int) -> None:
    """Give every slot of each goal's model a small state, as years of traffic would."""
    root = market.deployment.checkpoints
    for goal in market.deployment.dataset.goal_names:
        found = read_checkpoint(root, resolve(root, pointer(goal, hour_us)))
        arrays = {name: np.array(array) for name, array in found.arrays.items()}
        learnt, slots = arrays["slots"], np.arange(1 << BITS, dtype=np.uint32)
        for name in [name for name in arrays if len(arrays[name]) == len(learnt)]:
            if name != "slots":
                whole = np.full((len(slots), *arrays[name].shape[1:]), 1e-3, arrays[name].dtype)
                whole[learnt] = arrays[name]
                arrays[name] = whole
        arrays["slots"] = slots
        described = {
            name: value
            for name, value in found.manifest.items()
            if name not in ("files", "format", "kind")
        }
        written = write_checkpoint(root, KIND, arrays, described)
        point(root, pointer(goal, hour_us), written.digest)


def test_four_million_weights_are_back_within_half_a_minute(tmp_path: Path):
    """The suspect hour and the two after it are run again; more hours cost a second or so each."""
    market = ready_market(tmp_path, settings={"online": {"bits": BITS}})
    deployment, warehouse = market.deployment, Warehouse(market.deployment.warehouse)
    suspect_us = market.start_us + SUSPECT * HOUR_US
    for _ in learn_hours(warehouse, deployment, market.start_us, suspect_us):
        pass
    touch_every_slot(market, suspect_us - HOUR_US)
    for _ in learn_hours(warehouse, deployment, suspect_us, suspect_us + 3 * HOUR_US):
        pass
    (found,) = recover(warehouse, deployment, {"click": suspect_us}, GUARD, {})
    assert found.succeeded, found.outcome
    assert found.seconds is not None
    root = deployment.checkpoints
    touched = len(read_checkpoint(root, found.recovered_as).arrays["slots"])
    sys.stdout.write(f"{touched:,} slots, {found.rolled_back.hours} hours: {found.seconds:.1f} s")
    assert touched == 1 << BITS
    assert open_expert(root, found.recovered_as).width == 1  # every byte and canary proved
    assert found.seconds < SECONDS
