"""The predictions of all experts as one view; each expert writes its own table."""

from ad_pipeline.learners.tables import TABLES
from ad_pipeline.warehouse import Warehouse, select


def unite_predictions(warehouse: Warehouse) -> dict[str, int]:
    """Create the view ``learners.predictions`` over the tables of the experts.

    Parameters
    ----------
    warehouse : Warehouse

    Returns
    -------
    dict of str to int
        Rows by expert, in order of name.
    """
    warehouse.create(TABLES)
    with warehouse.writer() as connection:
        connection.execute(
            f"CREATE OR REPLACE VIEW learners.predictions AS {select('learners.predictions')}"
        )
        return dict(
            connection.execute(
                "SELECT expert, count(*) FROM learners.predictions GROUP BY expert ORDER BY expert"
            ).fetchall()
        )
