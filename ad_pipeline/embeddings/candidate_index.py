"""What answers "which ads for these users": graph and engagements in one folder, read by NumPy.

The folder is a checkpoint: it can be copied beside a bundle, and a process that scores answers from
it with nothing but NumPy, Numba and Arrow. It holds hashes, but for the ids of ads, which an answer
is in. How ads are found is :func:`.retrieval.of_similar_users`; which are eligible is told by the
caller. Reading graph and log from the warehouse is :mod:`.candidates_of_log`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ad_pipeline.checkpoints import (
    Checkpoint,
    open_folder,
    point,
    read_checkpoint,
    resolve,
    unswept,
    write_checkpoint,
)
from ad_pipeline.embeddings.nearest import NOBODY
from ad_pipeline.embeddings.published import ad_hashes, user_hashes
from ad_pipeline.embeddings.retrieval import Candidates, Engaged, of_similar_users, popular
from ad_pipeline.embeddings.vectors import ABSENT, places_of

KIND = "embeddings.candidate_index"
POINTER = f"{KIND}/newest"

_ENGAGED = ("users", "starts", "ads", "newest_us", "ad_ids")


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
    neighbours : ndarray of shape (n, k), int64
        Places in ``ids``; -1 for nobody.
    similarities : ndarray of shape (n, k), float32
    half_life_us : int
    popularity_strength : float
        Of :func:`.retrieval.of_similar_users`.
    """

    version: str
    engaged: Engaged
    ad_texts: tuple[str, ...]
    ids: np.ndarray
    neighbours: np.ndarray
    similarities: np.ndarray
    half_life_us: int
    popularity_strength: float

    def candidates(
        self,
        user_ids: Sequence[str],
        eligible: Iterable[str] | None,
        limit: int,
        *,
        without_seen: bool = True,
    ) -> Candidates:
        """Return ads that users similar to these engaged with; popular ones for who has no vector.

        Parameters
        ----------
        user_ids : sequence of str
        eligible : iterable of str or None
            Ids of ads whose budget and targeting allow them now; None: all.
        limit : int
            Ads a user.
        without_seen : bool
            Leave out what the user has engaged with.
        """
        users = user_hashes(user_ids)
        return self.of_hashes(users, eligible, limit, without_seen=without_seen)

    def of_hashes(
        self,
        users: np.ndarray,
        eligible: Iterable[str] | None,
        limit: int,
        *,
        without_seen: bool = True,
    ) -> Candidates:
        """Return the same for hashes of users, uint64 (q,)."""
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
            eligible=_hashed(eligible),
            without_seen=without_seen,
        )

    def popular(
        self, user_ids: Sequence[str], eligible: Iterable[str] | None, limit: int
    ) -> Candidates:
        """Return the ads that most users engaged with lately: for who has no vector yet."""
        return popular(
            self.engaged,
            user_hashes(user_ids),
            half_life_us=self.half_life_us,
            limit=limit,
            eligible=_hashed(eligible),
        )

    def texts_of(self, ads: np.ndarray) -> list[str]:
        """Return the ids of ads, by hash."""
        return [self.ad_texts[place] for place in places_of(self.engaged.ad_ids, ads)]


def write_index(root: Path, index: CandidateIndex) -> Checkpoint:
    """Write an index and move the pointer to it."""
    arrays = {f"engaged_{name}": getattr(index.engaged, name) for name in _ENGAGED}
    arrays |= {name: getattr(index, name) for name in ("ids", "neighbours", "similarities")}
    facts = {
        "version": index.version,
        "as_of_us": index.engaged.as_of_us,
        "half_life_us": index.half_life_us,
        "popularity_strength": index.popularity_strength,
    }
    files = {"ads.json": json.dumps(index.ad_texts).encode()}
    with unswept(root):
        written = write_checkpoint(root, KIND, arrays, facts, files)
        point(root, POINTER, written.digest)
    return written


def open_index(root: Path, digest: str | None = None) -> CandidateIndex:
    """Open an index of a folder of checkpoints, the newest by default, every byte verified."""
    return _opened(read_checkpoint(root, digest or resolve(root, POINTER)))


def open_index_folder(folder: Path) -> CandidateIndex:
    """Open an index by its folder, wherever it was copied to."""
    return _opened(open_folder(folder))


def _opened(kept: Checkpoint) -> CandidateIndex:
    arrays, facts = kept.arrays, kept.manifest
    engaged = Engaged(facts["as_of_us"], *(arrays[f"engaged_{name}"] for name in _ENGAGED))
    return CandidateIndex(
        facts["version"],
        engaged,
        tuple(json.loads(kept.files["ads.json"].read_bytes())),
        arrays["ids"],
        arrays["neighbours"],
        arrays["similarities"],
        facts["half_life_us"],
        facts["popularity_strength"],
    )


def _hashed(eligible: Iterable[str] | None) -> np.ndarray | None:
    return None if eligible is None else ad_hashes(list(eligible))
