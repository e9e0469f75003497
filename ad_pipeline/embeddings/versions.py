"""Vectors of two encoders are never compared by accident.

Two trainings of one encoder put the same user in different places: their dot products mean nothing,
and nothing in a matrix shows it. So each matrix has the version of its encoder, and whoever brings
two together asks the guard, which lets equal versions pass, turns one space into the other where
somebody has fitted and accepted a rotation, and refuses the rest. Everything it did is counted.

Where vectors are stored belongs to :mod:`ad_pipeline.embeddings.vectors`.

References
----------
P. H. Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31
(1966): the rotation with the least squared error is U Vᵀ of the SVD of sourceᵀ target.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ad_pipeline import hashing


class MixedVersions(ValueError):
    """Vectors of two encoders were about to meet; the message names both versions."""


@dataclass(frozen=True)
class Rotation:
    """The orthogonal map from one version's space into another's, and how well it does.

    Attributes
    ----------
    source, target : str
        Versions.
    matrix : ndarray of shape (d, d), float64
        Orthogonal (reflections allowed); a row vector of the source is multiplied by it.
    error : float
        Of users that the fit has not seen: squared distance of turned and true vectors over the
        squared length of the true ones. 0 is perfect, 1 no better than zeros.
    cosine : float
        Of the same users: mean cosine of turned and true vectors.
    fitted, held_out : int
        Users.
    """

    source: str
    target: str
    matrix: np.ndarray
    error: float
    cosine: float
    fitted: int
    held_out: int

    def turned(self, vectors: np.ndarray) -> np.ndarray:
        """Return vectors of the source, (n, d), in the target's space, float32."""
        return (np.asarray(vectors, np.float64) @ self.matrix).astype(np.float32)


def fit_rotation(
    source: str,
    target: str,
    ids: np.ndarray,
    of_source: np.ndarray,
    of_target: np.ndarray,
    seed: int,
    held_out_share: float = 0.2,
) -> Rotation:
    """Fit the rotation between two versions on users that both know.

    Parameters
    ----------
    source, target : str
        Versions.
    ids : ndarray of shape (n,), uint64
        Hashes of the users; they decide who is held out.
    of_source, of_target : ndarray of shape (n, d), float
        The same users' vectors.
    seed : int
    held_out_share : float
        Of the users, in (0, 1): they are not fitted to, and the error is theirs.

    Returns
    -------
    Rotation

    Raises
    ------
    ValueError
        If shapes differ, or fewer than 2 d users would be fitted to, or none held out: a rotation
        of d dimensions through fewer points is a guess.
    """
    if of_source.shape != of_target.shape or len(ids) != len(of_source):
        raise ValueError(
            f"{len(ids)} users, vectors of {of_source.shape} and {of_target.shape}: a rotation "
            "needs the same users and dimension on both sides"
        )
    held_out = hashing.uniform(seed, ids, "embeddings.rotation.held_out") < held_out_share
    dimension = of_source.shape[1]
    fitted = int((~held_out).sum())
    if fitted < 2 * dimension or not held_out.any():
        raise ValueError(
            f"{fitted} shared users to fit and {int(held_out.sum())} to hold out for {dimension} "
            f"dimensions; encode at least {3 * dimension} users with both {source} and {target}"
        )
    a, b = np.asarray(of_source, np.float64), np.asarray(of_target, np.float64)
    left, _, right = np.linalg.svd(a[~held_out].T @ b[~held_out])
    matrix = left @ right
    turned, true = a[held_out] @ matrix, b[held_out]
    lengths = np.linalg.norm(turned, axis=1) * np.linalg.norm(true, axis=1)
    products = np.einsum("nd,nd->n", turned, true)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return Rotation(
        source,
        target,
        matrix,
        error=float(((turned - true) ** 2).sum() / (true**2).sum()),
        cosine=float(cosines.mean()),
        fitted=fitted,
        held_out=int(held_out.sum()),
    )


@dataclass
class VersionGuard:
    """Stands between two sets of vectors: passes, bridges or refuses, and counts.

    Attributes
    ----------
    tolerated_error : float
        Bridges with a larger held-out error are refused when they are added.
    passed, bridged, refused : Counter of (str, str)
        Times, by the version that was offered and the version that was wanted.
    """

    tolerated_error: float
    passed: Counter[tuple[str, str]] = field(default_factory=Counter)
    bridged: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    _bridges: dict[tuple[str, str], Rotation] = field(default_factory=dict)

    def bridge(self, rotations: Iterable[Rotation]) -> None:
        """Allow rotations from now on.

        Raises
        ------
        ValueError
            If a held-out error is above what is tolerated.
        """
        for rotation in rotations:
            if not rotation.error <= self.tolerated_error:
                raise ValueError(
                    f"the rotation from {rotation.source} to {rotation.target} is off by "
                    f"{rotation.error:.3g} of the squared length on {rotation.held_out} users, "
                    f"more than {self.tolerated_error:.3g}; encode the users anew instead"
                )
            self._bridges[rotation.source, rotation.target] = rotation

    def counts(self) -> Iterator[tuple[str, str, str, int]]:
        """Yield (outcome, version offered, version wanted, times), sorted."""
        for outcome, times in (
            ("bridged", self.bridged),
            ("passed", self.passed),
            ("refused", self.refused),
        ):
            for (version, wanted), count in sorted(times.items()):
                yield outcome, version, wanted, count

    def aligned(self, vectors: np.ndarray, version: str, wanted: str) -> np.ndarray:
        """Return vectors in the space of the wanted version.

        Parameters
        ----------
        vectors : ndarray of shape (n, d), float32
        version, wanted : str

        Returns
        -------
        ndarray of shape (n, d), float32
            The same array if the versions are equal.

        Raises
        ------
        MixedVersions
            If they differ and no bridge leads from the one to the other.
        """
        pair = (version, wanted)
        if version != wanted and pair in self._bridges:
            self.bridged[pair] += 1
            return self._bridges[pair].turned(vectors)
        self.admit(version, wanted)
        return vectors

    def admit(self, version: str, wanted: str) -> None:
        """Let pass what was made of vectors and cannot be turned, if it is of the wanted version.

        Raises
        ------
        MixedVersions
            If it is not.
        """
        if version != wanted:
            self.refused[version, wanted] += 1
            raise MixedVersions(
                f"vectors of version {version} were to be used with those of version {wanted}; "
                "encode the users with one encoder, or fit a rotation between the two and add it "
                "as a bridge"
            )
        self.passed[version, wanted] += 1
