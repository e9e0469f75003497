"""Evidently's page of a comparison: for people, beside a verdict that was reached without it.

It costs ten seconds where the statistics cost a fraction of one, so it is drawn on the same folded
columns and only beside a drift or on request. Whether anything drifted is :mod:`.inputs`.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from ad_pipeline.monitoring.drift.inputs import Folded, Kind, fold
from ad_pipeline.settings import DriftSettings

_EVIDENTLY_SWITCHES = {"DO_NOT_TRACK": "1", "EVIDENTLY_DISABLE_TELEMETRY": "1"}


def evidently_report(
    reference: pa.Table,
    current: pa.Table,
    columns: Mapping[str, Kind],
    settings: DriftSettings,
    path_html: Path,
) -> dict[str, float]:
    """Write Evidently's drift report of the folded columns and return its numbers.

    One PSI per column instead of the drift preset, which computes every column three times and
    whose default on categories alarms with the number of rows. Evidently's PSI cuts numbers into
    equal-width bins and drops nulls, so its values differ from ours, which decide.

    Parameters
    ----------
    reference, current, columns, settings
        As for :func:`.inputs.drift_report`.
    path_html : Path
        Replaced whole: a reader sees the old report or the new one.

    Returns
    -------
    dict of str to float
        Column to Evidently's PSI. A column without a value on either side is left out.
    """
    # Read at import: set before it, and only if the operator has not.
    for switch, value in _EVIDENTLY_SWITCHES.items():
        os.environ.setdefault(switch, value)
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    folded = fold(reference, current, columns, settings)
    shown = [name for name in folded.kinds if _has_values(folded, name)]
    definition = DataDefinition(
        numerical_columns=[name for name in shown if folded.kinds[name] == "numeric"],
        categorical_columns=[name for name in shown if folded.kinds[name] == "categorical"],
    )
    report = Report(
        [ValueDrift(column=name, method="psi", threshold=settings.psi_threshold) for name in shown]
    )
    run = report.run(
        current_data=Dataset.from_pandas(
            pd.DataFrame({name: folded.shown("current", name) for name in shown}),
            data_definition=definition,
        ),
        reference_data=Dataset.from_pandas(
            pd.DataFrame({name: folded.shown("reference", name) for name in shown}),
            data_definition=definition,
        ),
    )
    path_html.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path_html.parent, prefix=".report-") as folder:
        unfinished = Path(folder) / path_html.name
        run.save_html(str(unfinished))
        unfinished.replace(path_html)
    return {metric["config"]["column"]: float(metric["value"]) for metric in run.dict()["metrics"]}


def _has_values(folded: Folded, name: str) -> bool:
    if folded.kinds[name] == "categorical":
        return True
    return all(bool((~np.isnan(side[name])).any()) for side in (folded.reference, folded.current))
