"""``monitoring.production`` of a deployment, with its page.

What served is read from files, when it really decided from the serving log.
"""

import json
from typing import Any

from ad_pipeline.checkpoints import replace_file
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.monitoring.production.production_page import production_page, production_picture
from ad_pipeline.monitoring.tables import PRODUCTION, TABLES
from ad_pipeline.serving.production import Interval, intervals
from ad_pipeline.warehouse import Warehouse, arrow_rows, rows_of, select

PAGE = "production.html"


def record_production(warehouse: Warehouse, deployment: Deployment) -> list[dict[str, Any]]:
    """Put every interval into the table and onto the page.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment

    Returns
    -------
    list of dict
        Rows of ``monitoring.production``, oldest first.
    """
    found = intervals(deployment.serving, deployment.bundles)
    warehouse.create(TABLES)
    begun = arrow_rows(PRODUCTION, [_record(each, {}) for each in found])
    served: dict[int, dict[str, Any]] = {}
    if deployment.dataset.sources_of("decisions"):
        with warehouse.reader() as connection:
            connection.register("served_bundles", begun)
            decided = rows_of(connection, select("monitoring.served_intervals")).to_pylist()
        served = {row["sequence"]: row for row in decided}
    rows = arrow_rows(
        PRODUCTION, [_record(each, served.get(each.move.sequence, {})) for each in found]
    )
    with warehouse.writer() as connection:
        connection.execute(f"DELETE FROM {PRODUCTION.name}")
        connection.register("production_rows", rows)
        connection.execute(f"INSERT INTO {PRODUCTION.name} BY NAME SELECT * FROM production_rows")
    records = rows.to_pylist()
    page = production_page(deployment.dataset.name, records, production_picture(records))
    replace_file(deployment.reports / PAGE, page.encode())
    return records


def _record(found: Interval, served: dict[str, Any]) -> dict[str, Any]:
    first_us = served.get("first_served_us")
    return {
        "sequence": found.move.sequence,
        "until_sequence": None if found.until is None else found.until.sequence,
        "action": found.move.action,
        "from_us": found.from_us,
        "until_us": found.until_us,
        "bundle_hash": found.move.digest,
        "models": json.dumps(found.models, sort_keys=True),
        "label_watermark_us": found.label_watermark_us,
        "why": found.why,
        "decided_by": found.decided_by,
        "evidence": found.move.evidence,
        "decisions": served.get("decisions", 0),
        "first_served_us": first_us,
        "last_served_us": served.get("last_served_us"),
        "hours_to_serving": None
        if first_us is None
        else (first_us - found.label_watermark_us) / HOUR_US,
    }
