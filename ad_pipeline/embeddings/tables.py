"""The tables of the room ``embeddings``: their columns, keys and clocks.

Vectors are no table: they are a store of files, :mod:`ad_pipeline.embeddings.vectors`.
"""

from ad_pipeline.warehouse import Column, Table

SIMILAR_USERS = Table(
    name="embeddings.similar_users",
    columns=(
        Column("user_hash", "UBIGINT", "Hash of the user."),
        Column("neighbour_hash", "UBIGINT", "Hash of the similar user."),
        Column("similarity", "FLOAT", "Cosine of the two vectors."),
        Column("rank", "INTEGER", "1 for the most similar; ties by hash."),
        Column("version", "VARCHAR", "Digest of the encoder that both vectors are of."),
        Column("as_of_us", "BIGINT", "Up to when the vectors know the log."),
    ),
    key=("user_hash", "rank"),
    clock=None,
    description="The graph of similar users: a row for each user and each of the nearest others.",
)

TABLES = (SIMILAR_USERS,)
