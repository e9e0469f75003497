"""What users did next: drawn against others, never what was read, and learnt."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from pydantic import ValidationError

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings import encoder_hours
from ad_pipeline.embeddings.content import id_tokens
from ad_pipeline.embeddings.encoder_hours import rows_to_learn
from ad_pipeline.embeddings.next_actions import Actions, actions_of, contrasted
from ad_pipeline.embeddings.sequences import NEVER, History
from ad_pipeline.embeddings.training import LabelledAds, LeakedLabel, train
from ad_pipeline.settings import (
    NEXT,
    EncoderSettings,
    Modality,
    NextActionSettings,
    TrainingSettings,
    UserVectorSettings,
)
from ad_pipeline.warehouse import rows_of
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_worlds import needs_jax, settings_of
from ad_pipeline_tests.embeddings.vector_markets import (
    hour_of,
    vector_settings,
    warehouse_of,
    with_settings,
)

HORIZON = 4
LAST = 20
"""Hour of the market after which is learnt."""

Done = tuple[str, int, int]
"""Who did what after which moment: the user, the sequence's moment, the slot."""


def learnt(market: Market, number: int = LAST) -> Counter[Done]:
    """Return what the product teaches that users did."""
    dataset = market.deployment.dataset
    sequences, ads = rows_to_learn(warehouse_of(market), dataset, hour_of(market, number))
    done = ads.labels[:, -1] == 1
    rows = ads.sequence[done]
    users = np.array(sequences.history.users.to_pylist())[sequences.user[rows]]
    moments = sequences.as_of_us[rows].tolist()
    return Counter(zip(users.tolist(), moments, ads.tokens[done, 0].tolist(), strict=True))


def with_label(market: Market, number: int) -> set[str]:
    """Return the users of whom a label had matured: who has none is not read."""
    query = (
        "SELECT DISTINCT i.user_id FROM examples.labelled_impressions AS l "
        "JOIN events.impressions AS i USING (impression_id) "
        f"WHERE l.goal IN ('click', 'purchase') AND l.matured_us < {hour_of(market, number + 1)}"
    )
    with warehouse_of(market).reader() as connection:
        return set(rows_of(connection, query)["user_id"].to_pylist())


def by_hand(market: Market, number: int = LAST) -> Counter[Done]:
    """Read the log row by row: what came in a horizon, of who had done something an hour before.

    The market's log is younger than the lookback and than the labels' lookback, and its labels
    begin in its first hour, so neither leaves anything out.
    """
    end_us, bits = hour_of(market, number + 1), vector_settings(market).encoder.bits
    labelled = with_label(market, number)
    query = (
        "SELECT user_id, content_id, received_us FROM events.user_activities "
        f"WHERE modality = 'content_view' AND received_us < {end_us}"
    )
    clicks = (
        "SELECT i.user_id, min(e.received_us) AS first_us FROM events.engagements AS e "
        "JOIN events.impressions AS i USING (impression_id) WHERE e.goal = 'click' GROUP BY 1"
    )
    with warehouse_of(market).reader() as connection:
        views, clicked = rows_of(connection, query), rows_of(connection, clicks).to_pylist()
    first_us = {row["user_id"]: row["first_us"] for row in clicked}
    for row in views.to_pylist():
        user = row["user_id"]
        first_us[user] = min(first_us.get(user, row["received_us"]), row["received_us"])
    slots = id_tokens(views["content_id"], "content_view.content_id", bits)
    found: Counter[Done] = Counter()
    for row, slot in zip(views.to_pylist(), slots.tolist(), strict=True):
        begins_us = row["received_us"] // (HORIZON * HOUR_US) * HORIZON * HOUR_US
        moment_us = begins_us - HOUR_US - 1  # published an hour before it is read
        if first_us[row["user_id"]] <= moment_us and row["user_id"] in labelled:
            found[row["user_id"], moment_us, slot] += 1
    return found


def test_what_is_learnt_is_what_a_loop_over_the_log_finds(joined: Market) -> None:
    """The control looks an hour further, where the log knows more."""
    found = learnt(joined)
    assert found.total() > 200
    assert found == by_hand(joined)
    assert found != by_hand(joined, LAST + 1)


