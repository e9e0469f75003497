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

CANDIDATES = Table(
    name="embeddings.candidates",
    columns=(
        Column("user_hash", "UBIGINT", "Hash of the user."),
        Column("rank", "INTEGER", "1 for the ad with the largest weight; ties by the ad's hash."),
        Column("ad_id", "VARCHAR", "Ad that similar users engaged with and this one did not."),
        Column("weight", "DOUBLE", "Similarities of those users, the recent counting for more."),
        Column("version", "VARCHAR", "Digest of the encoder that the similarities are of."),
        Column("as_of_us", "BIGINT", "Up to when vectors and engagements know the log."),
    ),
    key=("user_hash", "rank"),
    clock=None,
    description="Ads for each user from what similar users engaged with, the best first.",
)

VERSION_LOOKUPS = Table(
    name="embeddings.version_lookups",
    columns=(
        Column("asked_by", "VARCHAR", "Who brought vectors of two stores together."),
        Column("as_of_us", "BIGINT", "Moment of the log that was asked about."),
        Column("version", "VARCHAR", "Encoder of the vectors that were offered."),
        Column("wanted", "VARCHAR", "Encoder of those that they were to be used with."),
        Column("outcome", "VARCHAR", "passed, bridged by a rotation, or refused."),
        Column("lookups", "BIGINT", "How often."),
    ),
    key=("asked_by", "as_of_us", "version", "wanted", "outcome"),
    clock=None,
    description="How often vectors of one encoder were to meet another's, and what came of it.",
)

TABLES = (SIMILAR_USERS, CANDIDATES, VERSION_LOOKUPS)
