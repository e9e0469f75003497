"""What every asset, check and sensor gets handed: the deployment and its warehouse.

The dataset and the home folder come from ``AD_PIPELINE_DATASET`` and ``AD_PIPELINE_HOME``, read in
:func:`ad_pipeline.datasets.deployment_from_env`, because partitions must be known before any run
configuration is. Connections are opened by assets for as long as they need them, not here.
"""

import dagster as dg

from ad_pipeline.datasets import Dataset, Deployment, deployment_from_env
from ad_pipeline.warehouse import Warehouse


class DeploymentResource(dg.ConfigurableResource):
    """The deployment that this code location serves."""

    wait_seconds: float = 600.0

    @property
    def paths(self) -> Deployment:
        """The deployment's dataset and folders."""
        return deployment_from_env()

    @property
    def dataset(self) -> Dataset:
        """The dataset file."""
        return self.paths.dataset

    @property
    def warehouse(self) -> Warehouse:
        """The warehouse, not yet opened."""
        return Warehouse(self.paths.warehouse, wait_seconds=self.wait_seconds)


@dg.definitions
def resources() -> dg.Definitions:
    """Bind the resource, and run steps in one process: a step a process costs 5 s each."""
    return dg.Definitions(
        resources={"deployment": DeploymentResource()}, executor=dg.in_process_executor
    )
