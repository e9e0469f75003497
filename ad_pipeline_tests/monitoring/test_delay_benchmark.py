"""The benchmark resumes after a kill, says its cost beforehand, and chooses rates from the past."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.monitoring.late_labels.arms import (
    BASE_RATE,
    ORACLE,
    PRE_TRAINED,
    RECALIBRATED,
    VANILLA,
    arms_named,
    arms_of,
)
from ad_pipeline.monitoring.late_labels.benchmark import (
    FOLDER,
    Asked,
    families_named,
    picture_file,
    record_benchmark,
)
from ad_pipeline.monitoring.late_labels.benchmark_plots import arms_lines
from ad_pipeline.monitoring.late_labels.runs import (
    RATES,
    Bench,
    KeptRuns,
    TooShort,
    default_replay,
    identity,
    tuning_replay,
)
from ad_pipeline.monitoring.late_labels.stream import LateStream
from ad_pipeline.warehouse import Warehouse, rows_of
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.monitoring.late_worlds import GOAL, linear, small_replay, small_stream

NAMES = (PRE_TRAINED, ORACLE, VANILLA, RECALIBRATED, BASE_RATE, "fake_negative_weighted")
ARMS = arms_named(arms_of(GOAL), NAMES)


@pytest.fixture(scope="module")
def stream() -> LateStream:
    return small_stream()


def bench(stream: LateStream, folder: Path) -> Bench:
    return Bench(stream, small_replay(stream), linear(stream), KeptRuns(folder))


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_benchmark_that_was_cut_off_goes_on_and_ends_in_the_same_scores(
    stream: LateStream, tmp_path: Path
) -> None:
    whole, cut = bench(stream, tmp_path / "whole"), bench(stream, tmp_path / "cut")
    whole.run(ARMS, range(2), lambda _: None)
    said: list[str] = []

    def until_the_fourth(line: str) -> None:
        said.append(line)
        if "4/12" in line:
            raise Killed

    with pytest.raises(Killed):
        cut.run(ARMS, range(2), until_the_fourth)
    left = cut.missing(ARMS, range(2))
    assert len(left) == 8
    before = {path: path.stat().st_mtime_ns for path in cut.kept.folder.glob("*.npz")}
    cut.run(ARMS, range(2), said.append)
    assert said[-1].startswith("linear 8/8")
    assert cut.missing(ARMS, range(2)) == []
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    for arm in ARMS:
        for seed in range(2):
            ours, theirs = cut.scores(arm, seed), whole.scores(arm, seed)
            assert np.array_equal(ours.log_odds, theirs.log_odds)
            assert ours.gradient_examples == theirs.gradient_examples
    assert cut.seconds(ARMS, range(2)) == 0.0
    with pytest.raises(LookupError, match="no run of linear, 'oracle', seed 7"):
        cut.scores(ARMS[1], 7)


def test_rates_are_chosen_from_what_was_final_before_the_stream_begins(
    stream: LateStream, tmp_path: Path
) -> None:
    other = small_stream()
    replay = small_replay(stream)
    after = other.matured_us >= replay.split_us
    other.labels[after] ^= 1
    chosen = []
    for name, each in (("as it is", stream), ("another future", other)):
        chosen.append(bench(each, tmp_path / name).chosen_rates(ARMS))
    assert chosen[0] == chosen[1]
    assert set(chosen[0].values()) <= set(RATES)
    assert tuning_replay(stream, replay) is not None
    # Planted fault: were the past another one, the choice could be another one.
    other.labels[~after] ^= 1
    found = bench(other, tmp_path / "another past").chosen_rates(ARMS)
    assert found.keys() == chosen[0].keys()


def test_runs_of_another_stream_are_not_taken_for_this_one_s(stream: LateStream) -> None:
    replay = small_replay(stream)
    first = identity(stream, replay, linear(stream))
    assert first == identity(small_stream(), small_replay(stream), linear(stream))
    other = small_stream()
    other.labels[0] ^= 1
    assert identity(other, replay, linear(stream)) != first
    assert identity(stream, small_replay(stream, kept_share=0.8), linear(stream)) != first


def test_a_log_that_is_too_short_for_its_window_says_so() -> None:
    short = small_stream(400)
    with pytest.raises(TooShort, match="nothing to judge"):
        default_replay(short)
    assert default_replay(small_stream()).split_us % HOUR_US == 0


ASKED = Asked(
    goals=("click",), families=("linear",), arms=("fake_negative_weighted", "hazard"), seeds=2
)


def figures(market: Market) -> list[tuple]:
    with Warehouse(market.deployment.warehouse).reader() as connection:
        return connection.execute(
            "SELECT * FROM monitoring.delay_benchmark ORDER BY ALL"
        ).fetchall()


def test_a_log_is_measured_drawn_and_kept_and_its_cost_is_said_first(late_market: Market) -> None:
    said: list[str] = []
    deployment = late_market.deployment
    measured, left_out = record_benchmark(
        Warehouse(deployment.warehouse), deployment, ASKED, said.append
    )
    assert left_out == {}
    assert said[0].startswith("click, linear: 5 arms x 2 seeds on ")
    assert "0 are kept, 10 are left: about " in said[0]
    assert picture_file(deployment, "click").read_bytes() == measured["click"].picture
    with Warehouse(deployment.warehouse).reader() as connection:
        kept = rows_of(
            connection,
            "SELECT arm, value, rows FROM monitoring.delay_benchmark "
            "WHERE metric = 'log_loss' AND slice_of = ''",
        ).to_pylist()
    assert {row["arm"] for row in kept} == {
        PRE_TRAINED, ORACLE, VANILLA, "fake_negative_weighted", "hazard",
    }  # fmt: skip
    assert {row["rows"] for row in kept} == {measured["click"].judged}
    lines = list(arms_lines(measured["click"].families["linear"].figures))
    assert len(lines) == 6
    again: list[str] = []
    record_benchmark(Warehouse(deployment.warehouse), deployment, ASKED, again.append)
    assert "of the runs 10 are kept, 0 are left: about 0.0 minutes" in again[0]
    assert len(again) == 1


def test_names_that_there_are_not_are_refused_with_those_there_are(late_market: Market) -> None:
    deployment = late_market.deployment
    warehouse = Warehouse(deployment.warehouse)
    with pytest.raises(LookupError, match="no goal 'clicks'; it has click, purchase"):
        record_benchmark(warehouse, deployment, Asked(goals=("clicks",)), lambda _: None)
    with pytest.raises(LookupError, match="no family 'wide'; there are linear, deep"):
        families_named(["wide"])
    with pytest.raises(LookupError, match="no arm 'esdfm'; there are base rate"):
        record_benchmark(
            warehouse, deployment, Asked(goals=("click",), arms=("esdfm",)), lambda _: None
        )


def test_without_jax_the_linear_family_runs_and_the_deep_one_says_what_to_install(
    late_market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "jax" else found(name, *of)
    )
    asked = Asked(goals=("click",), arms=("hazard",), seeds=2)
    measured, left_out = record_benchmark(
        Warehouse(late_market.deployment.warehouse), late_market.deployment, asked, lambda _: None
    )
    assert measured["click"].families.keys() == {"linear"}
    assert "ad_pipeline[deep]" in left_out["deep"]


def test_a_process_that_is_killed_leaves_runs_that_the_next_one_goes_on_from(
    late_market: Market, tmp_path: Path
) -> None:
    own = late_market.copied_to(tmp_path / "home", FOLDER)
    command = [
        sys.executable, "-m", "ad_pipeline.cli", "delay-benchmark", "--goal", "click",
        "--family", "linear", "--arm", "hazard", "--arm", "fake_negative_weighted", "--seeds", "2",
    ]  # fmt: skip
    environment = os.environ | own.environment()
    folder = own.deployment.home / FOLDER
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        deadline = time.monotonic() + 120
        while not list(folder.rglob("*.npz")) and time.monotonic() < deadline:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
    kept = {path: path.read_bytes() for path in folder.rglob("*.npz")}
    assert kept
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert f"of the runs {len(kept)} are kept" in ended.stdout
    assert all(path.read_bytes() == content for path, content in kept.items())
    record_benchmark(
        Warehouse(late_market.deployment.warehouse), late_market.deployment, ASKED, lambda _: None
    )
    assert figures(own) == figures(late_market)
