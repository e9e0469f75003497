"""Impressions as a feature server in trouble would have handed them over, for learners to learn on.

A learner that has never seen a null gives it no weight: when a server answers nothing for two
minutes, every score of these minutes is what is left of a sum that was fitted to be whole. A small
share of what is learnt therefore loses columns, all of them or some, and another has counts and
vectors that were published hours before, or none. Which ones is a hash of the impression: all
copies of one lose the same, and a re-run the same again. What is *scored* is never touched, in
training as in serving.

Unlike the dropout that McMahan et al. (KDD 2013, section 9.2) found harmful, it acts on few rows
and takes whole columns away, as servers do; what it costs on a healthy day and saves on a bad one
is in ``docs/evidence.md``. What answers when too much is missing is the bundle's fallback ladder.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.features.as_served import look_up_as_served
from ad_pipeline.features.encoding import FeatureContract, LookedUp, ReadColumns, read_columns
from ad_pipeline.hashing import hashes_of_missing, uniform
from ad_pipeline.settings import FeatureDropoutSettings


@dataclass(frozen=True)
class Dropped:
    """What some impressions lose.

    Attributes
    ----------
    columns : ndarray of shape (n, T + N), bool
        Of the contract's ``text_columns``, then of its ``numeric``.
    hours : ndarray of shape (n,), int64
        By which what they look up is older than what was served; 0 for most.
    looked_up : ndarray of shape (n,), bool
        Those that find nothing published at all.
    """

    columns: np.ndarray
    hours: np.ndarray
    looked_up: np.ndarray


def dropped(
    contract: FeatureContract,
    impressions: pa.Array | pa.ChunkedArray,
    settings: FeatureDropoutSettings,
    seed: int,
) -> Dropped:
    """Draw what each impression loses.

    Parameters
    ----------
    contract : FeatureContract
    impressions : Arrow column of texts, n rows
    settings : FeatureDropoutSettings
    seed : int
        The deployment's.

    Returns
    -------
    Dropped
        The same for an impression whatever its company.
    """

    def drawn(what: str) -> np.ndarray:
        return uniform(seed, impressions, f"feature dropout: {what}")

    names = contract.columns
    some = drawn("columns") < settings.share
    # From few columns to all of them, the whole rows on top: a server answers nothing more often
    # than it answers half.
    chance = np.where(drawn("whole") < settings.whole, 1.0, drawn("chance"))
    lost = np.zeros((len(some), len(names)), np.bool_)
    for place, name in enumerate(names):
        lost[:, place] = some & (drawn(f"column {name}") < chance)
    aged = drawn("counts") < settings.aged_share
    hours = 1 + np.floor(drawn("hours") * settings.aged_hours).astype(np.int64)
    return Dropped(
        columns=lost,
        hours=np.where(aged, hours, 0),
        looked_up=aged & (drawn("no counts") < settings.whole),
    )


def read_to_learn(
    deployment: Deployment, contract: FeatureContract, rows: pa.Table
) -> tuple[ReadColumns, LookedUp]:
    """Read impressions for learning: as they were served, but for what the settings drop.

    Parameters
    ----------
    deployment : Deployment
        Its snapshots and vectors are looked up; ``settings.feature_dropout`` says what is lost.
    contract : FeatureContract
    rows : pyarrow.Table
        The contract's columns, ``impression_id`` and ``occurred_us``, n rows.

    Returns
    -------
    ReadColumns, LookedUp
        Of n rows each, as :func:`ad_pipeline.features.as_served.read_as_served` returns them, and
        to the bit the same without the setting.

    Raises
    ------
    MissingCheckpoint
        If what was due is not there.
    """
    read = read_columns(contract, {name: rows.column(name) for name in contract.columns})
    occurred_us = rows.column("occurred_us").to_numpy()
    settings = deployment.dataset.settings.feature_dropout
    if settings is None:
        return read, look_up_as_served(deployment, contract, read, occurred_us)
    lost = dropped(
        contract, rows.column("impression_id"), settings, deployment.dataset.settings.seed
    )
    read = without(contract, read, lost.columns)
    looked_up = look_up_as_served(deployment, contract, read, occurred_us - lost.hours * HOUR_US)
    looked_up.forget(lost.looked_up)
    return read, looked_up


def without(contract: FeatureContract, read: ReadColumns, lost: np.ndarray) -> ReadColumns:
    """Return columns that were read as if values had been null.

    Parameters
    ----------
    contract : FeatureContract
    read : ReadColumns of n rows
    lost : ndarray of shape (n, T + N), bool
        As :attr:`Dropped.columns`.
    """
    texts = len(contract.text_columns)
    missing = hashes_of_missing(contract.text_seeds)
    return ReadColumns(
        hashes=np.where(lost[:, :texts], missing, read.hashes),
        numbers=np.where(lost[:, texts:], np.nan, read.numbers),
    )
