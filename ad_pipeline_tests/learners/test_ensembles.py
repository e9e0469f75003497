"""Held-out forecasts say what their mixture is made of, and the settings name the mixture."""

from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.checkpoints import write_checkpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.evaluation.held_out import ENSEMBLE
from ad_pipeline.evaluation.progressive import EXPERTS
from ad_pipeline.hashing import MISSING_LABEL, hash_strings, seed_of
from ad_pipeline.learners.batch import batch_hours
from ad_pipeline.learners.ensemble.ensemble import AVERAGE, STACKED, VOTING
from ad_pipeline.learners.ensemble.ensembles import fit_ensembles, held_out_forecasts, open_ensemble
from ad_pipeline.settings import EnsembleSettings, Settings
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.learners.test_provisional import START, market, written

RETRAIN_HOURS = 40


def deployed(
    folder: Path, mixture: str, positives: int = 300, sliced_by: str | None = None
) -> Deployment:
    """Return a market whose batch model was trained anew every 40 hours of serving."""
    found = written(market(5, positives, (0.5, 0.5)), folder)
    settings = found.dataset.settings
    ensemble = EnsembleSettings.model_validate({"mixture": mixture, "calibration_slice": sliced_by})
    named = settings.model_copy(update={"ensemble": ensemble})
    deployment = Deployment(found.dataset.model_copy(update={"settings": named}), found.home)
    with Warehouse(deployment.warehouse).writer() as connection:
        for number in range(4):
            watermark_us = START + number * RETRAIN_HOURS * HOUR_US
            digest = write_checkpoint(
                deployment.checkpoints,
                batch_hours.KIND,
                {},
                {"label_watermark_us": watermark_us},
            ).digest
            connection.execute(
                "UPDATE learners.batch_predictions SET model_hash = $digest "
                "WHERE serving_us >= $start_us",
                {"digest": digest, "start_us": watermark_us},
            )
    return deployment


def test_the_settings_know_every_expert_and_every_mixture() -> None:
    known = set(get_args(EnsembleSettings.model_fields["mixture"].annotation))
    assert known == {"auto", *EXPERTS, AVERAGE, VOTING, STACKED}
    with pytest.raises(ValueError, match="average"):
        EnsembleSettings.model_validate({"mixture": "median"})
    with pytest.raises(ValueError, match="names 'deep', which is not there"):
        Settings.model_validate({"ensemble": {"mixture": "deep"}})
    named = Settings.model_validate({"ensemble": {"mixture": "deep"}, "deep": {}})
    assert named.ensemble.mixture == "deep"


@pytest.mark.parametrize("mixture", ["auto", "online", "average", "voting", "stacked"])
def test_held_out_forecasts_are_those_of_the_mixture_that_the_settings_name(
    mixture: str, tmp_path: Path
) -> None:
    deployment = deployed(tmp_path / "home", mixture)
    warehouse = Warehouse(deployment.warehouse)
    (fitted,) = fit_ensembles(warehouse, deployment)
    (held_out,) = held_out_forecasts(warehouse, deployment)
    parts = held_out.mixture
    assert parts is not None
    assert parts.kind == fitted.ensemble.kind
    assert mixture in ("auto", parts.kind)
    forecast = held_out.probabilities[ENSEMBLE]
    assert forecast.tobytes() == fitted.ensemble.apply(parts.logits).tobytes()
    for row in range(0, len(forecast), 499):
        one = {name: values[row : row + 1] for name, values in parts.logits.items()}
        assert fitted.ensemble.apply(one).tobytes() == forecast[row : row + 1].tobytes()
    assert set(parts.logits) == {"online", "batch"}
    assert sum(parts.shares.values()) == pytest.approx(1.0)
    compared = fitted.ensemble.facts["provisional"]["not_compared"]
    assert ("names the mixture" in compared) is (mixture != "auto")


def test_publishers_that_differ_are_calibrated_apart_and_held_out_rows_know_theirs(
    tmp_path: Path,
) -> None:
    """Two thirds of the positives and a third of the negatives fall to one publisher."""
    deployment = deployed(tmp_path / "home", "average", 1_500, "publisher_id")
    warehouse = Warehouse(deployment.warehouse)
    with warehouse.writer() as connection:
        connection.execute(
            "CREATE TABLE events.impressions AS SELECT impression_id, "
            "serving_us AS received_us, 'unused' AS other, CASE WHEN label + "
            "CAST(substr(impression_id, 2) AS INTEGER) % 3 >= 2 THEN 'one' END AS publisher_id "
            "FROM examples.labelled_impressions"
        )
        publishers = dict(
            connection.execute("SELECT impression_id, publisher_id FROM events.impressions")
            .fetchall()
        )  # fmt: skip
    (fitted,) = fit_ensembles(warehouse, deployment)
    layer = fitted.ensemble.calibration
    shifts = {each.name: each.calibration.shift for each in layer.corrections}
    assert shifts["one"] > 0.2 > -0.1 > shifts[MISSING_LABEL]
    assert "2 values of publisher_id corrected" in fitted.description
    start_us, end_us = layer.matured_us
    assert [start_us, end_us] == fitted.ranges["calibration"]
    reopened = open_ensemble(deployment, fitted.goal)
    assert reopened is not None
    assert reopened.ensemble == fitted.ensemble
    (held_out,) = held_out_forecasts(warehouse, deployment)
    assert held_out.mixture is not None
    values = pa.array([publishers[each] for each in held_out.impression_ids.to_pylist()])
    hashes = hash_strings(values, seed_of("publisher_id"))
    expected = fitted.ensemble.apply(held_out.mixture.logits, hashes)
    assert held_out.probabilities[ENSEMBLE].tobytes() == expected.tobytes()
    for publisher in ("one", None):
        rows = np.array([value == publisher for value in values.to_pylist()])
        ratio = held_out.labels[rows].sum() / expected[rows].sum()
        assert ratio == pytest.approx(1.0, abs=0.25)


def test_the_age_of_the_batch_model_counts_from_the_end_of_its_labels(tmp_path: Path) -> None:
    deployment = deployed(tmp_path / "home", "auto")
    warehouse = Warehouse(deployment.warehouse)
    list(fit_ensembles(warehouse, deployment))
    (held_out,) = held_out_forecasts(warehouse, deployment)
    assert held_out.mixture is not None
    served = held_out.serving_us - START
    np.testing.assert_array_equal(
        held_out.mixture.batch_ages_us, served % (RETRAIN_HOURS * HOUR_US)
    )
    with warehouse.writer() as connection:
        connection.execute("DELETE FROM learners.batch_predictions")
    list(fit_ensembles(warehouse, deployment))
    (alone,) = held_out_forecasts(warehouse, deployment)
    assert alone.mixture is not None
    assert (alone.mixture.batch_ages_us == -1).all()
