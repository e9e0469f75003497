"""Ads for users, from what a bundle carries: the same in any process, refused if it was changed."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ad_pipeline.checkpoints import MissingCheckpoint, digest_of, read_checkpoint, write_checkpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings.candidate_index import (
    WAYS,
    CandidateIndex,
    EligibleAds,
    write_index,
)
from ad_pipeline.embeddings.published import NO_ENCODER
from ad_pipeline.embeddings.vectors import WrongVectors
from ad_pipeline.monitoring.production.rollback_drill import flip_byte
from ad_pipeline.serving import promotion
from ad_pipeline.serving.bundle import KIND, Bundle, CorruptBundle, open_bundle
from ad_pipeline.serving.candidate import index_of_hour
from ad_pipeline.serving.pointers import CANDIDATE_INDEX, Pointer, move_pointer, publish_index
from ad_pipeline.serving.retrieval import MEANS, PART, NoCandidates, PublishedIndex
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline_tests.embeddings.made_index import made_index
from ad_pipeline_tests.features.made_vectors import ENCODER, drawn
from ad_pipeline_tests.features.made_vectors import publish as publish_vectors
from ad_pipeline_tests.serving import worlds
from ad_pipeline_tests.serving.worlds import SERVED_US, World

PUBLISHERS = ('p"1', 'p"2', 'p"3')
"""Ads of this world, so that what is retrieved can be scored."""

AS_OF_US = SERVED_US - 1


def index_of_encoder(version: str, hours: int = 0, like_cy: float = 0.5) -> CandidateIndex:
    return made_index(version, AS_OF_US + hours * HOUR_US, PUBLISHERS, like_cy)


def published(root: Path, index: CandidateIndex) -> PublishedIndex:
    return PublishedIndex.read(root, write_index(root, index).digest)


def carrying(world: World, root: Path, index: CandidateIndex, bundles: Path) -> Bundle:
    """Write the world's bundle with an index in it."""
    return worlds.write(
        bundles,
        world.models,
        world.requests,
        world.due.counts,
        candidate_index=published(root, index),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retrieval")


@pytest.fixture(scope="module")
def bundle(world: World, root: Path) -> Bundle:
    return carrying(world, root / "vectors", index_of_encoder("encoder-a"), root / "bundles")


def test_a_bundle_without_an_index_is_what_it_was_and_says_that_it_has_none(world: World) -> None:
    assert PART not in world.bundle.manifest
    assert not [name for name in world.bundle.manifest["files"] if name.startswith(PART)]
    plain = worlds.write(world.bundles, world.models, world.requests, world.due.counts)
    again = worlds.write(
        world.bundles, world.models, world.requests, world.due.counts, candidate_index=None
    )
    assert again.digest == plain.digest
    with pytest.raises(NoCandidates, match=f"{plain.digest} carries no candidate index"):
        Scorer(plain).candidates(["ann"], None, 3)


def test_a_bundle_answers_what_its_index_does_wherever_it_is_copied(
    bundle: Bundle, tmp_path: Path
) -> None:
    shutil.copytree(bundle.path, tmp_path / "objects" / bundle.digest)
    found = Scorer(open_bundle(tmp_path, bundle.digest)).candidates(
        ["ann", "dee", "a stranger"], None, 2
    )
    assert found.of(0) == ['p"2', 'p"3']
    assert found.of(1) == found.of(2) == ['p"2', 'p"1']
    ways = [found.way(row) for row in range(3)]
    assert ways == ["similar_users", "nothing_of_similar_users", "no_vector"]
    assert {reason.reason: reason.rows.tolist() for reason in found.fallbacks} == {
        "similar users engaged with nothing else that may be shown: popular ads": [
            False, True, False,
        ],
        "no vector of the user: popular ads": [False, False, True],
    }  # fmt: skip
    assert found.as_of_us == AS_OF_US
    assert found.bundle_hash == bundle.digest
    assert bundle.candidate_index is not None
    assert found.index_hash == bundle.candidate_index.digest
    with pytest.raises(ValueError, match="0 ads a user were asked for"):
        Scorer(bundle).candidates(["ann"], None, 0)
    spent = Scorer(bundle).candidates(["ann"], EligibleAds(['p"1']), 2)
    assert (spent.of(0), spent.way(0)) == ([], "nothing")
    assert [each.reason for each in spent.fallbacks] == [
        "nothing that may be shown and was not seen: no ads"
    ]


def test_scores_are_those_of_the_bundle_without_an_index(world: World, bundle: Bundle) -> None:
    plain = Scorer(world.bundle, world.due).score_requests(world.requests)
    beside = Scorer(bundle, world.due).score_requests(world.requests)
    for goal, probabilities in plain.probabilities.items():
        assert beside.probabilities[goal].tobytes() == probabilities.tobytes()
    assert beside.fallbacks == ()


def rewritten(
    source: Bundle,
    root: Path,
    arrays: Mapping[str, np.ndarray] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> str:
    """Write a bundle anew, every sum of its own right; return its digest."""
    kept = read_checkpoint(source.path.parents[1], source.digest)
    facts = {name: each for name, each in kept.manifest.items() if name not in ("files", "format")}
    files = {name: path.read_bytes() for name, path in kept.files.items()}
    made = {**kept.arrays, **(arrays or {})}
    return write_checkpoint(root, KIND, made, {**facts, **(manifest or {})}, files).digest


def test_what_is_written_anew_unchanged_is_the_same_bundle(bundle: Bundle, tmp_path: Path) -> None:
    """Negative control of the faults below."""
    assert rewritten(bundle, tmp_path) == bundle.digest


@pytest.mark.parametrize("name", ["similarities.npy", "engaged_newest_us.npy", "ads.json"])
def test_a_flipped_byte_of_an_index_is_refused_when_the_bundle_is_opened(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    copied = Path(shutil.copytree(bundle.path, tmp_path / "objects" / bundle.digest))
    damaged = copied / f"{PART}.{name}"
    flip_byte(damaged, damaged.stat().st_size - 3)
    for to_score in (False, True):
        with pytest.raises(CorruptBundle, match=f"{PART}.{name}"):
            open_bundle(tmp_path, bundle.digest, to_score=to_score)


def test_an_index_that_was_changed_is_refused_though_every_sum_of_the_bundle_is_right(
    bundle: Bundle, tmp_path: Path
) -> None:
    assert bundle.candidate_index is not None
    nearer = {f"{PART}.similarities": bundle.candidate_index.index.similarities * np.float32(0.99)}
    changed = rewritten(bundle, tmp_path, nearer)
    with pytest.raises(CorruptBundle, match=r"candidate_index\.similarities\.npy has SHA-256"):
        open_bundle(tmp_path, changed)

    # The index's own manifest says the changed sums, but then it is another index than is named.
    described = json.loads(json.dumps(bundle.manifest[PART]))
    sums = read_checkpoint(tmp_path, changed).manifest["files"]
    described["manifest"]["files"]["similarities.npy"] = sums[f"{PART}.similarities.npy"]
    with pytest.raises(CorruptBundle, match="its manifest's digest is"):
        open_bundle(tmp_path, rewritten(bundle, tmp_path, nearer, {PART: described}))

    # And if it has that name, canary users get other weights.
    described["digest"] = digest_of(described["manifest"])
    with pytest.raises(CorruptBundle, match="canary users get"):
        open_bundle(tmp_path, rewritten(bundle, tmp_path, nearer, {PART: described}))


@pytest.mark.parametrize("what", ["ads", "weights", "ways", "fewer weights"])
def test_a_canary_user_who_gets_something_else_is_refused(
    bundle: Bundle, tmp_path: Path, what: str
) -> None:
    described = json.loads(json.dumps(bundle.manifest[PART]))
    canaries = described["canaries"]
    assert len(canaries["users"]) == 5
    assert set(canaries["ways"]) == {"similar_users", "nothing_of_similar_users", "no_vector"}
    if what == "weights":
        canaries[what][0] *= 1 + 1e-8
    elif what == "fewer weights":
        del canaries["weights"][-1]
    else:
        canaries[what][0], canaries[what][-1] = canaries[what][-1], canaries[what][0]
    with pytest.raises(CorruptBundle, match="canary users get"):
        open_bundle(tmp_path, rewritten(bundle, tmp_path, manifest={PART: described}))


def test_a_bundle_of_nobody_has_canaries_too(world: World, tmp_path: Path) -> None:
    index = index_of_encoder("encoder-a")
    nobody = replace(
        index,
        ids=index.ids[:0],
        neighbours=index.neighbours[:0],
        similarities=index.similarities[:0],
    )
    made = carrying(world, tmp_path / "vectors", nobody, tmp_path / "bundles")
    assert made.manifest[PART]["canaries"]["ways"] == ["no_vector"]


def test_a_bundle_carries_the_newest_index_if_it_fits_its_hour(tmp_path: Path) -> None:
    """Planted faults: none made, one that knows what came later, one of another encoder."""
    vectors, hour_us = tmp_path / "vectors", SERVED_US - HOUR_US
    publish_vectors(vectors, hour_us, drawn(["ann"], 4, 1), drawn(["hats"], 4, 1), 4)
    found, why_not = index_of_hour(vectors, hour_us)
    assert found is None
    assert "materialize embeddings/candidates" in why_not
    for index, reason in (
        (index_of_encoder(ENCODER, hours=1), "after the bundle"),
        (index_of_encoder(NO_ENCODER), f"of encoder {NO_ENCODER}, the vectors are of {ENCODER}"),
        (index_of_encoder("encoder-b"), f"of encoder encoder-b, the vectors are of {ENCODER}"),
    ):
        write_index(vectors, index)
        found, why_not = index_of_hour(vectors, hour_us)
        assert found is None
        assert reason in why_not
    for hours in (-1, 0):
        digest = write_index(vectors, index_of_encoder(ENCODER, hours)).digest
        found, why_not = index_of_hour(vectors, hour_us)
        assert found is not None
        assert (found.digest, why_not) == (digest, "")


def test_canaries_are_answered_again_where_popularity_counts(world: World, tmp_path: Path) -> None:
    index = made_index("encoder-a", AS_OF_US, PUBLISHERS, popularity_strength=200.0)
    made = carrying(world, tmp_path / "vectors", index, tmp_path / "bundles")
    described = made.manifest[PART]
    assert set(described["canaries"]["ways"]) == {
        "similar_users", "nothing_of_similar_users", "no_vector",
    }  # fmt: skip
    assert described["manifest"]["popularity_strength"] == 200.0
    found = Scorer(made).candidates(["ann", "a stranger"], None, 9)
    assert (found.way(0), found.way(1)) == ("similar_users", "no_vector")
    assert found.of(1) == ['p"2', 'p"1', 'p"3']


@pytest.fixture
def home(bundle: Bundle, root: Path, tmp_path: Path) -> Path:
    """Return a folder of its own whose bundle serves."""
    shutil.copytree(root, tmp_path / "home")
    serving = tmp_path / "home/serving"
    promotion.promote(serving, tmp_path / "home/bundles", bundle.digest, {}, watermark_us=1)
    return tmp_path / "home"


def publish(home: Path, index: CandidateIndex) -> PublishedIndex:
    made = published(home / "vectors", index)
    publish_index(home / "serving", made.digest, made.end_us)
    return made


def test_a_scorer_follows_the_newest_index_of_its_bundles_encoder(home: Path) -> None:
    scorer = Scorer.current(home / "serving")
    assert scorer.candidates(["ann"], None, 9).index_hash == scorer.bundle.manifest[PART]["digest"]
    newer = publish(home, index_of_encoder("encoder-a", hours=2, like_cy=0.1))
    assert scorer.refresh()
    assert not scorer.refresh()
    found = scorer.candidates(["ann"], None, 9)
    assert found.index_hash == newer.digest
    assert found.as_of_us == AS_OF_US + 2 * HOUR_US
    assert found.weights[1] == pytest.approx(0.05)
    assert found.fallbacks == ()
    # The hour is published anew, as after a late file; then something of before the bundle.
    anew = publish(home, index_of_encoder("encoder-a", hours=2, like_cy=0.2))
    assert scorer.refresh()
    assert scorer.candidates(["ann"], None, 9).index_hash == anew.digest
    older = published(home / "vectors", index_of_encoder("encoder-a", hours=-3))
    assert not publish_index(home / "serving", older.digest, older.end_us)
    assert not scorer.refresh()
    assert list(scorer.index_guard.counts()) == [("passed", "encoder-a", "encoder-a", 2)]


def test_an_index_that_is_older_than_the_bundle_does_not_answer(home: Path) -> None:
    publish(home, index_of_encoder("encoder-a", hours=-3))
    scorer = Scorer.current(home / "serving")
    assert scorer.candidates(["ann"], None, 9).index_hash == scorer.bundle.manifest[PART]["digest"]
    assert list(scorer.index_guard.counts()) == []


def test_an_index_of_another_encoder_is_refused_counted_once_and_said(
    home: Path, world: World
) -> None:
    """Until a bundle of that encoder serves; what the scorer had goes on answering."""
    scorer = Scorer.current(home / "serving")
    ours = publish(home, index_of_encoder("encoder-a", hours=1))
    assert scorer.refresh()
    other = publish(home, index_of_encoder("encoder-b", hours=2))
    assert scorer.refresh()
    assert not scorer.refresh()
    found = scorer.candidates(["ann", "bob"], None, 9)
    assert found.index_hash == ours.digest
    (*_, last) = found.fallbacks
    assert last.reason == "candidates of the bundle's encoder: the newest are of another one"
    assert last.rows.all()
    assert list(scorer.index_guard.counts()) == [
        ("passed", "encoder-a", "encoder-a", 1),
        ("refused", "encoder-b", "encoder-a", 1),
    ]
    # A scorer that starts now meets the same.
    fresh = Scorer.current(home / "serving")
    assert fresh.candidates(["ann"], None, 9).index_hash == fresh.bundle.manifest[PART]["digest"]
    assert list(fresh.index_guard.counts()) == [("refused", "encoder-b", "encoder-a", 1)]

    later = index_of_encoder("encoder-b", hours=1)
    next_bundle = carrying(world, home / "vectors", later, home / "bundles")
    promotion.promote(home / "serving", home / "bundles", next_bundle.digest, {}, watermark_us=2)
    assert scorer.refresh()
    found = scorer.candidates(["ann"], None, 9)
    assert (found.index_hash, found.fallbacks) == (other.digest, ())
    # A rollback brings the first encoder back, and its index is the bundle's own.
    promotion.rollback(home / "serving", home / "bundles")
    assert scorer.refresh()
    found = scorer.candidates(["ann"], None, 9)
    assert found.index_hash == scorer.bundle.manifest[PART]["digest"]
    assert found.fallbacks


def test_a_pointer_that_leads_nowhere_leaves_the_scorer_as_it_was(home: Path) -> None:
    scorer = Scorer.current(home / "serving")
    before = scorer.candidates(["ann"], None, 9)
    position = AS_OF_US + HOUR_US
    move_pointer(home / "serving", CANDIDATE_INDEX, Pointer("0" * 64, position))
    with pytest.raises(MissingCheckpoint):
        scorer.refresh()
    assert scorer.candidates(["ann"], None, 9).index_hash == before.index_hash


def test_a_pointer_to_something_else_is_refused_by_its_kind(home: Path) -> None:
    scorer = Scorer.current(home / "serving")
    other = write_checkpoint(home / "vectors", "embeddings.published", {}, {}).digest
    publish_index(home / "serving", other, AS_OF_US + HOUR_US)
    with pytest.raises(WrongVectors, match=r"a embeddings\.published, not a embeddings\.cand"):
        scorer.refresh()


def test_a_scorer_whose_bundle_carries_no_index_follows_none(home: Path, world: World) -> None:
    plain = worlds.write(home / "bundles", world.models, world.requests, world.due.counts)
    promotion.promote(home / "serving", home / "bundles", plain.digest, {}, watermark_us=3)
    publish(home, index_of_encoder("encoder-a", hours=1))
    with pytest.raises(NoCandidates):
        Scorer.current(home / "serving").candidates(["ann"], None, 1)


PROGRAM = """
import sys
from pathlib import Path
from ad_pipeline.serving.scorer import Scorer
scorer = Scorer.current(Path(sys.argv[1]))
print(*scorer.candidates(["ann"], None, 10).of(0))
print(*{"duckdb", "dagster", "jax", "faiss", "lightgbm", "pandas", "sqlglot"} & set(sys.modules))
"""


def test_a_process_that_retrieves_needs_numpy_numba_and_arrow_only(home: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(home / "serving")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.splitlines() == ['p"2 p"3', ""]


def test_the_example_of_the_page_retrieves_then_ranks(bundle: Bundle, world: World) -> None:
    """It is run as it is printed: candidates of a user, scored by the scorer that found them."""
    page = (Path(__file__).parents[2] / "docs/user_vectors.md").read_text()
    section = page.partition("## Candidates, then ranks")[2]
    (example, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    scorer = Scorer(bundle, world.due)
    catalogue = {ad: {"publisher": ad} for ad in PUBLISHERS}
    request = {"user_id": "dee"} | world.requests[0]
    names: dict[str, Any] = {"scorer": scorer, "catalogue": catalogue, "request": request}
    exec(example, names)  # noqa: S102 - a page of this repository
    clicks = {
        ad: scorer.score(request | columns).probabilities["click"]
        for ad, columns in catalogue.items()
    }
    assert len(set(clicks.values())) == len(clicks)
    assert names["ranked"] == sorted(clicks, key=lambda ad: -clicks[ad])


def test_every_way_but_the_first_has_its_words() -> None:
    assert sorted(MEANS) == list(range(1, len(WAYS)))
