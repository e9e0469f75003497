"""The report compares the ensemble with the best expert by two bounds, which are not the same."""

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation.held_out import BASE_RATE, ENSEMBLE, HeldOut, held_out_rows
from ad_pipeline.settings import Settings


def test_the_one_sided_bound_of_the_ensemble_stands_in_the_report_beside_the_two_sided_one() -> (
    None
):
    """The one-sided bound is the tighter one: a check by the two-sided one asks for too much."""
    draw = np.random.default_rng(1)
    rows = 4_000
    true = draw.uniform(0.05, 0.5, rows)
    labels = (draw.random(rows) < true).astype(np.int8)
    held_out = HeldOut(
        goal="click",
        start_us=0,
        end_us=20 * HOUR_US,
        impression_ids=pa.chunked_array([[str(row) for row in range(rows)]]),
        labels=labels,
        hours_us=np.arange(rows) // 200 * HOUR_US,
        serving_us=np.zeros(rows, dtype=np.int64),
        probabilities={
            BASE_RATE: np.full(rows, labels.mean()),
            "online": true * 0.9,
            ENSEMBLE: true,
        },
    )
    report = {
        row["metric"]: row
        for row in held_out_rows(held_out, Settings(), None).to_pylist()
        if row["expert"] == "ensemble v. online"
    }
    found = held_out.difference(ENSEMBLE, "online", Settings())
    assert report["relative_log_loss_upper"]["value"] == found.upper
    assert report["relative_log_loss"]["high"] == found.high
    assert found.relative < found.upper < found.high
