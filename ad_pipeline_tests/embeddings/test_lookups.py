"""What a guard did stays in the warehouse, also when it refused."""

from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.embeddings.lookups import counted
from ad_pipeline.embeddings.versions import MixedVersions, VersionGuard
from ad_pipeline.warehouse import Warehouse

NOTHING = np.zeros((1, 2), np.float32)


def meet(warehouse: Warehouse, *wanted: str) -> None:
    """Bring vectors of version a together with others, one after the other."""
    with counted(warehouse, VersionGuard(0.1), "embeddings.candidates", 5) as guard:
        for version in wanted:
            guard.aligned(NOTHING, "a", version)


def kept(warehouse: Warehouse) -> list[tuple]:
    with warehouse.reader() as connection:
        return connection.execute(
            "SELECT version, wanted, outcome, lookups, as_of_us FROM embeddings.version_lookups "
            "ORDER BY ALL"
        ).fetchall()


def test_a_refused_lookup_is_an_error_and_is_counted(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    with pytest.raises(MixedVersions):
        meet(warehouse, "a", "a", "b")
    assert kept(warehouse) == [("a", "a", "passed", 2, 5), ("a", "b", "refused", 1, 5)]


def test_a_rerun_replaces_its_own_counts_and_no_others(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    for asked_by, as_of_us in (("one", 5), ("one", 6), ("two", 5), ("one", 5)):
        with counted(warehouse, VersionGuard(0.1), asked_by, as_of_us) as guard:
            guard.aligned(NOTHING, "a", "a")
    assert kept(warehouse) == [("a", "a", "passed", 1, us) for us in (5, 5, 6)]
