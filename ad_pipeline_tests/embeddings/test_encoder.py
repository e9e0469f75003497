"""The encoder of users: its formulas, its four enrichments, and whose bits a vector depends on.

Formulas are held to a loop over single activities in NumPy, written from the docstrings, that
shares no code with the encoder. What a part reads is moved while all else stays.
"""

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from ad_pipeline.embeddings.encoder import (
    EmbeddingsExtraMissing,
    Encoder,
    first_parameters,
    flat_of,
    laid_out,
    task_logits,
    user_vector,
    windows_of,
)
from ad_pipeline.embeddings.enrichment import DAY_US, waves_of
from ad_pipeline.embeddings.sequences import Activities, Batch, History, Sequences
from ad_pipeline.settings import EncoderSettings, Enrichment, Mixing, Modality
from ad_pipeline_tests.embeddings.made_worlds import (
    BITS,
    NO_ENRICHMENT,
    NOW_US,
    TASKS,
    activities,
    history_at_random,
    needs_jax,
    settings_of,
    shaken,
)

TWO_KINDS = EncoderSettings(
    modalities=(
        Modality(name="clicks", tokens=1, longest=16),
        Modality(name="looks", tokens=1, vector=3, longest=16),
    ),
    bits=BITS, width=8, dimension=6, heads=2, tasks=TASKS,
)  # fmt: skip
PARTS = tuple(Enrichment.model_fields)


def only(*parts: str) -> Enrichment:
    return Enrichment(**{part: part in parts for part in PARTS})


def encoder_of(settings: EncoderSettings) -> Encoder:
    return shaken(Encoder.first(settings))


def made(settings: EncoderSettings, as_of_us: int = NOW_US) -> Sequences:
    return history_at_random(settings).sequences(
        as_of_us, {modality.name: modality.longest for modality in settings.modalities}
    )


def of_numpy(encoder: Encoder, sequences: Sequences, lengths: int = 16) -> np.ndarray:
    """Return vectors by the encoder's own functions in NumPy, float64, in one padded shape."""
    rows = np.arange(len(sequences))
    batch = Batch(rows, dict.fromkeys(encoder.longest, lengths))
    inputs = encoder.inputs(windows_of(sequences, batch))
    flat = flat_of(encoder.parameters).astype(np.float64)
    parameters = laid_out(flat, encoder.parameters)
    return np.stack(
        [
            user_vector(
                encoder.settings,
                parameters,
                {name: {k: v[row] for k, v in of.items()} for name, of in inputs.items()},
            )
            for row in rows
        ]
    )


# --- an independent encoder ----------------------------------------------------------------------


def by_loops(encoder: Encoder, sequences: Sequences, row: int) -> list[float]:
    """Return a user's vector: every activity and every number one after the other."""
    settings, own = encoder.settings, encoder.parameters
    as_of_us = int(sequences.as_of_us[row])
    fused = []
    for modality in settings.modalities:
        of = sequences.history.modalities[modality.name]
        first, last = (int(side[row]) for side in sequences.spans[modality.name])
        done = []
        for at in range(last - 1, first - 1, -1):
            before_us = int(of.occurred_us[at - 1]) if at > first else None
            done.append((of, at, int(of.occurred_us[at]), before_us))
        fused.append(pooled_by_loop(encoder, own["modules"][modality.name], done, as_of_us))
    fused = block_by_loop(own["fusion"], fused, settings.heads, "quadratic")
    numbers = [number for one in fused for number in one]
    return [float(np.dot(numbers, column)) for column in own["compression"].T]


