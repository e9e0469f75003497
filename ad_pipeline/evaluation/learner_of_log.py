"""The online learner of a deployment over time, drawn: its grid, its rates.

What was chosen and moved stands in tables of ``learners``; here they are read and made a picture.
"""

import itertools
from dataclasses import dataclass

from ad_pipeline.datasets import Deployment
from ad_pipeline.evaluation.learner_plots import learner_over_time
from ad_pipeline.warehouse import Warehouse, rows_of


@dataclass(frozen=True)
class WrittenLearner:
    """What was drawn.

    Attributes
    ----------
    hours : int
        Judged, over all goals.
    switches : int
        Times that another configuration began to serve, the first ones left out.
    moves : int
        Of learning rates.
    picture : bytes
        PNG.
    """

    hours: int
    switches: int
    moves: int
    picture: bytes


def draw_learner(warehouse: Warehouse, deployment: Deployment) -> WrittenLearner:
    """Write the picture ``online_learner.png`` into the deployment's folder of reports.

    Parameters
    ----------
    warehouse : Warehouse
        With the tables of the online learner.
    deployment : Deployment
    """
    with warehouse.reader() as connection:
        selection = rows_of(
            connection,
            "SELECT goal, hour_us, configuration, name, chosen, excess, excess_low, excess_high "
            "FROM learners.grid_selection ORDER BY goal, hour_us, configuration",
            {},
        )
        moves = rows_of(
            connection,
            "SELECT goal, hour_us, configuration, move FROM learners.rate_moves "
            "ORDER BY goal, hour_us, micro_batch, configuration, move",
            {},
        )
    picture = learner_over_time(selection, moves, title=deployment.dataset.name)
    deployment.reports.mkdir(parents=True, exist_ok=True)
    (deployment.reports / "online_learner.png").write_bytes(picture)
    chosen = [row for row in selection.to_pylist() if row["chosen"]]
    switches = sum(
        before["goal"] == after["goal"] and before["configuration"] != after["configuration"]
        for before, after in itertools.pairwise(chosen)
    )
    return WrittenLearner(len(chosen), switches, moves.num_rows, picture)
