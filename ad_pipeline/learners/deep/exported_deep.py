"""Wide & deep as a bidder keeps it: the slots that were learnt, the layers, and how to score.

A bitmap says which slots of the table were learnt, a rank directory how many stand before each word
of it, and their numbers follow each other in order of slot, as in
:mod:`ad_pipeline.learners.ftrl.exported_weights`: plain arrays that a scorer maps into memory. The
numbers of the other slots follow from the seed. It scores to the bit what the learner scores that
it was exported from. Training does not belong here, and JAX is not needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from ad_pipeline.learners.deep.deep_scores import (
    DenseLayers,
    Unlearnt,
    bitmap_of,
    flat,
    gather_kept,
    logits,
)
from ad_pipeline.learners.ftrl.ftrl_expert import HEADS
from ad_pipeline.learners.ftrl.ftrl_kernel import checked_slots
from ad_pipeline.settings import DeepSettings, DelayedLoss, LinkedLoss


@dataclass(frozen=True)
class ExportedDeep:
    """What scores of a wide & deep learner; see the module.

    Attributes
    ----------
    present : ndarray of shape (ceil(2**bits / 64),), uint64
        Bit ``slot % 64`` of word ``slot // 64``: the table's slot was learnt.
    rank : ndarray of the same shape, uint32
        Learnt slots before the word.
    kept : ndarray of shape (learnt slots, heads + E), float32
        Wide weights and embeddings of the learnt slots, in order of slot.
    unlearnt : Unlearnt
        Of the slots that were not.
    layers : DenseLayers
    fields : int
        F, slots of a row.
    slot_bits, bits : int
        Of the slots given, and of the table's, which are the highest of those.
    loss : str
        What it was trained for, with its link.
    horizon_days : float
        Window and lateness of the goal, for a loss whose link reads them.
    """

    present: np.ndarray
    rank: np.ndarray
    kept: np.ndarray
    unlearnt: Unlearnt
    layers: DenseLayers
    fields: int
    slot_bits: int
    bits: int
    loss: LinkedLoss | DelayedLoss
    horizon_days: float

    @property
    def learnt(self) -> int:
        """Number of slots that were learnt."""
        return len(self.kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.to_arrays().values())

    def gather(self, slots: np.ndarray) -> np.ndarray:
        """Return the numbers of slots, uint32 (n, F) below 2**slot_bits; float32 (n, F, width)."""
        out = np.empty((*slots.shape, self.kept.shape[1]), np.float32)
        present, rank, kept = self._views
        unlearnt = self.unlearnt
        gather_kept(
            flat(slots), np.uint32(self.slot_bits - self.bits), present, rank, kept,
            unlearnt.heads, self._lanes, np.float32(unlearnt.scale), unlearnt.word,
            out.reshape(-1),
        )  # fmt: skip
        return out

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return the log odds of rows; one row scores as it does among many, to the bit.

        Parameters
        ----------
        slots : ndarray of shape (n, F), uint32
            The online expert's, below 2**slot_bits.

        Returns
        -------
        ndarray of shape (n,), float64

        Raises
        ------
        ValueError
            If the slots are not so many a row, or not below 2**slot_bits.
        """
        checked = slots_of_fields(slots, self.fields, self.slot_bits)
        return logits(self.gather, checked, self.layers, self.loss, self.horizon_days)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name."""
        arrays = {"present": self.present, "rank": self.rank, "kept": self.kept}
        for place, (weights, biases) in enumerate(
            zip(self.layers.weights, self.layers.biases, strict=True)
        ):
            arrays |= {f"weights_{place}": weights, f"biases_{place}": biases}
        return arrays

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_arrays` needs beside the arrays."""
        return {
            "layers": len(self.layers.weights),
            "leak": self.layers.leak,
            "unlearnt": self.unlearnt._asdict(),
            "fields": self.fields,
            "slot_bits": self.slot_bits,
            "bits": self.bits,
            "loss": self.loss,
            "horizon_days": self.horizon_days,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Self:
        """Return the export of :meth:`to_arrays` and :meth:`to_json`, without copying its slots."""
        places = range(manifest["layers"])
        return cls(
            present=np.asarray(arrays["present"]),
            rank=np.asarray(arrays["rank"]),
            kept=np.asarray(arrays["kept"]),
            unlearnt=Unlearnt(**manifest["unlearnt"]),
            layers=DenseLayers(
                tuple(np.asarray(arrays[f"weights_{place}"]) for place in places),
                tuple(np.asarray(arrays[f"biases_{place}"]) for place in places),
                manifest["leak"],
            ),
            fields=manifest["fields"],
            slot_bits=manifest["slot_bits"],
            bits=manifest["bits"],
            loss=manifest["loss"],
            horizon_days=manifest["horizon_days"],
        )

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Self:
        """Return the export of a learner's state, for which neither it nor JAX is needed.

        Parameters
        ----------
        arrays, manifest : mapping
            Of :meth:`ad_pipeline.learners.deep.wide_deep.WideDeep.state`.
        """
        settings = DeepSettings(**manifest["settings"])
        present = bitmap_of(np.asarray(arrays["slots"]), settings.bits)
        places = range(len(settings.layers) + 1)
        return cls(
            present=present,
            rank=rank_of(present),
            kept=np.asarray(arrays["numbers"]),
            unlearnt=Unlearnt(
                len(HEADS[settings.loss]), manifest["unlearnt_scale"], manifest["seed"]
            ),
            layers=DenseLayers(
                tuple(np.asarray(arrays[f"weights_{place}"]) for place in places),
                tuple(np.asarray(arrays[f"biases_{place}"]) for place in places),
                settings.leak,
            ),
            fields=manifest["fields"],
            slot_bits=manifest["slot_bits"],
            bits=settings.bits,
            loss=settings.loss,
            horizon_days=manifest["horizon_days"],
        )

    @cached_property
    def _lanes(self) -> tuple[float, ...]:
        return (0.0,) * (self.kept.shape[1] - self.unlearnt.heads)

    @cached_property
    def _views(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return flat(self.present), flat(self.rank), flat(self.kept)


def rank_of(present: np.ndarray) -> np.ndarray:
    """Return how many bits are set before each word of a bitmap, uint32."""
    rank = np.zeros(len(present), np.uint32)
    np.cumsum(np.bitwise_count(present[:-1]), dtype=np.uint32, out=rank[1:])
    return rank


def slots_of_fields(slots: np.ndarray, fields: int, slot_bits: int) -> np.ndarray:
    """Return slots as the kernels need them, uint32 (n, F), contiguous.

    Raises
    ------
    ValueError
        If they are not so many a row, not unsigned integers, or not below 2**slot_bits.
    """
    checked = checked_slots(slots, 1 << slot_bits)
    if checked.shape[1] != fields:
        raise ValueError(f"rows have {checked.shape[1]} slots; the learner was made for {fields}")
    return checked
