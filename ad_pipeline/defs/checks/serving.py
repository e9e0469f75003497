"""Checks of what leaves: the candidate is intact, and what serves is what was promoted."""

import dagster as dg

from ad_pipeline.checkpoints import MissingCheckpoint, resolve
from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import short
from ad_pipeline.serving.bundle import CorruptBundle, open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.serving.promotion import history

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
        )
    ],
)
def bundle_checks(deployment: DeploymentResource):
    """Open the candidate as a scorer would."""
    paths = deployment.paths
    fault = _fault(paths.bundles, resolve(paths.bundles, CANDIDATE))
    yield found(
        "candidate_is_intact", BUNDLE, not fault, fault or "every file is as it was written"
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


def _fault(bundles, digest: str) -> str:
    """Say what is wrong with a bundle; empty if nothing is."""
    try:
        open_bundle(bundles, digest)
    except (CorruptBundle, MissingCheckpoint) as error:
        return str(error)
    return ""
