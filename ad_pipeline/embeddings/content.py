"""What an activity or an ad is about, as slots: ids, and texts as hashed bags of n-grams.

A slot is the highest bits of a hash of what it stands for, seeded by a name (of a modality, of an
ad's column), so that the same id under two names falls into two slots. Vectors of images or texts
that the user's own models make come as they are and are projected by the encoder.

References
----------
Bojanowski et al., Enriching Word Vectors with Subword Information, TACL 2017 (n-grams of characters
between marks of a word's ends). Weinberger et al., Feature Hashing for Large Scale Multitask
Learning, ICML 2009. Broder, On the Resemblance and Containment of Documents, SEQUENCES 1997.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from ad_pipeline.embeddings.sequences import NOTHING
from ad_pipeline.hashing import hash_strings, hash_values, seed_of, slot_of

_WORD = re.compile(r"\w+")


def id_tokens(ids: pa.Array | pa.ChunkedArray, name: str, bits: int) -> np.ndarray:
    """Return the slot of each id.

    Parameters
    ----------
    ids : pa.Array or pa.ChunkedArray of shape (n,)
        Texts; a null has a slot of its own.
    name : str
        What the ids are of, e.g. ``"clicks.ad_id"``.
    bits : int
        There are 2^bits slots.

    Returns
    -------
    ndarray of shape (n,), uint32
        Never :data:`.sequences.NOTHING`.
    """
    return _slots(hash_strings(ids, seed_of(name)), bits)


def text_tokens(
    texts: Sequence[str | None],
    name: str,
    bits: int,
    *,
    characters: Sequence[int] = (3, 4),
    words: Sequence[int] = (1, 2),
    most: int = 32,
) -> pa.ListArray:
    """Return the slots of each text's n-grams: a bag, without order and without repeats.

    Parameters
    ----------
    texts : sequence of str or None, length n
        Compared without case and compatibility forms (NFKC); a null has no tokens.
    name : str
        What the texts are of, e.g. ``"comments.text"``.
    bits : int
        There are 2^bits slots.
    characters, words : sequence of int
        Lengths of n-grams, of characters within ``<word>`` and of whole words.
    most : int
        Of more n-grams, those of the smallest hashes are kept: two texts then share kept ones as
        far as they share n-grams (Broder's sketch).

    Returns
    -------
    pa.ListArray of length n, list<uint32>
        By ascending hash.
    """
    grams = [sorted(set(_grams(text or "", characters, words))) for text in texts]
    lengths = np.array([len(of_text) for of_text in grams], np.int64)
    hashes = hash_values([gram for of_text in grams for gram in of_text], seed_of(name))
    owner = np.repeat(np.arange(len(grams)), lengths)
    order = np.lexsort((hashes, owner))
    starts = np.cumsum(lengths) - lengths
    kept = order[np.arange(len(order)) - starts[owner] < most]
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, most))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(_slots(hashes[kept], bits)))


def _slots(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Return slots other than that of nothing, whose hashes fall beside it."""
    slots = slot_of(hashes, bits)
    return np.where(slots == NOTHING, np.uint32(NOTHING + 1), slots)


def _grams(text: str, characters: Sequence[int], words: Sequence[int]) -> Iterator[str]:
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    for length in words:
        for start in range(len(found) - length + 1):
            yield "w " + " ".join(found[start : start + length])
    for word in found:
        marked = f"<{word}>"
        for length in characters:
            for start in range(len(marked) - length + 1):
                yield "c " + marked[start : start + length]
