"""What users' vectors are made of, kept fresh and found by: every knob, with its reason.

The groups stand here and not in :mod:`ad_pipeline.settings` while no dataset file asks for user
vectors: the digest of the settings names models, and none depends on these yet.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ad_pipeline.settings import Group, PositiveInt, Share

Mixing = Literal["none", "linear", "quadratic"]
"""What an activity sees of the user's others before all are pooled."""


class Modality(Group):
    """One kind of activity; its module has parameters of its own."""

    name: str = Field(description="As column `modality` of the activities has it.")
    tokens: Annotated[int, Field(ge=0)] = Field(
        default=8, description="Slots of an activity that are read; more are cut off, fewer padded."
    )
    vector: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Numbers of the vector that comes with an activity; 0 for none."
    )
    longest: PositiveInt = Field(
        default=128, description="Activities of a user that are read: the newest ones."
    )

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if not self.tokens and not self.vector:
            raise ValueError(f"modality {self.name!r} reads nothing; give it tokens or a vector")
        return self


class Enrichment(Group):
    """The four parts of the Complex Feature Enrichment Encoder; one that is off has no parameters.

    Reference: Async Learned User Embeddings for Ads Delivery Optimization, arXiv 2406.05898.
    """

    absolute_position: bool = Field(
        default=True, description="How many activities came after this one."
    )
    temporal_decay: bool = Field(
        default=True, description="Age at the as-of time, by half-lives that are learned."
    )
    cyclic_pattern: bool = Field(default=True, description="Time of day and weekday, UTC.")
    relative_position: bool = Field(
        default=True, description="Time that had passed since the activity before."
    )


class EncoderSettings(Group):
    """What a user's vector is made of (arXiv 2406.05898); needs the extra `embeddings`."""

    modalities: tuple[Modality, ...] = Field(
        min_length=1, description="Kinds of activity, each encoded by a module of its own."
    )
    enrichment: Enrichment = Enrichment()
    bits: Annotated[int, Field(ge=8, le=28)] = Field(
        default=16, description="2^bits slots of activities' tokens, and as many of ads'."
    )
    width: PositiveInt = Field(default=32, description="Numbers of an activity in the encoder.")
    heads: PositiveInt = Field(
        default=4, description="Queries that pool a modality, each with its own half-life."
    )
    mixing: Mixing = Field(
        default="none",
        description="Self-attention between the activities of a modality before they are pooled: "
        "none, linear or quadratic in their number. Pooling alone was as good where it was "
        "measured (`benchmarks/speed/embeddings.py`) and costs least.",
    )
    dimension: PositiveInt = Field(default=32, description="d, numbers of a user's vector.")
    tasks: tuple[str, ...] = Field(
        default=("click", "conversion"), min_length=1, description="Labels, a head each."
    )

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        names = [modality.name for modality in self.modalities]
        if len(set(names)) < len(names):
            raise ValueError(f"a modality is named twice: {names}")
        return self


class TrainingSettings(Group):
    """How an encoder is trained."""

    contrastive: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="Weight of the user-to-user term: the two halves of a user's activities should "
        "find each other among those of the batch; 0 leaves it out.",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="Of the user-to-user term: lower looks at the nearest users only."
    )
    batch_sequences: Annotated[int, Field(ge=2)] = Field(
        default=64, description="Sequences of a step."
    )
    ads_per_sequence: PositiveInt = Field(
        default=16,
        description="Labelled ads that share one encoding of their user in a step; a user with "
        "more has several rows.",
    )
    table_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="Learning rate of the tables of slots: row-wise AdaGrad."
    )
    dense_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.003, description="Learning rate of everything else: Adam."
    )
    epochs: PositiveInt = Field(default=3, description="Times that every label is learnt.")
    seed: int = Field(default=0, description="Same seed, same first weights and order.")


class RefreshTier(Group):
    """Users of some activity, and how old their vectors may grow while there is news of them."""

    from_activities: Annotated[int, Field(ge=0)] = Field(
        description="The tier begins with users of so many activities within the lookback."
    )
    interval_minutes: PositiveInt = Field(
        description="A vector younger than this is not computed again, whatever the user does."
    )

    @property
    def interval_us(self) -> int:
        """The interval in microseconds."""
        return self.interval_minutes * 60_000_000


class UserVectorSettings(Group):
    """How users' vectors are kept fresh and stored, and how similar users are found by them."""

    tiers: tuple[RefreshTier, ...] = Field(
        default=(
            RefreshTier(from_activities=0, interval_minutes=7 * 24 * 60),
            RefreshTier(from_activities=1, interval_minutes=24 * 60),
            RefreshTier(from_activities=5, interval_minutes=60),
            RefreshTier(from_activities=20, interval_minutes=5),
        ),
        description="By ascending activity, the first from 0: what is known of somebody who did "
        "much lately ages fastest.",
    )
    averaged: Annotated[int, Field(ge=1, le=255)] = Field(
        default=3,
        description="Vectors of a user whose mean is read (SUM, arXiv 2311.09544: the last three).",
    )
    shard_bits: Annotated[int, Field(ge=0, le=16)] = Field(
        default=4, description="2^bits shards: one is in memory at a time while they are written."
    )
    quantized_parts: PositiveInt | None = Field(
        default=None,
        description="Bytes a vector, product-quantized; must divide the dimension. None: float16.",
    )
    tolerated_rotation_error: Share = Field(
        default=0.1,
        description="Held-out error of a rotation between two versions, as a share of the squared "
        "length, above which vectors are refused and not turned.",
    )
    neighbours: PositiveInt = Field(default=50, description="Similar users that are kept of each.")
    exact_users: PositiveInt = Field(
        default=4_096, description="Up to so many users all pairs are compared: it takes seconds."
    )
    clusters_per_root: Annotated[float, Field(gt=0)] = Field(
        default=2.0,
        description="Clusters, in square roots of the number of users: to find one's cluster and "
        "to search some of them then cost alike.",
    )
    probes: PositiveInt = Field(
        default=12, description="Clusters that are searched for a user: the own and the nearest."
    )
    half_life_hours: Annotated[float, Field(gt=0)] = Field(
        default=72.0,
        description="Hours after which what a similar user engaged with speaks half as loudly.",
    )

    @model_validator(mode="after")
    def _check_tiers(self) -> Self:
        """Refuse tiers of which a user could have none, or two."""
        begins = [tier.from_activities for tier in self.tiers]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)):
            raise ValueError(
                f"tiers begin with {begins} activities; let the first begin with 0 and each other "
                "with more than the one before"
            )
        return self
