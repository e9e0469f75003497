"""Which ads for these users: the index that a bundle carries, its canaries, a scorer's answers.

An index in a bundle is the checkpoint that it came from, file by file: the bundle holds that
checkpoint's manifest, whose digest is the index's name and which has the sum of every file. Canary
users, asked again whenever the bundle is opened, show that this code reads it as it was meant. How
ads are found is :mod:`ad_pipeline.embeddings.candidate_index`; which index answers while newer ones
are published, :meth:`ad_pipeline.serving.scorer.Scorer.refresh`; ranking what was found is scoring.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ad_pipeline.checkpoints import Checkpoint, digest_of, read_checkpoint
from ad_pipeline.embeddings.candidate_index import (
    ADS_FILE,
    NO_VECTOR,
    NOTHING,
    NOTHING_OF_SIMILAR_USERS,
    WAYS,
    CandidateIndex,
    EligibleAds,
    index_of,
)
from ad_pipeline.embeddings.published import user_hashes
from ad_pipeline.embeddings.versions import MixedVersions, VersionGuard
from ad_pipeline.serving.decisions import Fallback
from ad_pipeline.serving.pointers import Pointer

PART = "candidate_index"
"""Of a bundle's manifest is the index under it; files of the index have it before their names."""

CANARIES = 4
"""Users with a vector who are asked about when a bundle is opened; beside them one without."""

CANARY_ADS = 10

WEIGHTS_AGREE = 1e-9
"""Relative: processors differ in the last bit of a power of two, lists do not."""

MEANS = {
    NOTHING_OF_SIMILAR_USERS: "similar users engaged with nothing else that may be shown: "
    "popular ads",
    NO_VECTOR: "no vector of the user: popular ads",
    NOTHING: "nothing that may be shown and was not seen: no ads",
}
"""What it means that a list came another way than the first."""

REFUSED = "candidates of the bundle's encoder: the newest are of another one"


class NoCandidates(LookupError):
    """The bundle that serves carries no candidate index."""


class DifferentCandidates(ValueError):
    """What a bundle carries is not the index that it names, or answers otherwise."""


@dataclass(frozen=True)
class PublishedIndex:
    """A candidate index and the checkpoint that it is.

    Attributes
    ----------
    digest : str
        Of the checkpoint.
    manifest : dict
        Of the same.
    index : CandidateIndex
    """

    digest: str
    manifest: dict[str, Any]
    index: CandidateIndex

    @classmethod
    def read(cls, vectors: Path, digest: str) -> Self:
        """Open an index below the root of the vectors, every byte verified.

        Raises
        ------
        MissingCheckpoint, CorruptCheckpoint
            If it is not there or not intact.
        WrongVectors
            If the checkpoint is of another kind.
        """
        kept = read_checkpoint(vectors, digest)
        return cls(kept.digest, kept.manifest, index_of(kept))

    @property
    def version(self) -> str:
        """Digest of the encoder."""
        return self.index.version

    @property
    def end_us(self) -> int:
        """End of the hours that it knows, microseconds."""
        return self.index.engaged.as_of_us + 1


@dataclass(frozen=True)
class RetrievedAds:
    """Ads for q users, to be scored.

    Attributes
    ----------
    user_ids : tuple of str, length q
    starts : ndarray of shape (q + 1,), int64
        Where each one's ads begin.
    ads : list of str, length c
        Ids; of each user the best first.
    weights : ndarray of shape (c,), float64
        To be compared within a list only.
    ways : ndarray of shape (q,), uint8
        Which way each list came: places in
        :data:`ad_pipeline.embeddings.candidate_index.WAYS`.
    fallbacks : tuple of Fallback
        Which lists are not what was asked for, and why.
    as_of_us : int
        Up to when the index knows the log, microseconds.
    bundle_hash, index_hash : str
    """

    user_ids: tuple[str, ...]
    starts: np.ndarray
    ads: list[str]
    weights: np.ndarray
    ways: np.ndarray
    fallbacks: tuple[Fallback, ...]
    as_of_us: int
    bundle_hash: str
    index_hash: str

    def of(self, row: int) -> list[str]:
        """Return the ads of the row-th user, the best first."""
        return self.ads[self.starts[row] : self.starts[row + 1]]

    def way(self, row: int) -> str:
        """Return which way the row-th user's list came."""
        return WAYS[self.ways[row]]


@dataclass(frozen=True)
class AnsweringIndex:
    """The index that answers, and what it answers instead of.

    Attributes
    ----------
    published : PublishedIndex
    refused : str or None
        Digest of the newest published index, if it may not answer: it is of another encoder.
    """

    published: PublishedIndex
    refused: str | None = None

    def ads_for(
        self,
        user_ids: Sequence[str],
        eligible: EligibleAds | Iterable[str] | None,
        limit: int,
        bundle_hash: str,
        *,
        without_seen: bool = True,
    ) -> RetrievedAds:
        """Ask the index; see :meth:`ad_pipeline.serving.scorer.Scorer.candidates`."""
        if limit < 1:
            raise ValueError(f"{limit} ads a user were asked for; ask for at least one")
        index = self.published.index
        users = user_hashes(user_ids)
        lists = index.lists(users, eligible, limit, without_seen=without_seen)
        found = lists.candidates
        return RetrievedAds(
            user_ids=tuple(user_ids),
            starts=found.starts,
            ads=index.texts_of(found.ads),
            weights=found.weights,
            ways=lists.ways,
            fallbacks=tuple(_fallbacks(lists.ways, self.refused is not None)),
            as_of_us=index.engaged.as_of_us,
            bundle_hash=bundle_hash,
            index_hash=self.published.digest,
        )


