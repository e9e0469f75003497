"""The jobs a person or a sensor starts.

Each is a selection of assets; what they do stands with the assets, when they start by themselves
in ``automation.py`` and ``sensors.py``.
"""

import dagster as dg

main = dg.define_asset_job(
    "main",
    selection=dg.AssetSelection.all(),
    description=(
        "Run the whole path for a range of log hours: events, labels, learners, ensemble, drift, "
        "parity, bundle, promotion. Start it from the Partitions tab with any range."
    ),
)

ledger = dg.define_asset_job(
    "ledger",
    selection=dg.AssetSelection.assets(["events", "files"]),
    description="Register new log files in the ledger, each once, with its checksum.",
)

retrain = dg.define_asset_job(
    "retrain",
    # One step makes both: the table of what was asked for, and the model.
    selection=dg.AssetSelection.assets(["learners", "retrains"], ["learners", "batch_model"]),
    description=(
        "Train LightGBM anew in one log hour and record why. The drift sensor starts it; the "
        "ensemble, the bundle and its checks follow by automation."
    ),
)
