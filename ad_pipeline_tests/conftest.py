"""What holds for every test: no trace of the developer's deployments, and nothing is reported.

It is set when pytest starts, not in a fixture: Dagster's definitions read the deployment when they
are imported, which is when tests are collected, and tests start processes that inherit it all.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

SCRATCH = tempfile.mkdtemp(prefix="ad_pipeline_tests-")
"""Removed when pytest ends. A test that names no home of its own works in here."""

atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)

# Another deployment or Dagster instance must not be touched, even if the shell names one.
for name in ("AD_PIPELINE_DATASET", "DAGSTER_HOME"):
    os.environ.pop(name, None)
os.environ["AD_PIPELINE_HOME"] = SCRATCH

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
# Waiting OpenMP threads sleep: spinning ones slow each other down on a small machine.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# On a machine whose caches are empty, the first example of a test compiles what it calls.
settings.register_profile("compiled", deadline=None)
settings.load_profile("compiled")

SHARING = frozenset({"defs", "monitoring", "serving"})
"""Folders whose tests share a market that takes minutes to run: they stay in one process."""


class Together(LoadScopeScheduling):
    """Gives a worker all tests of a file, or of a folder that shares, at once."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        folder = file.parent.name
        return folder if folder in SHARING else str(file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together:
    """Schedule by what tests share: pytest-xdist 3.8 loses its own groups under pytest 9."""
    return Together(config, log)
