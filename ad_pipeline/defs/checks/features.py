"""Checks of the published counts: equal to a recount in SQL, to the last integer."""

import dagster as dg

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import rounded
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.features.dictionary import collisions
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.features.rates import differences, pointer, read_snapshot, recount

RATES = ["features", "rates"]
DICTIONARY = ["features", "inverse_dictionary"]
SHARED_SLOTS = 0.25
"""Share of slots with more than one meaning from which more bits are worth their memory."""


@dg.multi_asset_check(
    name="features_checks",
    specs=[
        dg.AssetCheckSpec(
            "counts_equal_a_recount_in_sql",
            asset=RATES,
            blocking=True,
            description="The newest snapshot's integers equal those that SQL counts from events.",
        ),
        dg.AssetCheckSpec(
            "few_slots_are_shared",
            asset=DICTIONARY,
            description="Less than a quarter of the slots stand for more than one value.",
        ),
    ],
)
def features_checks(deployment: DeploymentResource):
    """Recount the newest hour's window, and count collisions."""
    paths = deployment.paths
    contract = FeatureContract.from_dataset(paths.dataset)
    with deployment.warehouse.reader() as connection:
        hour_us = sealed_until(connection) - HOUR_US
        recounted = recount(connection, contract, hour_us)
        shared = collisions(connection).num_rows / 2**contract.bits
    snapshot = read_snapshot(paths.snapshots, resolve(paths.snapshots, pointer(hour_us)))
    compared = differences(contract, snapshot, recounted)
    first = next(iter((*compared.mismatched, *compared.missing)), None)
    yield found(
        "counts_equal_a_recount_in_sql",
        RATES,
        compared.none,
        f"{compared.compared:,} counts of {hour_key(hour_us)} compared, "
        + ("all equal" if compared.none else f"first difference: {first}"),
        compared=compared.compared,
        mismatched=len(compared.mismatched),
        missing=len(compared.missing),
        extra=compared.extra,
    )
    yield found(
        "few_slots_are_shared",
        DICTIONARY,
        shared < SHARED_SLOTS,
        f"{shared:.1%} of the slots have more than one meaning",
        warns=True,
        **{"share of slots": rounded(shared)},
    )
