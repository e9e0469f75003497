"""Figures of a published protocol as papers average them, beside those that were published.

AUC and the area under the precision-recall curve are means over blocks weighted by clicks, and the
area is one of trapezoids, which reads higher than the average precision of the rest of this project
(:mod:`ad_pipeline.evaluation.metrics`). The log loss is not clipped, so that a forecast of 1 that
is wrong costs what it says. Of a gap between pre-trained and oracle each arm closes a share (RI);
it depends on both ends, so shares stand beside raw figures and are not compared between logs.
Replaying is :mod:`.protocols`.

References
----------
Yang et al., ES-DFM, AAAI 2021: table of the public repository (ThyrixYang/es_dfm, README; its
checkpoints), RI recomputed with pre-trained at 0 and oracle at 100. Luo et al., WWW 2026 (arXiv
2601.19965), table 2; no intervals or numbers of seeds are reported there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ad_pipeline.evaluation import metrics
from ad_pipeline.monitoring.late_labels.arms import ORACLE, PRE_TRAINED, VANILLA, Arm
from ad_pipeline.monitoring.late_labels.measures import hour_weighted
from ad_pipeline.monitoring.late_labels.prequential import judged_anchors
from ad_pipeline.monitoring.published.protocols import WAIT_FOR_MATURITY, Reproduction

NOT_PUBLISHED = float("nan")


@dataclass(frozen=True)
class Figures:
    """Of one arm; NaN where there is none.

    Attributes
    ----------
    auc, pr_auc : float
        Means over blocks, weighted by clicks; the second of trapezoids.
    nll : float
        Mean log loss in nats.
    """

    auc: float
    pr_auc: float = NOT_PUBLISHED
    nll: float = NOT_PUBLISHED


PUBLISHED: Mapping[str, Mapping[str, Figures]] = {
    "ES-DFM on Criteo": {
        PRE_TRAINED: Figures(0.8307, 0.6251, 0.4009),
        VANILLA: Figures(0.8376, 0.6288, 0.4047),
        "delayed_feedback": Figures(0.8132, 0.5784, 1.2599),
        "fsiw": Figures(0.8290, 0.6189, 0.4099),
        "fake_negative_calibrated": Figures(0.8373, 0.6267, 0.4382),
        "fake_negative_weighted": Figures(0.8373, 0.6313, 0.4033),
        "es_dfm": Figures(0.8402, 0.6393, 0.3924),
        ORACLE: Figures(0.8450, 0.6469, 0.3868),
    },
    "NetCVR on CASCADE": {
        PRE_TRAINED: Figures(0.7223, 0.1768, 0.2252),
        WAIT_FOR_MATURITY: Figures(0.7381, 0.1832, 0.2237),
        "fake_negative_calibrated": Figures(0.7437, 0.1852, 0.2225),
        "fake_negative_weighted": Figures(0.7443, 0.1887, 0.2220),
        "DFSN": Figures(0.7437, 0.1905, 0.2199),
        "MISS": Figures(0.7441, 0.1902, 0.2199),
        "DDFM": Figures(0.7446, 0.1918, 0.2199),
        "defer": Figures(0.7450, 0.1920, 0.2190),
        "es_dfm": Figures(0.7456, 0.1924, 0.2190),
        "defuse": Figures(0.7459, 0.1925, 0.2347),
        "TESLA": Figures(0.7479, 0.1939, 0.2182),
        ORACLE: Figures(0.7556, 0.2007, 0.2155),
    },
    "NetCVR on CASCADE, net": {
        PRE_TRAINED: Figures(0.7353),
        WAIT_FOR_MATURITY: Figures(0.7476),
        "fake_negative_calibrated": Figures(0.7525),
        "fake_negative_weighted": Figures(0.7539),
        "DFSN": Figures(0.7527),
        "MISS": Figures(0.7527),
        "DDFM": Figures(0.7541),
        "defer": Figures(0.7552),
        "es_dfm": Figures(0.7546),
        "defuse": Figures(0.7550),
        "TESLA": Figures(0.7588),
        ORACLE: Figures(0.7643),
    },
}
"""By protocol and arm; methods that this project does not have under their own names."""


def pr_auc_of_trapezoids(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the precision-recall curve with straight lines between its points.

    The curve begins at recall 0 with precision 1. NaN without a positive.

    Parameters
    ----------
    labels : ndarray of shape (n,), {0, 1}
    scores : ndarray of shape (n,), float64
        Any that rise with the probability.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=np.inf))
    hits = np.cumsum(labels[order], dtype=np.float64)[last]
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    precision = np.concatenate([[1.0], hits / (last + 1)])
    recall = np.concatenate([[0.0], hits / hits[-1]])
    return float(np.trapezoid(precision, recall))


def unclipped_log_loss(labels: np.ndarray, log_odds: np.ndarray) -> float:
    """Return the mean log loss in nats of log odds, however large; NaN of no rows."""
    if not len(labels):
        return float("nan")
    return float(np.logaddexp(0.0, np.where(labels == 1, -log_odds, log_odds)).mean())


def figures_of(
    reproduction: Reproduction, arms: Sequence[Arm], seeds: Sequence[int]
) -> dict[str, Figures]:
    """Return what kept runs come to, means over the seeds, by arm.

    Parameters
    ----------
    reproduction : Reproduction
    arms : sequence of Arm
    seeds : sequence of int

    Raises
    ------
    LookupError
        If a run is not kept.
    """
    stream = reproduction.stream
    judged = judged_anchors(stream, reproduction.replay)
    tested = reproduction.tested(judged)
    labels = stream.labels[judged[tested]]
    served_us = stream.served_us[judged[tested]]
    blocks = (served_us - reproduction.replay.split_us) // reproduction.protocol.block_us
    found = {}
    for arm in arms:
        of_seeds = []
        for seed in seeds:
            log_odds = reproduction.scores(arm, seed).log_odds[tested]
            p = metrics.probabilities_of(log_odds)
            of_seeds.append(
                (
                    hour_weighted(metrics.roc_auc, labels, p, blocks),
                    hour_weighted(pr_auc_of_trapezoids, labels, p, blocks),
                    unclipped_log_loss(labels, log_odds),
                )
            )
        found[arm.name] = Figures(*(float(value) for value in np.mean(of_seeds, axis=0)))
    return found


def closed(found: Mapping[str, Figures]) -> dict[str, Figures]:
    """Return the per cent of the gap between pre-trained and oracle that each arm closes (RI)."""
    before, best = found[PRE_TRAINED], found[ORACLE]
    return {
        arm: Figures(
            *(
                _share(getattr(each, name), getattr(before, name), getattr(best, name))
                for name in ("auc", "pr_auc", "nll")
            )
        )
        for arm, each in found.items()
    }


def table_lines(found: Mapping[str, Figures], published: Mapping[str, Figures]) -> Iterator[str]:
    """Yield a table in Markdown: what was found, beside what was published.

    Parameters
    ----------
    found, published : mapping of str to Figures
        By arm; arms that were published only come last.
    """
    yield (
        "| arm | AUC | PR-AUC | NLL | RI-AUC | RI-PR | RI-NLL "
        "| published AUC | PR-AUC | NLL | RI-AUC | RI-PR | RI-NLL |"
    )
    yield "|---" + "|---:" * 12 + "|"
    shares, published_shares = closed(found), closed(published)
    for arm in dict.fromkeys([*found, *published]):
        cells = [
            *_cells(found.get(arm), 4), *_cells(shares.get(arm), 1),
            *_cells(published.get(arm), 4), *_cells(published_shares.get(arm), 1),
        ]  # fmt: skip
        yield f"| {arm} | {' | '.join(cells)} |"


def _cells(figures: Figures | None, digits: int) -> list[str]:
    values = (NOT_PUBLISHED,) * 3 if figures is None else (figures.auc, figures.pr_auc, figures.nll)
    return ["–" if np.isnan(value) else f"{value:.{digits}f}" for value in values]


def _share(value: float, before: float, best: float) -> float:
    return 100.0 * (value - before) / (best - before) if best != before else float("nan")
