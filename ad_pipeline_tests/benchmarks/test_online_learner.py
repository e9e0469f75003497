"""The benchmark of the online learner on a tiny log: its keys, and that losses are held equal.

How fast anything is, is not tested.
"""

import os
import stat
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ad_pipeline.features import encoding
from ad_pipeline_tests.benchmarks.test_speed import figures_of
from benchmarks.click_log import (
    CATEGORIES,
    LABEL,
    ClickLog,
    feature_contract,
    write_parquet_and_vw_text,
)
from benchmarks.speed import learn_parquet, online_learner, online_switches
from benchmarks.speed.online_learner import Processes, Setting, VowpalWabbit

SETTING = Setting(alpha=0.05, beta=1.0, l1=0.5, l2=1.0)

REACH = {
    "core_vw_cache_ratio": (8.0, "higher"),
    "touch_ratio": (2.5, "lower"),
    "vw_text_ratio": (4.0, "higher"),
    "vw_cache_ratio": (2.0, "higher"),
    "river_ratio": (100.0, "higher"),
    "grid8_ratio": (4.0, "lower"),
    "decay_ratio": (1.3, "lower"),
    "admission_ratio": (1.3, "lower"),
    "confidence_ratio": (1.3, "lower"),
}


@pytest.mark.slow
def test_the_benchmark_prints_every_ratio_with_what_it_should_reach():
    pytest.importorskip("vowpalwabbit")
    figures = figures_of("online_learner", "--rows", "40000")
    for key, (reach, better) in REACH.items():
        assert (figures[key].reach, figures[key].better) == (reach, better)
        assert figures[key].value > 0
    for key in ("core_vw_cache_ratio", "touch_ratio", "vw_text_ratio", "vw_cache_ratio"):
        assert figures[key].limit
    assert figures["grid8_loss_difference"].value == 0.0
    assert abs(figures["core_loss_difference"].value) < 1e-5
    assert abs(figures["whole_loss_difference"].value) < 5e-4
    assert 0.1 < figures["core_loss"].value < 0.6


def test_the_kernel_and_vowpal_wabbit_agree_on_the_hashed_click_log(tmp_path: Path):
    pytest.importorskip("vowpalwabbit")
    slots, labels = online_learner.hashed_rows(4_000)
    assert slots.shape == (4_000, 39)
    text = tmp_path / "slots.vw"
    online_learner.write_vw_slots(text, labels, slots)
    theirs = VowpalWabbit(Processes(tmp_path / "bytecode")).train(
        SETTING, "--noconstant", *online_learner.cached(text)
    )
    ours = online_learner.learn_slots(SETTING, slots, labels)
    assert ours.loss == pytest.approx(theirs.loss, abs=online_learner.SLOTS_TOLERANCE)
    # Negative control: another setting is told apart.
    other = online_learner.learn_slots(Setting(0.06, 1.0, 0.5, 1.0), slots, labels)
    assert other.loss != pytest.approx(theirs.loss, abs=online_learner.SLOTS_TOLERANCE)


@pytest.mark.parametrize("waiting", [0, 2, 100])
def test_a_parquet_log_learnt_by_groups_gives_the_loss_of_its_hashed_rows(
    waiting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whichever thread hashes, the learner must see the rows in the order of the log."""
    monkeypatch.setattr(learn_parquet, "GROUPS_WAITING", waiting)
    monkeypatch.setattr(learn_parquet, "LEARNT_ROWS", 300)
    monkeypatch.setattr("benchmarks.click_log.CHUNK_ROWS", 700)
    log = ClickLog(seed=3)
    parquet = tmp_path / "log.parquet"
    write_parquet_and_vw_text(log.chunks(4_000), parquet, tmp_path / "log.vw")
    assert pq.ParquetFile(parquet).num_row_groups == 6
    said = learn_parquet.learn_parquet(parquet, asdict(SETTING), tmp_path / "checkpoints")
    table = learn_parquet.open_parquet(parquet).read()
    contract = feature_contract(learn_parquet.BITS)
    slots = encoding.slots(contract, learn_parquet.columns_of(table))
    whole = online_learner.learn_slots(SETTING, slots, table.column(LABEL).to_numpy())
    assert said["loss"] == pytest.approx(whole.loss, abs=1e-12)
    assert len(list((tmp_path / "checkpoints" / "objects").iterdir())) == 1


def test_a_log_that_cannot_be_decoded_is_an_error_and_no_endless_wait(tmp_path: Path):
    parquet = tmp_path / "log.parquet"
    write_parquet_and_vw_text(ClickLog(seed=3).chunks(3_000), parquet, tmp_path / "log.vw")
    torn = bytearray(parquet.read_bytes())
    torn[4:40_000] = bytes(39_996)
    parquet.write_bytes(torn)
    with pytest.raises(OSError, match="header"):
        learn_parquet.learn_parquet(parquet, asdict(SETTING), tmp_path / "checkpoints")


def test_imports_of_the_whole_process_wait_until_decoding_has_begun():
    """Numba and pydantic take longer to import than a row group takes to decode."""
    heavy = "{'numba', 'pydantic', 'pandas', 'duckdb'} & set(sys.modules)"
    program = f"import sys, benchmarks.speed.learn_parquet\nassert not {heavy}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_configuration_in_a_grid_that_learns_otherwise_than_alone_is_found(
    monkeypatch: pytest.MonkeyPatch,
):
    slots, labels = online_learner.hashed_rows(500)
    grid = [setting.configuration for setting in online_learner.GRID[:3]]
    assert online_switches.grid_loss_difference(grid, slots, labels) == 0.0
    learn = online_switches.learn_in_batches

    def faulty(configurations, slots, labels):
        return learn(configurations, slots, labels) + (0.0 if len(configurations) == 1 else 1e-3)

    monkeypatch.setattr(online_switches, "learn_in_batches", faulty)
    assert online_switches.grid_loss_difference(grid, slots, labels) > 1e-6


def test_losses_that_differ_are_not_compared():
    """Planted fault: one contestant learns something else."""
    alike = {
        "core_loss_difference": 1e-7,
        "whole_loss_difference": -1e-4,
        "river_loss_difference": 1e-3,
        "grid8_loss_difference": 0.0,
    }
    assert online_learner.incomparable(alike) == []
    for key in alike:
        (line,) = online_learner.incomparable(alike | {key: -0.01})
        assert line.startswith(f"NOT COMPARABLE: {key}")
        assert online_learner.incomparable(alike | {key: float("nan")})


def test_a_command_line_of_vowpal_wabbit_is_used_with_one_thread_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "vw"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv, 'average loss = 0.25')\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    vw = VowpalWabbit(Processes(tmp_path / "bytecode"))
    assert vw.says == f"{program} --onethread"
    assert vw.train(SETTING).loss == 0.25
    seconds, said = vw.processes.run(str(program), "--onethread")
    assert seconds > 0
    assert "--onethread" in said


def test_rows_of_a_click_log_depend_on_its_seed_and_their_place_alone():
    whole = list(ClickLog(5).chunks(1_000, first=2))
    assert whole[0].equals(ClickLog(5).chunk(2, 1_000))
    assert not whole[0].equals(ClickLog(5).chunk(3, 1_000))
    assert not whole[0].equals(ClickLog(6).chunk(2, 1_000))
    rate = float(np.mean(whole[0].column(LABEL).to_numpy()))
    assert 0.02 < rate < 0.2
    ranks = whole[0].column(CATEGORIES[-1]).combine_chunks().indices.to_numpy()
    assert ranks.min() == 0
    assert ranks.max() > 10_000
