"""Each speed benchmark runs on a tiny log and prints its keys. How fast it is, is not tested."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.figures import Figure
from benchmarks.performance_page import REPOSITORY
from benchmarks.speed import embeddings, label_join, similarity


def figures_of(module: str, *options: str) -> dict[str, Figure]:
    """Run a module as anyone would, for its JSON only."""
    command = [sys.executable, "-m", f"benchmarks.speed.{module}", "--json", "--runs", "1"]
    ran = subprocess.run(
        [*command, *options], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    (line,) = ran.stdout.splitlines()
    found = json.loads(line)
    figures = {figure["key"]: Figure(**figure) for figure in found.pop("figures")}
    assert found == {key: figure.value for key, figure in figures.items()}
    assert all(figure.says for figure in figures.values())
    return figures


def test_simulation_says_how_many_impressions_it_writes_a_second():
    figures = figures_of("simulation", "--days", "1")
    assert figures["impressions_per_s"].reach == 200_000
    assert figures["impressions_per_s"].limit
    assert figures["peak_rss_mb"].value > 10


def test_label_join_says_how_far_it_is_from_bare_copies():
    figures = figures_of("label_join", "--rows", "20000")
    assert figures["join_ratio"].reach == 1.5
    assert figures["join_ratio"].better == "lower"
    assert figures["join_ratio"].limit
    assert figures["join_ratio"].value == pytest.approx(
        figures["join_seconds"].value / figures["join_copy_seconds"].value
    )
    assert figures["join_peak_mb_half"].value > 10


def test_both_sides_of_the_label_join_write_the_same_rows(tmp_path: Path):
    label_join.write_log(tmp_path, 20_000, 1)
    ours, bare = label_join.ours(tmp_path).content, label_join.bare(tmp_path).content
    assert ours == bare
    assert ours["events.impressions"].rows == 20_000
    assert ours["events.engagements"].rows == 20_000 // 33 + 1
    assert ours["examples.labelled_impressions"].rows == 20_000
    assert ours["examples.training_examples"].rows > 20_000
    assert ours["examples.label_states"].rows > 40_000


def test_sides_that_wrote_other_rows_are_not_compared(tmp_path: Path):
    """Planted fault: one side has lost a row."""
    label_join.write_log(tmp_path, 2_000, 1)
    side = label_join.bare(tmp_path)
    changed = dict(side.content)
    changed["examples.label_states"] = label_join.Content(1, 2)
    with pytest.raises(ValueError, match=r"examples\.label_states"):
        label_join.require_same_rows(side, label_join.Side(side.seconds, changed, side.peak_mb))


def test_similarity_says_what_the_graph_finds_compares_and_holds():
    figures = figures_of("similarity", "--users", "3000")
    assert figures["faiss_ratio"].reach == 1.3
    assert figures["faiss_ratio"].limit
    assert 0.5 < figures["recall_at_50"].value <= 1
    assert 0 < figures["compared_share"].value < 1
    assert figures["recall_at_50_noise"].value < figures["recall_at_50"].value
    assert figures["memory_ratio"].value == pytest.approx(1, abs=0.5)
    assert figures["retrieval_us"].reach == 1_000
    assert figures["retrieval_us"].limit
    assert figures["retrieval_ratio"].better == "lower"


def test_candidates_are_not_compared_with_a_sum_that_finds_others(monkeypatch: pytest.MonkeyPatch):
    """Planted fault: the bare sum forgets which ads may be shown."""
    drawn = similarity.AskedIndex.drawn(300, 5)
    monkeypatch.setattr(similarity, "LISTED", 9)
    assert similarity.retrieval_figures(300, 1)[0].key == "retrieval_us"
    bare = replace(drawn, eligible=[f"ad-{place}" for place in range(similarity.ADS)]).bare()
    monkeypatch.setattr(similarity.AskedIndex, "bare", lambda _: bare)
    with pytest.raises(ValueError, match="NOT COMPARABLE"):
        similarity.retrieval_figures(300, 1)


@pytest.mark.slow
def test_wide_deep_says_how_far_it_is_from_the_bare_products():
    pytest.importorskip("jax", reason="JAX is not installed: pip install ad_pipeline[deep]")
    figures = figures_of("wide_deep", "--batches", "2", "--large-bits", "19")
    assert figures["table_growth_ratio"].better == "lower"
    assert figures["table_growth_ratio"].limit
    assert figures["scoring_p99_ms"].reach == 1
    assert figures["products_ratio"].value > 0.5
    if "pytorch_ratio" in figures:  # PyTorch is no dependency
        assert figures["pytorch_ratio"].reach == 3
        assert abs(figures["training_loss_difference"].value) < 5e-3


@pytest.mark.slow
def test_pipeline_says_what_share_of_its_allowance_dagster_takes():
    figures = figures_of("pipeline", "--rows", "4000", "--hours", "3")
    share = figures["pipeline_overhead_share"]
    assert share.reach == 1
    assert share.better == "lower"
    assert figures["pipeline_overhead_seconds"].value == pytest.approx(
        figures["pipeline_dagster_seconds"].value - figures["pipeline_library_seconds"].value
    )
    assert figures["pipeline_assets"].value > 20


def test_the_exponent_of_user_vectors_is_that_of_seconds_in_activities():
    for power in (0.0, 1.0, 1.7):
        seconds = {("none", length): 3e-6 * length**power for length in embeddings.LENGTHS}
        assert embeddings.exponent(seconds, "none") == pytest.approx(power, abs=1e-9)


def test_the_made_worlds_of_user_vectors_hide_a_taste_in_what_users_do():
    """Of activities that are meant, all show the taste; in `marked` only the mark says which."""
    users = 300
    for world in embeddings.WORLDS.values():
        user, modality, ids, taste = world(users, np.random.default_rng(0))
        assert len(user) == len(modality) == len(ids)
        first = modality == embeddings.MODALITIES[0]
        own = [ids[first & (user == u)] for u in range(users)]
        if world is embeddings.tastes:
            likeliest = [np.bincount(mine).argmax() for mine in own]
        else:
            meant = [mine.max() - 2 * embeddings.TOPICS for mine in own]
            kinds = [mine[mine < 2 * embeddings.TOPICS] for mine in own]
            likeliest = [
                kind[kind // embeddings.TOPICS == of][0] % embeddings.TOPICS
                for kind, of in zip(kinds, meant, strict=True)
            ]
        assert np.mean(np.array(likeliest) == taste[:, 0]) > 0.95


@pytest.mark.slow
def test_embeddings_say_how_seconds_grow_in_activities():
    small = ("--users", "64", "--seeds", "1", "--world-users", "200")
    published = ("--published-users", "1000", "--memory-runs", "1")
    figures = figures_of("embeddings", *small, *published)
    assert figures["events_exponent"].reach == 1.1
    assert figures["memory_ratio"].value == pytest.approx(1, abs=0.3)
    assert figures["memory_mb"].value > 100
    assert figures["parts_ratio"].value > 0.5
    assert {"users_per_s", "users_per_s_32", "users_per_s_512"} <= set(figures)
    assert 0.0 < figures["padding_share"].value < 0.5
