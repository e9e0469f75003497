"""Users' vectors go the whole way: published, learnt, bundled, served and re-checked."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.embeddings.candidate_index import SERVED, WAYS
from ad_pipeline.embeddings.published import NO_ENCODER, read_hour
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.serving.bundle import open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.pointers import (
    CANDIDATE_INDEX,
    USER_VECTORS,
    Pointer,
    read_pointer,
)
from ad_pipeline.serving.promotion import promote
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline.warehouse import Warehouse, one_row, rows_of
from ad_pipeline_tests.defs.markets import TINY, drive, make_market, run, write_days
from ad_pipeline_tests.defs.test_run import latest

VECTORS = {
    "user_vectors": {
        "encoder": {
            "modalities": [{"name": "ad_click", "tokens": 4, "longest": 8}],
            "dimension": 4,
            "width": 8,
            "heads": 2,
            "bits": 10,
        },
        "training": {"epochs": 1, "batch_sequences": 16},
        "minimum_positives": 20,
        "retrain_every_hours": 8,
        "shard_bits": 1,
    },
    "online": {"bits": 12},
}
PUBLISHED = (
    'group:"events" or group:"examples" or group:"features" '
    'or key:"embeddings/encoder" or key:"embeddings/user_vectors"'
)
LEARNT = (
    f'{PUBLISHED} or group:"learners" or key:"serving/bundle" or key:"monitoring/candidate_replay" '
    'or key:"embeddings/similar_users" or key:"embeddings/candidates" '
    'or key:"embeddings/version_lookups"'
)
RECHECKED = (
    f'{PUBLISHED} or key:"monitoring/parity" or key:"monitoring/parity_findings" '
    'or key:"monitoring/serving_objectives"'
)
SERVED_HOURS = 4


@pytest.mark.slow
def test_vectors_are_learnt_bundled_and_served_and_parity_finds_the_same_bits(tmp_path: Path):
    spec = replace(TINY, impressions_per_day=2_000, users=60)
    market = make_market(tmp_path, spec, VECTORS)
    deployment, day_us = market.deployment, market.start_us + DAY_US
    write_days(market, range(1))
    run(market, market.start_us, day_us, LEARNT)

    # The log begins without an encoder and ends with one.
    first, last = (read_hour(deployment.vectors, at) for at in (market.start_us, day_us - HOUR_US))
    assert first.version == NO_ENCODER != last.version
    pointer = read_pointer(deployment.serving, USER_VECTORS)
    assert pointer is not None
    assert (pointer.digest, pointer.position) == (last.digest, day_us)

    contract = FeatureContract.from_dataset(deployment.dataset)
    warehouse = Warehouse(deployment.warehouse)
    with warehouse.reader() as connection:
        query = "SELECT * FROM events.impressions ORDER BY received_us, impression_id"
        rows = rows_of(connection, query, {})
    _, looked_up = read_as_served(deployment, contract, rows)
    known = np.isfinite(looked_up.vectors).mean(axis=1)
    hours = (rows.column("occurred_us").to_numpy() - market.start_us) // HOUR_US
    assert not known[hours < 4].any()
    assert known[hours >= 20].mean() > 0.5

    bundle = open_bundle(deployment.bundles, resolve(deployment.bundles, CANDIDATE))
    assert bundle.contract == contract
    models = {each.goal: each for each in bundle.goals}["click"]
    assert models.batch is not None

    # Candidates of ads, as of the bundle's last hour, come with it.
    assert bundle.candidate_index is not None
    assert (bundle.candidate_index.version, bundle.candidate_index.end_us) == (last.version, day_us)
    followed = read_pointer(deployment.serving, CANDIDATE_INDEX)
    assert followed == Pointer(bundle.candidate_index.digest, day_us)
    assert resolve(deployment.vectors, SERVED) == bundle.candidate_index.digest

    with dg.DagsterInstance.from_config(str(market.dagster_home)) as instance:
        listed, built = (
            latest(instance, asset) for asset in ("embeddings/candidates", "serving/bundle")
        )
    index = bundle.candidate_index.index
    assert listed["users"] == built["candidates of ads: users"] == len(index.ids)
    assert listed["ads"] == built["candidates of ads: ads"] == len(index.ad_texts)
    assert {"intra list similarity", "coverage", "gini"} <= set(listed)
    ways = [listed[f"share of users, {way.replace('_', ' ')}"] for way in WAYS]
    assert sum(ways) == pytest.approx(1, abs=1e-5)
    assert ways[0] > 0.5
    assert built["candidates of ads: bytes"] > 0

    # A day is served by what the pointers name, and every score is given again from the log.
    promote(deployment.serving, deployment.bundles, bundle.digest, {}, watermark_us=day_us)
    scorer = Scorer.current(deployment.serving)
    users = sorted(set(rows.column("user_id").to_pylist()))
    found = scorer.candidates([*users, "a stranger"], None, 5)
    assert found.way(len(users)) == "no_vector"
    assert (found.ways == 0).sum() > len(users) / 2
    assert set(found.ads) <= set(rows.column("ad_id").to_pylist())

    drive(market, 1)
    end_us = day_us + SERVED_HOURS * HOUR_US
    run(market, day_us, end_us, RECHECKED)
    with warehouse.reader() as connection:
        for table in ("candidate_replay", "parity"):
            query = f"SELECT count(*), bool_and(state = 'passed') FROM monitoring.{table}"
            compared, passed = one_row(connection, query)
            assert compared > 0
            assert passed, table
        used = connection.execute(
            "SELECT DISTINCT features ->> '$.\"user_vector.published\"' FROM events.decisions"
        ).fetchall()
    assert used == [(last.digest,)]
    newest = read_pointer(deployment.serving, USER_VECTORS)
    assert newest is not None
    assert newest.position == end_us
