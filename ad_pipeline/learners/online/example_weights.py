"""How much each training example teaches: its kind, what it stands for, and how old it is.

The weight of an example is a product of three: the weight of its kind (a setting), the inverse of
the share of negatives that were kept (``examples.training_examples.weight``), and a half-life of
the time from serving to emission. Which examples there are is the label join's to say; how a weight
acts on a gradient, the kernel's.
"""

import numpy as np

from ad_pipeline.clocks import HOUR_US


def recency_weights(
    emit_us: np.ndarray, serving_us: np.ndarray, half_life_hours: float | None
) -> np.ndarray:
    r"""Return the weight of each example by its age when it was emitted.

    .. math:: 2^{-(\text{emit} - \text{serving}) / \text{half-life}}

    An example that comes long after its impression speaks of a market that was. Late positives then
    weigh less than the negatives that they correct, so predictions fall below the observed rate by
    the weight that is lost: it buys freshness where the delay is short beside the half-life, and a
    calibration on matured rows has to follow.

    Parameters
    ----------
    emit_us : ndarray of shape (n,), int64
        When a learner may see the example, microseconds since the epoch.
    serving_us : ndarray of shape (n,), int64
        When the log had its impression, microseconds since the epoch.
    half_life_hours : float or None
        Hours; None: every weight is 1.

    Returns
    -------
    ndarray of shape (n,), float64
        In (0, 1].

    Raises
    ------
    ValueError
        If the half-life is not positive, or an example was emitted before its impression.
    """
    if half_life_hours is None:
        return np.ones(len(emit_us))
    if not half_life_hours > 0:
        raise ValueError(f"the half-life is {half_life_hours} h; write a positive number")
    age_us = np.asarray(emit_us, np.int64) - np.asarray(serving_us, np.int64)
    if (age_us < 0).any():
        raise ValueError(f"{int((age_us < 0).sum())} examples were emitted before their impression")
    return np.exp2(-age_us / (half_life_hours * HOUR_US))
