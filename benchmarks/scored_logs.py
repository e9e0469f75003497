"""A made log of one goal as files, taken in as anyone's log is, with scores beside it.

What is needed where the question is about labels and scores and not about learning: impressions and
conversions come through the ingest and the label join, the scores are given.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.clocks import HOUR_US, datetime_of
from ad_pipeline.datasets import Deployment, load_dataset
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.ledger import register_files
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.learners.tables import ONLINE_PREDICTIONS
from ad_pipeline.learners.tables import TABLES as LEARNER_TABLES
from ad_pipeline.warehouse import Warehouse

GOAL = "conversion"

DATASET = """\
name: made
start: {start:%Y-%m-%dT%H:%MZ}
end: {end:%Y-%m-%dT%H:%MZ}
goals:
  conversion: {{anchor: impression, window: {window_hours}h, observation: 1h}}
sources:
  impressions:
    files: "impressions.parquet"
    columns:
      impression_id: impression_id
      campaign_id: campaign_id
      occurred_us: occurred_us
      received_us: occurred_us
  engagements:
    files: "engagements.parquet"
    columns:
      event_id: event_id
      impression_id: impression_id
      goal: "'conversion'"
      occurred_us: occurred_us
      received_us: occurred_us
features:
  categorical: [campaign_id]
settings: {settings}
"""


@dataclass(frozen=True)
class ScoredLog:
    """Impressions of a made log, in order, what becomes of them, and what is said of them.

    Attributes
    ----------
    start_us : int
        Start of an hour.
    hours, window_hours : int
        Of the log, and of the goal.
    served_us : ndarray of shape (n,), int64
    campaign : ndarray of shape (n,), int64
    converted : ndarray of shape (n,), bool
    arrived_us : ndarray of shape (n,), int64
        When a conversion is known, at most a window after it was served.
    logits : ndarray of shape (n,), float64
    """

    start_us: int
    hours: int
    window_hours: int
    served_us: np.ndarray
    campaign: np.ndarray
    converted: np.ndarray
    arrived_us: np.ndarray
    logits: np.ndarray

    @property
    def end_us(self) -> int:
        """End of the log; conversions after it are not in it."""
        return self.start_us + self.hours * HOUR_US


def taken_in(log: ScoredLog, folder: Path, settings: str = "{}") -> Deployment:
    """Write a log as files, ingest it, join its labels, and put the scores beside it.

    Parameters
    ----------
    log : ScoredLog
    folder : Path
    settings : str
        YAML, in one line.
    """
    ids = np.array([f"i{number:06d}" for number in range(len(log.served_us))])
    impressions = {
        "impression_id": ids,
        "campaign_id": [f"c{number}" for number in log.campaign.tolist()],
        "occurred_us": log.served_us,
    }
    told = log.converted & (log.arrived_us < log.end_us)
    engagements = {
        "event_id": np.char.replace(ids[told], "i", "e"),
        "impression_id": ids[told],
        "occurred_us": log.arrived_us[told],
    }
    pq.write_table(pa.table(impressions), folder / "impressions.parquet")
    pq.write_table(pa.table(engagements), folder / "engagements.parquet")
    (folder / "dataset.yaml").write_text(
        DATASET.format(
            start=datetime_of(log.start_us),
            end=datetime_of(log.end_us),
            window_hours=log.window_hours,
            settings=settings,
        )
    )
    deployment = Deployment(load_dataset(folder / "dataset.yaml"), folder / "home")
    warehouse = Warehouse(deployment.warehouse)
    warehouse.create(LEARNER_TABLES)
    register_files(warehouse, deployment)
    ingest_hours(warehouse, deployment, log.start_us, log.end_us)
    join_labels(warehouse, deployment.dataset, log.start_us, log.end_us)
    scores = {"impression_id": ids, "logit": log.logits, "serving_us": log.served_us}
    with warehouse.writer() as connection:
        connection.register("said", pa.table(scores))
        connection.execute(
            f"INSERT INTO {ONLINE_PREDICTIONS.name} BY NAME SELECT $goal AS goal, "
            "'online' AS expert, 'made' AS model_hash, said.* FROM said",
            {"goal": GOAL},
        )
    return deployment


def drawn_delays(
    rng: np.random.Generator, rows: int, mean_hours: float, window_hours: int
) -> np.ndarray:
    """Draw exponential delays, cut off at the window, microseconds, int64 (rows,)."""
    cut = -np.expm1(-window_hours / mean_hours)
    hours = -np.log1p(-rng.random(rows) * cut) * mean_hours
    return (hours * HOUR_US).astype(np.int64)
