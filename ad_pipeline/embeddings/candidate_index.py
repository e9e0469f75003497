"""What answers "which ads for these users": graph and engagements in one folder, read by NumPy.

The folder is a checkpoint, and a bundle holds the same files: a process that scores answers from
either with nothing but NumPy, Numba and Arrow. It holds hashes, but for the ids of ads, which an
answer is in. How ads are found is :func:`.retrieval.of_similar_users`; which are eligible is told
by the caller. Reading graph and log from the warehouse is :mod:`.candidates_of_log`; which index a
scorer answers from, :mod:`ad_pipeline.serving.retrieval`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ad_pipeline.checkpoints import (
    Checkpoint,
    point,
    read_checkpoint,
    resolve,
    unswept,
    write_checkpoint,
)
from ad_pipeline.embeddings.nearest import NOBODY
from ad_pipeline.embeddings.published import ad_hashes
from ad_pipeline.embeddings.retrieval import Candidates, Engaged, of_similar_users
from ad_pipeline.embeddings.vectors import ABSENT, WrongVectors, places_of

KIND = "embeddings.candidate_index"
POINTER = f"{KIND}/newest"
SERVED = f"{KIND}/served"
"""Pointer to what scorers were told of last: a sweep must leave it until they were told of more."""

WAYS = ("similar_users", "nothing_of_similar_users", "no_vector", "nothing")
"""Which way a list came, the best first; an index into it is a *way*."""

SIMILAR_USERS, NOTHING_OF_SIMILAR_USERS, NO_VECTOR, NOTHING = range(4)

ADS_FILE = "ads.json"

_ENGAGED = ("users", "starts", "ads", "newest_us", "ad_ids")
_GRAPH = ("ids", "neighbours", "similarities")


class EligibleAds:
    """Ads that may be shown now; an index looks them up once, however many users are asked about.

    Parameters
    ----------
    ad_ids : iterable of str
        Whose budget and targeting allow them.
    """

    def __init__(self, ad_ids: Iterable[str]) -> None:
        self._hashes = ad_hashes(list(ad_ids))
        self._told: tuple[np.ndarray, np.ndarray] | None = None

    def among(self, ad_ids: np.ndarray) -> np.ndarray:
        """Tell of each ad, hashes of shape (a,), whether it is one of these: bool (a,)."""
        told = self._told
        if told is None or told[0] is not ad_ids:
            told = self._told = ad_ids, np.isin(ad_ids, self._hashes)
        return told[1]


@dataclass(frozen=True)
class Lists:
    """Ads for some users, and which way each list came.

    Attributes
    ----------
    candidates : Candidates
    ways : ndarray of shape (q,), uint8
        Places in :data:`WAYS`.
    """

    candidates: Candidates
    ways: np.ndarray


@dataclass(frozen=True)
class CandidateIndex:
    """Who is similar to whom, and who engaged with what.

    Attributes
    ----------
    version : str
        Digest of the encoder.
    engaged : Engaged
        As of the moment of the vectors.
    ad_texts : tuple of str
        Id of each of ``engaged.ad_ids``.
    ids : ndarray of shape (n,), uint64
        Users with neighbours, ascending.
    neighbours : ndarray of shape (n, k), int32
        Places in ``ids``; -1 for nobody.
    similarities : ndarray of shape (n, k), float32
    half_life_us : int
    popularity_strength : float
        Of :func:`.retrieval.of_similar_users`, above 0: popular ads are behind what similar users
        speak for, and are all that who has none is told.
    """

    version: str
    engaged: Engaged
    ad_texts: tuple[str, ...]
    ids: np.ndarray
    neighbours: np.ndarray
    similarities: np.ndarray
    half_life_us: int
    popularity_strength: float

    def of_hashes(
        self,
        users: np.ndarray,
        eligible: EligibleAds | Iterable[str] | None,
        limit: int,
        *,
        without_seen: bool = True,
    ) -> Candidates:
        """Return ads that similar users speak for and popular ones, by what both say together.

        For who has no vector popularity alone speaks.

        Parameters
        ----------
        users : ndarray of shape (q,), uint64
            By :func:`.published.user_hashes`.
        eligible : EligibleAds, iterable of str, or None
            Ads that may be shown now; None: all.
        limit : int
            Ads a user.
        without_seen : bool
            Leave out what the user has engaged with.
        """
        places = places_of(self.ids, users)
        known = places != ABSENT
        shape = (len(users), self.neighbours.shape[1])
        whom, similarities = np.zeros(shape, np.uint64), np.full(shape, -np.inf, np.float32)
        near = self.neighbours[places[known]]
        whom[known] = self.ids[np.maximum(near, 0)]
        similarities[known] = np.where(
            near == NOBODY, np.float32(-np.inf), self.similarities[places[known]]
        )
        return of_similar_users(
            self.engaged,
            users,
            whom,
            similarities,
            half_life_us=self.half_life_us,
            limit=limit,
            popularity_strength=self.popularity_strength,
            eligible=self._is_eligible(eligible),
            without_seen=without_seen,
        )

    def lists(
        self,
        users: np.ndarray,
        eligible: EligibleAds | Iterable[str] | None,
        limit: int,
        *,
        without_seen: bool = True,
    ) -> Lists:
        """Return the same, and which way each list came.

        Parameters are those of :meth:`of_hashes`.
        """
        found = self.of_hashes(users, eligible, limit, without_seen=without_seen)
        return Lists(found, self.ways_of(found))

    def ways_of(self, found: Candidates) -> np.ndarray:
        """Return which way lists of :meth:`of_hashes` came, places in :data:`WAYS`: uint8 (q,).

        Similar users are heard in a list if one of its ads weighs more than popularity gives it.
        """
        prior, _ = self.engaged.prior(self.half_life_us, self.popularity_strength)
        is_heard = found.weights > prior[places_of(self.engaged.ad_ids, found.ads)]
        counts = np.diff(found.starts)
        rows = np.repeat(np.arange(len(counts)), counts)
        heard = np.bincount(rows[is_heard], minlength=len(counts)) > 0
        is_known = places_of(self.ids, found.users) != ABSENT
        unheard = np.where(is_known, NOTHING_OF_SIMILAR_USERS, NO_VECTOR)
        ways = np.where(heard, SIMILAR_USERS, unheard)
        return np.where(counts == 0, NOTHING, ways).astype(np.uint8)

    def texts_of(self, ads: np.ndarray) -> list[str]:
        """Return the ids of ads, by hash."""
        return [self.ad_texts[place] for place in places_of(self.engaged.ad_ids, ads)]

    def to_parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, bytes]]:
        """Return all of it as a checkpoint holds it: arrays, facts and files."""
        arrays = {f"engaged_{name}": getattr(self.engaged, name) for name in _ENGAGED}
        arrays |= {name: getattr(self, name) for name in _GRAPH}
        facts = {
            "version": self.version,
            "as_of_us": self.engaged.as_of_us,
            "half_life_us": self.half_life_us,
            "popularity_strength": self.popularity_strength,
        }
        return arrays, facts, {ADS_FILE: json.dumps(self.ad_texts).encode()}

    @classmethod
    def of_parts(
        cls, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], ads_file: Path
    ) -> Self:
        """Read what :meth:`to_parts` returned; the file of ads from where it was written."""
        # Views of NumPy's own kind: each step with a mapped array costs as much as a small sum.
        plain = {name: np.asarray(array) for name, array in arrays.items()}
        engaged = Engaged(facts["as_of_us"], *(plain[f"engaged_{name}"] for name in _ENGAGED))
        return cls(
            facts["version"],
            engaged,
            tuple(json.loads(ads_file.read_bytes())),
            half_life_us=facts["half_life_us"],
            popularity_strength=facts["popularity_strength"],
            **{name: plain[name] for name in _GRAPH},
        )

    def _is_eligible(self, eligible: EligibleAds | Iterable[str] | None) -> np.ndarray | None:
        if eligible is None:
            return None
        once = eligible if isinstance(eligible, EligibleAds) else EligibleAds(eligible)
        return once.among(self.engaged.ad_ids)


def write_index(root: Path, index: CandidateIndex) -> Checkpoint:
    """Write an index and move the pointer to it."""
    with unswept(root):
        written = write_checkpoint(root, KIND, *index.to_parts())
        point(root, POINTER, written.digest)
    return written


def keep_served(root: Path, digest: str) -> None:
    """Let no sweep remove an index that scorers were told of, until this names another."""
    point(root, SERVED, digest)


def open_index(root: Path, digest: str | None = None) -> CandidateIndex:
    """Open an index of a folder of checkpoints, the newest by default, every byte verified."""
    return index_of(read_checkpoint(root, digest or resolve(root, POINTER)))


def index_of(kept: Checkpoint) -> CandidateIndex:
    """Return the index that a checkpoint holds, its arrays memory-mapped.

    Raises
    ------
    WrongVectors
        If the checkpoint is of another kind.
    """
    if kept.manifest["kind"] != KIND:
        raise WrongVectors(f"{kept.path} is a {kept.manifest['kind']}, not a {KIND}")
    return CandidateIndex.of_parts(kept.arrays, kept.manifest, kept.files[ADS_FILE])


def way_shares(ways: np.ndarray) -> dict[str, float]:
    """Return which share of the lists came each way, by name; of no lists, 0."""
    counts = np.bincount(ways, minlength=len(WAYS))
    return dict(zip(WAYS, (counts / max(counts.sum(), 1)).tolist(), strict=True))