def newest_index(
    carried: PublishedIndex,
    before: AnsweringIndex | None,
    pointer: Pointer | None,
    vectors: Path,
    guard: VersionGuard,
) -> AnsweringIndex:
    """Decide which index answers: the newest of the bundle's encoder.

    Parameters
    ----------
    carried : PublishedIndex
        The bundle's, which answers until a newer one is published, and again once the bundle knows
        more of the log than what was published.
    before : AnsweringIndex or None
        What answered until now; it may be of another bundle.
    pointer : Pointer or None
        To the newest published index.
    vectors : Path
        Root of the published ones.
    guard : VersionGuard
        Counts what is opened: an index that it refuses is not opened a second time.

    Returns
    -------
    AnsweringIndex
        The object that was given if nothing moved.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint, WrongVectors
        If what the pointer names is not there, not intact, or no candidate index.
    """
    known = [carried]
    if before is not None and before.published.version == carried.version:
        known.append(before.published)
    else:
        before = None
    newest, refused = max(known, key=lambda each: each.end_us), None
    if pointer is None or pointer.position < carried.end_us:
        newest = carried
    elif opened := [each for each in known if each.digest == pointer.digest]:
        newest = opened[0]
    elif before is not None and before.refused == pointer.digest:
        refused = pointer.digest
    else:
        found = PublishedIndex.read(vectors, pointer.digest)
        try:
            guard.admit(found.version, carried.version)
            newest = found
        except MixedVersions:
            refused = pointer.digest
    if before is not None and before.published is newest and before.refused == refused:
        return before
    return AnsweringIndex(newest, refused)


def carried_parts(
    carried: PublishedIndex,
) -> tuple[dict[str, np.ndarray], dict[str, bytes], dict[str, Any]]:
    """Return an index as a bundle holds it: arrays, files, and its part of the manifest."""
    arrays, _, files = carried.index.to_parts()
    users = _canary_users(carried.index.ids)
    return (
        {f"{PART}.{name}": array for name, array in arrays.items()},
        {f"{PART}.{name}": content for name, content in files.items()},
        {
            "digest": carried.digest,
            "manifest": carried.manifest,
            "canaries": {"users": users.tolist()} | _told(carried.index, users),
        },
    )


def carried_index(bundle: Checkpoint) -> PublishedIndex | None:
    """Return the index that an opened bundle carries; None if it carries none.

    Raises
    ------
    DifferentCandidates
        If its files are not those of the index that it names, or its canary users get other ads.
    """
    described = bundle.manifest.get(PART)
    if described is None:
        return None
    digest, manifest, canaries = (described[name] for name in ("digest", "manifest", "canaries"))
    where = bundle.path / "manifest.json"
    if digest_of(manifest) != digest:
        raise DifferentCandidates(
            f"{where}: the candidate index is named {digest}, but its manifest's digest is "
            f"{digest_of(manifest)}; export the bundle again"
        )
    for name, expected in manifest["files"].items():
        found = bundle.manifest["files"].get(f"{PART}.{name}")
        if found != expected:
            raise DifferentCandidates(
                f"{where}: {PART}.{name} has SHA-256 {found}, the candidate index {digest} says "
                f"{expected}; export the bundle again"
            )
    arrays = {
        name.removesuffix(".npy"): bundle.arrays[f"{PART}.{name.removesuffix('.npy')}"]
        for name in manifest["files"]
        if name.endswith(".npy")
    }
    index = CandidateIndex.of_parts(arrays, manifest, bundle.files[f"{PART}.{ADS_FILE}"])
    told = _told(index, np.array(canaries["users"], np.uint64))
    if not _agree(told, canaries):
        raise DifferentCandidates(
            f"{where}: canary users get {told}, the bundle says {canaries}; it was written by "
            "other code: export it again here"
        )
    return PublishedIndex(digest, manifest, index)


def _canary_users(ids: np.ndarray) -> np.ndarray:
    """Return some users of an index, evenly spread, and the first hash that is nobody's."""
    places = np.unique(np.linspace(0, len(ids) - 1, min(CANARIES, len(ids))).astype(np.int64))
    nobody = np.argmax(np.append(ids != np.arange(len(ids), dtype=np.uint64), True))
    return np.append(ids[places], np.uint64(nobody))


def _told(index: CandidateIndex, users: np.ndarray) -> dict[str, list[Any]]:
    """Return what an index answers, as JSON."""
    lists = index.lists(users, None, CANARY_ADS)
    found = lists.candidates
    return {
        "ads": [index.texts_of(found.of(row)) for row in range(len(users))],
        "weights": found.weights.tolist(),
        "ways": [WAYS[way] for way in lists.ways],
    }


def _agree(told: Mapping[str, list[Any]], said: Mapping[str, list[Any]]) -> bool:
    weights, wanted = np.array(told["weights"]), np.array(said["weights"])
    return (
        all(told[name] == said[name] for name in ("ads", "ways"))
        and weights.shape == wanted.shape
        and np.allclose(weights, wanted, rtol=WEIGHTS_AGREE, atol=0.0)
    )


def _fallbacks(ways: np.ndarray, is_refused: bool) -> Iterator[Fallback]:
    for way, means in MEANS.items():
        rows = ways == way
        if rows.any():
            yield Fallback(means, rows)
    if is_refused:
        yield Fallback(REFUSED, np.ones(len(ways), np.bool_))
