"""The truth file: what only the simulator can know.

One row per impression for the goal "click" and one per click for "purchase": the true probability
that the final label is 1, and that label. The file belongs to the day in which the impression
occurred. Only the room `evaluation` may read it.
"""

import numpy as np
import pyarrow as pa

from ad_pipeline.simulation.identifiers import (
    coded_column,
    hex_column,
    number_column,
    text_column,
)
from ad_pipeline.simulation.outcomes import CLICK, GOALS, PURCHASE, Outcomes
from ad_pipeline.simulation.traffic import Traffic

_GOALS = text_column(GOALS[: PURCHASE + 1])


def truth_table(traffic: Traffic, outcomes: Outcomes) -> pa.Table:
    """Tell the truth about one hour's impressions.

    Parameters
    ----------
    traffic : Traffic
        n impressions.
    outcomes : Outcomes
        Their outcomes, k clicks among them.

    Returns
    -------
    pyarrow.Table of n + k rows
        impression_id, goal (text), probability (float64), label (int8). The probability of
        "click" is P(label = 1) at the impression; of "purchase" P(label = 1) at the click. Both
        include the cut at the window and retractions that arrive before maturity. A click outside
        its own window has a row for "purchase" too: whether it anchors one is the dataset's choice.
    """
    number = np.concatenate([traffic.number, traffic.number[outcomes.clicked]])
    goal = np.repeat([CLICK, PURCHASE], [len(traffic), len(outcomes.clicked)])
    return pa.table(
        {
            "impression_id": hex_column("i", number),
            "goal": coded_column(goal, _GOALS),
            "probability": number_column(
                np.concatenate([outcomes.click_probability, outcomes.purchase_probability])
            ),
            "label": number_column(np.concatenate([outcomes.click_label, outcomes.purchase_label])),
        }
    )
