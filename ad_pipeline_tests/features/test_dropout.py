"""What learners learn without: drawn by the impression, not by its company, and null when read."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US, hours_between
from ad_pipeline.datasets import Deployment
from ad_pipeline.features.as_served import look_up_as_served, read_as_served
from ad_pipeline.features.dropout import dropped, read_to_learn, without
from ad_pipeline.features.encoding import FeatureContract, LookedUp, read_columns, slots
from ad_pipeline.learners.delayed.shown_examples import shown_examples
from ad_pipeline.learners.delayed.shown_hours import ShownRows, shown_rows
from ad_pipeline.settings import FeatureDropoutSettings
from ad_pipeline.warehouse import Warehouse, rows_of, select
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.features.logs import tiny_dataset
from ad_pipeline_tests.features.made_vectors import with_vectors
from ad_pipeline_tests.learners.markets import ready_market

CONTRACT = FeatureContract.from_dataset(tiny_dataset())
OFTEN = FeatureDropoutSettings(share=0.5, aged_share=0.5)


def ids(n: int) -> pa.Array:
    return pa.array([f"impression {i}" for i in range(n)], pa.string())


def test_shares_are_those_of_the_settings() -> None:
    n = 200_000
    settings = FeatureDropoutSettings(share=0.04, whole=0.25, aged_share=0.02, aged_hours=4)
    found = dropped(CONTRACT, ids(n), settings, seed=3)

    def near(count: int, share: float) -> bool:
        return abs(count - share * n) < 5 * np.sqrt(share * n)

    columns = len(CONTRACT.columns)
    # Others lose all of k columns with the mean of u^k, and none with that of (1 - u)^k.
    all_by_chance = 0.75 / (columns + 1)
    assert near(int(found.columns.all(axis=1).sum()), 0.04 * (0.25 + all_by_chance))
    assert near(int(found.columns.any(axis=1).sum()), 0.04 * (1 - all_by_chance))
    assert near(int((found.hours > 0).sum()), 0.02)
    assert near(int(found.looked_up.sum()), 0.02 * 0.25)
    assert set(found.hours.tolist()) == {0, 1, 2, 3, 4}
    assert not (found.looked_up & (found.hours == 0)).any(), "they have no counts, or old ones"


@given(st.integers(0, 2**32), st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True))
def test_an_impression_loses_the_same_whatever_its_company(seed: int, chosen: list[int]) -> None:
    among_all = dropped(CONTRACT, ids(100), OFTEN, seed)
    alone = dropped(CONTRACT, ids(100).take(pa.array(chosen)), OFTEN, seed)
    assert np.array_equal(alone.columns, among_all.columns[chosen])
    assert np.array_equal(alone.hours, among_all.hours[chosen])
    assert np.array_equal(alone.looked_up, among_all.looked_up[chosen])


@given(st.data())
def test_what_is_lost_is_encoded_as_the_null_that_a_server_would_have_answered(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(1, 6))
    texts = st.none() | st.text(max_size=5)
    columns: dict[str, pa.Array] = {
        name: pa.array(data.draw(st.lists(texts, min_size=n, max_size=n)), pa.string())
        for name in CONTRACT.text_columns
    } | {
        name: pa.array(
            data.draw(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=n, max_size=n)),
            pa.float64(),
        )
        for name in CONTRACT.numeric
    }
    width = len(CONTRACT.columns)
    bits = st.lists(st.booleans(), min_size=width, max_size=width)
    lost = np.array(data.draw(st.lists(bits, min_size=n, max_size=n)), np.bool_)
    nulled = {
        name: pa.array(
            [
                None if gone else value
                for gone, value in zip(lost[:, place], columns[name].to_pylist(), strict=True)
            ],
            columns[name].type,
        )
        for place, name in enumerate(CONTRACT.columns)
    }
    counts = LookedUp.nothing(CONTRACT, n)
    found = without(CONTRACT, read_columns(CONTRACT, columns), lost)
    expected = read_columns(CONTRACT, nulled)
    assert slots(CONTRACT, found, counts).tolist() == slots(CONTRACT, expected, counts).tolist()
    assert np.array_equal(found.numbers, expected.numbers, equal_nan=True)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    return ready_market(tmp_path_factory.mktemp("market"), days=1)


@pytest.fixture(scope="module")
def seeing(market: Market) -> Deployment:
    """Return the market with vectors that nine in ten users have, other ones every hour."""
    return with_vectors(market.deployment, hours_between(market.start_us, market.end_us), 3)


def with_dropout(market: Market | Deployment, dropout: Mapping[str, Any] | None) -> Deployment:
    deployment = market.deployment if isinstance(market, Market) else market
    dataset = deployment.dataset
    settings = dataset.settings.model_copy(
        update={"feature_dropout": dropout and FeatureDropoutSettings.model_validate(dropout)}
    )
    return replace(deployment, dataset=dataset.model_copy(update={"settings": settings}))


def impressions(market: Market) -> pa.Table:
    warehouse = Warehouse(market.deployment.warehouse)
    query = "SELECT * FROM events.impressions ORDER BY received_us, impression_id"
    with warehouse.reader() as connection:
        return rows_of(connection, query, {})


def test_without_the_setting_what_is_learnt_is_what_was_served(market: Market) -> None:
    deployment = with_dropout(market, None)
    contract, rows = FeatureContract.from_dataset(deployment.dataset), impressions(market)
    learnt = slots(contract, *read_to_learn(deployment, contract, rows))
    assert np.array_equal(learnt, slots(contract, *read_as_served(deployment, contract, rows)))


def test_old_counts_are_those_that_were_published_so_many_hours_before(market: Market) -> None:
    only_aged = {"share": 1e-9, "aged_share": 0.5, "whole": 0.2, "aged_hours": 3}
    deployment = with_dropout(market, only_aged)
    contract, rows = FeatureContract.from_dataset(deployment.dataset), impressions(market)
    settings = FeatureDropoutSettings.model_validate(only_aged)
    lost = dropped(
        contract, rows.column("impression_id"), settings, deployment.dataset.settings.seed
    )
    read, served = read_as_served(deployment, contract, rows)
    _, learnt = read_to_learn(deployment, contract, rows)

    assert not learnt.counts[lost.looked_up].any()
    assert not learnt.totals[lost.looked_up].any()
    occurred_us = rows.column("occurred_us").to_numpy()
    differ = 0
    for hours in range(4):
        of_age = (lost.hours == hours) & ~lost.looked_up
        then = look_up_as_served(deployment, contract, read, occurred_us - hours * HOUR_US)
        assert np.array_equal(learnt.counts[of_age], then.counts[of_age])
        assert np.array_equal(learnt.totals[of_age], then.totals[of_age])
        differ += int((then.totals[of_age] != served.totals[of_age]).any(axis=1).sum()) * (
            hours > 0
        )
    assert differ > 100, "an hour changes the counts"


def test_old_vectors_come_with_old_counts_and_go_with_them(
    market: Market, seeing: Deployment
) -> None:
    only_aged = {"share": 1e-9, "aged_share": 0.5, "whole": 0.2, "aged_hours": 3}
    deployment = with_dropout(seeing, only_aged)
    contract, rows = FeatureContract.from_dataset(deployment.dataset), impressions(market)
    settings = FeatureDropoutSettings.model_validate(only_aged)
    lost = dropped(
        contract, rows.column("impression_id"), settings, deployment.dataset.settings.seed
    )
    read, served = read_as_served(deployment, contract, rows)
    _, learnt = read_to_learn(deployment, contract, rows)

    assert np.isnan(learnt.vectors[lost.looked_up]).all()
    occurred_us = rows.column("occurred_us").to_numpy()
    for hours in range(4):
        of_age = (lost.hours == hours) & ~lost.looked_up
        then = look_up_as_served(deployment, contract, read, occurred_us - hours * HOUR_US)
        assert np.array_equal(learnt.vectors[of_age], then.vectors[of_age], equal_nan=True)
    aged = (lost.hours > 0) & ~lost.looked_up & np.isfinite(served.vectors).all(axis=1)
    assert (learnt.vectors[aged] != served.vectors[aged]).all()
    assert 0.5 < np.isfinite(served.vectors).mean() < 0.9


def test_who_loses_his_id_loses_his_vector(market: Market, seeing: Deployment) -> None:
    deployment = with_dropout(seeing, {"share": 0.5, "whole": 0.99, "aged_share": 1e-9})
    contract, rows = FeatureContract.from_dataset(deployment.dataset), impressions(market)
    _, served = read_as_served(deployment, contract, rows)
    _, learnt = read_to_learn(deployment, contract, rows)
    known = np.isfinite(served.vectors).all(axis=1)
    kept = np.isfinite(learnt.vectors).all(axis=1)
    assert not (kept & ~known).any()
    assert 0.4 < kept.sum() / known.sum() < 0.6


def test_copies_of_an_impression_are_learnt_with_the_same_loss_and_nothing_else_changes(
    market: Market,
) -> None:
    warehouse = Warehouse(market.deployment.warehouse)
    span = {"goal": "click", "start_us": market.start_us, "end_us": market.end_us}
    with warehouse.reader() as connection:
        emitted = rows_of(connection, select("learners.emitted_examples"), span)

    def shown(dropout: Mapping[str, Any] | None) -> ShownRows:
        deployment = with_dropout(market, dropout)
        dataset = deployment.dataset
        contract, goal = FeatureContract.from_dataset(dataset), dataset.goal("click")
        return shown_rows(deployment, contract, goal, [dataset.settings.online], emitted)

    whole, without_some = shown(None), shown({"share": 0.1, "aged_share": 0.1})
    for name in ("labels", "weights", "outcomes", "emit_us"):
        assert np.array_equal(getattr(whole, name), getattr(without_some, name))
    lost = (whole.slots != without_some.slots).any(axis=1)
    assert 0.1 < lost.mean() < 0.2

    rows = shown_examples_of(market, emitted)
    copies: dict[str, set[bytes]] = {}
    for impression, row in zip(rows, without_some.slots, strict=True):
        copies.setdefault(impression, set()).add(row.tobytes())
    assert len(copies) < len(rows), "delayed positives come a second time"
    assert all(len(each) == 1 for each in copies.values())


def shown_examples_of(market: Market, emitted: pa.Table) -> list[str]:
    """Return the impressions of the rows that are shown, in their order."""
    dataset = market.deployment.dataset
    settings = dataset.settings.online
    found = shown_examples(emitted, dataset.goal("click"), [settings], settings.kind_weights)
    return emitted.column("impression_id").take(pa.array(found.places)).to_pylist()
