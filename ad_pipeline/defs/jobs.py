"""The jobs a person or a sensor starts.

Each is a selection of assets; what they do stands with the assets, when they start by themselves
in ``automation.py`` and ``sensors.py``.
"""

import dagster as dg

BENCHMARK = dg.AssetSelection.assets(["monitoring", "delay_benchmark"])
"""Replays the log some hundred times: half an hour, and nothing in the path waits for it."""

REPORT = dg.AssetSelection.assets(["monitoring", "delay_report"])
"""Replays made worlds for half a minute, of delays that change in days and not in hours."""

DRILL = dg.AssetSelection.assets(["monitoring", "rollback_drill"])
"""Somebody asks for it; it says nothing about the log."""

main = dg.define_asset_job(
    "main",
    selection=dg.AssetSelection.all() - BENCHMARK - REPORT - DRILL,
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

recover_online_model = dg.define_asset_job(
    "recover_online_model",
    # Retrains stand upstream and are made in one step with the batch model.
    selection=dg.AssetSelection.assets(["learners", "quarantined_hours"])
    .downstream()
    .required_multi_asset_neighbors()
    - REPORT
    - DRILL,
    description=(
        "Take the online model back to before a suspect log hour and learn from there on without "
        "it; all that depends on the model is made anew. Choose the partitions from that hour to "
        "the newest one, and name it by goal in the configuration of the step quarantine: "
        "hours: {click: '2026-03-02-07:00'}. The sensor suspect_hours starts it when the guard "
        "trips."
    ),
)

prune = dg.define_asset_job(
    "prune",
    selection=dg.AssetSelection.assets(["learners", "kept_checkpoints"]),
    description=(
        "Remove the checkpoints of the online model that settings.checkpoints does not keep, and "
        "bundles that never served. The main job does it, too."
    ),
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

benchmark_delays = dg.define_asset_job(
    "benchmark_delays",
    selection=BENCHMARK,
    description=(
        "Replay every way of learning from late labels on a sample of the log, for up to half an "
        "hour, and compare them on matured labels. Killed, it goes on where it was."
    ),
)

report_delays = dg.define_asset_job(
    "report_delays",
    selection=REPORT,
    description=(
        "Say how late labels come, which loss to learn them with and what another one would cost, "
        "and check that served scores are calibrated at every age of an ad."
    ),
)

rollback_drill = dg.define_asset_job(
    "rollback_drill",
    selection=DRILL,
    description=(
        "Plant faults in a copy of what serves, and see them refused, undone and timed: a flipped "
        "byte, a canary that is off, a poisoned model, a torn pointer, stale rates. What serves is "
        "not touched. Name some of them in the configuration of the step rollback_drill, or drill "
        "all."
    ),
)
