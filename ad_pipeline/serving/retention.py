"""What of bundles and checkpoints serving still needs, and removing bundles that nobody needs.

A candidate that was never promoted has no use once the next one stands; a bundle that has served is
kept, because decisions name it and a rollback may go back to it. A bundle is whole by itself: only
the candidate is compared with the checkpoints it was made of. How long hourly checkpoints are kept
is :mod:`ad_pipeline.learners.online.retention`.
"""

from ad_pipeline.checkpoints import Swept, is_pointed, read_checkpoint, resolve, sweep
from ad_pipeline.datasets import Deployment
from ad_pipeline.evaluation.progressive import EXPERTS
from ad_pipeline.serving.bundle import LADDER
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.serving.promotion import history


def checkpoints_in_use(deployment: Deployment) -> set[str]:
    """Return the digests of the checkpoints that the candidate and the serving bundle came from.

    Only the names are read: a bundle of an earlier version keeps what it was made of, too.

    Raises
    ------
    MissingCheckpoint
        If one of the two is not there.
    """
    serving = read_pointer(deployment.serving, CURRENT)
    bundles = {serving.digest} if serving else set[str]()
    if is_pointed(deployment.bundles, CANDIDATE):
        bundles.add(resolve(deployment.bundles, CANDIDATE))
    return {
        goal[part]["checkpoint"]
        for bundle in bundles
        for goal in read_checkpoint(deployment.bundles, bundle, verify=False).manifest["goals"]
        for part in (*EXPERTS, LADDER)
        if goal.get(part) is not None
    }


def sweep_bundles(deployment: Deployment) -> Swept:
    """Remove every bundle that never served and is not the candidate.

    Raises
    ------
    CheckpointsBusy
        If somebody goes on writing bundles.
    """
    return sweep(deployment.bundles, {move.digest for move in history(deployment.serving)})
