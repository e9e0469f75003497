"""The clicks of a published log: read as the files hold them, and cut into slots."""

from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.monitoring.published.log import (
    LoggedClicks,
    encode_clicks,
    number_bins,
    read_clicks,
)

CRITEO = [
    # click, conversion, 8 numbers, 9 categories
    "0\t900\t1\t\t3\t4\t5\t6\t7\t8\ta\tb\tc\td\te\tf\tg\th\ti",
    "3600\t\t1\t2\t3\t4\t5\t6\t7\t8\ta\tb\tc\td\te\tf\tg\th\t",
    "7200\t2599200\t9\t2\t3\t4\t5\t6\t7\t8\ta\tb\tx\td\te\tf\tg\th\ti",
]


def written(folder: Path, name: str, lines: list[str], file: str = "data.txt") -> Deployment:
    """A deployment of a shipped dataset file beside some lines of log."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = DATA_FOLDER / name / "dataset.yaml"
    (folder / "dataset.yaml").write_text(shipped.read_text())
    (folder / file).write_text("\n".join(lines) + "\n")
    return Deployment(load_dataset(folder / "dataset.yaml"), folder / "home")


def read(deployment: Deployment, share: float = 1.0) -> LoggedClicks:
    """Its clicks."""
    return read_clicks(deployment, deployment.dataset.goals[0], share)


def test_clicks_and_conversions_are_those_of_the_file(tmp_path: Path) -> None:
    deployment = written(tmp_path, "criteo_conversions", CRITEO)
    clicks = read(deployment)
    start_us = deployment.dataset.start_us
    assert (clicks.served_us - start_us).tolist() == [0, HOUR_US, 2 * HOUR_US]
    assert clicks.arrived_us[1] == -1
    assert (clicks.arrived_us[[0, 2]] - start_us).tolist() == [HOUR_US // 4, 2_599_200_000_000]
    assert (clicks.retracted_us == -1).all()
    assert clicks.recorded_us == start_us + 2_599_200_000_000
    assert clicks.features.column("cat_3").to_pylist() == ["c", "c", "x"]
    assert clicks.features.column("int_2").to_pylist() == [None, 2.0, 2.0]
    assert clicks.refused == 0


def test_a_row_that_breaks_the_contract_is_counted_and_in_no_figure(tmp_path: Path) -> None:
    broken = CRITEO[1].replace("3600", "soon", 1)
    clicks = read(written(tmp_path, "criteo_conversions", [*CRITEO, broken]))
    assert len(clicks) == 3
    assert clicks.refused == 1


def test_payments_and_refunds_are_the_first_of_their_lists(tmp_path: Path) -> None:
    rest = "\t".join(f"[{field}]" for field in range(22))
    lines = [
        f"1746028800\t[1746032400, 1746039600]\t[1746036000]\t{rest}",
        f"1746028900\t[1746032400]\t[]\t{rest}",
        f"1746029000\t[]\t\t{rest}",
    ]
    deployment = written(tmp_path, "cascade_conversions", lines, "day-00.txt")
    clicks = read(deployment)
    start_us = deployment.dataset.start_us
    assert (clicks.arrived_us - start_us).tolist()[:2] == [HOUR_US, HOUR_US]
    assert (clicks.retracted_us - start_us).tolist()[:1] == [2 * HOUR_US]
    assert clicks.retracted_us[1:].tolist() == [-1, -1]
    assert clicks.arrived_us[2] == -1


def test_a_share_of_the_clicks_is_the_same_one_each_time(tmp_path: Path) -> None:
    lines = [CRITEO[1].replace("3600", str(3600 + second), 1) for second in range(400)]
    deployment = written(tmp_path, "criteo_conversions", lines)
    half = read(deployment, 0.5)
    assert 140 < len(half) < 260
    assert np.array_equal(half.served_us, read(deployment, 0.5).served_us)
    assert len(read(deployment)) == 400
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        read(deployment, 0.0)


def test_a_log_without_files_says_where_they_belong(tmp_path: Path) -> None:
    deployment = written(tmp_path, "criteo_conversions", CRITEO)
    (tmp_path / "data.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file beside .* matches data.txt"):
        read(deployment)


def test_numbers_fall_into_equal_bins_and_those_beyond_into_the_outer_ones() -> None:
    values = np.array([0.0, 4.9, 5.0, 10.0, 99.0, -3.0])
    fitted = np.array([True, True, True, True, False, False])
    assert number_bins(values, fitted, 10).tolist() == [0, 4, 5, 9, 9, 0]
    # Had the last two been fitted as well, the others would have moved.
    assert number_bins(values, np.full(6, True), 10).tolist() == [0, 0, 0, 1, 9, 0]
    assert number_bins(np.array([2.0, 2.0, 3.0]), np.array([True, True, False]), 4).tolist() == [
        0,
        0,
        1,
    ]


def test_each_feature_has_a_slot_of_its_own(tmp_path: Path) -> None:
    deployment = written(tmp_path, "criteo_conversions", CRITEO)
    clicks = read(deployment)
    slots = encode_clicks(clicks, deployment.dataset, np.full(3, True), 18)
    assert slots.shape == (3, 17)
    assert len(np.unique(slots[0])) == 17
    changed = slots[0] != slots[2]
    # Category 3 differs; number 1 and the empty number 2 lie at other ends of what was seen.
    assert np.flatnonzero(changed).tolist() == [2, 9, 10]
    assert (clicks.served_us[-1] - clicks.served_us[0]) < DAY_US