def pooled_by_loop(encoder: Encoder, own: Any, done: list[Any], as_of_us: int) -> list[float]:
    settings = encoder.settings
    parts = settings.enrichment
    xs, ages = [], []
    for place, (of, at, occurred_us, before_us) in enumerate(done):
        (slot,) = of.tokens[at]
        x = encoder.content.rows[slot].astype(float) + own["bias"]
        if len(of.vectors[at]):
            x = x + of.vectors[at] @ own["projection"]
        if parts.absolute_position:
            x = x + own["position"][place]
        if parts.cyclic_pattern:
            hour = occurred_us / 3.6e9 % 24 / 24
            weekday = (int(occurred_us // 8.64e10) + 3) % 7 / 7
            turns = [hour, 2 * hour, weekday, 2 * weekday, 3 * weekday]
            waves = [f(2 * math.pi * turn) for f in (math.sin, math.cos) for turn in turns]
            x = x + np.array(waves) @ own["cycle"]
        if parts.relative_position:
            seconds = None if before_us is None else (occurred_us - before_us) / 1e6
            x = x + own["gap"][0 if seconds is None else 1 + int(math.log2(1 + seconds))]
        xs.append(list(x))
        ages.append((as_of_us - occurred_us) / 8.64e10)
    xs = block_by_loop(own["block"], xs, settings.heads, settings.mixing)
    size = settings.width // settings.heads
    out: list[float] = []
    for head in range(settings.heads):
        mine = slice(head * size, (head + 1) * size)
        total_weight = math.exp(own["prior_score"][head])
        total = total_weight * np.array(own["prior"][mine])
        for x, age in zip(xs, ages, strict=True):
            weight = math.exp(np.dot(x, own["scores"][:, head]))
            if parts.temporal_decay:
                weight *= 0.5 ** (age / 2 ** own["log2_half_life_days"][head])
            total_weight += weight
            total = total + weight * (np.array(x) @ own["values"])[mine]
        out += (total / total_weight).tolist()
    return out


def block_by_loop(own: Any, xs: list[Any], heads: int, mixing: Mixing) -> list[Any]:
    size = len(xs[0]) // heads if xs else 0
    if mixing != "none":
        normed = [normed_by_loop(x) for x in xs]
        asked, offered, given_ = (
            [x @ own[n] for x in normed] for n in ("asked", "offered", "given")
        )
        mixed = []
        for q in asked:
            one = []
            for head in range(heads):
                mine = slice(head * size, (head + 1) * size)
                if mixing == "quadratic":
                    weights = [math.exp(q[mine] @ k[mine] / math.sqrt(size)) for k in offered]
                else:
                    weights = [elu_plus_1(q[mine]) @ elu_plus_1(k[mine]) for k in offered]
                values = sum(w * v[mine] for w, v in zip(weights, given_, strict=True))
                one += (np.asarray(values) / sum(weights)).tolist()
            mixed.append(np.array(one) @ own["taken"])
        xs = [x + m for x, m in zip(xs, mixed, strict=True)]
    out = []
    for x in xs:
        inner = np.maximum(normed_by_loop(x) @ own["inner"] + own["inner_bias"], 0)
        out.append(x + inner @ own["outer"])
    return out


def normed_by_loop(x: Any) -> np.ndarray:
    return np.array(x) / math.sqrt(sum(number * number for number in x) / len(x) + 0.01)


def elu_plus_1(x: np.ndarray) -> np.ndarray:
    return np.array([number + 1 if number > 0 else math.exp(number) for number in x])


@pytest.mark.parametrize("mixing", ["none", "linear", "quadratic"])
def test_the_encoder_says_what_a_loop_over_activities_says(mixing: Mixing) -> None:
    encoder = encoder_of(TWO_KINDS.model_copy(update={"mixing": mixing}))
    sequences = made(encoder.settings)
    lengths = sequences.lengths("clicks")
    assert (lengths == 0).any()
    assert (lengths == 16).any()
    looped = np.array([by_loops(encoder, sequences, row) for row in range(len(sequences))])
    np.testing.assert_allclose(of_numpy(encoder, sequences), looped, rtol=1e-5, atol=1e-5)
    other = shaken(encoder, seed=2)
    assert np.abs(of_numpy(other, sequences) - looped).max() > 0.1, "parameters matter"


@needs_jax
def test_vectors_in_jax_are_the_loop_s_to_float32() -> None:
    encoder = encoder_of(TWO_KINDS)
    sequences = made(TWO_KINDS)
    looped = np.array([by_loops(encoder, sequences, row) for row in range(len(sequences))])
    np.testing.assert_allclose(encoder.vectors(sequences), looped, rtol=1e-4, atol=1e-4)


def test_logits_are_inner_products_with_biases() -> None:
    encoder = encoder_of(settings_of("clicks"))
    generator = np.random.default_rng(0)
    users = generator.normal(size=(5, 8)).astype(np.float32)
    tokens = generator.integers(0, 1 << BITS, (5, 3)).astype(np.uint32)
    vectors, biases = encoder.ad_vectors(tokens)
    heads = encoder.parameters["heads"]
    for task in (0, 1):
        alone = users @ heads["user"][:, task] + heads["bias"][task] + biases[:, task]
        expected = (users * heads["scale"][task] * vectors).sum(axis=1) + alone
        found = encoder.logits(users, tokens)[:, task]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    several = task_logits(heads, users, np.zeros((5, 4, 10), np.float32))
    assert several.shape == (5, 4, 2)


# --- enrichment ----------------------------------------------------------------------------------

PARAMETER_OF = {
    "absolute_position": "position",
    "temporal_decay": "log2_half_life_days",
    "cyclic_pattern": "cycle",
    "relative_position": "gap",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_off_has_no_parameters(part: str) -> None:
    for on in (True, False):
        enrichment = Enrichment(**{part: on})
        module = first_parameters(settings_of("clicks", enrichment=enrichment))["modules"]["clicks"]
        assert (PARAMETER_OF[part] in module) == on
        others = set(PARAMETER_OF.values()) - {PARAMETER_OF[part]}
        assert others <= set(module)


def with_times(sequences: Sequences, moved: Any, as_of_moved_us: int = 0) -> Sequences:
    """Return the sequences with their moments moved; ``moved`` takes and returns microseconds."""
    modalities = {
        name: replace(of, occurred_us=moved(of.occurred_us))
        for name, of in sequences.history.modalities.items()
    }
    return replace(
        sequences,
        history=History(sequences.history.users, modalities),
        as_of_us=sequences.as_of_us + as_of_moved_us,
    )


def in_other_order(sequences: Sequences) -> Sequences:
    """Return the sequences with what each user did the other way round; moments stay."""

    def turned(of: Activities) -> Activities:
        of_user = np.repeat(np.arange(len(of.offsets) - 1), np.diff(of.offsets))
        place = np.arange(len(of_user)) - of.offsets[of_user]
        other = of.offsets[of_user + 1] - 1 - place
        return replace(of, tokens=of.tokens[other])

    modalities = {name: turned(of) for name, of in sequences.history.modalities.items()}
    return replace(sequences, history=History(sequences.history.users, modalities))


CHANGES = {
    "absolute_position": in_other_order,
    "temporal_decay": lambda sequences: with_times(sequences, lambda us: us, 3 * DAY_US),
    "cyclic_pattern": lambda sequences: with_times(
        sequences, lambda us: us + DAY_US * 5 // 24, DAY_US * 5 // 24
    ),
    "relative_position": lambda sequences: with_times(
        sequences, lambda us: NOW_US - (NOW_US - us) // DAY_US * DAY_US * 3
    ),
}
"""What moves only what one part reads, if the others are off."""


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_off_reads_nothing_and_one_that_is_on_reads_it(part: str) -> None:
    # All activities of all users are read, so that their order alone is turned.
    settings = settings_of("clicks", enrichment=NO_ENRICHMENT)
    settings = settings.model_copy(
        update={"modalities": (Modality(name="clicks", tokens=1, longest=32),)}
    )
    sequences = made(settings)
    changed = CHANGES[part](sequences)
    off = encoder_of(settings)
    before, after = (of_numpy(off, given, 32) for given in (sequences, changed))
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)
    on = encoder_of(settings.model_copy(update={"enrichment": only(part)}))
    before, after = (of_numpy(on, given, 32) for given in (sequences, changed))
    assert np.abs(after - before).max() > 0.01


@given(st.integers(0, 4 * 10**15), st.integers(0, 500))
@budget(max_examples=50, deadline=None)
def test_waves_come_back_after_a_week_and_tell_weekdays_apart(us: int, weeks: int) -> None:
    now, later = waves_of(np.array([us, us + weeks * 7 * DAY_US]))
    assert np.array_equal(now, later)
    week = waves_of(us + DAY_US * np.arange(7))
    apart = np.abs(week[:, None] - week[None, :]).max(axis=-1)
    assert apart[~np.eye(7, dtype=bool)].min() > 0.1


def test_old_activities_fade_to_the_prior_of_who_did_nothing() -> None:
    encoder = encoder_of(settings_of("clicks", enrichment=only("temporal_decay")))
    sequences = made(encoder.settings)
    nobody = replace(sequences, spans={"clicks": (sequences.user * 0, sequences.user * 0)})
    unknown = of_numpy(encoder, nobody)
    apart = []
    for days in (0, 100, 10_000, 100_000):
        later = replace(sequences, as_of_us=sequences.as_of_us + days * DAY_US)
        apart.append(np.abs(of_numpy(encoder, later) - unknown).max())
    assert apart[0] > apart[1] > apart[2]
    assert apart[3] < 1e-6


# --- bits ----------------------------------------------------------------------------------------


@needs_jax
def test_a_vector_does_not_depend_on_its_batch_to_the_bit() -> None:
    encoder = encoder_of(TWO_KINDS)
    sequences = made(TWO_KINDS)
    whole = encoder.vectors(sequences)
    order = np.random.default_rng(3).permutation(len(sequences))
    assert np.array_equal(encoder.vectors(sequences.take(order)), whole[order])
    for row in (0, 7, 39):
        assert np.array_equal(encoder.vectors(sequences.take(np.array([row])))[0], whole[row])
    many = np.tile(np.arange(len(sequences)), 15)  # more than a call
    assert np.array_equal(encoder.vectors(sequences.take(many)), whole[many])
    assert len(np.unique(whole, axis=0)) > 30


@needs_jax
def test_nobody_has_no_vectors() -> None:
    table = activities(*(np.zeros(0, kind) for kind in (int, int, "U6", int)))
    history = History.of_table(table, settings_of("clicks").modalities)
    encoder = Encoder.first(settings_of("clicks"))
    assert encoder.vectors(history.sequences(NOW_US, encoder.longest)).shape == (0, 8)


def test_more_padding_changes_nothing_but_rounding() -> None:
    for mixing in ("none", "linear", "quadratic"):
        encoder = encoder_of(TWO_KINDS.model_copy(update={"mixing": mixing}))
        longer = [modality.model_copy(update={"longest": 64}) for modality in TWO_KINDS.modalities]
        roomy = encoder_of(encoder.settings.model_copy(update={"modalities": tuple(longer)}))
        sequences = made(encoder.settings)
        short, long = (of_numpy(roomy, sequences, length) for length in (16, 64))
        np.testing.assert_allclose(long, short, rtol=1e-9, atol=1e-9)


def test_what_lies_where_nothing_is_does_not_matter() -> None:
    encoder = encoder_of(TWO_KINDS.model_copy(update={"mixing": "linear"}))
    sequences = made(encoder.settings)
    row = int(np.flatnonzero(sequences.lengths("clicks") == 5)[0])
    windows = windows_of(sequences, Batch(np.array([row]), {"clicks": 16, "looks": 16}))
    inputs = encoder.inputs(windows)
    one = {name: {k: v[0] for k, v in of.items()} for name, of in inputs.items()}
    before = user_vector(encoder.settings, encoder.parameters, one)
    one["clicks"]["content"][5:] = 1e3
    one["clicks"]["age_days"][5:] = -1e3
    after = user_vector(encoder.settings, encoder.parameters, one)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    one["clicks"]["content"][4] = 1e3
    planted = user_vector(encoder.settings, encoder.parameters, one)
    assert np.abs(planted - before).max() > 1.0, "one that is there does matter"


# --- what is refused -----------------------------------------------------------------------------


def test_without_jax_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    encoder = Encoder.first(settings_of("tastings"))
    with pytest.raises(EmbeddingsExtraMissing, match=r"pip install ad_pipeline\[embeddings\]"):
        encoder.vectors(made(encoder.settings))


def test_sequences_of_another_encoder_are_refused() -> None:
    encoder = Encoder.first(settings_of("clicks", "views"))
    with pytest.raises(ValueError, match="lack modality 'views'"):
        encoder.check(made(settings_of("clicks")))
    history = history_at_random(settings_of("clicks", "views"))
    with pytest.raises(ValueError, match="a sequence has 20 activities of modality 'clicks'"):
        encoder.check(history.sequences(NOW_US, {"clicks": 20, "views": 16}))


def test_settings_that_fit_no_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match="width 8 is no multiple of heads 3"):
        settings_of("clicks", heads=3)
    with pytest.raises(ValueError, match="named twice"):
        settings_of("clicks", "clicks")
    with pytest.raises(ValueError, match="reads nothing"):
        Modality(name="clicks", tokens=0)
