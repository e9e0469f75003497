r"""Which negatives are kept: a draw by hash of the request that Python and SQL make alike.

Few impressions are clicked, so most rows of a click log say the same. McMahan et al. (KDD 2013,
section 6.1) keep a share r of the queries without a click and weigh each of their rows 1 / r. Then

    E[weight] = r * 1 / r + (1 - r) * 0 = 1

for every negative, and the expected gradient is that of the whole stream. There a query is kept
whole if anything in it was clicked. Here labels arrive after the negatives are shown, so whether an
impression is clicked later cannot be asked: all negatives of a request share one draw, whatever
happens to its other impressions, and positives are always kept with weight 1. A later positive
of an impression whose negative was dropped is unbiased too: in expectation the negative was there.

The draw is the MD5 of (seed, purpose, request), compared as hexadecimal text, since every SQL
engine has that function and none of their own hashes is the same in the next version. What a kept
row looks like, and that the impression's id stands in where a request has none, stands in
``dbt_like_sql/examples/training_examples.sql``; what a learner does with weights is its own affair.
"""

import hashlib
from typing import TypedDict

from ad_pipeline.settings import Settings

PURPOSE = "examples.training_examples.negatives"

ABOVE_ALL = "g"
"""Greater than every hexadecimal text."""


class Draw(TypedDict):
    """The SQL parameters of a draw.

    Attributes
    ----------
    negative_rate : float
        Share of requests that is kept, in (0, 1].
    draw : str
        What is hashed before the request's id.
    kept_below : str
        The request is kept if its hash, 32 lower-case hexadecimal digits, is less than this text.
    """

    negative_rate: float
    draw: str
    kept_below: str


def draw_of(settings: Settings, goal: str) -> Draw:
    """Return the draw of a goal's negatives.

    Goals draw alike: what is kept at a rate is kept at every higher one.

    Parameters
    ----------
    settings : Settings
        Of the deployment; its seed enters the draw.
    goal : str

    Returns
    -------
    Draw
    """
    rate = settings.examples.negative_rate_of(goal)
    return Draw(
        negative_rate=rate,
        draw=f"{settings.seed} {PURPOSE} ",
        kept_below=kept_below(rate),
    )


def kept_below(share: float) -> str:
    """Return the hexadecimal text below which a share of all hashes lie; share in (0, 1]."""
    return ABOVE_ALL if share >= 1 else f"{int(share * 2**64):016x}"


def is_kept(draw: Draw, request_id: str | None, impression_id: str) -> bool:
    """Return whether the negatives of a request are kept, as the SQL decides it.

    Parameters
    ----------
    draw : Draw
    request_id : str or None
        None or empty where the log has none.
    impression_id : str
    """
    hashed = hashlib.md5(
        (draw["draw"] + (request_id or impression_id)).encode(), usedforsecurity=False
    )
    return hashed.hexdigest() < draw["kept_below"]
