"""The value of each token of a request, as the inverse dictionary writes it.

For people who read a score: which value stood behind each slot. The same words as in
:mod:`ad_pipeline.features.dictionary` (a test holds the two together), without its warehouse.
"""

from ad_pipeline.features.bucket_labels import (
    anchor_words,
    number_label,
    rate_words,
    vector_words,
)
from ad_pipeline.features.encoding import (
    CROSS,
    Columns,
    FeatureContract,
    LookedUp,
    number_words,
    read_columns,
    words_of_rates,
    words_of_vectors,
)
from ad_pipeline.hashing import MISSING_LABEL


def token_values(
    contract: FeatureContract, columns: Columns, looked_up: LookedUp
) -> list[tuple[str, ...]]:
    """Return the value of every token of some rows.

    Parameters
    ----------
    contract : FeatureContract
    columns : mapping of str to Arrow column of shape (n,)
        See :func:`ad_pipeline.features.encoding.read_columns`.
    looked_up : LookedUp of n rows

    Returns
    -------
    list of n tuples of str
        In the order of ``contract.token_names``.
    """
    read = read_columns(contract, columns)
    texts = {
        name: [MISSING_LABEL if text is None else text for text in columns[name].to_pylist()]
        for name in contract.text_columns
    }
    words = number_words(read.numbers)
    labels = {"rate": rate_words(), "anchors": anchor_words()}
    whats = [name.rpartition(".")[2] for name in contract.rate_names]
    rates = words_of_rates(contract, looked_up)
    vectors = words_of_vectors(contract, looked_up)
    of_vectors = {} if contract.vectors is None else vector_words(contract.vectors.dimension)
    return [
        (
            "",
            *(texts[name][row] for name in contract.categorical),
            *map(number_label, words[row].tolist()),
            *(CROSS.join(texts[name][row] for name in pair) for pair in contract.crosses),
            *(labels[what][word] for what, word in zip(whats, rates[row].tolist(), strict=True)),
            *map(of_vectors.__getitem__, vectors[row].tolist()),
        )
        for row in range(len(read))
    ]
