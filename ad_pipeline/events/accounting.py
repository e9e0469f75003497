"""Checks that every row read from a log file is somewhere: kept, duplicate, held or quarantined.

The counts in ``events.accounting`` were made while the rows were sorted; here the tables themselves
are counted again and held against them, so that a lost, doubled or altered row shows. What to do
about a gap is for the caller: the asset check fails.
"""

from dataclasses import dataclass

import duckdb

from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.events.contract import LOG_TABLES


@dataclass(frozen=True)
class Gap:
    """A place where the accounts do not add up.

    Attributes
    ----------
    table_name : str
    hour_us : int or None
        Start of the log hour, microseconds; None for the log as a whole.
    problem : str
        Which numbers disagree.
    """

    table_name: str
    hour_us: int | None
    problem: str

    def __str__(self) -> str:
        """Return the gap as one line."""
        where = "all hours" if self.hour_us is None else hour_key(self.hour_us)
        return f"{self.table_name} {where}: {self.problem}"


def accounting_gaps(
    connection: duckdb.DuckDBPyConnection,
    start_us: int | None = None,
    end_us: int | None = None,
) -> tuple[Gap, ...]:
    """Return every violation of the accounting identity in some hours, or in all.

    Three things are checked: ``held before + rows_in = kept + duplicates + quarantined + held
    after`` in every hour; each of these numbers against the rows of its table; and, for tables
    whose files were read whole, the sum of ``rows_in`` against the ledger.

    Parameters
    ----------
    connection : DuckDBPyConnection
        With the tables of the room.
    start_us, end_us : int, optional
        Hours ``[start_us, end_us)``, microseconds; the ledger is held against all hours either way.
    """
    clocks = {
        "start_us": 0 if start_us is None else start_us,
        "end_us": (1 << 62) if end_us is None else end_us,
        "hour": HOUR_US,
    }
    gaps: list[Gap] = []
    for row in connection.execute(_HOURS, clocks).fetchall():
        table_name, hour_us, account, counted = row[0], row[1], row[2:7], row[7:12]
        held_before, rows_in, kept, duplicates, quarantined, held = row[12], *account
        if held_before + rows_in != kept + duplicates + quarantined + held:
            gaps.append(
                Gap(
                    table_name,
                    hour_us,
                    f"held before {held_before} + rows in {rows_in} is not kept {kept} + "
                    f"duplicates {duplicates} + quarantined {quarantined} + held after {held}",
                )
            )
        named = ("rows_in", "kept", "duplicates", "quarantined", "held")
        for name, said, found in zip(named, account, counted, strict=True):
            if found is not None and said != found:
                gaps.append(
                    Gap(table_name, hour_us, f"{name} is {said}, but the tables hold {found}")
                )
    for table_name, rows_in, in_files in connection.execute(_LEDGER).fetchall():
        if rows_in != in_files:
            gaps.append(
                Gap(table_name, None, f"rows_in sum to {rows_in}, the files hold {in_files}")
            )
    return tuple(gaps)


_KEPT = " UNION ALL ".join(
    f"SELECT '{table.name.removeprefix('events.')}' AS table_name, "
    f"received_us - received_us % $hour AS hour_us, 1 AS kept, 0 AS duplicates, 0 AS quarantined "
    f"FROM {table.name} WHERE received_us >= $start_us AND received_us < $end_us"
    for table in LOG_TABLES
)

_HOURS = f"""
WITH found AS (
    SELECT
        table_name,
        hour_us,
        sum(kept) AS kept,
        sum(duplicates) AS duplicates,
        sum(quarantined) AS quarantined
    FROM (
        {_KEPT}
        UNION ALL
        SELECT table_name, received_us - received_us % $hour, 0, 1, 0
        FROM events.duplicates WHERE received_us >= $start_us AND received_us < $end_us
        UNION ALL
        SELECT table_name, received_us - received_us % $hour, 0, 0, 1
        FROM events.quarantine WHERE received_us >= $start_us AND received_us < $end_us
    ) AS rows
    GROUP BY table_name, hour_us
),

first_impressions AS (
    SELECT impression_id, min(received_us) AS received_us
    FROM events.impressions
    WHERE impression_id IN (SELECT impression_id FROM events.held_engagements)
    GROUP BY impression_id
),

holds AS (
    SELECT
        held.received_us AS since_us,
        CASE
            WHEN first_impressions.received_us <= held.due_us THEN first_impressions.received_us
            ELSE held.due_us
        END AS until_us
    FROM events.held_engagements AS held
    LEFT JOIN first_impressions ON first_impressions.impression_id = held.impression_id
),

accounts AS (
    SELECT
        *,
        coalesce(lag(held) OVER (PARTITION BY table_name ORDER BY hour_us), 0) AS held_before
    FROM events.accounting
),

stock AS (
    SELECT hours.hour_us, count(holds.since_us) AS held
    FROM (
        SELECT DISTINCT hour_us FROM events.accounting
        WHERE hour_us >= $start_us AND hour_us < $end_us
    ) AS hours
    LEFT JOIN holds
        ON holds.since_us < hours.hour_us + $hour AND holds.until_us >= hours.hour_us + $hour
    GROUP BY hours.hour_us
)

SELECT
    coalesce(accounts.table_name, found.table_name) AS table_name,
    coalesce(accounts.hour_us, found.hour_us) AS hour_us,
    coalesce(accounts.rows_in, 0),
    coalesce(accounts.kept, 0),
    coalesce(accounts.duplicates, 0),
    coalesce(accounts.quarantined, 0),
    coalesce(accounts.held, 0),
    NULL AS rows_in_found,
    coalesce(found.kept, 0),
    coalesce(found.duplicates, 0),
    coalesce(found.quarantined, 0),
    CASE WHEN accounts.table_name = 'engagements' THEN stock.held ELSE 0 END,
    coalesce(accounts.held_before, 0)
FROM (SELECT * FROM accounts WHERE hour_us >= $start_us AND hour_us < $end_us) AS accounts
FULL JOIN found ON found.table_name = accounts.table_name AND found.hour_us = accounts.hour_us
LEFT JOIN stock ON stock.hour_us = accounts.hour_us
ORDER BY 2, 1
"""

# Only tables all of whose files end before the last accounted hour: of others some rows are due.
_LEDGER = f"""
SELECT accounted.table_name, accounted.rows_in, coalesce(files.rows, 0)
FROM (
    SELECT table_name, sum(rows_in) AS rows_in, max(hour_us) + {HOUR_US} AS end_us
    FROM events.accounting
    GROUP BY table_name
) AS accounted
LEFT JOIN (
    SELECT
        table_name,
        sum(rows - rows_before_start) AS rows,
        max(greatest(coalesce(last_received_us, 0), sealed_until_us)) AS last_us
    FROM events.files
    GROUP BY table_name
) AS files ON files.table_name = accounted.table_name
WHERE coalesce(files.last_us, 0) < accounted.end_us
ORDER BY 1
"""
