"""Checks of what leaves: the candidate is intact, and what serves is what was promoted."""

import dagster as dg

from ad_pipeline.checkpoints import MissingCheckpoint, resolve
from ad_pipeline.clocks import MINUTE_US, timestamp
from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import short
from ad_pipeline.serving.bundle import CorruptBundle, open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.heartbeat import heartbeats
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.serving.production import lagging
from ad_pipeline.serving.promotion import history
from ad_pipeline.serving.proof import prove_bundle

BUNDLE = ["serving", "bundle"]
SERVED = ["serving", "current"]


@dg.multi_asset_check(
    name="bundle_checks",
    specs=[
        dg.AssetCheckSpec(
            "candidate_is_intact",
            asset=BUNDLE,
            blocking=True,
            description="Every file has its SHA-256, and canary requests score as when written.",
        ),
        dg.AssetCheckSpec(
            "export_equals_its_models",
            asset=BUNDLE,
            blocking=True,
            description=(
                "Every slot, node, leaf, knot and weight is that of the checkpoints it names, and "
                "rows on both sides of every border score alike; q2.13 weights as rounded again."
            ),
        ),
    ],
)
def bundle_checks(deployment: DeploymentResource):
    """Open the candidate as a scorer would, and its models beside it."""
    paths = deployment.paths
    digest = resolve(paths.bundles, CANDIDATE)
    fault = _fault(paths.bundles, digest)
    yield found(
        "candidate_is_intact", BUNDLE, not fault, fault or "every file is as it was written"
    )
    if fault:
        yield found("export_equals_its_models", BUNDLE, False, "not compared: it is not intact")
        return
    proofs = prove_bundle(paths, open_bundle(paths.bundles, digest))
    faults = [each for proof in proofs for each in proof.faults]
    yield found(
        "export_equals_its_models",
        BUNDLE,
        not faults,
        "; ".join(faults) or "the arrays are the models of the checkpoints",
        slots=sum(proof.slots for proof in proofs),
        trees=sum(proof.trees for proof in proofs),
        border_rows=sum(proof.tree_rows + proof.calibrated_rows for proof in proofs),
    )


@dg.multi_asset_check(
    name="serving_checks",
    specs=[
        dg.AssetCheckSpec(
            "what_serves_was_promoted",
            asset=SERVED,
            description="serving/current names the last promoted bundle, and it is intact.",
        ),
        dg.AssetCheckSpec(
            "candidate_was_promoted",
            asset=SERVED,
            description="The newest candidate serves; if not, the reason is with the asset.",
        ),
        dg.AssetCheckSpec(
            "served_bundle_is_the_pointed_one",
            asset=SERVED,
            description=(
                "Every scorer that reports what it serves has followed the pointer, within "
                "settings.alerts.scorer_grace_minutes of log time."
            ),
        ),
    ],
)
def serving_checks(deployment: DeploymentResource):
    """Hold the pointer against the history of promotions."""
    paths = deployment.paths
    moves = history(paths.serving)
    pointer = read_pointer(paths.serving, CURRENT)
    digest = None if pointer is None else pointer.digest
    promoted = moves[-1].digest if moves else None
    fault = "" if digest is None else _fault(paths.bundles, digest)
    yield found(
        "what_serves_was_promoted",
        SERVED,
        digest is not None and digest == promoted and not fault,
        fault
        or f"serving/current names {short(digest)}, "
        + (
            "as the history of promotions does"
            if digest == promoted
            else f"the history of promotions {short(promoted)}"
        ),
        promotions=len(moves),
    )
    candidate = resolve(paths.bundles, CANDIDATE)
    yield found(
        "candidate_was_promoted",
        SERVED,
        candidate == digest,
        "the newest candidate serves" if candidate == digest else "an older bundle goes on serving",
        warns=True,
    )
    reported = heartbeats(paths.serving)
    grace_us = paths.dataset.settings.alerts.scorer_grace_minutes * MINUTE_US
    behind = lagging(reported, moves, grace_us)
    yield found(
        "served_bundle_is_the_pointed_one",
        SERVED,
        not behind,
        "; ".join(
            f"{each.scorer} serves {short(each.bundle_hash)} at {timestamp(each.at_us)}, the "
            f"pointer names {short(promoted)}"
            for each in behind
        )
        or f"{len(reported)} scorers report, and follow the pointer",
        warns=True,
        scorers=len(reported),
    )


def _fault(bundles, digest: str) -> str:
    """Say what is wrong with a bundle; empty if nothing is."""
    try:
        open_bundle(bundles, digest)
    except (CorruptBundle, MissingCheckpoint) as error:
        return str(error)
    return ""