def test_nothing_is_foretold_that_was_read(joined: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence that ends a horizon later holds some of what it foretells, and is refused."""
    dataset, hour_us = joined.deployment.dataset, hour_of(joined, LAST)
    rows_to_learn(warehouse_of(joined), dataset, hour_us)
    whole = encoder_hours.published_hour

    def late(lag_hours: int, occurred_us: Any) -> Any:
        begins = (occurred_us % (HORIZON * HOUR_US) == 0).all()  # impressions lie where they like
        return whole(lag_hours, occurred_us) + (HORIZON * HOUR_US if begins else 0)

    monkeypatch.setattr(encoder_hours, "published_hour", late)
    with pytest.raises(LeakedLabel):
        rows_to_learn(warehouse_of(joined), dataset, hour_us)


def test_goals_are_learnt_as_without_it(joined: Market, tmp_path: Path) -> None:
    without = with_settings(joined, tmp_path, next_actions=None)
    hour_us = hour_of(joined, LAST)
    found = []
    for market in (joined, without):
        sequences, ads = rows_to_learn(warehouse_of(market), market.deployment.dataset, hour_us)
        users = np.array(sequences.history.users.to_pylist())[sequences.user[ads.sequence]]
        labels = np.nan_to_num(ads.labels[:, :2], nan=-1.0)
        told = zip(
            users.tolist(), sequences.as_of_us[ads.sequence].tolist(), ads.tokens.tolist(),
            labels.tolist(), strict=True,
        )  # fmt: skip
        found.append(sorted(row for row in told if row[3] != [-1.0, -1.0]))
        assert ads.labels.shape[1] == (3 if market is joined else 2)
    assert found[0] == found[1]


def test_actions_above_the_maximum_are_drawn_by_hash(joined: Market, tmp_path: Path) -> None:
    few = with_settings(joined, tmp_path, next_actions={"horizon_hours": HORIZON, "maximum": 300})
    every, some = learnt(joined), learnt(few)
    assert some <= every
    assert 0.3 < some.total() / every.total() < 0.9


def history_of(rows: list[tuple[str, str, int, int]]) -> History:
    """Return a history of (user, kind, moment, slot)."""
    users, kinds, moments, slots = zip(*rows, strict=True)
    table = {
        "user_id": users,
        "modality": kinds,
        "occurred_us": pa.array(moments, pa.int64()),
        "received_us": pa.array(moments, pa.int64()),
        "tokens": pa.array([[slot] if slot else [] for slot in slots], pa.list_(pa.uint32())),
    }
    kinds_read = [Modality(name=name, tokens=1) for name in ("reads", "looks")]
    return History.of_table(pa.table(table), kinds_read)


@st.composite
def logs(draw: st.DrawFn) -> list[tuple[str, str, int, int]]:
    row = st.tuples(
        st.sampled_from(["ann", "bob", "cid"]), st.sampled_from(["reads", "looks"]),
        st.integers(0, 9), st.integers(0, 5),
    )  # fmt: skip
    return draw(st.lists(row, min_size=1, max_size=30))


@given(logs(), st.integers(0, 9), st.integers(0, 9), st.randoms(), st.integers(0, 3))
@budget(max_examples=60, deadline=None)
def test_actions_are_those_of_the_span_in_any_reading_order(
    rows: list[tuple[str, str, int, int]], after: int, until: int, chance: Any, seed: int
) -> None:
    def taught(rows: list[tuple[str, str, int, int]]) -> list[Any]:
        history = history_of(rows)
        names = np.array(history.users.to_pylist())
        whose = names != "cid"
        found = []
        for actions in actions_of(history, ["reads", "looks"], (after, until), whose, 1_000, seed):
            of = contrasted(actions, seed)
            half = len(actions)
            assert of.labels.tolist() == [1] * half + [0] * half
            for whole, own in ((of.user, actions.user), (of.received_us, actions.received_us)):
                assert whole.tolist() == own.tolist() * 2, "another's, at the same moment"
            assert set(of.tokens[half:, 0]) <= set(of.tokens[:half, 0]), "of the same kind"
            found.append((names[of.user].tolist(), of.received_us.tolist(), of.tokens.tolist()))
        return found

    shuffled = rows[:]
    chance.shuffle(shuffled)
    found = taught(rows)
    assert found == taught(shuffled)
    expected = [
        Counter((user, at, slot) for user, of, at, slot in rows
                if of == kind and after < at <= until and slot and user != "cid")
        for kind in ("reads", "looks")
    ]  # fmt: skip
    told = [
        Counter(
            (user, at, slot)
            for user, at, (slot,) in list(zip(*of_kind, strict=True))[: len(of_kind[0]) // 2]
        )
        for of_kind in found
    ]
    assert told == [each for each in expected if each]


def test_others_are_drawn_evenly_and_by_the_seed() -> None:
    count = 2_000
    slots = np.arange(1, count + 1, dtype=np.uint32)[:, np.newaxis]
    actions = Actions(np.arange(count), np.zeros(count, np.int64), slots)
    drawn = [contrasted(actions, seed).tokens[count:, 0] for seed in (0, 0, 1)]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).mean() > 0.99
    counts = np.bincount(drawn[0], minlength=count + 1)[1:]
    assert counts.max() < 10
    assert 0.3 < (counts == 0).mean() < 0.45  # 1 / e of an even draw


def test_what_cannot_be_foretold_is_refused_by_key() -> None:
    unread = NextActionSettings(modalities=("comment",))
    with pytest.raises(ValidationError, match=r"next_actions.modalities has \['comment'\]"):
        UserVectorSettings(next_actions=unread)
    of_that_name = EncoderSettings(tasks=(NEXT,))
    with pytest.raises(ValidationError, match="rename the goal, or write next_actions: null"):
        UserVectorSettings(encoder=of_that_name)
    assert (
        UserVectorSettings(encoder=of_that_name, next_actions=None).taught_encoder == of_that_name
    )


@needs_jax
def test_what_users_did_next_teaches_tastes_that_no_label_tells() -> None:
    """Users read one of two kinds of articles; dealt at random they tell nothing (control)."""
    auc = [next_auc(dealt=dealt) for dealt in (False, True)]
    assert auc[0] > 0.9
    assert auc[1] < 0.6


def next_auc(*, dealt: bool, users: int = 64, days: int = 5) -> float:
    """Return how well later actions are told from others' by an encoder taught on earlier ones."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        for day in range(days):
            for _ in range(3):
                kind = rng.integers(2) if dealt else user % 2
                slot = 1 + kind * 5 + rng.integers(5)
                rows.append((f"u{user:03}", "reads", day * 100 + rng.integers(1, 100), int(slot)))
    history = history_of(rows)
    settings = settings_of("reads", tasks=(NEXT,))
    longest = {modality.name: modality.longest for modality in settings.modalities}

    def lessons(first: int, last: int) -> tuple[Any, LabelledAds]:
        span, everybody = (first * 100, last * 100), np.ones(users, bool)
        (actions,) = actions_of(history, ["reads"], span, everybody, 10**6, 0)
        found = contrasted(actions, 0)
        pairs = np.column_stack([found.user, found.received_us // 100 * 100])
        ends, sequence = np.unique(pairs, axis=0, return_inverse=True)
        sequences = history.sequences(ends[:, 1], longest, ends[:, 0])
        assert (sequences.newest_us() != NEVER).all()
        labels = found.labels[:, np.newaxis]
        given = (sequence.reshape(-1), found.received_us, found.tokens, labels)
        return sequences, LabelledAds.after(sequences, *given)

    how = TrainingSettings(batch_sequences=32, epochs=6, dense_rate=0.01)
    encoder = train(settings, how, *lessons(1, 3), say=lambda _: None).encoder
    sequences, ads = lessons(3, days)
    said = encoder.logits(encoder.vectors(sequences)[ads.sequence], ads.tokens)[:, 0]
    # Of whom another kind was drawn: with the same kind there is nothing to tell.
    done, drawn = said[ads.labels[:, 0] == 1], said[ads.labels[:, 0] == 0]
    kind = (ads.tokens[:, 0] - 1) // 5
    differs = kind[ads.labels[:, 0] == 1] != kind[ads.labels[:, 0] == 0]
    return float((done[differs] > drawn[differs]).mean())
