"""``monitoring.alerts`` of a deployment: every source asked once, one table, one page.

What is asked is :mod:`.sources`; a source that fails fails the whole, since a silent one would be
taken for good news.
"""

from collections.abc import Sequence
from typing import Any

from ad_pipeline.checkpoints import replace_file
from ad_pipeline.datasets import Deployment
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.monitoring.alerts.alert import SEVERITIES, Alert, FailedCheck, Seen, in_order
from ad_pipeline.monitoring.alerts.alerts_page import alerts_page
from ad_pipeline.monitoring.alerts.sources import SOURCES
from ad_pipeline.monitoring.tables import ALERTS, TABLES
from ad_pipeline.warehouse import Warehouse, arrow_rows, rows_of

PAGE = "alerts.html"


class NoAlertsYet(LookupError):
    """Nobody has looked for alerts."""


def record_alerts(
    warehouse: Warehouse, deployment: Deployment, failed_checks: Sequence[FailedCheck] = ()
) -> list[Alert]:
    """Ask every source, and put what it found into the table and onto the page.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    failed_checks : sequence of FailedCheck
        As the orchestrator knows them.

    Returns
    -------
    list of Alert
        The severest first.
    """
    warehouse.create(TABLES)
    with warehouse.reader() as connection:
        tables = frozenset(
            f"{schema}.{name}"
            for schema, name in connection.execute(
                "SELECT table_schema, table_name FROM information_schema.tables "
                "WHERE table_catalog = 'warehouse'"
            ).fetchall()
        )
        known_until_us = sealed_until(connection) if "events.accounting" in tables else 0
        seen = Seen(connection, tables, deployment, known_until_us, failed_checks)
        # Without a sealed hour there is no "now" to be wrong in.
        found = [each for ask in SOURCES.values() for each in ask(seen)] if known_until_us else []
    alerts = in_order(found)
    rows = arrow_rows(
        ALERTS,
        [{"key": each.key, **vars(each), "known_until_us": known_until_us} for each in alerts],
    )
    with warehouse.writer() as connection:
        connection.execute(f"DELETE FROM {ALERTS.name}")
        connection.register("alerts_found", rows)
        connection.execute(f"INSERT INTO {ALERTS.name} BY NAME SELECT * FROM alerts_found")
    page = alerts_page(deployment.dataset.name, rows.to_pylist(), known_until_us)
    replace_file(deployment.reports / PAGE, page.encode())
    return alerts


def read_alerts(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Return the rows of ``monitoring.alerts``, the severest first; nothing else is read.

    Raises
    ------
    NoAlertsYet
        If the table was never made.
    """
    with warehouse.reader() as connection:
        made = connection.execute(
            "SELECT count(*) FROM information_schema.tables WHERE table_catalog = 'warehouse' "
            "AND table_schema = 'monitoring' AND table_name = 'alerts'"
        ).fetchone()
        if made != (1,):
            raise NoAlertsYet("nobody has looked yet; materialize monitoring/alerts")
        rows = rows_of(connection, f"SELECT * FROM {ALERTS.name}").to_pylist()
    return sorted(
        rows, key=lambda row: (SEVERITIES.index(row["severity"]), row["since_us"], row["key"])
    )
